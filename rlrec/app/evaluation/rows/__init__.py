"""The rows of a log, and what they need of the store."""
