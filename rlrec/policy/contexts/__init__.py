"""Contexts and features of arms as vectors."""
