"""Modules here compute from the log what policies earn, as estimates and other figures."""
