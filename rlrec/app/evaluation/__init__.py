"""What `evaluate` is made of: the rows of a log, who logged them, and what targets would have shown."""
