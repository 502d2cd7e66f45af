"""Commands here estimate and show, from the log, how much reward policies earn."""
