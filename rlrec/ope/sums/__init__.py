"""Modules here sum columns of the log per cluster, and hold the batches of rows that the columns come from."""
