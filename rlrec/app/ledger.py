"""How beliefs change: differences of rewards, added up over a transaction and written once, under the policy's lock.

Plain Python: a single `feedback` loads no numpy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache
from math import inf

from rlrec.policy import reward as rewards
from rlrec.records import Event, Head, Version
from rlrec.store import Unit, beliefs, decisions, events, policies
from rlrec.store.beliefs import NOTHING, Sums
from rlrec.store.events import CENSOR
from rlrec.store.unit import Row

OVERDUE = 1_000  # slots that any writing command of a policy lets in at most


class Unordered(Exception):
    """A policy is wanted whose id lies before one that is locked: waiting for it could be a deadlock."""


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
        self._changes: dict[tuple[int, int], dict[int, Sums]] = defaultdict(dict)  # (policy, version): arm: sums
        self.hold(policy_ids)

    def hold(self, policy_ids: Collection[int]) -> None:
        """Lock those of these policies that are not locked yet. Raises Unordered where that could be a deadlock."""
        new = set(policy_ids) - self._held
        if not new:
            return
        if self.unit.postgres and self._held and min(new) < max(self._held):
            raise Unordered
        self.heads |= policies.lock(self.unit, new)
        self._held |= new
        if self.unit.postgres:  # others may have decided while we waited
            self.unit.now = max(self.unit.now, decisions.newest(self.unit) or 0)
        for version in policies.learning(self.unit, new):
            self.learning[version.policy.id].append(version)

    def seq(self, policy_id: int) -> int:
        if policy_id not in self._seq:
            self._seq[policy_id] = policies.raise_seq(self.unit, policy_id)
        return self._seq[policy_id]

    # -- events --

    def learn(
        self,
        told: Iterable[tuple[Row, Sequence[Row]]],
        *,
        before: Mapping[int, Sequence[Row]],
        arms: Mapping[tuple[int, int], int],
    ) -> None:
        """Take in what happened to decisions: rows of `events.targets`, each with the fields of its new events.

        before: rows of `events.earlier`; arms: those of the slots of decisions of which several lines speak, or words
        on censoring. Slots of one arm to which the same happened are worth the same: one stands for all.
        """
        alike: list[tuple[int, int, Told, Told]] = []  # policy, arm, what was known of the slot, what is new
        for target, new in told:
            decision_id, policy_id, _, served_at, _, imported, arm_id, last = target
            if imported:
                continue
            prompt, kinds = self._scope.get(policy_id) or self._scoped(policy_id)
            known = () if last is None else before.get(decision_id, ())
            if prompt < inf and (known or any(row[4] - served_at > prompt for row in new)):
                self._learn(target, new, known, arms)
            elif len(new) == 1:
                _, position, kind, value, *_ = new[0]
                if position is not None and kind in kinds:
                    past = _told(known, position, kinds) if known else ()
                    alike.append((policy_id, arm_id, past, ((kind, value),)))
            else:
                for position in {row[1] for row in new} - {None}:
                    if fresh := _told(new, position, kinds):
                        arm = arms.get((decision_id, position), arm_id)
                        alike.append((policy_id, arm, _told(known, position, kinds), fresh))
        worths = cache(self._worths)
        for (policy_id, arm_id, past, fresh), times in Counter(alike).items():
            old, now = worths(policy_id, past), worths(policy_id, past + fresh)
            for version, was, becomes in zip(self.learning[policy_id], old, now, strict=True):
                self.add(version, arm_id, was, becomes, times=times)

    def _worths(self, policy_id: int, told: Told) -> list[Sums]:
        """What a slot to which this happened in time adds to each learning belief of a policy."""
        happened = [Event(0, 1, kind, value, at=0, received_at=0) for kind, value in told]
        return [worth(version, happened, served_at=0) for version in self.learning[policy_id]]

    def _scoped(self, policy_id: int) -> tuple[float, Set[str]]:
        """The age up to which an event counts in every learning belief of a policy (-1 where they may not hold its
        decision), and the kinds of events that change any of them."""
        learning = self.learning[policy_id]
        prompt = min((one.reward.window_us for one in learning if one.reward.late == "ignore"), default=inf)
        if self.settling(policy_id):
            prompt = -1
        kinds = {CENSOR}.union(*(version.reward.weights for version in learning))
        self._scope[policy_id] = prompt, kinds
        return prompt, kinds

    def _learn(
        self, target: Row, new: Iterable[Row], before: Iterable[Row], arms: Mapping[tuple[int, int], int]
    ) -> None:
        """The same for one decision, where its time matters."""
        decision_id, policy_id, _, served_at, *_ = target
        holding = [
            version
            for version in self.learning[policy_id]
            if version.entered_to is None or decision_id <= version.entered_to
        ]
        known = by_position(Event(*row) for row in before)
        for position, fresh in by_position(Event(*row) for row in new).items():
            if position is not None:
                arm_id, old = arms.get((decision_id, position), target[6]), known.get(position, [])
                for version in holding:
                    sums = [worth(version, happened, served_at=served_at) for happened in (old, old + fresh)]
                    self.add(version, arm_id, *sums)

    # -- sums --

    def add(self, version: Version, arm_id: int, before: Sums, after: Sums, *, times: int = 1) -> None:
        """Replace what one slot, or several that are alike, add to a belief."""
        if before == after:
            return
        changes = self._changes[version.policy.id, version.id]
        pulls, total, squares = changes.get(arm_id, NOTHING)
        changes[arm_id] = (
            pulls + times * (after[0] - before[0]),
            total + times * (after[1] - before[1]),
            squares + times * (after[2] - before[2]),
        )

    def serve(self, policy_id: int, arm_ids: Iterable[int]) -> None:
        """Slots are served: they enter every belief that learns `served`, with the default reward."""
        shown = Counter(arm_ids)
        for version in self.learning[policy_id]:
            if version.entered_to is None:
                entry = rewards.entry(version.reward.default)
                for arm, times in shown.items():
                    self.add(version, arm, NOTHING, entry, times=times)

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
        found, happened = decisions.find(self.unit, ids), events.of(self.unit, ids)
        for decision in found.values():
            by_slot = by_position(happened.get(decision.id, ()))
            for slot in decision.slots:
                after = worth(version, by_slot.get(slot.position, ()), served_at=decision.at)
                self.add(version, slot.arm_id, NOTHING, after)
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
        for (policy_id, version_id), changes in sorted(self._changes.items()):
            beliefs.add(self.unit, version_id, seq=self.seq(policy_id), changes=changes)


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


def by_position(happened: Iterable[Event]) -> dict[int | None, list[Event]]:
    """The events of one decision by slot; without a position, those of its page."""
    found: dict[int | None, list[Event]] = {}
    for event in happened:
        found.setdefault(event.position, []).append(event)
    return found
