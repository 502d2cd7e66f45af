"""Output of results as tables, JSON and CSV."""
