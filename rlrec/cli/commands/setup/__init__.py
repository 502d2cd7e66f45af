"""Commands here set up a store, fill its catalogue, and try it out."""
