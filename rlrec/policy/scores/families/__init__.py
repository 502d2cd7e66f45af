"""This package holds the families of score distributions. Each family has a file."""
