"""Off-policy evaluation: requests, the reader of their log, the fold over it, and estimates as rows.

The descriptions of the estimators are here for the help, which opens no store."""

from rlrec.ope import descriptions

__all__ = ["descriptions"]
