"""Record what users did: events into the log, and their effect into every belief that learns from the decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import isfinite
from types import MappingProxyType
from typing import NamedTuple

from rlrec.app.inputs import canonical
from rlrec.app.learning.ledger import Ledger, Unordered
from rlrec.app.log.decision_reward import reward_from
from rlrec.errors import Conflict, InputError
from rlrec.policy import reward as rewards
from rlrec.policy.reward import LIMIT
from rlrec.records import Event, Reward
from rlrec.store import Store, Unit, decisions, events, policies
from rlrec.store.contents import digest
from rlrec.store.events import CENSOR, FeedbackKey, FeedbackTarget
from rlrec.store.unit import Row

NONE: Mapping[str, float] = MappingProxyType({})


class Line(NamedTuple):
    """One line of feedback. `number` is its line in the input, for errors; `at` microseconds since 1970 UTC."""

    decision_id: int | None = None
    request_id: str | None = None
    position: int | None = None
    events: Mapping[str, float] = NONE
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


Group = Sequence[Line | InputError]
Outcome = Result | InputError
Taken = bool | InputError  # whether a line was stored (else it is a duplicate), or why it was refused


def feedback(store: Store, line: Line) -> Result:
    """Record one line, in one transaction."""
    unweighed = set[str]()

    def work(unit: Unit) -> Result:
        outcome = record(unit, [line], unweighed=unweighed)[0]
        if isinstance(outcome, InputError):
            raise outcome
        return outcome

    result = store.write(work, repeatable=True)
    tell(store, unweighed)
    return result


def feedback_stream(
    store: Store,
    groups: Callable[[], Iterable[Group]],
    *,
    quarantine: bool,
    rejected: Callable[[InputError], None],
) -> Summary:
    """Record many lines: all in one transaction or none (the first error is raised), or group by group with the
    refused ones handed to `rejected`. `groups` gives the input anew each time it is called."""
    unweighed = set[str]()

    def one(unit: Unit, group: Group) -> list[Taken]:
        ledger = Ledger(unit, ())
        taken = _Book(unit, ledger, group, unweighed).take()
        ledger.close()
        return taken

    def every(unit: Unit, *, locked: bool) -> Summary:
        ledger = Ledger(unit, [policy.id for policy in policies.all_policies(unit)] if locked else ())
        summary = _added(_counted(_Book(unit, ledger, group, unweighed).take(), _refuse) for group in groups())
        ledger.close()
        return summary

    if quarantine:
        summary = _added(
            _counted(store.write(partial(one, group=group), sound=True, repeatable=True), rejected)
            for group in groups()
        )
    else:
        try:
            summary = store.write(partial(every, locked=False), sound=True, repeatable=True)
        except Unordered:  # a later group names a policy before those of an earlier one
            summary = store.write(partial(every, locked=True), sound=True, repeatable=True)
    tell(store, unweighed)
    return summary


def record(unit: Unit, group: Group, *, unweighed: set[str], ledger: Ledger | None = None) -> list[Outcome]:
    """Store a group of lines: per line what became of it. A line that is refused leaves no trace.

    Kinds of events that no definition weighs are put into `unweighed`. ledger: that of a larger transaction, which
    locked the policies and will close it.
    """
    held = Ledger(unit, ()) if ledger is None else ledger
    outcomes = _Book(unit, held, group, unweighed, answers=True).answer()
    if ledger is None:
        held.close()
    return outcomes


def tell(store: Store, unweighed: Iterable[str]) -> None:
    """Say which kinds of events count for nothing: once, and only of what is stored."""
    for kind in sorted(unweighed):
        store.notice(f"no reward definition weighs {kind!r}; it is stored and counts for nothing yet")


def _refuse(error: InputError) -> None:
    raise error


def _counted(taken: Sequence[Taken], rejected: Callable[[InputError], None]) -> Summary:
    refused = [one for one in taken if isinstance(one, InputError)]
    for error in refused:
        rejected(error)
    accepted = sum(one is True for one in taken)
    return Summary(accepted=accepted, duplicates=len(taken) - len(refused) - accepted, rejected=len(refused))


def _added(parts: Iterable[Summary]) -> Summary:
    total = Summary(accepted=0, duplicates=0, rejected=0)
    for part in parts:
        total = Summary(
            accepted=total.accepted + part.accepted,
            duplicates=total.duplicates + part.duplicates,
            rejected=total.rejected + part.rejected,
        )
    return total


class _Book:
    """A group of lines before the decisions that they speak of, as these stand after every line taken so far.

    Most lines name a slot that nothing happened to yet: what a line costs is kept to a few microseconds.
    """

    def __init__(self, unit: Unit, ledger: Ledger, group: Group, unweighed: set[str], *, answers: bool = False) -> None:
        self.unit = unit
        self.ledger = ledger
        self.group = group
        self.unweighed = unweighed
        lines = [line for line in group if not isinstance(line, InputError)]
        self.targets = self._targets(lines)
        ledger.settle({target.policy_id for target in self.targets if target.decision_id is not None})
        self.weighed = {kind for definition in policies.rewards(unit) for kind in definition.weights}
        told = {target.decision_id for target in self.targets if target.number is not None}
        self.before = events.earlier(unit, told, self.weighed)
        self.keys = events.stored_keys(unit, {line.key for line in lines if line.key is not None})
        self.pages = self._pages(lines, answers=answers)
        self.kinds = set(self.weighed)  # those known to be named well
        self.serving = self._serving() if answers else {}
        self.new: dict[int, tuple[FeedbackTarget, list[Row]]] = {}  # by decision: its target, and fields of events
        self.new_keys: list[tuple[str, bytes, int | None, int]] = []
        self.arms: dict[tuple[int, int], int] = {}  # of the slots that something happened to
        self.censored: dict[tuple[int, int], bool] = {}

    def _targets(self, lines: Sequence[Line]) -> list[FeedbackTarget]:
        """The target of each line. The policies are locked."""
        named = {line.request_id for line in lines if line.request_id is not None}
        asked = {key: decision for key, (_, decision) in decisions.requests(self.unit, named).items()}
        wanted = [
            (line.decision_id if line.request_id is None else asked.get(line.request_id), line.position)
            for line in lines
        ]
        if self.unit.postgres:  # under SQLite's one lock nothing changes any more
            owners = decisions.policy_ids(self.unit, {decision for decision, _ in wanted if decision is not None})
            self.ledger.lock(owners.values())
        found = events.targets(self.unit, wanted)
        self.ledger.lock({target.policy_id for target in found if target.decision_id is not None})
        return found

    def _pages(self, lines: Sequence[Line], *, answers: bool) -> dict[int, dict[int, int]]:
        """The slots of the decisions of which a line means all."""
        if not answers and all(line.censor is None for line in lines):
            return {}
        pages = {
            target.decision_id
            for line, target in zip(lines, self.targets, strict=True)
            if line.position is None and target.decision_id is not None and target.size != 1
        }
        return events.slates(self.unit, pages) if pages else {}

    def _serving(self) -> dict[int, Reward]:
        """The reward definition of each version that served one of the decisions."""
        known = {version.id: version.reward for versions in self.ledger.learning.values() for version in versions}
        others = {target.version_id for target in self.targets if target.decision_id is not None} - known.keys()
        found = policies.by_id(self.unit, others) if others else {}
        return known | {number: version.reward for number, version in found.items()}

    def take(self) -> list[Taken]:
        """What became of each line."""
        targets = iter(self.targets)
        taken = [one if isinstance(one, InputError) else self._take(one, next(targets)) for one in self.group]
        self._close()
        return taken

    def answer(self) -> list[Outcome]:
        """The same, and what the reward was after each line."""
        targets = iter(self.targets)
        outcomes = [one if isinstance(one, InputError) else self._answer(one, next(targets)) for one in self.group]
        self._close()
        return outcomes

    def _take(self, line: Line, target: FeedbackTarget) -> Taken:
        """Check a line and note what it adds."""
        _, _, position, happened, at, key, censor, number = line
        decision_id, served_at = target.decision_id, target.at
        if position is None and target.size == 1:
            position = 1
        now = self.unit.now
        when = now if at is None else at
        try:
            if decision_id is None:
                raise _unknown(line)
            if target.arm_id is None and position is not None:
                raise self._unshown(decision_id, position)
            if key is not None and (known := self.keys.get(key)) is not None:
                _compare(line, target, position, known)
                return False
            if not served_at <= when <= now or not (happened or censor is not None):
                raise _untold(line, decision_id, early=when < served_at)
            for kind, value in happened.items():
                if kind not in self.kinds or type(value) is not float or not -LIMIT <= value <= LIMIT:
                    _check(kind, value)
                    self.kinds.add(kind)
        except InputError as error:
            error.line = number
            return error
        found = self.new.get(decision_id)
        if found is None:
            self.new[decision_id] = found = target, []
        elif position is not None:
            self.arms[decision_id, position] = target.arm_id
        new, seq = found[1], self.ledger.seq(target.policy_id)
        count = (target.number or 0) + len(new)
        for kind, value in happened.items():
            count += 1
            new.append((decision_id, position, kind, float(value), when, now, seq, key, count))
            if kind not in self.weighed:
                self.unweighed.add(kind)
        if censor is not None:
            word = Event(decision_id, position, CENSOR, float(censor), when, now, seq, key, count)
            self._censor(target, word)
        if key is None:
            self.unit.repeatable = False
        else:
            self.keys[key] = content = FeedbackKey(named(decision_id, position, happened, censor), at, decision_id)
            self.new_keys.append((key, *content))
        return True

    def _unshown(self, decision_id: int, position: int) -> InputError:
        shown = events.slates(self.unit, [decision_id])[decision_id]
        return InputError(
            f"position {position} of decision {decision_id} was not shown",
            hint=f"shown: {', '.join(map(str, shown))}",
            field="position",
        )

    def _censor(self, target: FeedbackTarget, word: Event) -> None:
        """Put a word into the events of its slot, or of every slot of the page."""
        slots = self.pages[target.decision_id] if word.position is None else {word.position: target.arm_id}
        for number, (position, arm_id) in enumerate(slots.items(), word.number + 1):
            self.new[target.decision_id][1].append(word._replace(position=position, number=number))
            self.arms[target.decision_id, position] = arm_id
            self.censored[target.decision_id, position] = word.value == 1.0

    def _answer(self, line: Line, target: FeedbackTarget) -> Outcome:
        taken = self._take(line, target)
        if isinstance(taken, InputError):
            return taken
        decision_id, served_at, size = target.decision_id, target.at, target.size
        new = self.new[decision_id][1] if decision_id in self.new else ()
        happened = [Event(*row) for row in (*self.before.get(decision_id, ()), *new)]
        count = len(line.events) + (line.censor is not None)
        return Result(
            decision_id=decision_id,
            events=count if taken else 0,
            duplicates=0 if taken else count,
            reward=reward_from(
                self.serving[target.version_id], happened, served_at=served_at,
                position=1 if size == 1 else line.position, shown=self.pages.get(decision_id, ()),
            ),
        )  # fmt: skip

    def _close(self) -> None:
        """Write events, keys and marks, and hand the ledger the differences that they make."""
        self.ledger.apply_events(self.new.values(), before=self.before, arms=self.arms)
        events.add(self.unit, [event for number in sorted(self.new) for event in self.new[number][1]])
        events.add_keys(self.unit, self.new_keys)
        for flag in (True, False):
            marked = sorted(slot for slot, censored in self.censored.items() if censored is flag)
            decisions.censor(self.unit, marked, censored=flag)


def _compare(line: Line, target: FeedbackTarget, position: int | None, known: FeedbackKey) -> None:
    """Raises Conflict where a known key named another line."""
    # An imported key cannot tell whether its line gave `at`: where the retry gives none, it is no difference.
    at = known.at if target.imported and line.at is None else line.at
    # A value that is no number is no line that was stored.
    sound = all(type(value) in (int, float) and isfinite(value) for value in line.events.values())
    if not sound or known != (named(target.decision_id, position, line.events, line.censor), at, target.decision_id):
        raise Conflict(
            f"feedback key {line.key!r} is known with other content",
            hint="a key names one line for ever: use another",
            field="key",
        )


def _untold(line: Line, decision_id: int, *, early: bool) -> InputError:
    if not line.events and line.censor is None:
        return InputError("no event is given", hint="for example click, or dwell_s=31.5", field="events")
    if early:
        return InputError(f"the event lies before decision {decision_id}", hint="check `at`", field="at")
    return InputError("the event lies in the future", hint="check `at` and the clock", field="at")


def _unknown(line: Line) -> InputError:
    if line.decision_id is None and line.request_id is None:
        return InputError("no decision is named", hint="give decision_id or request_id", field="decision_id")
    what = f"request {line.request_id!r}" if line.request_id is not None else f"decision {line.decision_id}"
    name = "request_id" if line.request_id is not None else "decision_id"
    return InputError(f"unknown {what}", hint="`rlrec session list` shows what is stored", field=name)


def _check(kind: str, value: float) -> None:
    if not rewards.KIND.fullmatch(kind):
        raise InputError(
            f"{kind[:80]!r} is no kind of event", hint="letters, digits, _ and ., at most 64", field="events"
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InputError(f"the value of {kind} is {value!r}", hint="give a finite number", field=f"events.{kind}")
    if not rewards.is_bounded(value):
        hint = f"values stay within {rewards.LIMIT:g}"
        raise InputError(f"the value of {kind}, {value:g}, is too large", hint=hint, field=f"events.{kind}")


def named(decision_id: int, position: int | None, happened: Mapping[str, float], censor: bool | None) -> bytes:
    """What a key names: the digest of a line in canonical form."""
    where = "null" if position is None else position
    return digest(f"[{decision_id},{where},{_rest(tuple(happened.items()), censor)}")


@lru_cache(maxsize=1024)
def _rest(happened: tuple[tuple[str, float], ...], censor: bool | None) -> str:
    """Most lines say the same."""
    values = {kind: float(value) for kind, value in happened}
    return canonical.text([values] if censor is None else [values, censor])[1:]
