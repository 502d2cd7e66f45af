"""This package draws ordered slates, with exact propensities."""
