"""Beliefs against the log: rebuilt from the slots and events that they claim to hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rlrec.app.audit.integrity.beliefs import TOLERANCE, BeliefHistory, sums_text
from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.app.learning import holdings, slot_statistics
from rlrec.app.learning.holdings import Extent
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.arrays import Array
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.log.reader import Batch
from rlrec.store.policies import policies
from rlrec.store.policies.beliefs import NOTHING, BeliefKey

CHECK = "slots"


class Slots:
    """The versions of one policy that can be rebuilt: those that learn, and those that were frozen from them.
    A frozen belief holds the decisions up to the newest mature one, with the events stored until then."""

    def __init__(
        self, unit: Unit, versions: Sequence[Version], histories: Mapping[int, BeliefHistory], names: Mapping[int, str]
    ) -> None:
        self.unit, self.versions, self.histories, self.names = unit, versions, histories, names
        self._provenance: dict[int, tuple[Version, Extent]] = {}  # by the id of a version
        self._folds: dict[Extent, BeliefFold] = {}
        self._unreadable: dict[Extent, str] = {}  # why
        by_id = {version.id: version for version in versions}
        for version in versions:
            provenance = holdings.provenance(version, by_id, policies.ordinal(unit, version.policy.id))
            if provenance is not None:
                root, extent = self._provenance[version.id] = provenance
                try:
                    self._folds[extent] = BeliefFold(unit, root, ordinal=extent.ordinal)
                except UNREADABLE as error:
                    self._unreadable[extent] = str(error)
        self._total: dict[Extent, Totals] = {extent: {} for _, extent in self._provenance.values()}
        self._wrongly_censored: list[tuple[int, int]] = []  # decision and position

    def take(self, batch: Batch) -> None:
        """Add the rows of a batch to every belief that holds them."""
        batch = holdings.drop_imported(batch)
        if not len(batch):
            return
        wrong = np.flatnonzero(holdings.censored(batch) != batch.slots["censored"])[:100]
        pairs = zip(batch.slots["decision_id"][wrong].tolist(), batch.slots["position"][wrong].tolist(), strict=True)
        self._wrongly_censored.extend(pairs)
        complete: dict[tuple[int, int, int], Totals] = {}  # sums of the complete batch, which extents may share
        first, last = int(batch.slots["decision_id"].min()), int(batch.slots["decision_id"].max())
        seq = int(batch.events["seq"].max(initial=0))
        for extent, total in self._total.items():
            if extent in self._unreadable or (extent.last is not None and first > extent.last):
                continue
            fold, shared = self._folds[extent], (extent.distinct, extent.reward_id, extent.ordinal)
            try:
                is_covered = (extent.last is None or last <= extent.last) and (extent.seq is None or seq <= extent.seq)
                if not is_covered:
                    change = holdings.sums(fold, holdings.as_of(batch, extent.seq), extent.last)
                elif shared in complete:
                    change = complete[shared]
                else:
                    change = complete[shared] = holdings.sums(fold, batch, None)
                self._total[extent] = slot_statistics.add(total, change)
            except UNREADABLE as error:
                self._unreadable[extent] = str(error)

    def finish(self, findings: Findings) -> None:
        for decision_id, position in self._wrongly_censored:
            detail = f"position {position}: its censored mark is not what its events say"
            findings.decision_error(CHECK, decision_id, detail)
        for version in self.versions:
            if version.id not in self._provenance:
                continue
            reason = self._unreadable.get(self._provenance[version.id][1])
            try:
                if reason is None:
                    self._compare(version, findings)
            except UNREADABLE as error:
                reason = str(error)
            if reason is not None:
                detail = f"version {version.number}: its slots cannot be added up: {reason}"
                findings.error(CHECK, f"policy {version.policy.name}", detail)

    def _compare(self, version: Version, findings: Findings) -> None:
        """Compare a version's belief with what its slots and events add up to: at most one finding an arm."""
        root, extent = self._provenance[version.id]
        forgetting, history = self._folds[extent].forgetting, self.histories[root.id]
        fade = forgetting.discount ** (extent.ordinal - root.ordinal)
        initial = {key: fade * numbers for key, numbers in history.initial.items()}
        expected = slot_statistics.add(initial, self._total[extent])
        pruned = slot_statistics.pruned_sums(self.unit, version, ordinal=extent.ordinal)
        expected = slot_statistics.add(expected, pruned)
        expected = slot_statistics.without_zeros(expected, oldest=forgetting.oldest(extent.ordinal))
        stored = slot_statistics.stored_sums(self.unit, version, ordinal=extent.ordinal)
        scale = slot_statistics.add(history.moved, self.histories[version.id].moved)
        keys = {arm: (bucket, arm) for bucket, arm in _differing(stored, expected, scale)}
        for arm, key in keys.items():
            held_text, log_text = (sums_text(totals.get(key, NOTHING)) for totals in (stored, expected))
            detail = f"the belief holds {held_text}, its slots and events give {log_text}"
            subject = f"policy {version.policy.name} arm {self.names.get(arm, f'id {arm}')}"
            findings.error(CHECK, subject, f"version {version.number}: {detail}")


def _differing(stored: Totals, expected: Totals, scale: Mapping[int, Array]) -> Iterator[BeliefKey]:
    """Keys whose sums differ by more than what adding up in another order explains."""
    for key in sorted(stored.keys() | expected.keys()):
        pair = [sums for sums in (stored.get(key), expected.get(key)) if sums is not None]
        if len({len(sums) for sums in pair}) > 1:
            yield key
            continue
        size = np.max(np.abs(pair), axis=0)
        size[: len(NOTHING)] = scale.get(key[1], NOTHING)
        size[len(NOTHING) :] = size.max(initial=0.0)
        gap = np.abs(pair[0] - pair[1]) if len(pair) > 1 else np.abs(pair[0])
        if not (gap <= TOLERANCE * (1 + size)).all():  # a NaN is not equal
            yield key
