"""This module sums the statistics of a belief over slots of the log, and applies forgetting. The kind of the policy
computes the statistics of a slot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np

from rlrec.app.distributions import designs, exact
from rlrec.app.log import reward_log, stored_contexts
from rlrec.arrays import Array, Flags, Ids, Index, distinct, look_up, run_starts
from rlrec.policy import learns_from_contexts, learns_stated
from rlrec.policy.beliefs import solving
from rlrec.policy.beliefs.base import Policy
from rlrec.policy.beliefs.budget import N_SLICES, Budget
from rlrec.policy.beliefs.statistics import POSITION, PROPENSITY, CountedSlot, Forgetting, SlotColumns
from rlrec.policy.contexts.encoder import Encoder
from rlrec.policy.contexts.features import Sparse
from rlrec.policy.contexts.marginal import Anchor
from rlrec.policy.contexts.statements import FEATURES, by_arm
from rlrec.policy.kinds.linear import HYBRID, Linear
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.database.unit import parse
from rlrec.store.log import contents, imported_data, reader, selected
from rlrec.store.policies import arms as arm_catalogue
from rlrec.store.policies import beliefs

CELLS = 1 << 20  # statistics (numbers) in memory at a time
SLOTS = 20_000  # slots whose sparse contexts are processed at a time
ROUNDING_ERROR = 1e-9  # of sums that were added and subtracted with different weights

K = TypeVar("K")
Totals = dict[beliefs.BeliefKey, Array]
"""By bucket and arm: the sums of the kind's statistics, (width,)."""


