"""Beliefs: sums that add up."""
