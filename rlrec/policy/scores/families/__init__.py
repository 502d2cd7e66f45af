"""This package holds the families of score distributions, one file for each."""
