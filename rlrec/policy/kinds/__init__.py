"""This package holds the kinds of policies: those that learn online and those that do not learn."""
