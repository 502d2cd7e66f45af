"""The store: audit, removal, copies, logs in and out."""
