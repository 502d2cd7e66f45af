"""Distributions of noisy scores and the draw from them."""
