"""Logs from elsewhere into the store: layouts of files, and the place their lines take."""
