"""This package trains policies on whole visits."""
