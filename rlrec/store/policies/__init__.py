"""Modules here store policies, their beliefs, and experiments and routes, which decide whom policies serve."""
