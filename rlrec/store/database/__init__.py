"""Modules here provide connections, transactions, tables, and fast reads and writes."""
