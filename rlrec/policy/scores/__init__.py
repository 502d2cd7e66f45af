"""This package holds the distributions of noisy scores of arms, and draws slates from the scores."""
