"""This module changes beliefs. While a transaction holds the policy's lock, this module collects the reward that a slot
has before and after each change, and then writes the sums once.

The module is plain Python, so that a single `feedback` loads no numpy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache
from itertools import chain
from math import inf
from operator import add, sub
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec import policy as kinds
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.beliefs.statistics import (
    CONTEXT,
    ORDINAL,
    POSITION,
    PROPENSITY,
    CountedSlot,
    Forgetting,
    slate_propensities,
)
from rlrec.records import Event, Head, Version
from rlrec.store import Unit
from rlrec.store.database.unit import Row
from rlrec.store.log import decisions, events
from rlrec.store.log.events import CENSOR
from rlrec.store.policies import beliefs, policies
from rlrec.store.policies.beliefs import BeliefKey, Sums

if TYPE_CHECKING:
    from rlrec.policy.beliefs.base import Policy
    from rlrec.policy.beliefs.budget import Budget

OVERDUE = 1_000  # overdue slots that one writing command enters at most
PENDING = 50_000  # changes of one belief that are collected before they are summed


class SlotKey(NamedTuple):
    """A SlotKey has the fields of a slot that a belief can depend on. Fields that the policy does not need are 0, so
    that slots with equal effects have equal keys and can be counted together."""

    arm_id: int
    ordinal: int = 0
    context_id: int = 0
    position: int = 0
    propensity: float = 0.0


# A served slate: its slots (position, arm, propensity and marginal of each; further fields are not read), the ordinal
# of its decision, and the id of its context.
ServedSlate = tuple[Sequence[Row], int, int]


class SlotFields:
    """A SlotFields tells which fields of slots the learning beliefs of one policy depend on.

    kinds: the kind by version id, since each version may discount positions by its own curve; budget: the budget of
    the policy, or None (with a budget, beliefs include the spend)."""

    def __init__(self, versions: Sequence[Version]) -> None:
        self.kinds = {version.id: kinds.make(version.policy.kind, version.params) for version in versions}
        kind = self.kinds[versions[0].id]
        self.forgetting, self.budget = kind.forgetting, kind.parsed_budget if kind.budget else None
        needs = frozenset[str]().union(*(kind.needed_columns for kind in self.kinds.values()))
        self.ordinal = self.forgetting.forgets or ORDINAL in needs
        self.context, self.position, self.propensity = (name in needs for name in (CONTEXT, POSITION, PROPENSITY))
        self.arm_key = cache(SlotKey)
        self.arm_alone = not (self.ordinal or self.context or self.position or self.propensity)

    def key(self, arm_id: int, ordinal: int, context_id: int, position: int, propensity: float) -> SlotKey:
        """Return the key of a slot, with 0 for the fields that no belief depends on."""
        if self.arm_alone:
            return self.arm_key(arm_id)
        return SlotKey(
            arm_id, ordinal if self.ordinal else 0, context_id if self.context else 0, position if self.position else 0,
            propensity if self.propensity else 0.0,
        )  # fmt: skip

    def keys(self, slate: ServedSlate) -> list[SlotKey]:
        """Return the keys of the slots of a slate, in order."""
        slots, ordinal, context_id = slate
        propensities = slate_propensities([(slot[0], slot[2], slot[3]) for slot in slots]) if self.propensity else {}
        return [
            self.key(arm, ordinal, context_id, position, propensities.get(position, 0.0)) for position, arm, *_ in slots
        ]


# The events that change the learning beliefs of a policy: the age up to which an event counts in all of them (-1 where
# some may not include its decision), the kinds that change any of them, and the fields of slots that matter.
EventScope = tuple[float, Set[str], SlotFields]
EventValues = tuple[tuple[str, float], ...]  # kind and value of the events of a slot
RewardChange = tuple[float | None, float | None]  # of a slot: before and after; None where it is not in the belief


class Unordered(Exception):
    """This error says that to lock a policy could cause a deadlock, since a policy with a larger id, or a session, is
    already locked."""


class Ledger:
    """A Ledger locks the policies of one transaction, in order of id. It holds their learning beliefs and the changes
    of these beliefs.

    The transaction has one change number, `seq`, for each policy. Decisions and events store this number, and every
    belief that changes gets one delta with it. The number is raised at its first use, so a transaction without
    changes uses no number."""

    def __init__(self, unit: Unit, policy_ids: Collection[int]) -> None:
        self.unit = unit
        self.learners: dict[int, list[Version]] = defaultdict(list)
        self._heads: dict[int, Head] = {}
        self._locked_ids = set[int]()
        self._settled_ids = set[int]()
        self._seq: dict[int, int] = {}
        self._scope: dict[int, EventScope | None] = {}
        self.ordinal: dict[int, int] = {}  # the number of decisions of a policy that forgets
        self._fields: dict[int, SlotFields] = {}
        # by policy and version: how many slots have each change of reward; and the sums of earlier changes
        self._change_counts: dict[tuple[int, int], dict[tuple[SlotKey, RewardChange], int]] = defaultdict(dict)
        self._sums: dict[tuple[int, int], dict[BeliefKey, Any]] = defaultdict(dict)
        self._spend: dict[int, dict[BeliefKey, list[float]]] = defaultdict(dict)  # by policy: slots, cost, known costs
        # by version: the arms whose sums were written, and these sums where they are known
        self._changed_arms: dict[int, dict[int, Sums | None]] = defaultdict(dict)
        self._omitting_ids = set[int]()  # versions that left out decisions
        self._omissions: Set[tuple[int, int]] = frozenset()  # pairs of these versions and of decisions that get events
        self.lock(policy_ids)

    def lock(self, policy_ids: Collection[int]) -> None:
        """Lock each policy of `policy_ids` that is not locked yet. Raises Unordered if waiting could cause a
        deadlock."""
        new_ids = set(policy_ids) - self._locked_ids
        if not new_ids:
            return
        if self.unit.postgres and self._locked_ids and min(new_ids) < max(self._locked_ids):
            raise Unordered
        heads, learners = policies.lock_learning(self.unit, new_ids)
        self._heads |= {policy_id: heads[policy_id] for policy_id in new_ids}
        self.ordinal |= {policy_id: heads[policy_id].ordinal for policy_id in new_ids}
        self._locked_ids |= new_ids
        for version in learners:
            self.learners[version.policy.id].append(version)
            if version.has_omissions:
                self._omitting_ids.add(version.id)

    def require(self, policy_ids: Collection[int]) -> None:
        """Lock policies when sessions may be locked already. On PostgreSQL, waiting could then cause a deadlock, so
        Unordered is raised if any of the policies is not locked yet."""
        if self.unit.postgres and not self._locked_ids.issuperset(policy_ids):
            raise Unordered
        self.lock(policy_ids)

    def ordinals(self, policy_id: int, count: int, *, forgetting: Forgetting) -> range:
        """Return the ordinals of the next `count` decisions of a policy that forgets.

        Decisions are counted even if no version learns now, since a rebuilt version will learn from them later."""
        first = self.ordinal[policy_id] + 1
        self.ordinal[policy_id] += count
        policies.raise_ordinal(self.unit, policy_id, by=count)
        fade = forgetting.discount**count
        for (owner_id, _), sums in self._sums.items():  # the sums collected so far are now older
            if owner_id == policy_id:
                sums.update({key: [fade * number for number in numbers] for key, numbers in sums.items()})
        return range(first, first + count)

    def seq(self, policy_id: int) -> int:
        """Return the number of the change that this transaction makes to a policy."""
        if policy_id not in self._seq:
            self._seq[policy_id] = policies.raise_seq(self.unit, self._heads[policy_id])
        return self._seq[policy_id]

    def fields(self, policy_id: int) -> SlotFields:
        """Return the SlotFields of a policy with learning beliefs: which fields of slots the beliefs depend on."""
        if policy_id not in self._fields:
            self._fields[policy_id] = SlotFields(self.learners[policy_id])
        return self._fields[policy_id]

    # -- events --

    def apply_events(
        self, decision_rows: Sequence[Row], *, stored_events: Mapping[int, Sequence[Event]],
        arms: Mapping[tuple[int, int], int],
    ) -> None:  # fmt: skip
        """Change the rewards of slots that get new events. Slots with equal keys and equal events have equal rewards,
        which are computed once and counted.

        decision_rows: for each decision its id, policy, time, whether it was imported, the arm of the first slot
        that the events name, the ordinal, the context, and rows of Event; stored_events: the earlier events by
        decision; arms: the arms of further slots, by decision and position."""
        scopes = {policy_id: self._find_scope(policy_id) for policy_id in {row[1] for row in decision_rows}}
        if self._omitting_ids:
            from rlrec.store.log import selected

            self._omissions = selected.omissions(self.unit, self._omitting_ids, {row[0] for row in decision_rows})
        policy_ids = {policy_id for policy_id, scope in scopes.items() if scope and self.fields(policy_id).propensity}
        decision_ids = {row[0] for row in decision_rows if row[1] in policy_ids} if policy_ids else ()
        propensities = {
            (number, position): propensity
            for number, slots in (decisions.propensities(self.unit, decision_ids) if decision_ids else {}).items()
            for position, propensity in slate_propensities(slots).items()
        }
        updates: list[tuple[int, SlotKey, EventValues, EventValues]] = []  # policy, slot, earlier events, new events
        for decision_id, policy_id, served_at, is_imported, arm_id, ordinal, context_id, new_rows in decision_rows:
            scope = scopes[policy_id]
            if is_imported or scope is None:
                continue
            safe_age, weighed_kinds, fields = scope
            past_events = stored_events.get(decision_id, ())
            if fields.budget is not None:
                self._charge_costs(fields.budget, policy_id, served_at, past_events, new_rows, arm_id, arms)
            is_timed = safe_age < inf and (past_events or any(row[4] - served_at > safe_age for row in new_rows))
            if len(new_rows) == 1 and not is_timed:  # true of most lines
                position, kind, value = new_rows[0][1:4]
                if position is not None and kind in weighed_kinds:
                    if fields.arm_alone:
                        key = fields.arm_key(arm_id)
                    else:
                        propensity = propensities.get((decision_id, position), 0.0)
                        key = fields.key(arm_id, ordinal, context_id, position, propensity)
                    old_values = _values(past_events, position, weighed_kinds) if past_events else ()
                    updates.append((policy_id, key, old_values, ((kind, value),)))
                continue
            keys: dict[int, SlotKey] = {}
            for position in {row[1] for row in new_rows} if len(new_rows) > 1 else (new_rows[0][1],):
                values = _values(new_rows, position, weighed_kinds)
                if position is None or not (values or is_timed):
                    continue
                slot = decision_id, position
                arm = arms.get(slot, arm_id)
                key = keys[position] = fields.key(arm, ordinal, context_id, position, propensities.get(slot, 0.0))
                if not is_timed:
                    old_values = _values(past_events, position, weighed_kinds) if past_events else ()
                    updates.append((policy_id, key, old_values, values))
            if is_timed:
                self._apply_timed_events(policy_id, decision_id, served_at, keys, past_events, new_rows)
        changes = cache(self._reward_changes)
        for (policy_id, key, old_values, values), times in Counter(updates).items():
            for version, change in zip(self.learners[policy_id], changes(policy_id, old_values, values), strict=True):
                self.replace(version, key, change, times=times)

    def _reward_changes(self, policy_id: int, old: EventValues, new: EventValues) -> list[RewardChange]:
        """Return, for each learning belief of a policy, the reward of a slot before and after new events. All events
        came within the window of the reward. old, new: the kind and value of each earlier event and each new event."""
        old_events, all_events = (
            [Event(0, 1, kind, value, at=0, received_at=0) for kind, value in values] for values in (old, old + new)
        )
        return [
            (slot_reward(version, old_events, served_at=0), slot_reward(version, all_events, served_at=0))
            for version in self.learners[policy_id]
        ]

    def _find_scope(self, policy_id: int) -> EventScope | None:
        """Return an EventScope, which says which events change the learning beliefs of a policy, or None if the policy
        has no learning belief."""
        if policy_id not in self._scope:
            learners = self.learners[policy_id]
            windows = [version.reward.window_us for version in learners if version.reward.late == "ignore"]
            safe_age = min(windows, default=inf)
            if any(
                version.entered_to is not None or version.parameters.get("since") or version.id in self._omitting_ids
                for version in learners
            ):
                safe_age = -1
            weighed_kinds = {CENSOR}.union(*(version.reward.weights for version in learners))
            self._scope[policy_id] = (safe_age, weighed_kinds, self.fields(policy_id)) if learners else None
        return self._scope[policy_id]

    def _apply_timed_events(
        self, policy_id: int, decision_id: int, served_at: int, keys: Mapping[int, SlotKey],
        past_events: Iterable[Event], new_rows: Iterable[Row],
    ) -> None:  # fmt: skip
        """Change the rewards of one decision's slots in the case in which the time of the decision or of an event
        decides what counts. keys: the key of each slot, by position."""
        versions = [
            version
            for version in self.learners[policy_id]
            if version.since <= decision_id and (version.entered_to is None or decision_id <= version.entered_to)
            and (version.id, decision_id) not in self._omissions
        ]  # fmt: skip
        old_slots, new_slots = rewards.by_position(past_events), rewards.by_position(Event(*row) for row in new_rows)
        for position, key in keys.items():
            slot_events = old_slots.get(position, [])
            for version in versions:
                change = (
                    slot_reward(version, slot_events, served_at=served_at),
                    slot_reward(version, slot_events + new_slots[position], served_at=served_at),
                )
                self.replace(version, key, change)

    # -- slots --

    def replace(self, version: Version, key: SlotKey, change: RewardChange, *, times: int = 1) -> None:
        """Record that the reward of a slot in a belief changes. times: the number of slots with this key and change."""
        if change[0] == change[1]:
            return
        change_counts = self._change_counts[version.policy.id, version.id]
        change_counts[key, change] = change_counts.get((key, change), 0) + times
        if len(change_counts) >= PENDING:
            self._add_up(version)

    def serve(self, policy_id: int, slates: Sequence[ServedSlate], *, charges: Sequence[ServedSlate] = ()) -> None:
        """Enter served slots, with the default reward, into every belief that learns slots when they are served.

        charges: slates whose slots count as spend, for a policy with a budget, even if no belief learns from them."""
        if not self.learners[policy_id]:
            return
        fields = self.fields(policy_id)
        if fields.budget is not None:
            bucket = fields.budget.bucket(self.unit.now)  # the cost is not known yet
            for arm, count in Counter(slot[1] for slots, _, _ in charges for slot in slots).items():
                self._charge(policy_id, (bucket, arm), count, 0.0, 0)
        if fields.arm_alone:
            arms = Counter(slot[1] for slots, _, _ in slates for slot in slots)
            slots = {SlotKey(arm): times for arm, times in arms.items()}
        else:
            slots = Counter(chain.from_iterable(map(fields.keys, slates)))
        for version in self.learners[policy_id]:
            if version.entered_to is None:
                for key, times in slots.items():
                    self.replace(version, key, (None, version.reward.default), times=times)

    def omit(self, versions: Sequence[Version], *, first_id: int, last_id: int) -> set[int]:
        """Store that the beliefs of these versions leave out decisions that an exclusion now covers, and return the ids
        of these decisions. Only ids from `first_id` to `last_id` of the versions' policy are considered."""
        from rlrec.app.inputs import filters
        from rlrec.store.log import selected, settings
        from rlrec.store.log.selected import Selection

        if not versions or not settings.get(self.unit).has_exclusions:
            return set()
        selection = Selection(
            policy_ids=[versions[0].policy.id], first_id=first_id, last_id=last_id, imported=False,
            without=filters.exclusion_tests(self.unit, scope=f"d.id >= {first_id} AND d.id <= {last_id}"),
        )  # fmt: skip
        self._omitting_ids.update(version.id for version in versions)
        for version in versions:
            selected.omit(self.unit, version.id, selection)
        return set(selected.omitted_ids(self.unit, versions[0].id, first_id, last_id))

    # -- spend of policies with a budget --

    def _charge_costs(
        self, budget: Budget, policy_id: int, served_at: int, past_events: Iterable[Event], new_rows: Sequence[Row],
        arm_id: int, arms: Mapping[tuple[int, int], int],
    ) -> None:  # fmt: skip
        """Add the costs among a decision's new events to the spend. A cost belongs to the period of its decision, even
        if the event comes later."""
        paid_positions = {event.position for event in past_events if event.kind == budget.event}
        for row in new_rows:
            decision_id, position, kind, value = row[:4]
            if kind == budget.event and position is not None:
                key = budget.bucket(served_at), arms.get((decision_id, position), arm_id)
                self._charge(policy_id, key, 0, value, 0 if position in paid_positions else 1)
                paid_positions.add(position)

    def _charge(self, policy_id: int, key: BeliefKey, slots: int, cost: float, n_paid: int) -> None:
        total = self._spend[policy_id].setdefault(key, [0.0, 0.0, 0.0])
        total[:] = total[0] + slots, total[1] + cost, total[2] + n_paid

    # -- slots whose window is over --

    def settle(self, policy_ids: Iterable[int] | None = None) -> None:
        """Enter slots whose window is over into the beliefs that learn slots when they are `settled`, oldest first. A
        second call does nothing for the same policy.

        policy_ids: the policies, or None for all locked policies."""
        new_ids = (self._locked_ids if policy_ids is None else set(policy_ids)) - self._settled_ids
        self._settled_ids |= new_ids
        for policy_id in sorted(new_ids):
            for version in list(self.learners[policy_id]):
                if version.entered_to is not None and (ids := self.overdue_ids(version, OVERDUE)):
                    self._settle(version, ids)

    def _settle(self, version: Version, ids: Sequence[int]) -> None:
        left_out = self.omit([version], first_id=ids[0], last_id=ids[-1])
        entering_ids = [number for number in ids if number >= version.since and number not in left_out]
        entering_decisions = decisions.find(self.unit, entering_ids)
        stored_events = events.by_decision(self.unit, entering_ids)
        fields = self.fields(version.policy.id)
        for decision in entering_decisions.values():
            by_slot = rewards.by_position(stored_events.get(decision.id, ()))
            slots = [(slot.position, slot.arm_id, slot.propensity, slot.marginal) for slot in decision.slots]
            keys = fields.keys((slots, decision.ordinal or 0, decision.context_id))
            for slot, key in zip(decision.slots, keys, strict=True):
                reward = slot_reward(version, by_slot.get(slot.position, ()), served_at=decision.at)
                self.replace(version, key, (None, reward))
        self.mark_entered(version, ids[-1])

    def overdue_ids(self, version: Version, limit: int) -> list[int]:
        """Return the ids of the decisions whose slots should now enter a belief, oldest first. Together these decisions
        have at most `limit` slots, unless there is only one."""
        assert version.entered_to is not None
        return decisions.find_overdue(
            self.unit, version.policy.id, first=version.entered_to + 1,
            drawn_before=self.unit.now - version.reward.window_us, slots=limit,
        )  # fmt: skip

    def mark_entered(self, version: Version, decision_id: int) -> None:
        """Store that the belief includes every decision up to `decision_id`."""
        policies.enter(self.unit, version.id, entered_to=decision_id)
        learners = self.learners[version.policy.id]
        learners[learners.index(version)] = replace(version, entered_to=decision_id)

    # -- sums --

    def close(self) -> None:
        """Write the changes of all beliefs."""
        versions = [version for learners in self.learners.values() for version in learners]
        for version in sorted(versions, key=lambda version: (version.policy.id, version.id)):
            self._add_up(version)
            if sums := self._sums[version.policy.id, version.id]:
                self.write(version, sums)
            if spend := self._spend.get(version.policy.id):
                beliefs.add(self.unit, version.id, seq=self.seq(version.policy.id), changes=spend)

    def _add_up(self, version: Version) -> None:
        """Add the pending changes of a belief to its sums, weighted as at the policy's present ordinal."""
        policy_id = version.policy.id
        counts, fields = self._change_counts.pop((policy_id, version.id), {}), self.fields(policy_id)
        if counts:
            sums = self._sums[policy_id, version.id]
            if fields.context:
                added_sums = self._fold(version, counts)
            else:
                added_sums = _sum_changes(counts, fields, fields.kinds[version.id], ordinal=self.ordinal[policy_id])
            for key, numbers in added_sums.items():
                old_sums = sums.get(key)
                sums[key] = numbers if old_sums is None else [*map(add, old_sums, numbers)]

    def _fold(self, version: Version, counts: Mapping[tuple[SlotKey, RewardChange], int]) -> dict[BeliefKey, Any]:
        """Return the sums of changes whose statistics need arrays. counts: the number of slots by key and change of
        reward."""
        from rlrec.app.learning.slot_statistics import BeliefFold

        slot_counts = defaultdict[CountedSlot, float](float)
        for (key, change), times in counts.items():
            for reward, sign in zip(change, (-1, 1), strict=True):
                if reward is not None:
                    slot_counts[CountedSlot(*key, reward)] += sign * times
        return BeliefFold(self.unit, version, ordinal=self.ordinal[version.policy.id]).changes(slot_counts)

    def write(self, version: Version, changes: Mapping[BeliefKey, Any]) -> None:
        """Store the changes of a belief. The sums are discounted to the policy's present ordinal."""
        policy_id = version.policy.id
        discount = self.fields(policy_id).forgetting.discount
        ordinal = self.ordinal[policy_id] if discount < 1 else 0
        new_sums = beliefs.add(
            self.unit, version.id, seq=self.seq(policy_id), changes=changes, ordinal=ordinal, discount=discount
        )
        self._changed_arms[version.id].update((arm, new_sums.get((0, arm))) for _, arm in changes)

    def changes(self) -> dict[int, tuple[int, dict[int, Sums | None]]]:
        """Return a pair for each learning version, by id: the number of this transaction's change, and the new sums of
        each changed arm (None if they are not known)."""
        pairs = ((seq, version.id) for policy_id, seq in self._seq.items() for version in self.learners[policy_id])
        return {version_id: (seq, self._changed_arms[version_id]) for seq, version_id in pairs}


