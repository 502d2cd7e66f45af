"""Ordered slates with exact propensities."""
