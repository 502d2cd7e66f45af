"""Modules here turn sums into estimates, one module for each kind of row, such as impressions, slates or visits."""
