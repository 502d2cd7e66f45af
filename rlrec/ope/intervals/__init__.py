"""Modules here compute intervals, differences and comparisons of means."""
