"""Checks of who is behind the sessions of a log."""

from __future__ import annotations

import numpy as np

from rlrec.app.evaluation.checks.base import Check, CheckedRows
from rlrec.arrays import Ids, distinct
from rlrec.ope.checks.machines import SessionSums, machines_play, session_sums
from rlrec.store.log.reader import ABSENT


class NoUsers(Check):
    """Whether no user is known, and nobody said that each session is another person: people who come back under other
    keys make intervals too narrow, and nothing in the log tells of them."""

    reason = "no-users"

    def sums(self, checked: CheckedRows) -> Ids | None:
        """How many slots have a user, and how many have none and may be of people who come back."""
        if checked.people == "stated":
            return None
        slots = checked.rows.slots
        has_user = slots["user_id"] != ABSENT if checked.cluster == "user" else np.zeros(len(checked.rows), np.bool_)
        is_unclear = ~has_user & (slots["imported"] | (checked.people is None))
        return np.array([has_user.sum(), is_unclear.sum()])

    def fails(self, sums: Ids) -> bool:
        users, unclear = sums
        return bool(users == 0 and unclear > 0)


class MachineSessions(Check):
    """Whether sessions that click nearly everything are more than people account for."""

    reason = "machine-sessions"

    def sums(self, checked: CheckedRows) -> SessionSums:
        _, session = distinct(checked.rows.slots["session_id"])
        slots, clicks = (np.bincount(session, weights=weights) for weights in (None, ~checked.rows.default))
        return session_sums(slots.astype(np.int64), clicks.astype(np.int64))

    def fails(self, sums: SessionSums) -> bool:
        return machines_play(sums)
