"""How beliefs change: differences of rewards, added up over a transaction and written once, under the policy's lock.

Plain Python: a single `feedback` loads no numpy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache
from math import inf
from typing import Any, NamedTuple

from rlrec.app.log.decision_reward import by_position
from rlrec.policy import reward as rewards
from rlrec.policy.forgetting import Forgetting
from rlrec.records import Event, Head, Policy, Version
from rlrec.store import Unit, beliefs, decisions, events, policies
from rlrec.store.beliefs import NOTHING, BeliefKey, Sums
from rlrec.store.events import CENSOR, FeedbackTarget, StoredEvent
from rlrec.store.unit import Row

OVERDUE = 1_000  # slots that any writing command of a policy lets in at most


class Unordered(Exception):
    """A policy is wanted whose id lies before one that is locked: waiting for it could be a deadlock."""


class SlotKey(NamedTuple):
    """The fields of a slot that a belief can depend on; 0 where no belief of its policy does: equal slots fold."""

    arm_id: int
    ordinal: int = 0
    context_id: int = 0


class Ledger:
    """The policies of one transaction, locked in order; their learning beliefs; what changes in them.

    `seq` of a policy is the number of the change that this transaction makes: decisions and events carry it, and every
    belief that changes gets one delta under it. It is raised when it is first asked for: who changes nothing leaves
    no trace.
    """

    def __init__(self, unit: Unit, policy_ids: Collection[int]) -> None:
        self.unit = unit
        self.heads: dict[int, Head] = {}
        self.learning: dict[int, list[Version]] = defaultdict(list)
        self._held = set[int]()
        self._settled = set[int]()
        self._seq: dict[int, int] = {}
        self._scope: dict[int, tuple[float, Set[str]]] = {}
        self._ordinal: dict[int, int] = {}
        self._forgetting: dict[int, Forgetting] = {}
        self._minute = set[int]()
        # by policy and version, what changes: sums, and of what was shown in which context
        self._changes: dict[tuple[int, int], dict[BeliefKey, Sums]] = defaultdict(dict)
        self._shown: dict[tuple[int, int], dict[tuple[int, int, int], tuple[float, float]]] = defaultdict(dict)
        self.hold(policy_ids)

    def hold(self, policy_ids: Collection[int]) -> None:
        """Lock those of these policies that are not locked yet. Raises Unordered where that could be a deadlock."""
        new = set(policy_ids) - self._held
        if not new:
            return
        if self.unit.postgres and self._held and min(new) < max(self._held):
            raise Unordered
        heads = policies.lock(self.unit, new)
        self.heads |= heads
        self._ordinal |= {policy_id: head.ordinal for policy_id, head in heads.items()}
        self._held |= new
        if self.unit.postgres:  # others may have decided while we waited
            self.unit.now = max(self.unit.now, decisions.newest(self.unit) or 0)
        for version in policies.learning(self.unit, new):
            policy_id = version.policy.id
            self.learning[policy_id].append(version)
            if policy_id not in self._forgetting:
                self._forgetting[policy_id] = Forgetting.of(version.policy.params)
            if self._forgetting[policy_id] or version.contextual or version.since:
                self._minute.add(policy_id)

    def ordinals(self, policy: Policy, count: int) -> range | None:
        """The ordinals of the policy's next decisions; None where it does not forget.

        They are counted even where no version learns: one that is rebuilt later will."""
        forgetting, policy_id = Forgetting.of(policy.params), policy.id
        if not forgetting:
            return None
        first = self._ordinal[policy_id] + 1
        self._ordinal[policy_id] += count
        policies.raise_ordinal(self.unit, policy_id, by=count)
        kept = forgetting.discount**count
        for version in self.learning[policy_id] if kept < 1 else ():  # what changed so far has grown older
            name = policy_id, version.id
            self._changes[name] = {
                place: (kept * sums[0], kept * sums[1], kept * sums[2]) for place, sums in self._changes[name].items()
            }
            self._shown[name] = {at: (kept * pulls, kept * told) for at, (pulls, told) in self._shown[name].items()}
        return range(first, first + count)

    def seq(self, policy_id: int) -> int:
        if policy_id not in self._seq:
            self._seq[policy_id] = policies.raise_seq(self.unit, policy_id)
        return self._seq[policy_id]

    # -- events --

    def learn(
        self,
        told: Iterable[tuple[FeedbackTarget, Sequence[Row]]],
        *,
        before: Mapping[int, Sequence[StoredEvent]],
        arms: Mapping[tuple[int, int], int],
    ) -> None:
        """Take in what happened to decisions, each with the fields of its new events.

        before: `events.earlier`; arms: those of the slots of decisions of which several lines speak, or words
        on censoring. Slots of one arm to which the same happened are worth the same: one stands for all.
        """
        alike: list[tuple[int, SlotKey, Told, Told]] = []  # policy, slot, what was known of it, what is new
        for target, new in told:
            if target.imported:
                continue
            decision_id, policy_id, arm_id, served_at = target.decision_id, target.policy_id, target.arm_id, target.at
            prompt, kinds = self._scope.get(policy_id) or self._scoped(policy_id)
            known = () if target.number is None else before.get(decision_id, ())
            ordinal, context = (target.ordinal, target.context_id) if policy_id in self._minute else (0, 0)
            if prompt < inf and (known or any(row[4] - served_at > prompt for row in new)):
                self._learn(target, new, known, arms)
            elif len(new) == 1:
                _, position, kind, value, *_ = new[0]
                if position is not None and kind in kinds:
                    past = _told(known, position, kinds) if known else ()
                    alike.append((policy_id, SlotKey(arm_id, ordinal, context), past, ((kind, value),)))
            else:
                for position in {row[1] for row in new} - {None}:
                    if fresh := _told(new, position, kinds):
                        arm = arms.get((decision_id, position), arm_id)
                        key = SlotKey(arm, ordinal, context)
                        alike.append((policy_id, key, _told(known, position, kinds), fresh))
        worths = cache(self._worths)
        for (policy_id, key, past, fresh), times in Counter(alike).items():
            old, now = worths(policy_id, past), worths(policy_id, past + fresh)
            for version, was, becomes in zip(self.learning[policy_id], old, now, strict=True):
                self.add(version, key, was, becomes, times=times)

    def _worths(self, policy_id: int, told: Told) -> list[Sums]:
        """What a slot to which this happened in time adds to each learning belief of a policy."""
        happened = [Event(0, 1, kind, value, at=0, received_at=0) for kind, value in told]
        return [worth(version, happened, served_at=0) for version in self.learning[policy_id]]

    def _scoped(self, policy_id: int) -> tuple[float, Set[str]]:
        """The age up to which an event counts in every learning belief of a policy (-1 where they may not hold its
        decision), and the kinds of events that change any of them."""
        learning = self.learning[policy_id]
        prompt = min((one.reward.window_us for one in learning if one.reward.late == "ignore"), default=inf)
        if any(one.entered_to is not None or one.since for one in learning):
            prompt = -1
        kinds = {CENSOR}.union(*(version.reward.weights for version in learning))
        self._scope[policy_id] = prompt, kinds
        return prompt, kinds

    def _learn(
        self, target: FeedbackTarget, new: Iterable[Row], before: Iterable[Row], arms: Mapping[tuple[int, int], int]
    ) -> None:
        """The same for one decision, where its time matters."""
        decision_id, served_at = target.decision_id, target.at
        holding = [
            version
            for version in self.learning[target.policy_id]
            if version.since <= decision_id and (version.entered_to is None or decision_id <= version.entered_to)
        ]
        known = by_position(Event(*row) for row in before)
        for position, fresh in by_position(Event(*row) for row in new).items():
            if position is not None:
                arm_id, old = arms.get((decision_id, position), target.arm_id), known.get(position, [])
                for version in holding:
                    sums = [worth(version, happened, served_at=served_at) for happened in (old, old + fresh)]
                    self.add(version, SlotKey(arm_id, target.ordinal, target.context_id), *sums)

    # -- sums --

    def add(self, version: Version, key: SlotKey, before: Sums, after: Sums, *, times: int = 1) -> None:
        """Replace what one slot, or several that are alike, add to a belief."""
        if before == after:
            return
        arm_id, ordinal, context = key
        policy_id, bucket, scale = version.policy.id, 0, float(times)
        if policy_id in self._minute and (forgetting := self._forgetting[policy_id]):
            bucket = forgetting.bucket(ordinal)
            scale *= forgetting.discount ** (self._ordinal[policy_id] - ordinal)
        changes = self._changes[policy_id, version.id]
        pulls, total, squares = changes.get((bucket, arm_id), NOTHING)
        more, earned = scale * (after[0] - before[0]), scale * (after[1] - before[1])
        changes[bucket, arm_id] = pulls + more, total + earned, squares + scale * (after[2] - before[2])
        if version.contextual:
            shown, at = self._shown[policy_id, version.id], (bucket, arm_id, context)
            pulls, total = shown.get(at, (0.0, 0.0))
            shown[at] = pulls + more, total + earned

    def serve(self, policy_id: int, served: Iterable[SlotKey]) -> None:
        """Slots are served: they enter every belief that learns `served`, with the default reward."""
        minute = policy_id in self._minute
        shown = Counter(served if minute else (SlotKey(key.arm_id) for key in served))
        for version in self.learning[policy_id]:
            if version.entered_to is None:
                entry = rewards.entry(version.reward.default)
                for key, times in shown.items():
                    self.add(version, key, NOTHING, entry, times=times)

    # -- slots whose window is over --

    def settle(self, policy_ids: Iterable[int] | None = None, *, limit: int = OVERDUE) -> int:
        """Let slots whose window is over into the beliefs that learn `settled`, oldest first: how many entered.

        policy_ids: None for all that are locked; each of them is looked at once.
        """
        new = (self._held if policy_ids is None else set(policy_ids)) - self._settled
        self._settled |= new
        return sum(self._settle(version, limit) for policy_id in sorted(new) for version in self.settling(policy_id))

    def settling(self, policy_id: int) -> list[Version]:
        """The learning beliefs of a policy that slots enter when their window is over."""
        return [version for version in self.learning[policy_id] if version.entered_to is not None]

    def _settle(self, version: Version, limit: int) -> int:
        ids = self.overdue(version, limit)
        if not ids:
            return 0
        held = [number for number in ids if number >= version.since]
        found, happened = decisions.find(self.unit, held), events.of(self.unit, held)
        for decision in found.values():
            by_slot = by_position(happened.get(decision.id, ()))
            for slot in decision.slots:
                after = worth(version, by_slot.get(slot.position, ()), served_at=decision.at)
                key = SlotKey(slot.arm_id, decision.ordinal or 0, decision.context_id)
                self.add(version, key, NOTHING, after)
        self.entered(version, ids[-1])
        return sum(len(decision.slots) for decision in found.values())

    def overdue(self, version: Version, limit: int) -> list[int]:
        """Decisions whose slots, at most `limit`, are to enter a belief now, oldest first."""
        assert version.entered_to is not None
        before = self.unit.now - version.reward.window_us
        first = version.entered_to + 1
        return decisions.overdue(self.unit, version.policy.id, first=first, before=before, slots=limit)

    def entered(self, version: Version, decision_id: int) -> None:
        """The belief holds every decision up to this one from now on."""
        policies.enter(self.unit, version.id, entered_to=decision_id)
        mine = self.learning[version.policy.id]
        mine[mine.index(version)] = replace(version, entered_to=decision_id)

    def close(self) -> None:
        """Write what changed."""
        versions = {version.id: version for mine in self.learning.values() for version in mine}
        for (policy_id, version_id), changes in sorted(self._changes.items()):
            if not changes:
                continue
            whole: Mapping[BeliefKey, Any] = changes
            if shown := self._shown.get((policy_id, version_id)):
                from rlrec.app.learning.slot_statistics import Credit

                extras = Credit(self.unit, versions[version_id], ordinal=0).extras(shown)
                whole = {place: (*sums, *extras[place]) for place, sums in changes.items()}
            self.write(versions[version_id], whole)

    def write(self, version: Version, changes: Mapping[BeliefKey, Any]) -> None:
        """Changes of a belief into the store; they refer to the policy's present ordinal."""
        policy_id = version.policy.id
        discount = self._forgetting[policy_id].discount
        ordinal = self._ordinal[policy_id] if discount < 1 else 0
        beliefs.add(self.unit, version.id, seq=self.seq(policy_id), changes=changes, ordinal=ordinal, discount=discount)

    def ordinal(self, policy_id: int) -> int:
        """How many decisions a policy that forgets has made."""
        return self._ordinal[policy_id]


Told = tuple[tuple[str, float], ...]  # kind and value of the events of a slot


def _told(rows: Iterable[Row], position: int, kinds: Set[str]) -> Told:
    """What happened to one slot of a decision, as far as it matters."""
    return tuple([(row[2], row[3]) for row in rows if row[1] == position and row[2] in kinds])


def worth(version: Version, happened: Collection[Event], *, served_at: int) -> Sums:
    """What one slot adds to a belief that holds it, from the slot's events as they were stored; nothing while it is
    censored."""
    words = [event.value for event in happened if event.kind == CENSOR]
    if words and words[-1] == 1.0:
        return NOTHING
    return rewards.entry(rewards.of_slot(version.reward, happened, served_at=served_at))
