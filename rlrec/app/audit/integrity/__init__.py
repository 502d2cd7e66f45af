"""Checks that what is stored fits together: rows, references, times and beliefs."""
