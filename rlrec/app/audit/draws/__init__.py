"""Propensities, draws and rewards."""
