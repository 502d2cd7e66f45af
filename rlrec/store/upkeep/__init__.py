"""Modules here copy stores, grant rights to roles, remove rows, and run the queries of the audit."""
