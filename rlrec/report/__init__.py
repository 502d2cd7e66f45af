"""Answers as figures and as a page: text made of numbers, without a store, a terminal or a library."""
