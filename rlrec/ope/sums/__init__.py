"""Modules here compute sums per cluster, and hold the batches that the sums come from."""
