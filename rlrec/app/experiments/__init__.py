"""Modules here manage experiments, routes and shadows. Experiments and routes decide which policy serves which user. A
shadow is a policy that is only compared with what a route serves."""
