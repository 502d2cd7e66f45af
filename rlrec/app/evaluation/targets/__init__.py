"""The probabilities of a target."""
