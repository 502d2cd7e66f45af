"""Record what users did: events in the log, and their effect in every belief that learns from the decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, TypeVar, Union

from rlrec.app.learning.ledger import Ledger, Unordered
from rlrec.errors import Conflict, InputError, quantity, suggest
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.beliefs.reward import LIMIT, rewards_of
from rlrec.records import Event, Line, Reward, Sums
from rlrec.store import Store, Unit
from rlrec.store.database.unit import Row, StoredRows
from rlrec.store.log import decisions, events
from rlrec.store.log.events import CENSOR, RETURN, FeedbackKey, FeedbackTarget
from rlrec.store.policies import policies

if TYPE_CHECKING:
    from rlrec.app.requests.credit import PersonalResult

__all__ = ["Line", "Result", "feedback", "feedback_group", "feedback_stream"]

T = TypeVar("T")
MAX_KINDS = 1_000  # of events in a line
MAX_WARNINGS = 10  # at once, of kinds of events


@dataclass(frozen=True, kw_only=True)
class Result:
    """`reward` is the slot's where a position was given, else the page's."""

    decision_id: int
    events: int
    duplicates: int
    reward: float


@dataclass(frozen=True)
class Summary(Sums):
    """How many lines of a stream were stored, or known before, or refused."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0


Group = Sequence[Line | InputError]
LineContent = tuple[int, int | None, Mapping[str, float], bool | None, int | None]  # decision, position, ..., at
Outcome = Union[Result, "PersonalResult", InputError]


def feedback(store: Store, line: Line) -> Result | PersonalResult:
    """Record one line, in one transaction, which leaves no trace where the line is refused."""
    (outcome,) = feedback_group(store, [line], all_or_none=True)
    assert not isinstance(outcome, InputError)
    return outcome


def feedback_group(
    store: Store, group: Group, warned: set[str] | None = None, *, all_or_none: bool = False
) -> list[Outcome]:
    """Record lines, in one transaction: the answer to each. warned: kinds of events that this process has warned of,
    which takes in the new ones. all_or_none: raise the first error, and store nothing."""

    def work(unit: Unit, ledger: Ledger) -> FeedbackTransaction:
        feedback = FeedbackTransaction(unit, ledger, group, answers=True)
        refused = [outcome for outcome in feedback.outcomes if isinstance(outcome, InputError)]
        if refused and all_or_none:
            raise refused[0]
        return feedback

    stored = _write(store, work)
    warn_unweighed(store, stored.unweighed, warned)
    return stored.outcomes


def _write(store: Store, work: Callable[[Unit, Ledger], T], *, references_hold: bool = False) -> T:
    """The result of `work`, in one transaction with its ledger: with all policies locked where it names one before
    those that it has locked."""

    def write(unit: Unit, *, lock_all: bool) -> T:
        ledger = Ledger(unit, [policy.id for policy in policies.all_policies(unit)] if lock_all else ())
        result = work(unit, ledger)
        ledger.close()
        return result

    try:
        return store.write(partial(write, lock_all=False), references_hold=references_hold, repeatable=True)
    except Unordered:
        return store.write(partial(write, lock_all=True), references_hold=references_hold, repeatable=True)


def feedback_stream(
    store: Store, groups: Callable[[], Iterable[Group]], *, quarantine: bool, rejected: Callable[[InputError], None]
) -> Summary:
    """Record many lines: all in one transaction or none (the first error is raised), or group by group with the
    refused ones handed to `rejected`. `groups` gives the input anew each time it is called."""
    unweighed = set[str]()

    def work(unit: Unit, ledger: Ledger, *, portion: Callable[[], Iterable[Group]]) -> tuple[Summary, list[InputError]]:
        summary, errors = Summary(), list[InputError]()
        for group in portion():
            feedback = FeedbackTransaction(unit, ledger, group)
            unweighed.update(feedback.unweighed)
            refused = [line for line in feedback.stored if isinstance(line, InputError)]
            if refused and not quarantine:
                raise refused[0]
            errors += refused
            accepted = feedback.stored.count(True)
            duplicates = len(group) - accepted - len(refused)
            summary += Summary(accepted=accepted, duplicates=duplicates, rejected=len(refused))
        return summary, errors

    total = Summary()
    portions: Iterable[Callable[[], Iterable[Group]]] = [groups]
    if quarantine:
        portions = (partial(list, [group]) for group in groups())
    for portion in portions:
        summary, errors = _write(store, partial(work, portion=portion), references_hold=True)
        total += summary
        for error in errors:
            rejected(error)
    warn_unweighed(store, unweighed)
    return total


