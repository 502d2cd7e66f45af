"""Copies, roles, removals and the audit."""
