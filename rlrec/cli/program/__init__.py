"""Modules here hold what all commands share, such as options, input files, errors and signals."""
