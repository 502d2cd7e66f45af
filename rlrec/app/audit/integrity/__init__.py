"""This package checks that stored rows, references, times and beliefs fit together."""
