"""Modules here turn the answers of commands into figures and HTML pages. They generate text from numbers, and need no
store, terminal or drawing library."""
