"""Modules here read logs of other systems from files in several layouts, and write them into the store."""
