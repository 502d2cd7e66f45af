"""Beliefs against their deltas: what is served is the sum of every change, and each change follows the one before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.audit.findings import UNREADABLE, Findings
from rlrec.app.learning.slot_statistics import Totals
from rlrec.app.log import reward_log
from rlrec.arrays import Array
from rlrec.policy.forgetting import Forgetting
from rlrec.records import Version
from rlrec.store import Unit, audit, beliefs
from rlrec.store.beliefs import SUMS, BeliefKey, Sums
from rlrec.store.bulk import Columns

CHECK = "beliefs"
TOLERANCE = 1e-9  # of everything that was ever added, in a sum computed another way


@dataclass(kw_only=True)
class History:
    """The deltas of one version. last: the sums after the newest one, the ordinal they refer to, and further sums;
    taught: what it knew when it was made; moved: the sum of the sizes of all changes, by which rounding is judged;
    count: how many there were."""

    last: dict[BeliefKey, tuple[Any, ...]] = field(default_factory=dict)
    taught: Totals = field(default_factory=dict)
    moved: dict[int, Sums] = field(default_factory=dict)
    count: int = 0


def check(unit: Unit, version: Version, head_seq: int, *, findings: Findings, names: dict[int, str]) -> History:
    """Read every delta of a version, and compare them with each other and with the belief that is served."""
    history, told = History(), _Told(version, findings, names)
    for chunk in audit.deltas(unit, version.id):
        history.count += len(chunk["seq"])
        _chained(chunk, history, told)
        if (late := chunk["seq"] > head_seq).any():
            arm, seq = int(chunk["arm_id"][late][0]), int(chunk["seq"][late][0])
            told(arm, f"change {seq} lies beyond the policy's counter, {head_seq}")
        try:
            history.taught |= _taught(chunk, chunk["seq"] <= version.seq)
        except UNREADABLE as error:
            told(int(chunk["arm_id"][0]), f"what taught it cannot be read: {error}")
        history.moved = reward_log.add_sums(history.moved, _moved(chunk))
    _served(unit, version, history, told)
    return history


class _Told:
    """At most one finding an arm."""

    def __init__(self, version: Version, findings: Findings, names: dict[int, str]) -> None:
        self.version, self.findings, self.names = version, findings, names
        self.arms: set[int] = set()
        self.discount = Forgetting.of(version.policy.params).discount

    def __call__(self, arm: int, detail: str) -> None:
        if arm not in self.arms:
            self.arms.add(arm)
            subject = f"policy {self.version.policy.name} arm {self.names.get(arm, f'id {arm}')}"
            self.findings.error(CHECK, subject, f"version {self.version.number}: {detail}")


def _chained(chunk: Columns, history: History, told: _Told) -> None:
    """Each row's sums are those of the row before it, faded until then, and its change; the first one of a place
    starts from nothing."""
    bucket, arm, ordinal = chunk["bucket"], chunk["arm_id"], chunk["ordinal"]
    first = np.r_[True, (bucket[1:] != bucket[:-1]) | (arm[1:] != arm[:-1])]
    after, change = _columns(chunk, ""), _columns(chunk, "d_")
    before = np.where(first[:, None], 0.0, np.r_[np.zeros((1, len(SUMS))), after[:-1]])
    since = np.where(first, ordinal, np.r_[0, ordinal[:-1]])
    if (known := history.last.get((int(bucket[0]), int(arm[0])))) is not None:
        before[0], since[0] = known[1:4], known[0]
    before = before * (told.discount ** (ordinal - since))[:, None]
    expected = before + change
    size = 1 + np.maximum(np.abs(before), np.abs(change))
    right = (np.abs(after - expected) <= TOLERANCE * size).all(axis=1)  # what is no number is not
    for row in np.flatnonzero(~right).tolist():
        way = f"from {shown(before[row])} by {shown(change[row])} to {shown(after[row])}"
        told(int(arm[row]), f"change {chunk['seq'][row]} leads {way}")
    ends = np.flatnonzero(np.r_[first[1:], True])
    places = zip(bucket[ends].tolist(), arm[ends].tolist(), strict=True)
    rows = zip(ordinal[ends].tolist(), after[ends].tolist(), chunk["extra"][ends].tolist(), strict=True)
    history.last.update(zip(places, [(then, *sums, extra) for then, sums, extra in rows], strict=True))


def _columns(chunk: Columns, prefix: str) -> Array:
    return np.column_stack([chunk[prefix + name] for name in SUMS])


def _taught(chunk: Columns, rows: npt.NDArray[np.bool_]) -> Totals:
    """The sums that some rows left behind, the further ones included."""
    columns = chunk["bucket"][rows].tolist(), chunk["arm_id"][rows].tolist(), chunk["extra"][rows].tolist()
    found: Totals = {}
    for bucket, arm, extra, sums in zip(*columns, _columns(chunk, "")[rows], strict=True):
        found[bucket, arm] = sums if extra is None else np.concatenate([sums, np.frombuffer(extra, "<f8")])
    return found


def _moved(chunk: Columns) -> dict[int, Sums]:
    """Per arm the sum of the sizes of the changes."""
    arms, place = np.unique(chunk["arm_id"], return_inverse=True)
    totals = np.zeros((len(arms), len(SUMS)))
    np.add.at(totals, place.ravel(), np.abs(_columns(chunk, "d_")))
    return {int(arm): (row[0], row[1], row[2]) for arm, row in zip(arms, totals.tolist(), strict=True)}


def _served(unit: Unit, version: Version, history: History, told: _Told) -> None:
    """What is served is what the newest delta says."""
    rows = beliefs.rows(unit, version.id)
    served: dict[BeliefKey, tuple[Any, ...]] = {(row.bucket, row.arm_id): row[2:] for row in rows}
    for place in sorted(served.keys() | history.last.keys()):
        now, last = served.get(place), history.last.get(place)
        if now != last:
            said = "no change made it" if last is None else f"its changes add up to {shown(last[1:4])}"
            told(place[1], f"the belief is {'missing' if now is None else shown(now[1:4])}, but {said}")
        elif version.status == "frozen" and told.discount < 1 and now is not None and now[0] != version.ordinal:
            told(place[1], f"it faded until decision {now[0]}, but was frozen at decision {version.ordinal}")


def shown(sums: Any) -> str:
    """Sums as a finding tells them."""
    pulls, reward, squares = sums[:3]
    return f"(pulls {pulls:.12g}, reward_sum {reward:.12g}, reward_squares {squares:.12g})"
