"""This package checks that stored rows, references, times and beliefs agree with each other."""
