"""Off-policy evaluation: requests, the reader of their log, the fold over it, and estimates as rows.

The descriptions of the estimators are for help: no store is opened for it."""

from rlrec.ope import descriptions

__all__ = ["descriptions"]
