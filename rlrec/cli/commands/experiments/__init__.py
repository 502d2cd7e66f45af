"""Commands here manage experiments, routes and shadows, which say whom a policy serves."""
