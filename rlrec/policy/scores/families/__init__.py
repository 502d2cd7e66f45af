"""Families of score distributions, one per file: how noisy scores are drawn, and the exact distribution of their
order."""
