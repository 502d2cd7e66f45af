"""Modules here check what a log can support."""
