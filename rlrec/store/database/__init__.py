"""Modules here provide connections to databases, transactions, the tables of the store, and fast reads and writes."""
