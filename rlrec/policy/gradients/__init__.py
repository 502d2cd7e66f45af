"""Training of a policy on visits."""
