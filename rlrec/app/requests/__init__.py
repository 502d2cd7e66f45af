"""Modules here serve requests, take feedback, and show sessions and decisions."""
