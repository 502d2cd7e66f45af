"""Requests, feedback, sessions and decisions."""
