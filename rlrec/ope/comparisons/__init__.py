"""Modules here compare two metrics or targets: their difference, its interval, and which one is better."""
