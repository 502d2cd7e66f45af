"""How close rlrec comes to what SQLite, PostgreSQL, numpy and the start-up of Python allow."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the program does, before numpy is imported
