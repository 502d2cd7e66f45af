"""Connections, transactions, tables and fast reads and writes."""
