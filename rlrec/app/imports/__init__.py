"""Logs from elsewhere, read from files in several layouts and written into the store."""
