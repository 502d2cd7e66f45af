"""Intervals, differences and comparisons of means."""
