"""Training for whole visits: the log on disk in arrays, the climb over it, and what judges where it leads."""
