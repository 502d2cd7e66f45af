"""Checks of a log: what it can carry."""
