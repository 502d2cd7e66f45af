"""This module names the script that grants roles of PostgreSQL their rights on a store."""

from __future__ import annotations

from rlrec.store.upkeep.roles import Grant, grants

__all__ = ["Grant", "grants"]
