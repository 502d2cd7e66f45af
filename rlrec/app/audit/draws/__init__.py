"""This package checks the propensities, draws and rewards of the log."""
