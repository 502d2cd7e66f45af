"""Modules here set up a store: they create it, fill its catalogue, define rewards, and try it out with simulated
users."""
