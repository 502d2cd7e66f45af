"""Commands here serve requests, take feedback, and show sessions, users and decisions."""
