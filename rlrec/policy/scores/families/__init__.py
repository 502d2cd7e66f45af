"""Families of score distributions, one a file: how noisy scores are drawn, and the exact order in which they stand."""
