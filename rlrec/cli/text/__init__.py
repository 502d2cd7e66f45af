"""Modules here convert between values and the text that people write and read."""
