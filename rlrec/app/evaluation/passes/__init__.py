"""Passes over the log, and what is summed in them."""
