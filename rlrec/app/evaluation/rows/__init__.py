"""This package has the rows of a log, with what evaluations need of the store for them."""
