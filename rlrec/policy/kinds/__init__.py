"""This package holds the kinds of policies that learn online, and those that do not learn."""
