"""Modules here offer the commands by other ways than the shell. They are servers for programs and browsers, and Python
functions."""
