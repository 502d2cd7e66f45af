"""Modules here store policies and their beliefs, and the experiments and routes that decide which policy serves
whom."""
