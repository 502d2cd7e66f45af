"""This module compares beliefs with their deltas (stored changes) and with the log. A belief must be the sum of its
deltas, and each delta must continue the sums of the delta before it. A belief must also be equal to the belief that is
rebuilt from its slots and events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.app.learning import holdings, slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.arrays import Array, Flags, run_starts
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log.reader import Batch
from rlrec.store.policies import belief_deltas, beliefs, policies
from rlrec.store.policies.beliefs import NOTHING, SUMS, BeliefKey

CHECK, SLOTS = "beliefs", "slots"
TOLERANCE = 1e-9  # relative to everything that was ever added: the error of a sum computed in another order


@dataclass(kw_only=True)
class BeliefHistory:
    """This record sums up the deltas (stored changes) of one version.

    newest_rows: for each key (bucket and arm), the ordinal, the sums and the packed further sums after the newest
    delta; initial_sums: the sums that the version started from; change_sizes: the summed absolute changes by arm id,
    against which rounding errors are measured; n_deltas: the number of deltas."""

    newest_rows: dict[BeliefKey, tuple[Any, ...]] = field(default_factory=dict)
    initial_sums: Totals = field(default_factory=dict)
    change_sizes: dict[int, Array] = field(default_factory=dict)
    n_deltas: int = 0


def check(unit: Unit, version: Version, head_seq: int, *, findings: Findings, names: dict[int, str]) -> BeliefHistory:
    """Read every delta (stored change) of a version, and return a summary of the deltas. Compare the deltas with each
    other and with the belief that is served.

    head_seq: the number of the policy's last change; names: the key of each arm, by id."""
    history, report = BeliefHistory(), _Reporter(version, findings, names)
    for chunk in belief_deltas.stream(unit, version.id):
        history.n_deltas += len(chunk["seq"])
        unit.progress("changes of beliefs", history.n_deltas, None)
        _check_chain(chunk, history, report)
        if (is_beyond := chunk["seq"] > head_seq).any():
            arm, seq = int(chunk["arm_id"][is_beyond][0]), int(chunk["seq"][is_beyond][0])
            report(arm, f"change {seq} lies beyond the policy's counter, {head_seq}")
        try:
            history.initial_sums |= _sums_after(chunk, chunk["seq"] <= version.seq)
        except UNREADABLE as error:
            report(int(chunk["arm_id"][0]), f"its initial sums cannot be read: {error}")
        history.change_sizes = slot_statistics.add_totals(history.change_sizes, _change_sizes(chunk))
    _check_served(unit, version, history, report)
    return history


class _Reporter:
    """A _Reporter adds findings on a version, at most one finding for each arm."""

    def __init__(self, version: Version, findings: Findings, names: Mapping[int, str], check_name: str = CHECK) -> None:
        self.version, self.findings, self.names, self.check = version, findings, names, check_name
        self.arms: set[int] = set()
        self.discount = Forgetting.parse(version.policy.params).discount

    def __call__(self, arm: int, detail: str) -> None:
        if arm not in self.arms:
            self.arms.add(arm)
            subject = f"policy {self.version.policy.name} arm {self.names.get(arm, f'id {arm}')}"
            self.findings.error(self.check, subject, f"version {self.version.number}: {detail}")


def _check_chain(chunk: Columns, history: BeliefHistory, report: _Reporter) -> None:
    """Report every delta whose stored sums are not the sums of the delta before, faded up to this delta, plus its own
    change. For the first delta of a bucket and arm, the sums before are zero.

    chunk: rows of deltas (stored changes of a belief), in order."""
    # the sums before each row
    bucket, arm, ordinal = chunk["bucket"], chunk["arm_id"], chunk["ordinal"]
    first_rows = run_starts(bucket, arm)
    new_sums, change = _sum_columns(chunk, ""), _sum_columns(chunk, "d_")
    old_sums, previous_ordinal = np.r_[np.zeros((1, len(SUMS))), new_sums[:-1]], np.r_[0, ordinal[:-1]]
    old_sums[first_rows], previous_ordinal[first_rows] = 0.0, ordinal[first_rows]
    if (last_row := history.newest_rows.get((int(bucket[0]), int(arm[0])))) is not None:
        old_sums[0], previous_ordinal[0] = last_row[1:4], last_row[0]
    old_sums = old_sums * (report.discount ** (ordinal - previous_ordinal))[:, None]
    # the sums expected after it
    magnitude = 1 + np.maximum(np.abs(old_sums), np.abs(change))
    is_right = (np.abs(new_sums - (old_sums + change)) <= TOLERANCE * magnitude).all(axis=1)  # a NaN is wrong
    for row in np.flatnonzero(~is_right).tolist():
        change_text = f"from {sums_text(old_sums[row])} by {sums_text(change[row])} to {sums_text(new_sums[row])}"
        report(int(arm[row]), f"change {chunk['seq'][row]} leads {change_text}")
    # the newest row of each key
    ends = np.r_[first_rows[1:], len(arm)] - 1
    keys = zip(bucket[ends].tolist(), arm[ends].tolist(), strict=True)
    rows = zip(ordinal[ends].tolist(), new_sums[ends].tolist(), chunk["extra"][ends].tolist(), strict=True)
    history.newest_rows.update(
        zip(keys, [(row_ordinal, *sums, extra) for row_ordinal, sums, extra in rows], strict=True)
    )


