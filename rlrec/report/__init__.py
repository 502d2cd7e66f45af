"""Modules here turn answers into figures and pages. They generate text from numbers, without a store, a terminal or a
library."""
