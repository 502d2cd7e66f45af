"""This package compares policies and groups."""
