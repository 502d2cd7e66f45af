"""This package turns contexts and arms into features, and holds the models that read these features."""