def _sum_columns(chunk: Columns, prefix: str) -> Array:
    return np.column_stack([chunk[prefix + name] for name in SUMS])


def _sums_after(chunk: Columns, rows: Flags) -> Totals:
    """Return the stored sums of the flagged deltas, by bucket and arm: the three basic sums, then any further sums.

    chunk: rows of deltas (stored changes of a belief); rows: a flag for each row."""
    columns = chunk["bucket"][rows].tolist(), chunk["arm_id"][rows].tolist(), chunk["extra"][rows].tolist()
    new_sums: Totals = {}
    for bucket, arm, extra, sums in zip(*columns, _sum_columns(chunk, "")[rows], strict=True):
        new_sums[bucket, arm] = sums if extra is None else np.concatenate([sums, np.frombuffer(extra, "<f8")])
    return new_sums


def _change_sizes(chunk: Columns) -> dict[int, Array]:
    arms, index = np.unique(chunk["arm_id"], return_inverse=True)
    totals = np.zeros((len(arms), len(SUMS)))
    np.add.at(totals, index.ravel(), np.abs(_sum_columns(chunk, "d_")))
    return dict(zip(arms.tolist(), totals, strict=True))


def _check_served(unit: Unit, version: Version, history: BeliefHistory, report: _Reporter) -> None:
    """Report every bucket and arm for which the belief that is served differs from the sums after the newest delta."""
    rows = beliefs.rows(unit, version.id, start=beliefs.EARLIEST)
    served_rows: dict[BeliefKey, tuple[Any, ...]] = {(row.bucket, row.arm_id): row[2:] for row in rows}
    for key in sorted(served_rows.keys() | history.newest_rows.keys()):
        row, last_row = served_rows.get(key), history.newest_rows.get(key)
        if row != last_row:
            clause = "no change made it" if last_row is None else f"its changes add up to {sums_text(last_row[1:4])}"
            report(
                key[1],
                f"the belief is {'missing' if row is None else sums_text(row[1:4])}, but {clause}",
            )
        elif version.status == "frozen" and report.discount < 1 and row is not None and row[0] != version.ordinal:
            report(key[1], f"it faded until decision {row[0]}, but was frozen at decision {version.ordinal}")


def sums_text(sums: Any) -> str:
    """Return the three basic sums (pulls, rewards, squared rewards) as text for a finding."""
    pulls, reward, squares = sums[:3]
    return f"(pulls {pulls:.12g}, reward_sum {reward:.12g}, reward_squares {squares:.12g})"


# -- rebuilt from the log --


