"""Modules here turn the answers of commands into figures and pages. They generate text from numbers, and need no store,
terminal or drawing library."""
