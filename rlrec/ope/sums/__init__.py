"""Sums per cluster, and the batches that they come from."""
