"""This module passes on the functions that write the script of rights for PostgreSQL roles."""

from __future__ import annotations

from rlrec.store.upkeep.roles import Grant, grants

__all__ = ["Grant", "grants"]
