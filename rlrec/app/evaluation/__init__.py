"""This package evaluates policies off-policy. It has the requests, the reader of the log that a request selects, the
computation of sums over the log, and the estimates as rows.

The descriptions of the estimators are imported here for the help, which opens no store."""

from rlrec.ope import descriptions

__all__ = ["descriptions"]
