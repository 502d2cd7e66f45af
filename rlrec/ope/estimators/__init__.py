"""Modules here have the estimators whose rows are impressions, one family per file."""
