"""Modules here train policies for whole visits. They write the log as a dataset on disk, ascend over it, and evaluate
the result."""
