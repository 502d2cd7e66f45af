"""Modules here train policies for whole visits. They write the log as a dataset on disk, train on this dataset by
gradient ascent, and evaluate the result."""
