"""Trained weights of arms, by version: written once with the version, and never changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rlrec.store.unit import Unit


def add(unit: Unit, version_id: int, rows: Iterable[tuple[int, bytes]]) -> None:
    """Weights of arms, packed, by id of the arm."""
    unit.insert("arm_weights", ("version_id", "arm_id", "weights"), [(version_id, *row) for row in sorted(rows)])


class ArmWeights(NamedTuple):
    arm_id: int
    weights: bytes


def by_arm(unit: Unit, version_id: int) -> list[ArmWeights]:
    """The weights of a version, by arm id."""
    chosen = "SELECT arm_id, weights FROM arm_weights WHERE version_id = ? ORDER BY arm_id"
    return unit.records(ArmWeights, chosen, version_id)
