"""Modules here manage experiments, routes and shadows. Experiments and routes decide which policy serves whom."""
