"""Beliefs against their deltas: a belief is the sum of its changes, and each change follows the one before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import Totals
from rlrec.arrays import Array, Flags, run_starts
from rlrec.policy.beliefs.forgetting import Forgetting
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.policies import belief_deltas, beliefs
from rlrec.store.policies.beliefs import SUMS, BeliefKey

CHECK = "beliefs"
TOLERANCE = 1e-9  # of everything that was ever added, in a sum computed another way


@dataclass(kw_only=True)
class BeliefHistory:
    """The deltas of one version. last: after the newest of each key, the ordinal, the sums, and further sums, packed;
    initial: the sums that it started from; moved: by arm the summed sizes of all changes, by which rounding is judged;
    count: of deltas."""

    last: dict[BeliefKey, tuple[Any, ...]] = field(default_factory=dict)
    initial: Totals = field(default_factory=dict)
    moved: dict[int, Array] = field(default_factory=dict)
    count: int = 0


def check(unit: Unit, version: Version, head_seq: int, *, findings: Findings, names: dict[int, str]) -> BeliefHistory:
    """Read every delta of a version, and compare them with each other and with the belief that is served."""
    history, report = BeliefHistory(), _Reporter(version, findings, names)
    for chunk in belief_deltas.stream(unit, version.id):
        history.count += len(chunk["seq"])
        unit.progress("changes of beliefs", history.count, None)
        _check_chain(chunk, history, report)
        if (late := chunk["seq"] > head_seq).any():
            arm, seq = int(chunk["arm_id"][late][0]), int(chunk["seq"][late][0])
            report(arm, f"change {seq} lies beyond the policy's counter, {head_seq}")
        try:
            history.initial |= _sums_after(chunk, chunk["seq"] <= version.seq)
        except UNREADABLE as error:
            report(int(chunk["arm_id"][0]), f"its initial sums cannot be read: {error}")
        history.moved = slot_statistics.add(history.moved, _sizes(chunk))
    _check_served(unit, version, history, report)
    return history


class _Reporter:
    """Reports at most one finding an arm."""

    def __init__(self, version: Version, findings: Findings, names: dict[int, str]) -> None:
        self.version, self.findings, self.names = version, findings, names
        self.arms: set[int] = set()
        self.discount = Forgetting.parse(version.policy.params).discount

    def __call__(self, arm: int, detail: str) -> None:
        if arm not in self.arms:
            self.arms.add(arm)
            subject = f"policy {self.version.policy.name} arm {self.names.get(arm, f'id {arm}')}"
            self.findings.error(CHECK, subject, f"version {self.version.number}: {detail}")


def _check_chain(chunk: Columns, history: BeliefHistory, report: _Reporter) -> None:
    """Report rows whose sums are not those of the row before, faded until then, plus their change; the first of a key
    starts from nothing."""
    # sums before each row
    bucket, arm, ordinal = chunk["bucket"], chunk["arm_id"], chunk["ordinal"]
    starts = run_starts(bucket, arm)
    new_sums, change = _columns(chunk, ""), _columns(chunk, "d_")
    old_sums, since = np.r_[np.zeros((1, len(SUMS))), new_sums[:-1]], np.r_[0, ordinal[:-1]]
    old_sums[starts], since[starts] = 0.0, ordinal[starts]
    if (last := history.last.get((int(bucket[0]), int(arm[0])))) is not None:
        old_sums[0], since[0] = last[1:4], last[0]
    old_sums = old_sums * (report.discount ** (ordinal - since))[:, None]
    # what they should be after it
    size = 1 + np.maximum(np.abs(old_sums), np.abs(change))
    right = (np.abs(new_sums - (old_sums + change)) <= TOLERANCE * size).all(axis=1)  # a NaN is wrong
    for row in np.flatnonzero(~right).tolist():
        way = f"from {sums_text(old_sums[row])} by {sums_text(change[row])} to {sums_text(new_sums[row])}"
        report(int(arm[row]), f"change {chunk['seq'][row]} leads {way}")
    # the newest row of each key
    ends = np.r_[starts[1:], len(arm)] - 1
    keys = zip(bucket[ends].tolist(), arm[ends].tolist(), strict=True)
    rows = zip(ordinal[ends].tolist(), new_sums[ends].tolist(), chunk["extra"][ends].tolist(), strict=True)
    history.last.update(zip(keys, [(written_at, *sums, extra) for written_at, sums, extra in rows], strict=True))


def _columns(chunk: Columns, prefix: str) -> Array:
    return np.column_stack([chunk[prefix + name] for name in SUMS])


def _sums_after(chunk: Columns, rows: Flags) -> Totals:
    """The sums after some rows, further ones included."""
    columns = chunk["bucket"][rows].tolist(), chunk["arm_id"][rows].tolist(), chunk["extra"][rows].tolist()
    new_sums: Totals = {}
    for bucket, arm, extra, sums in zip(*columns, _columns(chunk, "")[rows], strict=True):
        new_sums[bucket, arm] = sums if extra is None else np.concatenate([sums, np.frombuffer(extra, "<f8")])
    return new_sums


def _sizes(chunk: Columns) -> dict[int, Array]:
    arms, index = np.unique(chunk["arm_id"], return_inverse=True)
    totals = np.zeros((len(arms), len(SUMS)))
    np.add.at(totals, index.ravel(), np.abs(_columns(chunk, "d_")))
    return dict(zip(arms.tolist(), totals, strict=True))


def _check_served(unit: Unit, version: Version, history: BeliefHistory, report: _Reporter) -> None:
    """Report sums that are served and are not those of the newest delta."""
    rows = beliefs.rows(unit, version.id)
    served: dict[BeliefKey, tuple[Any, ...]] = {(row.bucket, row.arm_id): row[2:] for row in rows}
    for key in sorted(served.keys() | history.last.keys()):
        now, last = served.get(key), history.last.get(key)
        if now != last:
            expected = "no change made it" if last is None else f"its changes add up to {sums_text(last[1:4])}"
            report(key[1], f"the belief is {'missing' if now is None else sums_text(now[1:4])}, but {expected}")
        elif version.status == "frozen" and report.discount < 1 and now is not None and now[0] != version.ordinal:
            report(key[1], f"it faded until decision {now[0]}, but was frozen at decision {version.ordinal}")


def sums_text(sums: Any) -> str:
    """The three sums, for a finding."""
    pulls, reward, squares = sums[:3]
    return f"(pulls {pulls:.12g}, reward_sum {reward:.12g}, reward_squares {squares:.12g})"
