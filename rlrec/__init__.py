"""Exploration and reinforcement learning for recommenders, on a SQL store."""

__version__ = "0.1.0"
