"""This module finds the slots and events of the log that each belief of a policy contains, and their sums. It also
computes the sums from which a version started: those of a log to which it was fitted, or those of a copied belief."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from rlrec import policy as kinds
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import lineage, reward_log
from rlrec.app.log.lineage import LearnedFrom
from rlrec.arrays import Flags, look_up, take
from rlrec.policy.beliefs.budget import Budget
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.records import Record, Version
from rlrec.store import Unit
from rlrec.store.log.events import CENSOR
from rlrec.store.log.reader import Batch
from rlrec.store.policies import policies
from rlrec.store.upkeep import audit, removals

HELD_UNTIL = "held_until"  # the key, in the record of a retired version, of the last change before it was retired


class Extent(NamedTuple):
    """An Extent tells which slots and events a belief contains: decisions up to the id `last_id` (all if None), and
    events up to the change number `seq` (all if None). The sums are discounted to the ordinal `ordinal`. distinct_id:
    the id of the version, or 0 if all beliefs of the policy that learn the same reward are equal."""

    distinct_id: int
    reward_id: int
    last_id: int | None
    seq: int | None
    ordinal: int


def provenance(
    version: Version, by_id: Mapping[int, Version], now: int, *, roots: Collection[str] = ("learning",)
) -> tuple[Version, Extent] | None:
    """Return the learning version whose belief a version has, or from which it was frozen, and the extent of the
    version's belief. Return None if the extent is not known.

    by_id: all versions of the policy; now: the policy's present ordinal; roots: the statuses of a parent at which
    the search for the origin of a frozen belief ends."""
    if version.learning:
        return version, Extent(_distinct_id(version), version.reward.id, version.entered_to, None, now)
    if version.status != "frozen":
        return None
    oldest_copy = version
    while (parent := by_id.get(oldest_copy.parent_id or 0)) is not None and parent.status not in roots:
        oldest_copy = parent
    record = oldest_copy.learned_from
    if parent is None or record.get("policy_id") != version.policy.id or "selection" in record:
        return None
    return parent, Extent(
        _distinct_id(parent), parent.reward.id, int(record["last_id"]), oldest_copy.seq, version.ordinal
    )


def _distinct_id(version: Version) -> int:
    forgets, by_curve = Forgetting.parse(version.params).forgets, version.params.get("position")
    is_distinct = version.is_contextual or version.since or forgets or by_curve or version.has_omissions
    return version.id if is_distinct else 0


def sums(fold: BeliefFold, batch: Batch, last_id: int | None) -> Totals:
    """Return the sums of those slots of a batch that a belief contains, up to decision `last_id` (None: without a
    limit)."""
    impressions = reward_log.with_rewards(batch, fold.version.reward, settled_only=False)
    rows = ~batch.slots["censored"] & (batch.slots["decision_id"] >= fold.version.since) & fold.may_enter(batch.slots)
    return fold.sums(impressions, rows=rows if last_id is None else rows & (batch.slots["decision_id"] <= last_id))


def drawn_sums(fold: BeliefFold, batch: Batch, last_id: int | None) -> Totals:
    """Return the sums of the slots of a batch that a belief contains, up to decision `last_id`, without imported
    decisions. All rows of the batch belong to one policy. The result is empty if the belief is another policy's."""
    rows = drop_imported(batch)
    is_same_policy = len(rows) and rows.slots["policy_id"][0] == fold.version.policy.id
    return sums(fold, rows, last_id) if is_same_policy else {}


def drop_imported(batch: Batch) -> Batch:
    """Return the rows of a batch that are not imported. No belief learns from imported decisions."""
    is_imported = batch.slots["imported"]
    return Batch(slots=take(batch.slots, ~is_imported), events=batch.events) if is_imported.any() else batch


def batch_at_change(batch: Batch, seq: int | None) -> Batch:
    """Return the batch with only the events up to the policy's change number `seq`, and with the slots that these
    events censor. If `seq` is None, return the batch unchanged."""
    if seq is None:
        return batch
    past_batch = Batch(slots=batch.slots, events=take(batch.events, batch.events["seq"] <= seq))
    return Batch(slots=batch.slots | {"censored": censored_slots(past_batch)}, events=past_batch.events)


