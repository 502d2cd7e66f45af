"""Policies, their versions and their training."""
