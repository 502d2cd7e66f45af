"""Record what users did: events into the log, and their effect into every belief that learns from the decision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite

from rlrec.app import canonical
from rlrec.app.ledger import Ledger, holds, worth
from rlrec.errors import Conflict, InputError
from rlrec.policy import reward as rewards
from rlrec.records import Decision, Event, Reward, Slot, Version
from rlrec.store import Store, Unit, decisions, events, policies
from rlrec.store.events import CENSOR


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of feedback. `number` is its line in the input, for errors; `at` microseconds since 1970 UTC."""

    decision_id: int | None = None
    request_id: str | None = None
    position: int | None = None
    events: Mapping[str, float] = field(default_factory=dict)
    at: int | None = None
    key: str | None = None
    censor: bool | None = None
    number: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """`reward` is the slot's where a position was given, else the page's."""

    decision_id: int
    events: int
    duplicates: int
    reward: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    accepted: int
    duplicates: int
    rejected: int


Outcome = Result | InputError


def feedback(store: Store, line: Line) -> Result:
    """Record one line, in one transaction."""
    unweighed = set[str]()

    def work(unit: Unit) -> Result:
        outcome = record(unit, [line], unweighed=unweighed)[0]
        if isinstance(outcome, InputError):
            raise outcome
        return outcome

    result = store.write(work)
    _tell(store, unweighed)
    return result


def feedback_stream(
    store: Store,
    groups: Callable[[], Iterable[Sequence[Line | InputError]]],
    *,
    quarantine: bool,
    rejected: Callable[[InputError], None],
) -> Summary:
    """Record many lines: all in one transaction or none (the first error is raised), or group by group with the
    refused ones handed to `rejected`. `groups` gives the input anew each time it is called."""
    unweighed = set[str]()

    def stored(unit: Unit, group: Sequence[Line | InputError]) -> list[Outcome]:
        return record(unit, group, unweighed=unweighed)

    if quarantine:
        summary = _added([_counted(store.write(partial(stored, group=group)), rejected) for group in groups()])
    else:
        summary = store.write(lambda unit: _added([_counted(stored(unit, group), _refuse) for group in groups()]))
    _tell(store, unweighed)
    return summary


def _tell(store: Store, unweighed: Iterable[str]) -> None:
    """Once, and only of what is stored."""
    for kind in sorted(unweighed):
        store.notice(f"no reward definition weighs {kind!r}; it is stored and counts for nothing yet")


def _refuse(error: InputError) -> None:
    raise error


def _counted(outcomes: Sequence[Outcome], rejected: Callable[[InputError], None]) -> Summary:
    refused = [outcome for outcome in outcomes if isinstance(outcome, InputError)]
    for error in refused:
        rejected(error)
    duplicates = sum(1 for outcome in outcomes if isinstance(outcome, Result) and outcome.duplicates)
    return Summary(accepted=len(outcomes) - len(refused) - duplicates, duplicates=duplicates, rejected=len(refused))


def _added(parts: Iterable[Summary]) -> Summary:
    total = Summary(accepted=0, duplicates=0, rejected=0)
    for part in parts:
        total = Summary(
            accepted=total.accepted + part.accepted,
            duplicates=total.duplicates + part.duplicates,
            rejected=total.rejected + part.rejected,
        )
    return total


def record(unit: Unit, group: Sequence[Line | InputError], *, unweighed: set[str]) -> list[Outcome]:
    """Store a group of lines: per line what became of it. A line that is refused leaves no trace.

    Kinds of events that no definition weighs are put into `unweighed`.
    """
    lines = [line for line in group if isinstance(line, Line)]
    asked = decisions.requests(unit, {line.request_id for line in lines if line.request_id is not None})
    targets = {id(line): _target(line, asked) for line in lines}
    owners = decisions.owners(unit, {number for number in targets.values() if number is not None})
    book = _Book(unit, owners, keys={line.key for line in lines if line.key is not None})
    outcomes = [line if isinstance(line, InputError) else book.take(line, targets[id(line)]) for line in group]
    book.close()
    unweighed |= book.unweighed
    return outcomes


def _target(line: Line, asked: Mapping[str, tuple[bytes | None, int]]) -> int | None:
    if line.request_id is not None:
        return asked[line.request_id][1] if line.request_id in asked else None
    return line.decision_id