def _unnamed(unit: Unit, kinds: Sequence[str]) -> list[str]:
    """Those of these kinds of events that no rule of a policy names."""
    from rlrec.app.inputs import arm_rules

    rules = [arm_rules.policy_rules(policy.params) for policy in policies.all_policies(unit)]
    named = {kind for rule in rules for kind in rule.kinds}
    return [kind for kind in kinds if kind not in named]


def warn_unweighed(store: Store, unweighed: set[str], warned: set[str] | None = None) -> None:
    """Warn of kinds of events that count for nothing: of each once in the life of a store, and only of stored ones. Of
    many at once, the first ones are named. warned: as of `feedback_group`."""
    kinds = unweighed if warned is None else unweighed - warned
    if not kinds:
        return
    from rlrec.store.log import settings

    if warned is not None and len(warned) < settings.MAX_NOTICED:
        warned |= unweighed
    with store.read() as unit:
        new = settings.new_kinds(unit, kinds)
        weighed_kinds = sorted({kind for definition in policies.rewards(unit) for kind in definition.weights})
        unused = _unnamed(unit, new) if new else []
    for kind in unused[:MAX_WARNINGS]:
        hint = suggest(kind, weighed_kinds) or f"`rlrec reward define NAME {kind}=1` makes it count"
        store.notice(f"no reward definition weighs {kind!r}; it is stored and counts for nothing yet: {hint}")
    if len(unused) > MAX_WARNINGS:
        n_others = quantity(len(unused) - MAX_WARNINGS, "other kind")
        store.notice(
            f"no reward definition weighs {n_others} of events either; they are stored and count for nothing yet"
        )
    if new:
        store.write(lambda unit: settings.note_kinds(unit, new), repeatable=True)


