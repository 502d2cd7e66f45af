"""Commands here audit a store, delete from it and copy it, and import and export logs."""
