"""Modules here compute intervals and tests of means."""
