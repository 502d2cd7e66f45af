"""This package defines the rows of a log for evaluations, with all data of the store that evaluations need."""
