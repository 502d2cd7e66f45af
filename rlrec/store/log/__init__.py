"""Modules here store decisions, events, sessions and what they refer to."""
