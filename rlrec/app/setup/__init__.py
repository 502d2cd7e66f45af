"""Setting up a store, and trying it out."""
