"""Off-policy evaluation: requests, the reader of their log, the fold over it, and estimates as rows."""
