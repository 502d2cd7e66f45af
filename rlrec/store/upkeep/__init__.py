"""Copies, roles, removals, and queries for the audit."""
