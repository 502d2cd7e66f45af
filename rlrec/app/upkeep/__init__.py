"""Use cases here keep up the store: audit, removal, copies, import and export of logs."""
