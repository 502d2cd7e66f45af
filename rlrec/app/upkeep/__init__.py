"""Use cases here maintain the store: they audit it, remove rows, make copies, and import and export logs."""
