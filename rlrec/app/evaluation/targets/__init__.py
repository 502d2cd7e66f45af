"""This package has targets, and computes the probabilities with which a target would have shown what the log shows."""
