"""Set-up of a store, and ways to try it out."""
