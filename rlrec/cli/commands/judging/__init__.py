"""Commands here estimate and show, from the log, what policies earn."""
