"""Upkeep of the store: audit, removal, copies, import and export of logs."""
