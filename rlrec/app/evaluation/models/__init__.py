"""Models of rewards."""
