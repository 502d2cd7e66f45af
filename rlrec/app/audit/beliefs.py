"""Beliefs against their deltas: what is served is the sum of every change, and each change follows the one before."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rlrec.app import evidence
from rlrec.app.audit.findings import Findings
from rlrec.policy.scores import Array
from rlrec.records import Version
from rlrec.store import Unit, audit
from rlrec.store.beliefs import NOTHING, SUMS, Sums
from rlrec.store.bulk import Columns

CHECK = "beliefs"
TOLERANCE = 1e-9  # of everything that was ever added, in a sum computed another way
Place = tuple[int, int]  # bucket, arm


@dataclass(kw_only=True)
class History:
    """The deltas of one version. last: the sums after the newest one; taught: what it knew when it was made; moved:
    the sum of the sizes of all changes, by which rounding is judged; count: how many there were."""

    last: dict[Place, Sums] = field(default_factory=dict)
    taught: dict[int, Sums] = field(default_factory=dict)
    moved: dict[int, Sums] = field(default_factory=dict)
    count: int = 0


def check(unit: Unit, version: Version, head_seq: int, *, found: Findings, names: dict[int, str]) -> History:
    """Read every delta of a version, and compare them with each other and with the belief that is served."""
    history, told = History(), _Told(version, found, names)
    for chunk in audit.deltas(unit, version.id):
        history.count += len(chunk["seq"])
        _chained(chunk, history, told)
        if (late := chunk["seq"] > head_seq).any():
            arm, seq = int(chunk["arm_id"][late][0]), int(chunk["seq"][late][0])
            told(arm, f"change {seq} lies beyond the policy's counter, {head_seq}")
        before = chunk["seq"] <= version.seq
        history.taught = evidence.added(history.taught, _changed(chunk, before))
        history.moved = evidence.added(history.moved, _changed(chunk, np.ones(len(before), np.bool_), size=True))
    _served(unit, version, history, told)
    return history


class _Told:
    """At most one finding an arm."""

    def __init__(self, version: Version, found: Findings, names: dict[int, str]) -> None:
        self.version, self.found, self.names = version, found, names
        self.arms: set[int] = set()

    def __call__(self, arm: int, detail: str) -> None:
        if arm not in self.arms:
            self.arms.add(arm)
            subject = f"policy {self.version.policy.name} arm {self.names.get(arm, f'id {arm}')}"
            self.found.error(CHECK, subject, f"version {self.version.number}: {detail}")


def _chained(chunk: Columns, history: History, told: _Told) -> None:
    """Each row's sums are those of the row before it and its change; the first one of an arm starts from nothing."""
    bucket, arm = chunk["bucket"], chunk["arm_id"]
    first = np.r_[True, (bucket[1:] != bucket[:-1]) | (arm[1:] != arm[:-1])]
    after, change = _columns(chunk, ""), _columns(chunk, "d_")
    before = np.where(first[:, None], 0.0, np.r_[np.zeros((1, len(SUMS))), after[:-1]])
    before[0] = history.last.get((int(bucket[0]), int(arm[0])), NOTHING)
    expected = before + change
    size = 1 + np.maximum(np.abs(before), np.abs(change))
    for row in np.flatnonzero((np.abs(after - expected) > TOLERANCE * size).any(axis=1)).tolist():
        way = f"from {shown(before[row])} by {shown(change[row])} to {shown(after[row])}"
        told(int(arm[row]), f"change {chunk['seq'][row]} leads {way}")
    ends = np.flatnonzero(np.r_[first[1:], True])
    places = zip(bucket[ends].tolist(), arm[ends].tolist(), strict=True)
    history.last.update(zip(places, map(tuple, after[ends].tolist()), strict=True))


def _columns(chunk: Columns, prefix: str) -> Array:
    return np.column_stack([chunk[prefix + name] for name in SUMS])


def _changed(chunk: Columns, rows: npt.NDArray[np.bool_], *, size: bool = False) -> dict[int, Sums]:
    """Per arm the sum of the changes of some rows, or of their sizes."""
    arms, place = np.unique(chunk["arm_id"][rows], return_inverse=True)
    values = _columns(chunk, "d_")[rows]
    totals = np.zeros((len(arms), len(SUMS)))
    np.add.at(totals, place.ravel(), np.abs(values) if size else values)
    return {int(arm): (row[0], row[1], row[2]) for arm, row in zip(arms, totals.tolist(), strict=True)}


def _served(unit: Unit, version: Version, history: History, told: _Told) -> None:
    """What is served is what the newest delta says."""
    served: dict[Place, Sums] = {(row[0], row[1]): row[2:] for row in audit.belief(unit, version.id)}
    for place in sorted(served.keys() | history.last.keys()):
        now, last = served.get(place), history.last.get(place)
        if now != last:
            said = "no change made it" if last is None else f"its changes add up to {shown(last)}"
            told(place[1], f"the belief is {'missing' if now is None else shown(now)}, but {said}")


def shown(sums: Sums | Array) -> str:
    """Sums as a finding tells them."""
    pulls, reward, squares = sums
    return f"(pulls {pulls:.12g}, reward_sum {reward:.12g}, reward_squares {squares:.12g})"
