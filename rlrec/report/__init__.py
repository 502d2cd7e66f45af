"""Answers as figures and as a page: text generated from numbers, without a store, a terminal or a library."""
