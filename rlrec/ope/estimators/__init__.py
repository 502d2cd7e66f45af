"""The estimators, one family per file."""