def censored_slots(batch: Batch) -> Flags:
    """Tell, for each slot of a batch, whether the last `!censor` event of the slot censors the slot, (n,)."""
    events = take(batch.events, batch.events["kind"] == CENSOR)
    events = take(events, np.argsort(events["number"], kind="stable"))
    width = int(max(batch.slots["position"].max(initial=0), events["position"].max(initial=0))) + 1
    # ascending, in the order in which they were read
    slots = batch.slots["decision_id"] * width + batch.slots["position"]
    row, exists = look_up(slots, events["decision_id"] * width + events["position"])
    flags = np.zeros(len(slots), np.bool_)
    flags[row[exists]] = events["value"][exists] == 1.0  # the last event of a slot overwrites earlier ones
    return flags


class Holding(Record):
    """This record holds a version, the extent of the log that its belief contains, and the fold, which sums slots as
    the belief does."""

    version: Version
    extent: Extent
    fold: BeliefFold

    def sums(self, batch: Batch) -> Totals:
        """Return the sums of the slots of a batch that the belief contains. All rows of the batch belong to one
        policy."""
        totals = drawn_sums(self.fold, batch_at_change(batch, self.extent.seq), self.extent.last_id)
        if self.fold.policy.parsed_budget is not None and self.version.learning:
            decision_ids = sorted(set(batch.slots["decision_id"].tolist()))
            totals |= spend(self.fold.unit, self.version, self.fold.policy.parsed_budget, decision_ids)
        return {key: numbers for key, numbers in totals.items() if numbers.any()}


def spend(unit: Unit, version: Version, budget: Budget, decision_ids: Collection[int] | None = None) -> Totals:
    """Return what the policy has spent in decisions since a learning version was created. decision_ids: if given, only
    these decisions count."""
    rows = audit.spend(
        unit, version.policy.id, kind=budget.event, slice_us=budget.slice_us, offset_us=budget.offset_us,
        after=version.seq, decision_ids=decision_ids,
    )  # fmt: skip
    totals: Totals = {}
    for number, arm, *amounts in rows:
        totals = slot_statistics.add_totals(totals, {(-1 - number, arm): np.array(amounts, np.float64)})
    return totals


def trace_holdings(unit: Unit, versions: Sequence[Version]) -> list[Holding]:
    """Return a Holding for each version of one policy whose belief contains a known part of the log."""
    by_id, now = {version.id: version for version in versions}, policies.ordinal(unit, versions[0].policy.id)
    holdings = []
    for version in versions:
        if version.status == "retired":
            traced_extent: tuple[Version, Extent] | None = version, _extent_of_retired(unit, version)
        else:
            traced_extent = provenance(version, by_id, now, roots=("learning", "retired"))
        if traced_extent is not None:
            root, extent = traced_extent
            holdings.append(
                Holding(version=version, extent=extent, fold=BeliefFold(unit, root, ordinal=extent.ordinal))
            )
    return holdings


def _extent_of_retired(unit: Unit, version: Version) -> Extent:
    """Return the extent of the belief of a retired version. It ends at the last change of the belief, without later
    corrections."""
    seq = int(version.learned_from.get(HELD_UNTIL) or removals.last_change(unit, version.id))
    last_id = removals.newest_until(unit, version.policy.id, seq)
    if version.entered_to is not None:
        last_id = min(last_id, version.entered_to)
    return Extent(version.id, version.reward.id, last_id, seq, version.ordinal)


# -- the origins of a version --


Origin = Callable[[Batch], Totals]
"""The sums of the slots of a batch that an origin contains."""


