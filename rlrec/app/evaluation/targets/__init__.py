"""This package has targets, and the probabilities with which they would have shown what the log shows."""