def _sum_changes(
    counts: Mapping[tuple[SlotKey, RewardChange], int], fields: SlotFields, kind: Policy, *, ordinal: int
) -> dict[BeliefKey, list[float]]:
    """Return the sums of changes at the policy's `ordinal`. counts: the number of slots by key and change of reward."""
    forgetting, needs, nothing = fields.forgetting, kind.needed_columns, (0.0,) * kind.width
    sums = dict[BeliefKey, list[float]]()
    differences: dict[Any, list[float]] = {}
    for (key, change), times in counts.items():
        if fields.propensity and not key.propensity:
            continue
        name = (key, change) if needs else (key.arm_id, change)
        if (difference := differences.get(name)) is None:
            old, new = (
                nothing if reward is None else kind.slot_statistics(CountedSlot(*key, reward)) for reward in change
            )
            difference = differences[name] = [*map(sub, new, old)]
        weight = times * forgetting.discount ** (ordinal - key.ordinal) if forgetting.forgets else times
        belief_key = forgetting.bucket(key.ordinal) if forgetting.forgets else 0, key.arm_id
        total = sums.get(belief_key)
        if total is None:
            sums[belief_key] = [weight * number for number in difference]
        else:
            for column, number in enumerate(difference):
                total[column] += weight * number
    return sums


def _values(rows: Iterable[Row], position: int | None, weighed_kinds: Set[str]) -> EventValues:
    """Return the kind and value of those events of one slot that can change a reward. weighed_kinds: the kinds of
    events that the reward weighs."""
    return tuple([(row[2], row[3]) for row in rows if row[1] == position and row[2] in weighed_kinds])


def slot_reward(version: Version, events: Collection[Event], *, served_at: int) -> float | None:
    """Return the reward of a slot in a belief that includes the slot, or None if the slot is censored. events: the
    events of the slot, in stored order."""
    censoring = [event.value for event in events if event.kind == CENSOR]
    if censoring and censoring[-1] == 1.0:
        return None
    return rewards.slot_reward(version.reward, events, served_at=served_at)
