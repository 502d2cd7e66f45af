"""Modules here store decisions, events and sessions, and the contexts and eligible sets that decisions refer to."""
