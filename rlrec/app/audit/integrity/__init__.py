"""Rows, references, times and beliefs."""
