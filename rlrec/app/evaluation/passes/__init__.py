"""This package makes passes over the log, and defines the data that each pass sums."""
