"""This package holds distributions of noisy scores of arms, and the draw from them."""
