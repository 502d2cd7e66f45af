"""From sums to estimates, in each unit of a row."""