def _fitted_sums(batch: Batch, log: LearnedFrom, *, received_by: int, fold: BeliefFold, weight: float) -> Totals:
    """Return the sums of a batch's slots that are in `log`, the log to which a version was fitted. The sums are
    multiplied by `weight`. Only events received by the time `received_by` count."""
    past_batch = _batch_at_time(batch, received_by)
    rows = log.rows(past_batch.slots) & ~past_batch.slots["censored"] & fold.may_enter(past_batch.slots)
    if not rows.any():
        return {}
    # the log of a fit does not fade
    unfaded_slots = {name: column for name, column in past_batch.slots.items() if name != "ordinal"}
    rewarded_slots = reward_log.with_rewards(Batch(slots=unfaded_slots, events=past_batch.events), fold.version.reward)
    return {key: weight * numbers for key, numbers in fold.sums(rewarded_slots, rows=rows).items()}


def _copied_sums(batch: Batch, *, last_id: int, received_by: int, fold: BeliefFold) -> Totals:
    """Return the sums of a batch's slots that the belief of another policy contained when it was copied. These are the
    slots of decisions up to `last_id`, with the events received by the time `received_by`."""
    return drawn_sums(fold, _batch_at_time(batch, received_by), last_id)


def _moved_sums(batch: Batch, origin: Origin, *, buckets: int) -> Totals:
    """Sum those slots of the batch that belong to `origin`, a part of a copied belief, and return the sums. buckets:
    the number that is added to each bucket of the sums."""
    return {(bucket + buckets, arm): numbers for (bucket, arm), numbers in origin(batch).items()}


def origins(unit: Unit, version: Version, by_id: Mapping[int, Version], *, ordinal: int) -> list[Origin]:
    """Return the parts of a log from which a belief started, as functions from a batch to sums. The sums are weighted
    as at the policy's `ordinal`. The result is empty for a trained version. by_id: all versions that may be parents."""
    if not kinds.load(version.policy.kind).learns_online:
        return []
    record, parent, origin_list = version.learned_from, by_id.get(version.parent_id or 0), list[Origin]()
    fold = BeliefFold(unit, version, ordinal=ordinal)
    for fitted_log in lineage.fitted_logs(record):
        is_new = "rebuilt_from" not in record  # a rebuilt belief is fitted to all slots that were mature then
        log = lineage.from_log(version, fitted_log if is_new else {**fitted_log, "now": version.created_at})
        weight = fold.forgetting.discount**ordinal
        origin_list.append(partial(_fitted_sums, log=log, received_by=version.created_at, fold=fold, weight=weight))
    if parent is None or not ("policy_id" in record or not record):
        return origin_list
    # a belief that was a variant's counts by the ordinals of the variant's policy
    copied_at = int(record.get("ordinal", version.ordinal))
    n_buckets = fold.forgetting.oldest_bucket(version.ordinal) - fold.forgetting.oldest_bucket(copied_at)
    ordinal += copied_at - version.ordinal
    if parent.policy.id != version.policy.id:
        copied_fold = BeliefFold(unit, parent, ordinal=ordinal)
        if record:
            last_id = int(record["last_id"])
            origin_list.append(partial(_copied_sums, last_id=last_id, received_by=version.created_at, fold=copied_fold))
        else:  # a frozen version, which is copied as it is
            siblings = [sibling for sibling in by_id.values() if sibling.policy.id == parent.policy.id]
            holdings = trace_holdings(unit, siblings)
            origin_list += [holding.sums for holding in holdings if holding.version.id == parent.id]
    origin_list += origins(unit, parent, by_id, ordinal=ordinal)
    return (
        [partial(_moved_sums, origin=origin, buckets=n_buckets) for origin in origin_list] if n_buckets else origin_list
    )


def _batch_at_time(batch: Batch, time: int) -> Batch:
    """Return the batch as it was at a time."""
    past_batch = Batch(slots=batch.slots, events=take(batch.events, batch.events["received_at"] <= time))
    censored_flags = np.where(batch.slots["imported"], batch.slots["censored"], censored_slots(past_batch))
    return Batch(slots=batch.slots | {"censored": censored_flags}, events=past_batch.events)
