"""Comparisons of two metrics or targets: their difference, its interval and the answer."""
