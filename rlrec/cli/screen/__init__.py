"""Modules here make the pages of the screen, which show in a browser what the store holds."""