class RebuiltBeliefs:
    """This check rebuilds beliefs of one policy from the log: the beliefs of versions that learn, and of versions that
    were frozen from them. A frozen belief covers the decisions that were mature when it was frozen, with the events
    that were stored until then."""

    def __init__(
        self, unit: Unit, versions: Sequence[Version], histories: Mapping[int, BeliefHistory], names: Mapping[int, str]
    ) -> None:
        self.unit, self.versions, self.histories, self.names = unit, versions, histories, names
        self._provenance: dict[int, tuple[Version, holdings.Extent]] = {}  # by the id of a version
        self._folds: dict[holdings.Extent, BeliefFold] = {}
        self._read_errors: dict[holdings.Extent, str] = {}  # the reasons
        by_id = {version.id: version for version in versions}
        for version in versions:
            provenance = holdings.provenance(version, by_id, policies.ordinal(unit, version.policy.id))
            if provenance is not None:
                root, extent = self._provenance[version.id] = provenance
                try:
                    self._folds[extent] = BeliefFold(unit, root, ordinal=extent.ordinal)
                except UNREADABLE as error:
                    self._read_errors[extent] = str(error)
        self._total: dict[holdings.Extent, Totals] = {extent: {} for _, extent in self._provenance.values()}
        self._wrongly_censored: list[tuple[int, int]] = []  # decision and position

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch to every belief that covers these rows."""
        batch = holdings.drop_imported(batch)
        if not len(batch):
            return
        rows = np.flatnonzero(holdings.censored_slots(batch) != batch.slots["censored"])[:100]
        pairs = zip(batch.slots["decision_id"][rows].tolist(), batch.slots["position"][rows].tolist(), strict=True)
        self._wrongly_censored.extend(pairs)
        # the sums of the complete batch, which several extents may share
        complete_sums: dict[tuple[int, int, int], Totals] = {}
        first_id, last_id = int(batch.slots["decision_id"].min()), int(batch.slots["decision_id"].max())
        seq = int(batch.events["seq"].max(initial=0))
        for extent, total in self._total.items():
            if extent in self._read_errors or (extent.last_id is not None and first_id > extent.last_id):
                continue
            fold, shared_key = self._folds[extent], (extent.distinct_id, extent.reward_id, extent.ordinal)
            try:
                is_covered = extent.last_id is None or last_id <= extent.last_id
                is_covered &= extent.seq is None or seq <= extent.seq
                if not is_covered:
                    change = holdings.sums(fold, holdings.batch_at_change(batch, extent.seq), extent.last_id)
                elif shared_key in complete_sums:
                    change = complete_sums[shared_key]
                else:
                    change = complete_sums[shared_key] = holdings.sums(fold, batch, None)
                self._total[extent] = slot_statistics.add_totals(total, change)
            except UNREADABLE as error:
                self._read_errors[extent] = str(error)

    def finish(self, findings: Findings) -> None:
        for decision_id, position in self._wrongly_censored:
            detail = f"position {position}: its censored mark is not what its events say"
            findings.decision_error(SLOTS, decision_id, detail)
        for version in self.versions:
            if version.id not in self._provenance:
                continue
            reason = self._read_errors.get(self._provenance[version.id][1])
            try:
                if reason is None:
                    self._compare(version, findings)
            except UNREADABLE as error:
                reason = str(error)
            if reason is not None:
                detail = f"version {version.number}: its slots cannot be added up: {reason}"
                findings.error(SLOTS, f"policy {version.policy.name}", detail)

    def _compare(self, version: Version, findings: Findings) -> None:
        """Compare a version's belief with the sums over the slots and events that the belief covers. Add at most one
        finding for each arm."""
        report, (root, extent) = _Reporter(version, findings, self.names, SLOTS), self._provenance[version.id]
        forgetting, history = self._folds[extent].forgetting, self.histories[root.id]
        discount = forgetting.discount ** (extent.ordinal - root.ordinal)
        initial_sums = {key: discount * numbers for key, numbers in history.initial_sums.items()}
        log_sums = slot_statistics.add_totals(initial_sums, self._total[extent])
        pruned_sums = slot_statistics.pruned_sums(self.unit, version, ordinal=extent.ordinal)
        log_sums = slot_statistics.add_totals(log_sums, pruned_sums)
        log_sums = slot_statistics.without_zeros(log_sums, oldest_bucket=forgetting.oldest_bucket(extent.ordinal))
        belief_sums = slot_statistics.stored_sums(self.unit, version, ordinal=extent.ordinal)
        if (budget := self._folds[extent].policy.parsed_budget) is not None and version.learning:
            spend = holdings.spend(self.unit, version, budget)
            for sums in (history.initial_sums, pruned_sums):
                spend = slot_statistics.add_totals(spend, {key: row for key, row in sums.items() if key[0] < 0})
            log_sums |= spend
            belief_sums |= {row[:2]: np.array(row[3:6]) for row in beliefs.spend(self.unit, version.id)}
        change_sizes = slot_statistics.add_totals(history.change_sizes, self.histories[version.id].change_sizes)
        keys = {arm: (bucket, arm) for bucket, arm in _differing_keys(belief_sums, log_sums, change_sizes)}
        for arm, key in keys.items():
            belief_text, log_text = (sums_text(totals.get(key, NOTHING)) for totals in (belief_sums, log_sums))
            report(arm, f"the belief holds {belief_text}, its slots and events give {log_text}")


def _differing_keys(belief_sums: Totals, log_sums: Totals, change_sizes: Mapping[int, Array]) -> Iterator[BeliefKey]:
    """Yield each bucket and arm for which stored and expected sums differ by more than rounding errors.

    change_sizes: the summed absolute changes by arm id, which bound the rounding errors."""
    for key in sorted(belief_sums.keys() | log_sums.keys()):
        sums_pair = [sums for sums in (belief_sums.get(key), log_sums.get(key)) if sums is not None]
        if len({len(sums) for sums in sums_pair}) > 1:
            yield key
            continue
        magnitude = np.max(np.abs(sums_pair), axis=0)
        magnitude[: len(NOTHING)] = change_sizes.get(key[1], NOTHING)
        magnitude[len(NOTHING) :] = magnitude.max(initial=0.0)
        difference = np.abs(sums_pair[0] - sums_pair[1]) if len(sums_pair) > 1 else np.abs(sums_pair[0])
        if not (difference <= TOLERANCE * (1 + magnitude)).all():  # a NaN is not equal
            yield key
