"""Modules here manage experiments, routes and shadows, which decide whom a policy serves."""
