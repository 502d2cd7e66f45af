"""Policies, their beliefs, and experiments and routes, which decide whom they serve."""
