"""Commands here manage experiments, routes and shadows, which decide which users a policy serves."""
