"""The beliefs of a policy with what they hold of its log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlrec.app.learning import extents
from rlrec.app.learning.extents import Extent
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.records import Version
from rlrec.store import Unit, policies, removals
from rlrec.store.reader import Batch

HELD_UNTIL = "held_until"  # in the record of a retired version: the last change before it ended


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A version, the extent of the log that its belief holds, and the fold of the belief that it comes from."""

    version: Version
    extent: Extent
    fold: BeliefFold

    def sums(self, batch: Batch) -> Totals:
        """The sums of those slots of a batch, of one policy, that a belief holds."""
        drawn = extents.drawn(batch)
        if not len(drawn) or drawn.slots["policy_id"][0] != self.version.policy.id:
            return {}
        sums = extents.sums(self.fold, extents.as_of(drawn, self.extent.seq), self.extent.last)
        return {key: numbers for key, numbers in sums.items() if numbers.any()}


def of_policy(unit: Unit, versions: Sequence[Version]) -> list[Holding]:
    """The beliefs of one policy whose slots are known."""
    by_id, now = {version.id: version for version in versions}, policies.ordinal(unit, versions[0].policy.id)
    holdings = []
    for version in versions:
        if version.status == "retired":
            traced: tuple[Version, Extent] | None = version, _extent_of_retired(unit, version)
        else:
            traced = extents.provenance(version, by_id, now, roots=("learning", "retired"))
        if traced is not None:
            root, extent = traced
            holdings.append(
                Holding(version=version, extent=extent, fold=BeliefFold(unit, root, ordinal=extent.ordinal))
            )
    return holdings


def _extent_of_retired(unit: Unit, version: Version) -> Extent:
    """The extent of a belief that learned until it was retired: up to its last change, corrections left out."""
    seq = int(version.learned_from.get(HELD_UNTIL) or removals.last_change(unit, version.id))
    last = removals.newest_until(unit, version.policy.id, seq)
    if version.entered_to is not None:
        last = min(last, version.entered_to)
    return Extent(version.id, version.reward.id, last, seq, version.ordinal)
