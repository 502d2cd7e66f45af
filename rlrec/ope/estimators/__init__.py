"""Modules here have the estimators of impressions, one family per file."""
