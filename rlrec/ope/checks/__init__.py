"""Checks of what a log can support."""
