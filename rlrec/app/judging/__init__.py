"""Modules here compute from the log what policies earn and what they show."""
