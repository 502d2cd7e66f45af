"""Modules here copy stores, set up roles, remove rows, and ask the queries of the audit."""
