"""Experiments, routes and shadows: policies, and whom they serve."""
