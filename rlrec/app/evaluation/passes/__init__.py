"""This package makes passes over the log, and defines what is summed in them."""