class BeliefFold:
    """A BeliefFold sums slots as the belief of one version does. If the belief forgets, slots are weighted as at the
    policy's `ordinal`."""

    def __init__(self, unit: Unit, version: Version, *, ordinal: int, anchor: Anchor | None = None) -> None:
        """Prepare a fold. anchor: the weights around which the model of a version that is not stored yet is
        expanded."""
        self.unit, self.version, self.ordinal, self._anchor = unit, version, ordinal, anchor
        self.forgetting = Forgetting.parse(version.policy.params)

    @cached_property
    def policy(self) -> Policy:
        return designs.policy_of(self.version)

    @cached_property
    def anchor(self) -> Anchor:
        """Return the weights around which the model is expanded, for sums on sparse contexts."""
        return Anchor.from_packed(beliefs.weights(self.unit, self.version.id)) if self._anchor is None else self._anchor

    def sums(self, impressions: reward_log.RewardedSlots, *, rows: Flags | None = None) -> Totals:
        """Return the sums of the statistics of impressions. Impressions without an `ordinal` do not fade. rows: a flag
        for each impression that counts, or None if all count."""
        if PROPENSITY in self.policy.needed_columns:
            impressions = impressions.weighable(rows)
        elif rows is not None:
            impressions = impressions.take(rows)
        slots = impressions.slots
        columns = SlotColumns(
            arm_id=slots["arm_id"], reward=impressions.reward, ordinal=slots.get("ordinal"),
            position=slots["position"] if POSITION in self.policy.needed_columns else None,
            propensity=slots[reward_log.SHOWN] if PROPENSITY in self.policy.needed_columns else None,
        )  # fmt: skip
        decision_ids = slots["decision_id"] if slots["imported"].any() else None
        return self._sum_slots(columns, slots.get("context_id"), reward_log.sampling_counts(slots), decision_ids)

    def log_sums(self, logs: Sequence[selected.Selection], *, columns: Sequence[str] = ()) -> tuple[Totals, int, int]:
        """Return the sums of the mature, uncensored impressions of logs, the number of these impressions, and the id of
        the newest decision. columns: the columns that the statistics need beside arm, reward and propensity."""
        sums, n_slots, last_id = Totals(), 0, 0
        is_weighed = PROPENSITY in self.policy.needed_columns
        for impressions in chain.from_iterable(
            reward_log.impressions(self.unit, log, self.version.reward, columns=columns, is_weighed=is_weighed)
            for log in logs
        ):
            sums = add_totals(sums, self.sums(impressions))
            n_slots += len(impressions)
            last_id = max(last_id, int(impressions.slots["decision_id"].max(initial=0)))
        return sums, n_slots, last_id

    def log_spend(self, selection: selected.Selection, budget: Budget) -> Totals:
        """Return the spend in a log, for each slice of the budget's period and each arm: the number of slots, the total
        cost, and the number of slots that have a cost. The times of the log are moved by whole periods, so that the
        log's last period ends before the present period begins."""
        cost_of = self.version.reward._replace(
            weights={budget.event: 1.0}, transforms={}, default=0.0, clip_low=None, clip_high=None, late="count"
        )
        sums: dict[tuple[int, int], Array] = {}
        for batch in reader.batches(self.unit, selection, columns=("at", "arm_id", "keep_probability")):
            costs = reward_log.with_rewards(batch, cost_of, settled_only=False)
            sampling_count = reward_log.sampling_counts(batch.slots)
            columns = np.column_stack([np.ones(len(costs)), costs.reward, ~costs.default])
            columns = columns if sampling_count is None else columns * sampling_count[:, None]
            slices = (batch.slots["at"] + budget.offset_us) // budget.slice_us
            sums = add_totals(sums, _sum_by_key(columns, slices, batch.slots["arm_id"]))
        newest_slice = max((key[0] for key in sums), default=0)
        slice_shift = (-1 - budget.bucket(self.unit.now)) // N_SLICES - 1 - newest_slice // N_SLICES
        return {(-1 - number - slice_shift * N_SLICES, arm): numbers for (number, arm), numbers in sums.items()}

    def range_sums(self, first_id: int, last_id: int) -> tuple[Totals, int]:
        """Return the sums of the policy's uncensored slots from decision `first_id` to `last_id`, with all stored
        events. Also return the number of slots, including censored slots."""
        sums, count = Totals(), 0
        for batch in reader.ranges(self.unit, self.version.policy.id, first=first_id, last=last_id):
            slots = reward_log.with_rewards(batch, self.version.reward, settled_only=False)
            sums = add_totals(sums, self.sums(slots, rows=~batch.slots["censored"] & self.may_enter(batch.slots)))
            count += len(slots)
        return sums, count

    def may_enter(self, slots: Columns) -> Flags:
        """Tell for each row whether the belief may learn from the row, (n,). It may not learn from rows that exclusions
        hide."""
        ids = slots["decision_id"]
        if not len(ids):
            return np.zeros(0, np.bool_)
        left_out = selected.omitted_ids(self.unit, self.version.id, int(ids.min()), int(ids.max()))
        return ~np.isin(ids, left_out)

    def changes(self, counts: Mapping[CountedSlot, float]) -> Totals:
        """Return the sums of slots, each multiplied by its count. The count is negative for slots that leave the
        belief."""
        arms, ordinals, contexts, positions, propensities, rewards = map(np.array, zip(*counts, strict=True))
        columns = SlotColumns(
            arm_id=arms, reward=rewards, ordinal=ordinals, position=positions,
            propensity=propensities.astype(np.float64),
        )  # fmt: skip
        return self._sum_slots(columns, contexts, np.array(list(counts.values()), np.float64))

    def _sum_slots(
        self, slots: SlotColumns, context_ids: Ids | None, count: Array | None = None, decision_ids: Ids | None = None
    ) -> Totals:
        """Return the sums of n slots. context_ids (n,): the context of each slot; count (n,): how often each slot
        counts; decision_ids (n,): the decision of each slot, given if any was imported, since these may state
        features."""
        # buckets and weights by age
        bucket, weight = np.zeros(len(slots), np.int64), count
        if self.forgetting.forgets and slots.ordinal is not None:
            if self.forgetting.window:
                bucket = slots.ordinal // self.forgetting.width
            if self.forgetting.discount < 1:
                discount_factor = self.forgetting.discount ** (self.ordinal - slots.ordinal).astype(np.float64)
                weight = discount_factor if weight is None else weight * discount_factor
        # slots of the same bucket and arm next to each other
        order = np.lexsort((slots.arm_id, bucket)) if bucket.any() else np.argsort(slots.arm_id, kind="stable")
        bucket, slots = bucket[order], slots.take(order)
        starts = run_starts(bucket, slots.arm_id)
        totals, encoded_contexts, context_index = np.zeros((len(starts), self.policy.width)), np.zeros((0, 0)), None
        further_sums, stated_features, width = Totals(), None, self.policy.width
        if context_ids is not None and learns_from_contexts(self.policy):
            contexts, indices = stored_contexts.distinct_contexts(self.unit, context_ids[order])
            if isinstance(self.policy, Linear) and self.policy.is_sparse:
                x = self.policy.design.context.encode_sparse(contexts)
                slots = replace(slots, prediction=self.anchor.predict_rewards(x, indices, slots.arm_id))
                further_sums = _column_sums(self.policy, slots, x, indices, None if weight is None else weight[order])
            else:
                encoded_contexts, context_index = self.policy.design.context.encode(contexts), indices
                if learns_stated(self.policy):
                    imported_ids = None if decision_ids is None else decision_ids[order]
                    encoder = self.policy.design.arm
                    stated_features = _stated_features(
                        self.unit, encoder, slots.arm_id, contexts, context_index, imported_ids
                    )
                    width *= 1 + self.policy.design.arm.width
        # their statistics, a few at a time
        step = max(1, CELLS // width)
        for start in range(0, len(slots), step):
            portion_rows = slice(start, start + step)
            portion_slots = slots.take(portion_rows)
            if context_index is not None:
                portion_slots = replace(portion_slots, context=encoded_contexts[context_index[portion_rows]])
            slot_sums = self.policy.statistics(portion_slots)
            if weight is not None:
                slot_sums *= weight[order[portion_rows]][:, None]
            if stated_features is not None:
                z, is_stated = stated_features[0][portion_rows], stated_features[1][portion_rows]
                section_sums = self._section_sums(slot_sums, z, is_stated, bucket[portion_rows], portion_slots.arm_id)
                further_sums = add_totals(further_sums, section_sums)
            inner_starts = starts[(starts > start) & (starts < start + step)] - start
            groups = np.searchsorted(starts, start, side="right") - 1 + np.arange(len(inner_starts) + 1)
            totals[groups] += np.add.reduceat(slot_sums, np.r_[0, inner_starts], axis=0)
        keys = zip(bucket[starts].tolist(), slots.arm_id[starts].tolist(), strict=True)
        return dict(zip(keys, totals, strict=True)) | further_sums

    def _section_sums(self, slot_sums: Array, z: Array, is_stated: Flags, bucket: Ids, arm: Ids) -> Totals:
        """Return the sums of slots whose arm has features stated by a request or an imported line, and set the moments
        of these slots in `slot_sums` to 0.

        slot_sums (n, width): the statistics of all slots, in order of bucket and arm, three counts and then the
        moments; z (n, p): the features; is_stated (n,): whether the features of a slot are stated."""
        rows, policy = np.flatnonzero(is_stated), self.policy
        if not len(rows) or not learns_stated(policy):
            return {}
        z, bucket, arm, counts, moments = z[rows], bucket[rows], arm[rows], slot_sums[rows, :3], slot_sums[rows, 3:]
        slot_sums[rows, 3:] = 0.0
        sums, q = Totals(), policy.design.context.width
        sections = [(beliefs.TOGETHER, np.full_like(arm, self._first_arm), solving.pack_stated)]
        if self.version.params.get("model") == HYBRID:
            sections.append((beliefs.BY_ARM, arm, solving.pack_terms))
        for section, owner_arms, pack_moments in sections:
            for group_rows in np.split(np.arange(len(rows)), run_starts(bucket, owner_arms)[1:]):
                key = section * beliefs.SECTION + int(bucket[group_rows[0]]), int(owner_arms[group_rows[0]])
                sums[key] = np.append(
                    counts[group_rows].sum(axis=0), pack_moments(moments[group_rows], z[group_rows], q)
                )
        return {key: numbers + 0.0 for key, numbers in sums.items()}  # turns -0 into 0

    @cached_property
    def _first_arm(self) -> int:
        """Return the id of the arm whose rows store sums over all arms."""
        return int(self.unit.ask_value("SELECT min(id) FROM arm"))


def _stated_features(
    unit: Unit, encoder: Encoder, arm: Ids, contexts: Sequence[Mapping[str, Any]], context: Index,
    decision_ids: Ids | None,
) -> tuple[Array, Flags] | None:  # fmt: skip
    """Return features z (n, p) of the arms of n slots, and flags (n,) that tell for which slots features are stated.
    The result is None if features are stated for no slot.

    contexts: the distinct contexts of the requests; context (n,): the index of each slot's context; decision_ids
    (n,): the decision of each slot, given if some were imported. Features that a request states override those of an
    imported line. Without such a line, a field that the request leaves out has the value that the arm had when it
    was added to the catalogue, so that the effect of a slot on a belief never changes."""
    request_features = [by_arm(values, FEATURES) or {} for values in contexts]
    line_contexts, line_features = np.zeros(len(arm), np.int64), {0: dict[str, Any]()}
    if decision_ids is not None:
        by_decision = imported_data.feature_contexts(unit, np.unique(decision_ids).tolist())
        ids = np.array(sorted(by_decision), np.int64)
        index, has_line = look_up(ids, decision_ids)
        line_contexts[has_line] = np.array([by_decision[number] for number in ids.tolist()], np.int64)[index[has_line]]
        bodies = contents.context_bodies(unit, set(by_decision.values()))
        line_features |= {number: parse(body, f"body of context {number}") for number, body in bodies.items()}
    if not any(request_features) and len(line_features) == 1:
        return None
    arm_ids = np.unique(arm).tolist()
    keys, first_features = arm_catalogue.keys(unit, arm_ids), arm_catalogue.first_features(unit, arm_ids)
    first_rows, group_index = distinct(arm, context, line_contexts)
    # may become false below
    has_features = np.array(list(map(bool, request_features)), np.bool_)
    is_stated = has_features[context[first_rows]] | (line_contexts[first_rows] > 0)
    stated_values = list[dict[str, Any] | None]()
    for row in first_rows[is_stated].tolist():
        key = keys[int(arm[row])]
        by_request, by_line = request_features[context[row]].get(key), line_features[int(line_contexts[row])].get(key)
        if by_request and by_line is None:
            by_line = parse(first_features[int(arm[row])], f"features of arm {key}")
        stated_values.append(None if by_line is None else by_line | dict(by_request or {}))
    is_stated[is_stated] = [values is not None for values in stated_values]
    z = np.zeros((len(first_rows), encoder.width))
    z[is_stated] = encoder.encode([values for values in stated_values if values is not None])
    return z[group_index], is_stated[group_index]


def _column_sums(policy: Linear, slots: SlotColumns, x: Sparse, context_index: Index, weight: Array | None) -> Totals:
    """Return the sums of n slots for each column of their sparse contexts. x: the contexts; context_index (n,): the row
    of `x` for each slot; weight (n,): the weight of each slot."""
    sums = Totals()
    for start in range(0, len(slots), SLOTS):
        portion = slots.take(slice(start, start + SLOTS))
        # entries of the slots by column and arm
        entries, row = x.entries(context_index[start : start + SLOTS])
        entry_sums = policy.column_statistics(portion, row, x.value[entries])
        if weight is not None:
            entry_sums *= weight[start + row][:, None]
        sums = add_totals(sums, _sum_by_key(entry_sums, x.column[entries] + beliefs.FIRST_COLUMN, portion.arm_id[row]))
    return sums


def _sum_by_key(rows: Array, bucket: Ids, arm: Ids) -> Totals:
    """Return, for each pair of bucket and arm, the sum of the rows (n, width) that have this pair."""
    order = np.lexsort((arm, bucket))
    bucket, arm = bucket[order], arm[order]
    starts = run_starts(bucket, arm)
    if not len(starts):
        return {}
    keys = zip(bucket[starts].tolist(), arm[starts].tolist(), strict=True)
    return dict(zip(keys, np.add.reduceat(rows[order], starts), strict=True))


def stored_sums(unit: Unit, version: Version, *, ordinal: int) -> Totals:
    """Return the stored sums of a belief, discounted to the policy's `ordinal`, without sums forgotten by then."""
    forgetting = Forgetting.parse(version.policy.params)
    return _fade_rows(beliefs.rows(unit, version.id, start=forgetting.oldest_bucket(ordinal)), forgetting, ordinal)


def pruned_sums(unit: Unit, version: Version, *, ordinal: int) -> Totals:
    """Return the part of a belief's sums that comes from pruned slots, discounted to the policy's `ordinal`."""
    return _fade_rows(beliefs.pruned_sums(unit, version.id), Forgetting.parse(version.policy.params), ordinal)


def _fade_rows(rows: Iterable[beliefs.BeliefRow], forgetting: Forgetting, ordinal: int) -> Totals:
    sums: Totals = {}
    for row in rows:
        counts = np.array([row.pulls, row.reward_sum, row.reward_squares])
        numbers = counts if row.extra is None else np.concatenate([counts, np.frombuffer(row.extra, "<f8")])
        discount_factor = (
            forgetting.discount ** (ordinal - row.ordinal) if row.bucket >= 0 else 1.0
        )  # spend does not fade
        sums[row.bucket, row.arm_id] = numbers * discount_factor
    return sums


def add_totals(total: dict[K, Array], change: Mapping[K, Array], *, sign: float = 1.0) -> dict[K, Array]:
    """Return the sums of `total` plus `sign` times the sums of `change`, for each key."""
    sums_by_key = dict(total)
    for key, sums in change.items():
        sums_by_key[key] = sums_by_key[key] + sign * sums if key in sums_by_key else sign * sums
    return sums_by_key


def distribution_of(
    unit: Unit, version: Version, totals: Totals, arm_features: designs.CatalogueFeatures | None = None
) -> exact.VersionDistribution:
    """Return the distribution of a version with `totals` as the sums of its belief. The version need not be stored.
    arm_features: the features of arms, if the caller has read them."""
    policy = designs.policy_of(version)
    rows = [
        beliefs.BeliefRow._make((*key, 0, *sums[:3].tolist(), sums[3:].tobytes()))
        for key, sums in sorted(totals.items(), key=itemgetter(0))
    ]
    sums = [beliefs.ArmSums(row.arm_id, *row[3:6]) for row in rows] if exact.has_three_sums(policy) else rows
    arm_features = arm_features or designs.arm_features(unit, policy)
    return exact.VersionDistribution(unit, version, policy, sums=sums, prior=(), arm_features=arm_features)


def without_zeros(totals: Totals, *, oldest_bucket: int) -> Totals:
    """Return the totals without sums that are all 0 up to rounding, and without buckets before `oldest_bucket`."""
    return {
        key: sums
        for key, sums in totals.items()
        if key[0] >= oldest_bucket and key[0] % beliefs.SECTION >= oldest_bucket and np.abs(sums).max() > ROUNDING_ERROR
    }
