"""Checks of the log that estimates rest on. To add a check: its file, and its place in CHECKS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlrec.app.evaluation.checks.base import Check
from rlrec.app.evaluation.checks.draws import ClippedPropensities, RepeatedRows, WrongPropensities
from rlrec.app.evaluation.checks.rewards import (
    CarryOver,
    DependentSlots,
    LogDrift,
    MachineSessions,
    NoUsers,
    YoungRewards,
)

# Every check, in the order of `ope.checks.reasons`.
CHECKS: tuple[Check, ...] = (
    WrongPropensities(), LogDrift(), YoungRewards(), NoUsers(), RepeatedRows(), MachineSessions(),
    ClippedPropensities(), CarryOver(), DependentSlots(),
)  # fmt: skip
Failures = Mapping[int, Sequence[Check]]


def find_failures(sums: Mapping[tuple[int, str], Any]) -> dict[int, list[Check]]:
    """The checks that the log fails, by number of `Evaluation.shared`. sums: of each check by that number and its
    reason."""
    failures: dict[int, list[Check]] = {}
    for check in CHECKS:
        for (number, reason), check_sums in sums.items():
            if reason == check.reason and check.fails(check_sums):
                failures.setdefault(number, []).append(check)
    return failures
