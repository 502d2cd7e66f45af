"""Estimates and figures of what policies earn, from the log."""
