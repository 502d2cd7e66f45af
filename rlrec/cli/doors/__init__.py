"""Doors that stay open: HTTP."""
