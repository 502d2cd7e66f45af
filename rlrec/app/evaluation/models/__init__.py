"""This package has models of rewards."""
