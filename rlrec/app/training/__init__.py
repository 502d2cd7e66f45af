"""Training for whole visits: the log as a dataset on disk, the ascent over it, and the value of the result."""
