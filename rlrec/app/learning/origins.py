"""The sums that a version started from, as far as given decisions are in them: a log that it was fitted to, or the
belief of another policy that it is a copy of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlrec import policy as kinds
from rlrec.app.learning import holdings
from rlrec.app.learning.holdings import Holding
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import lineage, reward_log
from rlrec.app.log.lineage import LearnedFrom
from rlrec.arrays import take
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.log.reader import Batch


@dataclass(frozen=True, kw_only=True)
class FittedLog:
    """A log that a version was fitted to, with the events that had been received by a time; its sums count `weight`."""

    log: LearnedFrom
    received_by: int
    fold: BeliefFold
    weight: float

    def sums(self, batch: Batch) -> Totals:
        """The sums of those slots of a batch that the version was fitted to."""
        past = _received_by(batch, self.received_by)
        rows = self.log.rows(past.slots) & ~past.slots["censored"] & self.fold.entering(past.slots)
        if not rows.any():
            return {}
        timeless = {name: column for name, column in past.slots.items() if name != "ordinal"}  # a log does not fade
        rewarded = reward_log.with_rewards(Batch(slots=timeless, events=past.events), self.fold.version.reward)
        return {key: self.weight * numbers for key, numbers in self.fold.sums(rewarded, rows=rows).items()}


@dataclass(frozen=True, kw_only=True)
class CopiedBelief:
    """The belief of another policy: its decisions up to `last`, with the events that had been received by a time."""

    last: int
    received_by: int
    fold: BeliefFold

    def sums(self, batch: Batch) -> Totals:
        """The sums of those slots of a batch that were copied."""
        served_rows = holdings.drop_imported(batch)
        if not len(served_rows) or served_rows.slots["policy_id"][0] != self.fold.version.policy.id:
            return {}
        return holdings.sums(self.fold, _received_by(served_rows, self.received_by), self.last)


@dataclass(frozen=True, kw_only=True)
class MovedOrigin:
    """An origin of a belief that was copied to buckets so much later."""

    origin: Origin
    buckets: int

    def sums(self, batch: Batch) -> Totals:
        """The sums of those slots of a batch that the origin holds, in their new buckets."""
        return {(bucket + self.buckets, arm): numbers for (bucket, arm), numbers in self.origin.sums(batch).items()}


Origin = FittedLog | CopiedBelief | Holding | MovedOrigin


def origins(unit: Unit, version: Version, by_id: Mapping[int, Version], *, ordinal: int) -> list[Origin]:
    """The origins of a belief, weighed as they count at the policy's `ordinal`; none for a version that is trained."""
    if not kinds.load(version.policy.kind).online:
        return []
    record, parent, result = version.learned_from, by_id.get(version.parent_id or 0), list[Origin]()
    fold = BeliefFold(unit, version, ordinal=ordinal)
    if "selection" in record:
        is_new = "rebuilt_from" not in record  # a rebuilt belief is fitted to all that had matured by then
        result.append(FittedLog(
            log=lineage.from_log(version, record if is_new else {**record, "now": version.created_at}),
            received_by=version.created_at, fold=fold, weight=fold.forgetting.discount**ordinal,
        ))  # fmt: skip
    if parent is None or not ("policy_id" in record or not record):
        return result
    # a belief that came from a variant goes by the ordinals of that policy
    copied_at = int(record.get("ordinal", version.ordinal))
    buckets = fold.forgetting.oldest(version.ordinal) - fold.forgetting.oldest(copied_at)
    ordinal += copied_at - version.ordinal
    if parent.policy.id != version.policy.id:
        copied = BeliefFold(unit, parent, ordinal=ordinal)
        if record:
            result.append(CopiedBelief(last=int(record["last_id"]), received_by=version.created_at, fold=copied))
        else:  # a frozen version, which is copied as it stands
            siblings = [sibling for sibling in by_id.values() if sibling.policy.id == parent.policy.id]
            traced = holdings.trace_holdings(unit, siblings)
            result += [holding for holding in traced if holding.version.id == parent.id]
    result += origins(unit, parent, by_id, ordinal=ordinal)
    return [MovedOrigin(origin=origin, buckets=buckets) for origin in result] if buckets else result


def _received_by(batch: Batch, time: int) -> Batch:
    """The batch as it stood at a time."""
    past = Batch(slots=batch.slots, events=take(batch.events, batch.events["received_at"] <= time))
    censored = np.where(batch.slots["imported"], batch.slots["censored"], holdings.censored(past))
    return Batch(slots=batch.slots | {"censored": censored}, events=past.events)