class _Book:
    """The decisions that a group speaks of, as they stand after every line taken so far."""

    def __init__(self, unit: Unit, owners: Mapping[int, int], *, keys: Collection[str]) -> None:
        self.unit = unit
        self.ledger = Ledger(unit, set(owners.values()))
        self.ledger.settle()
        self.decisions = decisions.find(unit, owners)
        self.events = defaultdict(list, events.of(unit, owners))
        self.stored = {number: len(found) for number, found in self.events.items()}
        self.keys = events.keys(unit, keys)
        self.new_keys: dict[str, tuple[bytes, int | None, int]] = {}
        self.censored: dict[tuple[int, int], bool] = {}
        self.unweighed: set[str] = set()
        self.known = {kind for definition in policies.rewards(unit) for kind in definition.weights}
        self.serving = policies.by_id(unit, {decision.version_id for decision in self.decisions.values()})

    def take(self, line: Line, target: int | None) -> Outcome:
        try:
            decision = self._decision(line, target)
            position = self._position(line, decision)
            if self._duplicate(line, decision, position):
                return self._result(line, decision, position, stored=False)
            self._apply(line, decision, position)
            return self._result(line, decision, position, stored=True)
        except InputError as error:
            error.line = line.number
            return error

    def _decision(self, line: Line, target: int | None) -> Decision:
        if target is None and line.request_id is None:
            raise InputError("no decision is named", hint="give decision_id or request_id", field="decision_id")
        if target is None or target not in self.decisions:
            what = f"request {line.request_id!r}" if line.request_id is not None else f"decision {target}"
            name = "request_id" if line.request_id is not None else "decision_id"
            raise InputError(f"unknown {what}", hint="`rlrec session list` shows what is stored", field=name)
        return self.decisions[target]

    def _position(self, line: Line, decision: Decision) -> int | None:
        """The slot meant: without a position a slate of one slot means that slot, a longer one the page."""
        shown = [slot.position for slot in decision.slots]
        if line.position is None:
            return shown[0] if decision.size == 1 else None
        if line.position not in shown:
            raise InputError(
                f"position {line.position} of decision {decision.id} was not shown",
                hint=f"shown: {', '.join(map(str, shown))}",
                field="position",
            )
        return line.position

    def _duplicate(self, line: Line, decision: Decision, position: int | None) -> bool:
        if line.key is None:
            return False
        meant = [decision.id, position, dict(line.events)] + ([] if line.censor is None else [line.censor])
        content = canonical.named(meant), line.at, decision.id
        known = self.keys.setdefault(line.key, content)
        if known is content:
            self.new_keys[line.key] = content
            return False
        # An imported key cannot tell whether its line gave `at`: where the retry gives none, it is no difference.
        if decision.imported and line.at is None:
            content = content[0], known[1], content[2]
        if known != content:
            raise Conflict(
                f"feedback key {line.key!r} is known with other content",
                hint="a key names one line for ever: use another",
                field="key",
            )
        return True

    def _apply(self, line: Line, decision: Decision, position: int | None) -> None:
        try:
            new = self._events(line, decision, position)
            self._learn(decision, position, new)
        except InputError:
            if line.key is not None:
                del self.keys[line.key], self.new_keys[line.key]
            raise
        self.events[decision.id].extend(new)
        self.unweighed |= line.events.keys() - self.known
        for event in new:
            if event.kind == CENSOR and event.position is not None:
                self.censored[decision.id, event.position] = event.value == 1.0

    def _events(self, line: Line, decision: Decision, position: int | None) -> list[Event]:
        if not line.events and line.censor is None:
            raise InputError("no event is given", hint="for example click, or dwell_s=31.5", field="events")
        at = self._time(line, decision)
        for kind, value in line.events.items():
            _check(kind, value)
        new = [self._event(line, decision, position, kind, value, at) for kind, value in line.events.items()]
        if line.censor is not None:
            positions = [slot.position for slot in decision.slots] if line.position is None else [line.position]
            flag = float(line.censor)
            new += [self._event(line, decision, where, CENSOR, flag, at) for where in positions]
        return new

    def _event(self, line: Line, decision: Decision, position: int | None, kind: str, value: float, at: int) -> Event:
        return Event(
            decision_id=decision.id,
            position=position,
            kind=kind,
            value=float(value),
            at=at,
            received_at=self.unit.now,
            key=line.key,
        )

    def _time(self, line: Line, decision: Decision) -> int:
        at = self.unit.now if line.at is None else line.at
        if at < decision.at:
            raise InputError(f"the event lies before decision {decision.id}", hint="check `at`", field="at")
        if at > self.unit.now:
            raise InputError("the event lies in the future", hint="check `at` and the clock", field="at")
        return at

    def _learn(self, decision: Decision, position: int | None, new: Sequence[Event]) -> None:
        """Hand the difference that events make to every belief that holds the slot."""
        before = self.events[decision.id]
        after = [*before, *new]
        slots = {event.position for event in new if event.position is not None}
        changes = [
            (
                version,
                slot,
                self._worth(version, decision, slot, before),
                self._worth(version, decision, slot, after, new),
            )
            for slot in decision.slots
            if slot.position in slots
            for version in self._judges(decision)
        ]
        for version, slot, old, fresh in changes:
            if version.learning and holds(version, decision):
                self.ledger.add(version, slot.arm_id, old, fresh)

    def _judges(self, decision: Decision) -> Iterator[Version]:
        """Every version whose definition must be able to express the reward."""
        learning = self.ledger.learning[decision.policy_id]
        yield from learning
        serving = self.serving[decision.version_id]
        if all(version.id != serving.id for version in learning):
            yield serving

    def _worth(
        self, version: Version, decision: Decision, slot: Slot, happened: Sequence[Event], new: Sequence[Event] = ()
    ) -> tuple[float, float, float]:
        censored = self.censored.get((decision.id, slot.position), slot.censored)
        for event in new:
            if event.kind == CENSOR and event.position == slot.position:
                censored = event.value == 1.0
        return worth(version, decision, slot, happened, censored=censored)

    def _result(self, line: Line, decision: Decision, position: int | None, *, stored: bool) -> Result:
        count = len(line.events) + (line.censor is not None)
        return Result(
            decision_id=decision.id,
            events=count if stored else 0,
            duplicates=0 if stored else count,
            reward=self._reward(decision, position),
        )

    def _reward(self, decision: Decision, position: int | None) -> float:
        definition = self.serving[decision.version_id].reward
        happened = [event for event in self.events[decision.id] if event.kind != CENSOR]
        return reward_of(definition, decision, happened, position=position)

    def close(self) -> None:
        """Write events, keys, marks and beliefs."""
        fresh = [
            (number, replace(event, seq=self.ledger.seq(self.decisions[key].policy_id)))
            for key, found in sorted(self.events.items())
            for number, event in enumerate(found, 1)
            if number > self.stored.get(key, 0)
        ]
        events.add(self.unit, fresh)
        events.add_keys(self.unit, [(key, *content) for key, content in self.new_keys.items()])
        for flag in (True, False):
            marked = sorted(slot for slot, censored in self.censored.items() if censored is flag)
            decisions.censor(self.unit, marked, censored=flag)
        self.ledger.close()


def _check(kind: str, value: float) -> None:
    if not rewards.KIND.fullmatch(kind):
        raise InputError(
            f"{kind[:80]!r} is no kind of event", hint="letters, digits, _ and ., at most 64", field="events"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InputError(f"the value of {kind} is {value!r}", hint="give a finite number", field=f"events.{kind}")
    if not rewards.bounded(value):
        hint = f"values stay within {rewards.LIMIT:g}"
        raise InputError(f"the value of {kind}, {value:g}, is too large", hint=hint, field=f"events.{kind}")


def reward_of(definition: Reward, decision: Decision, happened: Sequence[Event], *, position: int | None) -> float:
    """A slot's reward, or without a position the page's: its slots' rewards and what page events are worth."""
    by_slot: dict[int | None, list[Event]] = defaultdict(list)
    for event in happened:
        by_slot[event.position].append(event)
    if position is not None:
        return rewards.of_slot(definition, by_slot[position], served_at=decision.at)
    slots = [rewards.of_slot(definition, by_slot[slot.position], served_at=decision.at) for slot in decision.slots]
    return sum(slots) + rewards.of_page(definition, by_slot[None], served_at=decision.at)