class FeedbackTransaction:
    """A group of lines: all that they name is read first, then each line is checked, then all are written.

    Most lines name a slot without events: such a line costs a few microseconds. One that is refused leaves no trace.
    stored: of each line whether it was stored (else it is a duplicate), or why it was refused. outcomes: the answers,
    with the rewards after each line. unweighed: the kinds of events that no definition weighs. returns: whether these
    are events `return` that record themselves; other lines may not have one once a definition weighs it, or a visit
    would count twice.
    """

    def __init__(
        self, unit: Unit, ledger: Ledger, group: Group, *, answers: bool = False, returns: bool = False
    ) -> None:
        self.unit = unit
        self.ledger = ledger
        self.returns = returns
        self.stored: list[bool | InputError] = []
        self.outcomes: list[Outcome] = []
        self.unweighed = set[str]()
        lines = [line for line in group if not isinstance(line, InputError)]
        if unit.postgres:  # under SQLite's one lock nothing changes any more
            ledger.lock(policies_of(unit, lines))
        credited = None
        if any(line.user is not None for line in lines):
            from rlrec.app.requests.credit import CreditedLines  # few streams have lines of users

            credited = CreditedLines(unit, group)
            group = credited.lines
            lines = [line for line in group if not isinstance(line, InputError)]
        self.targets = events.targets(unit, [(line.decision_id, line.request_id, line.position) for line in lines])
        policy_ids = {target.policy_id for target in self.targets if target.decision_id is not None}
        ledger.lock(policy_ids)
        ledger.settle(policy_ids)
        self.weighed = {kind for definition in policies.rewards(unit) for kind in definition.weights}
        with_events = {target.decision_id for target in self.targets if target.number is not None}
        self.stored_events = events.by_decision(unit, with_events, self.weighed)
        self.keys = events.stored_keys(unit, {line.key for line in lines if line.key is not None})
        self.pages = self._pages(lines, answers=answers)
        self.kinds = self.weighed - {RETURN}  # of events that need no further check
        # the reward definition of each version that served one of the decisions
        self.rewards: dict[int, Reward] = StoredRows("version")
        if answers:
            learning = {version.id: version for versions in ledger.learning.values() for version in versions}
            unread = {target.version_id for target in self.targets if target.decision_id is not None} - learning.keys()
            versions = learning | (policies.by_id(unit, unread) if unread else {})
            self.rewards |= {version_id: version.reward for version_id, version in versions.items()}
        self.new: dict[int, tuple[FeedbackTarget, list[Row]]] = {}  # by decision: its first target, and its new events
        self.rewarded_events: dict[int, tuple[list[Event], int]] = {}  # by decision, up to how many of its new events
        self.new_keys: dict[str, LineContent] = {}
        self.arms: dict[tuple[int, int], int] = {}  # of further slots
        self.censored: dict[tuple[int, int], bool] = {}
        self._take_lines(group, answers=answers)
        if credited is not None:
            self.outcomes = credited.answers(self.outcomes) if answers else []
            self.stored = credited.first_of_each(self.stored)

    def _pages(self, lines: Sequence[Line], *, answers: bool) -> dict[int, dict[int, int]]:
        """The arm at each position of decisions that a line names as a page."""
        if not answers and all(line.censor is None for line in lines):
            return {}
        pages = {
            target.decision_id
            for line, target in zip(lines, self.targets, strict=True)
            if line.position is None and target.decision_id is not None and target.size != 1
        }
        return events.slates(self.unit, pages) if pages else {}

    def _take_lines(self, group: Group, *, answers: bool) -> None:
        """Check lines, then write their events, keys and censored marks, and apply the events to the beliefs."""
        targets = iter(self.targets)
        for line in group:
            if isinstance(line, InputError):
                self.stored.append(line)
                self.outcomes.append(line)
                continue
            target = next(targets)
            stored = self._add(line, target)
            self.stored.append(stored)
            if answers:
                self.outcomes.append(self._answer(line, target, stored))
        self.ledger.apply_events(self.new.values(), stored=self.stored_events, arms=self.arms)
        events.add(self.unit, [event for number in sorted(self.new) for event in self.new[number][1]])
        if self.new_keys:
            events.add_keys(self.unit, [(key, *_stored_key(content)) for key, content in self.new_keys.items()])
        for flag in sorted(set(self.censored.values()), reverse=True):
            decisions.censor(
                self.unit, sorted(slot for slot, censored in self.censored.items() if censored is flag), censored=flag
            )

    def _add(self, line: Line, target: FeedbackTarget) -> bool | InputError:
        """Check a line, and collect its events: whether they are new, or why it is refused."""
        _, _, position, values, at, key, censor, number, *_ = line
        decision_id, policy_id, _, served_at, size, imported, arm_id, last, _, _ = target
        if position is None and size == 1:
            position = 1
        now = self.unit.now
        event_at = now if at is None else at
        try:
            if decision_id is None:
                raise _unknown_decision(line)
            if arm_id is None and position is not None:
                shown = ", ".join(map(str, events.slates(self.unit, [decision_id])[decision_id]))
                message = f"position {position} of decision {decision_id} was not shown"
                raise InputError(message, hint=f"shown: {shown}", field="position")
            if key is not None and (key in self.new_keys or key in self.keys):
                self._compare(line, target, position)
                return False
            if not served_at <= event_at <= now or not (values or censor is not None) or len(values) > MAX_KINDS:
                raise _refused_events(line, decision_id, early=event_at < served_at)
            for kind, value in values.items():
                if kind not in self.kinds or type(value) is not float or not -LIMIT <= value <= LIMIT:
                    _check(kind, value)
                    if kind != RETURN:
                        self.kinds.add(kind)
                    elif kind in self.weighed and not imported and self._returned_already(decision_id, value):
                        return False
        except InputError as error:
            error.line = number
            return error
        collected = self.new.get(decision_id)
        if collected is None:
            self.new[decision_id] = collected = target, []
        elif position is not None:
            self.arms[decision_id, position] = arm_id
        new, seq = collected[1], self.ledger.seq(policy_id)
        count = (last or 0) + len(new)
        for kind, value in values.items():
            count += 1
            new.append((decision_id, position, kind, float(value), event_at, now, seq, key, count))
            if kind not in self.weighed:
                self.unweighed.add(kind)
        if censor is not None:
            self._censor(target, Event(decision_id, position, CENSOR, float(censor), event_at, now, seq, key, count))
        if key is None:
            self.unit.repeatable = False
        else:
            self.new_keys[key] = decision_id, position, values, censor, at
        return True

    def _returned_already(self, decision_id: int, value: float) -> bool:
        """Whether an event `return` that records itself is there: by hand, from before a definition weighed it. One
        of a negative value takes such an event back. Raises InputError for one by hand."""
        if not self.returns:
            raise InputError(
                f"the event {RETURN!r} records itself where a user begins another visit, since a reward weighs it",
                hint="name users when you serve them; send what is no such visit under another kind", field="events",
            )  # fmt: skip
        stored = (event.value for event in self.stored_events.get(decision_id, ()) if event.kind == RETURN)
        return value > 0 and sum(-1 if earlier < 0 else 1 for earlier in stored) > 0

    def _compare(self, line: Line, target: FeedbackTarget, position: int | None) -> None:
        """Raises Conflict where the key names another line, of the store or of this group."""
        key = line.key or ""
        stored = _stored_key(self.new_keys[key]) if key in self.new_keys else self.keys[key]
        # An imported key cannot tell whether its line gave `at`: where the retry gives none, it is no difference.
        at = stored.at if target.imported and line.at is None else line.at
        # No stored line has a value that is not a number.
        numbers = all(type(value) in (int, float) and isfinite(value) for value in line.events.values())
        content = target.decision_id, position, line.events, line.censor, at
        if not numbers or stored != _stored_key(content):
            hint = "a key names one line for ever: use another"
            raise Conflict(f"feedback key {key!r} is known with other content", hint=hint, field="key")

    def _censor(self, target: FeedbackTarget, event: Event) -> None:
        """Collect a censoring event of a slot, or of every slot of a page."""
        slots = self.pages[target.decision_id] if event.position is None else {event.position: target.arm_id}
        for number, (position, arm_id) in enumerate(slots.items(), event.number + 1):
            self.new[target.decision_id][1].append(event._replace(position=position, number=number))
            self.arms[target.decision_id, position] = arm_id
            self.censored[target.decision_id, position] = event.value == 1.0

    def _answer(self, line: Line, target: FeedbackTarget, stored: bool | InputError) -> Outcome:
        if isinstance(stored, InputError):
            return stored
        decision_id, served_at, size = target.decision_id, target.at, target.size
        new = self.new[decision_id][1] if decision_id in self.new else ()
        rewarded, n_taken = self.rewarded_events.get(decision_id) or ([*self.stored_events.get(decision_id, ())], 0)
        rewarded += [Event(*row) for row in new[n_taken:] if row[2] in self.weighed or row[2] == CENSOR]
        self.rewarded_events[decision_id] = rewarded, len(new)
        position, count = 1 if size == 1 else line.position, len(line.events) + (line.censor is not None)
        shown = self.pages.get(decision_id, ()) if position is None else (position,)
        earned = rewards_of(self.rewards[target.version_id], rewarded, served_at=served_at, shown=shown)
        return Result(
            decision_id=decision_id, events=count if stored else 0, duplicates=0 if stored else count,
            reward=sum(earned.values()) if position is None else earned[position],
        )  # fmt: skip


