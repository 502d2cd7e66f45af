"""Modules here turn sums into estimates. Each module is for one unit of analysis, such as impressions, slates or
visits."""
