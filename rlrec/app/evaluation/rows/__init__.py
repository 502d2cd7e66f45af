"""This package has the rows of a log, with all data of the store that evaluations need about the rows."""
