"""Simulated audiences."""
