"""Beliefs: sums that can be added."""
