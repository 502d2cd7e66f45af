"""This package finds targets, and computes how likely a target would have shown what the log shows."""
