"""This package reads the log in passes, and defines the data that each pass sums."""
