"""Decisions, events, sessions and what they refer to."""
