"""The estimators, a family a file."""
