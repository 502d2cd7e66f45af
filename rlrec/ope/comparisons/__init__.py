"""Modules here compare two metrics or targets. They compute the difference, its interval, and the answer which is
better."""
