"""Use cases here set up a store, and try it out."""
