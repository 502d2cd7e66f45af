"""From sums to estimates, for each unit of a row."""
