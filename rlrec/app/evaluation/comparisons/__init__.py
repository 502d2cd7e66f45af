"""Comparisons of policies and of groups."""
