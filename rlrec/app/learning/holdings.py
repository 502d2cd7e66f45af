"""The beliefs of a policy with what they hold of its log: which slots and events, and what these add up to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import reward_log
from rlrec.arrays import Flags, look_up, take
from rlrec.policy.beliefs.budget import Budget
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.log.events import CENSOR
from rlrec.store.log.reader import Batch
from rlrec.store.policies import policies
from rlrec.store.upkeep import audit, removals

HELD_UNTIL = "held_until"  # in the record of a retired version: the last change before it ended


class Extent(NamedTuple):
    """The slots and events that a belief holds: decisions up to `last`, events up to change `seq` (None: all), faded
    until `ordinal`. `distinct` is 0 where all beliefs of its policy that learn the same reward are equal."""

    distinct: int
    reward_id: int
    last: int | None
    seq: int | None
    ordinal: int


def provenance(
    version: Version, by_id: Mapping[int, Version], now: int, *, roots: Collection[str] = ("learning",)
) -> tuple[Version, Extent] | None:
    """The learning belief that a version is or was frozen from, and its extent; None where that is not known.
    now: the policy's ordinal; roots: the status of beliefs that frozen ones are traced back to."""
    if version.learning:
        return version, Extent(_distinct(version), version.reward.id, version.entered_to, None, now)
    if version.status != "frozen":
        return None
    base = version
    while (parent := by_id.get(base.parent_id or 0)) is not None and parent.status not in roots:
        base = parent
    record = base.learned_from
    if parent is None or record.get("policy_id") != version.policy.id or "selection" in record:
        return None
    return parent, Extent(_distinct(parent), parent.reward.id, int(record["last_id"]), base.seq, version.ordinal)


def _distinct(version: Version) -> int:
    forgets, by_curve = Forgetting.parse(version.params).forgets, version.params.get("position")
    differs = version.contextual or version.since or forgets or by_curve or version.has_omissions
    return version.id if differs else 0


def sums(fold: BeliefFold, batch: Batch, last: int | None) -> Totals:
    """The sums of the slots of a batch that a belief holds, up to a decision."""
    impressions = reward_log.with_rewards(batch, fold.version.reward, settled_only=False)
    rows = ~batch.slots["censored"] & (batch.slots["decision_id"] >= fold.version.since) & fold.entering(batch.slots)
    return fold.sums(impressions, rows=rows if last is None else rows & (batch.slots["decision_id"] <= last))


def drop_imported(batch: Batch) -> Batch:
    """The rows of a batch that this store drew: imported decisions teach no belief."""
    imported = batch.slots["imported"]
    return Batch(slots=take(batch.slots, ~imported), events=batch.events) if imported.any() else batch


def as_of(batch: Batch, seq: int | None) -> Batch:
    """The batch as it stood after change `seq`; None: as it stands."""
    if seq is None:
        return batch
    past = Batch(slots=batch.slots, events=take(batch.events, batch.events["seq"] <= seq))
    return Batch(slots=batch.slots | {"censored": censored(past)}, events=past.events)


def censored(batch: Batch) -> Flags:
    """Which slots are censored by the last of their `!censor` events, (n,)."""
    events = take(batch.events, batch.events["kind"] == CENSOR)
    events = take(events, np.argsort(events["number"], kind="stable"))
    width = int(max(batch.slots["position"].max(initial=0), events["position"].max(initial=0))) + 1
    slots = batch.slots["decision_id"] * width + batch.slots["position"]  # ascending, as they were read
    row, exists = look_up(slots, events["decision_id"] * width + events["position"])
    flags = np.zeros(len(slots), np.bool_)
    flags[row[exists]] = events["value"][exists] == 1.0  # of several events of one slot the last one stays
    return flags


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A version, the extent of the log that its belief holds, and the fold of the belief that it comes from."""

    version: Version
    extent: Extent
    fold: BeliefFold

    def sums(self, batch: Batch) -> Totals:
        """The sums of those slots of a batch, of one policy, that a belief holds."""
        rows = drop_imported(batch)
        if not len(rows) or rows.slots["policy_id"][0] != self.version.policy.id:
            return {}
        totals = sums(self.fold, as_of(rows, self.extent.seq), self.extent.last)
        if self.fold.policy.allowance is not None and self.version.learning:
            decision_ids = sorted(set(rows.slots["decision_id"].tolist()))
            totals |= spend(self.fold.unit, self.version, self.fold.policy.allowance, decision_ids)
        return {key: numbers for key, numbers in totals.items() if numbers.any()}


def spend(unit: Unit, version: Version, budget: Budget, decision_ids: Collection[int] | None = None) -> Totals:
    """The spend of the decisions of a policy since a learning version was made, or of these among them."""
    rows = audit.spend(
        unit, version.policy.id, kind=budget.event, slice_us=budget.slice_us, offset_us=budget.offset_us,
        after=version.seq, decision_ids=decision_ids,
    )  # fmt: skip
    totals: Totals = {}
    for number, arm, *sums in rows:
        totals = slot_statistics.add(totals, {(-1 - number, arm): np.array(sums, np.float64)})
    return totals


def trace_holdings(unit: Unit, versions: Sequence[Version]) -> list[Holding]:
    """The beliefs of one policy whose slots are known."""
    by_id, now = {version.id: version for version in versions}, policies.ordinal(unit, versions[0].policy.id)
    holdings = []
    for version in versions:
        if version.status == "retired":
            traced: tuple[Version, Extent] | None = version, _extent_of_retired(unit, version)
        else:
            traced = provenance(version, by_id, now, roots=("learning", "retired"))
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
