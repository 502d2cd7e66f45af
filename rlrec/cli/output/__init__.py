"""Modules here write results as tables, JSON and CSV."""
