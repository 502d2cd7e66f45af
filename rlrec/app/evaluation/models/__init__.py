"""This package has the models of rewards."""
