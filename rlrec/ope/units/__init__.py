"""Modules here turn sums into estimates, one module for each unit that a row can be."""
