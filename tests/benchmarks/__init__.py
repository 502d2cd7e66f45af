"""How close rlrec comes to what SQLite, PostgreSQL, numpy and the start-up of Python allow."""
