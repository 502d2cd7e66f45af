"""Use cases here create, change and train policies and their versions."""
