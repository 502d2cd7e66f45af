"""The estimators there are, for help: no store is opened for it."""

from __future__ import annotations

from rlrec.ope import descriptions

__all__ = ["descriptions"]
