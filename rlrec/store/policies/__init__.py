"""Policies, beliefs and who serves what."""
