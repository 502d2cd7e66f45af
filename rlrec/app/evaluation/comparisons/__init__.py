"""This package compares policies with each other, and groups of users or sessions."""