def policies_of(unit: Unit, lines: Sequence[Line]) -> set[int]:
    """Ids of the policies that drew the decisions which lines name, or credit."""
    if any(line.user is not None for line in lines):
        from rlrec.app.requests.credit import CreditedLines

        lines = [line for line in CreditedLines(unit, lines).lines if isinstance(line, Line)]
    names = [(line.decision_id, line.request_id) for line in lines]
    return decisions.policies_of(unit, {name for name, _ in names} - {None}, {name for _, name in names} - {None})


def _stored_key(content: LineContent) -> FeedbackKey:
    from rlrec.app.inputs.canonical import line_digest  # which a line without a key does without

    decision_id, position, values, censor, at = content
    return FeedbackKey(line_digest(decision_id, position, values, censor), at, decision_id)


def _refused_events(line: Line, decision_id: int, *, early: bool) -> InputError:
    if len(line.events) > MAX_KINDS:
        hint = f"send at most {MAX_KINDS:,} kinds in a line"
        return InputError(f"{len(line.events):,} kinds of events are given", hint=hint, field="events")
    if not line.events and line.censor is None:
        return InputError("no event is given", hint="for example click, or dwell_s=31.5", field="events")
    if early:
        return InputError(f"the event lies before decision {decision_id}", hint="check `at`", field="at")
    return InputError("the event lies in the future", hint="check `at` and the clock", field="at")


def _unknown_decision(line: Line) -> InputError:
    hint = "`rlrec session list` shows what is stored"
    if line.request_id is not None:
        return InputError(f"unknown request {line.request_id!r}", hint=hint, field="request_id")
    if line.decision_id is not None:
        return InputError(f"unknown decision {line.decision_id}", hint=hint, field="decision_id")
    return InputError("no decision is named", hint="give decision_id or request_id", field="decision_id")


def _check(kind: str, value: float) -> None:
    if not rewards.KIND.fullmatch(kind):
        hint = "letters, digits, _ and ., at most 64"
        raise InputError(f"{kind[:80]!r} is no kind of event", hint=hint, field="events")
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InputError(f"the value of {kind} is {value!r}", hint="give a finite number", field=f"events.{kind}")
    if not rewards.is_bounded(value):
        hint = f"values stay within {rewards.LIMIT:g}"
        raise InputError(f"the value of {kind}, {value:g}, is too large", hint=hint, field=f"events.{kind}")
