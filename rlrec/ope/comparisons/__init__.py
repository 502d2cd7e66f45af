"""Modules here compare two metrics or targets, by their difference, its interval and the answer."""
