"""Comparisons: one metric or target less another, with its interval and its answer."""
