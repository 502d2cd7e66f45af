"""This package has the models of rewards that evaluations use."""
