"""Modules here offer the commands in other ways than the shell: as servers for programs and browsers, and as Python
functions."""
