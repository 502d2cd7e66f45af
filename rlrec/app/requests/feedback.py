"""This module records what users did: it stores events, and updates every belief that learns from the decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, TypeVar, Union

from rlrec.app.learning.ledger import Ledger, Unordered
from rlrec.errors import InputError, quantity, suggest
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.beliefs.reward import LIMIT, rewards_of
from rlrec.records import Event, Line, Record, Sums, Version
from rlrec.store import Store, Unit
from rlrec.store.database.database_errors import Retry
from rlrec.store.database.unit import Row
from rlrec.store.log import decisions, events
from rlrec.store.log.events import CENSOR, RETURN, FeedbackTarget
from rlrec.store.policies import policies

if TYPE_CHECKING:
    from rlrec.app.requests.credit import PersonalResult

__all__ = ["Line", "Result", "feedback", "feedback_group", "feedback_stream"]

T = TypeVar("T")
LATE = "{0} came after the window of reward {1}: beliefs may learn from {2}, no estimate counts {2}"
MAX_KINDS = 1_000  # kinds of events in one line
MAX_WARNINGS = 10  # most kinds of events that one warning names


class Result(Record):
    """This record is the answer to a line of feedback. events: the number of events that were stored; duplicates: the
    number of events that had been stored before; reward: the reward of the slot if the line has a position, else the
    reward of the whole slate."""

    decision_id: int
    events: int
    duplicates: int
    reward: float


class Summary(Sums, eq=True):
    """This record counts the lines of a stream that were stored (`accepted`), repeated (`duplicates`) or refused
    (`rejected`)."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0


Group = Sequence[Line | InputError]
Outcome = Union[Result, "PersonalResult", InputError]


def feedback(store: Store, line: Line) -> Result | PersonalResult:
    """Record a line of feedback in one transaction, and return the answer. A line with an error is not stored; the
    error is raised."""
    transaction = feedback_group(store, [line], all_or_none=True)
    for name in sorted(transaction.late_lines):
        store.notice(LATE.format("it", name, "it"))
    (outcome,) = transaction.outcomes
    assert not isinstance(outcome, InputError)
    return outcome


def feedback_group(
    store: Store, group: Group, warned_kinds: set[str] | None = None, *, all_or_none: bool = False
) -> FeedbackTransaction:
    """Record lines of feedback in one transaction. Returns an object with the answer to each line. warned_kinds: the
    kinds of events for which this process has printed a warning, to which new ones are added; all_or_none: whether to
    raise the first error and store nothing."""

    def work(unit: Unit, ledger: Ledger) -> FeedbackTransaction:
        transaction = FeedbackTransaction(unit, ledger, group, answers=True)
        if all_or_none and transaction.errors:
            raise transaction.errors[0]
        return transaction

    transaction = _write(store, work)
    if transaction.unweighed_kinds:
        warn_of_kinds(store, transaction.unweighed_kinds, warned_kinds)
    return transaction


def _write(store: Store, work: Callable[[Unit, Ledger], T], *, references_hold: bool = False) -> T:
    """Run `work` in one transaction with a ledger, and return its result. Policies must be locked in order of id. If
    `work` needs a policy with a smaller id than one that it has locked, `work` is run again with all policies locked.
    references_hold: whether `work` breaks no foreign key, so that SQLite need not check any."""

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
    store: Store, groups: Callable[[], Iterable[Group]], *, quarantine: bool, reject: Callable[[InputError], None]
) -> Summary:
    """Record many lines of feedback, and count them. Without `quarantine`, all lines are stored in one transaction. The
    first error is then raised, and nothing is stored. groups: a function that returns the input from its start each
    time it is called; quarantine: whether to leave out wrong lines, and to store each group in its own transaction;
    reject: a function that is called with the error of each line left out."""
    unweighed_kinds, versions = set[str](), dict[int, Version]()

    def work(
        unit: Unit, ledger: Ledger, *, portion: Callable[[], Iterable[Group]]
    ) -> tuple[Summary, list[InputError], Counter[str]]:
        summary, errors, late_lines = Summary(), list[InputError](), Counter[str]()
        for group in portion():
            transaction = FeedbackTransaction(unit, ledger, group, versions)
            unweighed_kinds.update(transaction.unweighed_kinds)
            late_lines += transaction.late_lines
            if transaction.errors and not quarantine:
                raise transaction.errors[0]
            errors += transaction.errors
            n_accepted, n_duplicates = map(transaction.results.count, (True, False))
            summary += Summary(accepted=n_accepted, duplicates=n_duplicates, rejected=len(transaction.errors))
        return summary, errors, late_lines

    total, late_total = Summary(), Counter[str]()
    portions: Iterable[Callable[[], Iterable[Group]]] = [groups]
    if quarantine:
        portions = (partial(list, [group]) for group in groups())
    for portion in portions:
        summary, errors, late_lines = _write(store, partial(work, portion=portion), references_hold=True)
        total += summary
        late_total += late_lines
        for error in errors:
            reject(error)
    for name, n_late in sorted(late_total.items()):
        lines = f"{n_late:,} of {quantity(total.accepted, 'line')}"
        store.notice(LATE.format(lines, name, "them"))
    warn_of_kinds(store, unweighed_kinds)
    return total


def warn_of_kinds(store: Store, unweighed_kinds: set[str], warned_kinds: set[str] | None = None) -> None:
    """Print a warning about kinds of events that no reward weighs and no rule of a policy names. A store warns of each
    kind only once. If many kinds are new, only the first are named. unweighed_kinds: kinds that no reward weighs;
    warned_kinds: the kinds of which this process has warned."""
    kinds = unweighed_kinds if warned_kinds is None else unweighed_kinds - warned_kinds
    if not kinds:
        return
    from rlrec.store.log import settings

    if warned_kinds is not None and len(warned_kinds) < settings.MAX_NOTICED:
        warned_kinds |= unweighed_kinds
    with store.read() as unit:
        if not (new_kinds := settings.new_kinds(unit, kinds)):
            return
        from rlrec.app.inputs import arm_rules

        weighed_kinds = sorted({kind for definition in policies.rewards(unit) for kind in definition.weights})
        ruled_kinds = arm_rules.ruled_kinds(unit)
    unused_kinds = [kind for kind in new_kinds if kind not in ruled_kinds]
    for kind in unused_kinds[:MAX_WARNINGS]:
        hint = suggest(kind, weighed_kinds) or f"`rlrec reward define NAME {kind}=1` makes it count"
        store.notice(f"no reward definition weighs {kind!r}; it is stored and counts for nothing yet: {hint}")
    if len(unused_kinds) > MAX_WARNINGS:
        n_others = quantity(len(unused_kinds) - MAX_WARNINGS, "other kind")
        store.notice(
            f"no reward definition weighs {n_others} of events either; they are stored and count for nothing yet"
        )
    store.write(lambda unit: settings.note_kinds(unit, new_kinds), repeatable=True)


class FeedbackTransaction:
    """A FeedbackTransaction stores a group of lines of feedback. It reads everything that the lines name, checks each
    line, and then writes all new lines. A line that is refused changes nothing. Most lines name a slot that has no
    events yet, and cost a microsecond or two each.

    results: for each line, True if it was stored, False if it is a duplicate, or its error; errors: the errors of
    all refused lines; outcomes: the answers, with the reward after each line; later_transaction: the result for
    lines whose requests had to wait for other requests of the group; unweighed_kinds: the kinds of events that no
    reward weighs; late_lines: by reward, the number of new lines with an event that the reward weighs and that came
    after its window; returns: whether the store itself made the lines, to record `return` events. If a reward weighs
    this event, no other line may have it, since a visit would count twice."""

    def __init__(
        self, unit: Unit, ledger: Ledger, group: Group, versions: dict[int, Version] | None = None, *,
        answers: bool = False, returns: bool = False,
    ) -> None:  # fmt: skip
        """Store the lines. versions: known versions, by id, to which further versions are added when they are read;
        answers: whether to make `outcomes`; returns: whether the store itself made the lines."""
        self.unit, self.ledger, self.returns = unit, ledger, returns
        self.results: list[bool | InputError] = []
        self.outcomes: list[Outcome] = []
        self.later_transaction: FeedbackTransaction | None = None
        lines = [line for line in group if not isinstance(line, InputError)]
        if unit.postgres:  # on SQLite, which has one lock, nothing can change now
            ledger.lock(policies_of(unit, lines))
        credited_lines = None
        if any(line.user is not None for line in lines):
            from rlrec.app.requests.credit import CreditedLines  # few streams have lines of users

            credited_lines = CreditedLines(unit, group)
            group = credited_lines.lines
            lines = [line for line in group if not isinstance(line, InputError)]
        self.targets = targets = events.targets(unit, lines)
        policy_ids = {target.policy_id for target in targets} - {None}
        ledger.lock(policy_ids)
        ledger.settle(policy_ids)
        self.keys, self.weighed_kinds = events.keys_and_kinds(unit, {line.key for line in lines} - {None})
        if credited_lines is not None and not credited_lines.new_keys.isdisjoint(self.keys):
            raise Retry("a feedback key was stored meanwhile, for a decision of a policy that was not locked")
        decision_ids = {target.decision_id for target in targets if target.event_count}
        self.stored_events = events.by_decision(unit, decision_ids, self.weighed_kinds) if decision_ids else {}
        pages = {
            target.decision_id
            for line, target in zip(lines, targets, strict=True)
            if line.position is None and target.size != 1 and (answers or line.censor is not None)
        }
        # the arm at each position of the pages that lines name
        self.pages = events.slates(unit, pages) if pages else {}
        self.kinds = self.weighed_kinds - {RETURN}  # the kinds of events that need no further check
        self.versions = {} if versions is None else versions  # the versions that served the decisions
        if new_ids := {target.version_id for target in targets} - self.versions.keys() - {None}:
            learners = {version.id: version for versions in ledger.learners.values() for version in versions}
            self.versions |= {number: learners[number] for number in new_ids & learners.keys()}
            if other_ids := new_ids - learners.keys():
                stored_versions = policies.by_id(unit, other_ids)
                self.versions |= {number: stored_versions[number] for number in other_ids}
        self.new_rows: dict[int, list[Row]] = {}  # new events by decision
        # by decision: its events, and how many of its new events are among them
        self.reward_events: dict[int, tuple[list[Event], int]] = {}
        self.unweighed_kinds, self.late_lines = set[str](), Counter[str]()
        self._take_lines(group, answers=answers)
        if credited_lines is not None:
            self.outcomes = credited_lines.answers(self.outcomes) if answers else []
            self.results = credited_lines.first_of_each(self.results)
        self.errors = [result for result in self.results if isinstance(result, InputError)]

    def _take_lines(self, group: Group, *, answers: bool) -> None:
        """Check the lines, then store their events, keys and marks of censored slots, and add the events to the
        beliefs. answers: whether to make `outcomes`."""
        if any(isinstance(line, Line) and line.key is not None for line in group):
            from rlrec.app.inputs.canonical import line_digest  # which lines without keys do without
        targets, now, kinds, keys, new_rows = iter(self.targets), self.unit.now, self.kinds, self.keys, self.new_rows
        new_keys, changes, seqs = list[Row](), list[Row](), dict[int, int]()
        # arms of further slots; censored marks of all slots
        arms, flags = dict[tuple[int, int], int](), dict[tuple[int, int], bool]()
        for line in group:
            if isinstance(line, InputError):
                self.results.append(line)
                self.outcomes.append(line)
                continue
            position, values, at, key, censor = line[2:7]
            target = next(targets)
            _, decision_id, policy_id, version_id, served_at, size, is_imported, arm_id, count, *further = target
            if position is None and size == 1:
                position = 1
            event_at = now if at is None else at
            is_usual = (
                decision_id is not None and served_at <= event_at <= now and key not in keys
                and (arm_id is not None or position is None)
                and 0 < len(values) <= MAX_KINDS and kinds.issuperset(values)
            )  # fmt: skip
            for value in values.values():
                is_usual = is_usual and type(value) is float and -LIMIT <= value <= LIMIT
            result = is_usual or self._check(line._replace(position=position), target)
            if result is True:
                if policy_id not in seqs:
                    seqs[policy_id] = self.ledger.seq(policy_id)
                seq, rows = seqs[policy_id], new_rows.get(decision_id)
                reward = self.versions[version_id].reward
                if event_at - served_at > reward.window_us and not reward.weights.keys().isdisjoint(values):
                    self.late_lines[reward.name] += 1
                if not is_usual:
                    self.unweighed_kinds |= values.keys() - self.weighed_kinds
                if rows is None:
                    new_rows[decision_id] = rows = []
                    changes.append((decision_id, policy_id, served_at, is_imported, arm_id, *further, rows))
                elif position is not None:
                    arms[decision_id, position] = arm_id
                number = count + len(rows)
                for kind, value in values.items():
                    number += 1
                    rows.append((decision_id, position, kind, float(value), event_at, now, seq, key, number))
                if censor is not None:
                    slots = self.pages[decision_id] if position is None else {position: arm_id}
                    for slot, arm in slots.items():
                        number += 1
                        rows.append((decision_id, slot, CENSOR, float(censor), event_at, now, seq, key, number))
                        arms[decision_id, slot], flags[decision_id, slot] = arm, censor
                if key is None:
                    self.unit.repeatable = False
                else:
                    keys[key] = content = line_digest(decision_id, position, values, censor), at, decision_id
                    new_keys.append((key, *content))
            self.results.append(result)
            if answers:
                self.outcomes.append(self._answer(line, target, result))
        self.ledger.apply_events(changes, stored_events=self.stored_events, arms=arms)
        events.add(self.unit, [event for decision_id in sorted(new_rows) for event in new_rows[decision_id]])
        if new_keys:
            events.add_keys(self.unit, new_keys)
        for flag in sorted(set(flags.values()), reverse=True):
            slots_of_flag = sorted(slot for slot, value in flags.items() if value is flag)
            decisions.censor(self.unit, slots_of_flag, is_censored=flag)

    def _check(self, line: Line, target: FeedbackTarget) -> bool | InputError:
        """Return True if a line is new, False if it is a duplicate, or the error for which it is refused. target: the
        decision and slot that the line names."""
        event_at = self.unit.now if line.at is None else line.at
        try:
            if target.decision_id is None:
                raise _decision_error(line)
            if target.arm_id is None and line.position is not None:
                slate = events.slates(self.unit, [target.decision_id])[target.decision_id]
                message = f"position {line.position} of decision {target.decision_id} was not shown"
                raise InputError(message, hint=f"shown: {', '.join(map(str, slate))}", field="position")
            if line.key in self.keys:
                self._compare_line(line, target)
                return False
            is_empty = not line.events and line.censor is None
            if not target.at <= event_at <= self.unit.now or is_empty or len(line.events) > MAX_KINDS:
                raise _event_error(line, target.decision_id, is_early=event_at < target.at)
            for kind, value in line.events.items():
                _check_event(kind, value)
            is_weighed = RETURN in line.events and RETURN in self.weighed_kinds
            if is_weighed and self._has_returned(target.decision_id, line.events[RETURN]):
                return False
            self.kinds |= line.events.keys() - {RETURN}
        except InputError as error:
            error.line = line.number
            return error
        return True

    def _has_returned(self, decision_id: int, value: float) -> bool:
        """Tell whether a decision already has the `return` event that is about to be stored. The result is False for an
        event with a negative value, which takes an earlier event back. Raises InputError if a user sends the event,
        since the store records it. value: the value of the event."""
        if not self.returns:
            raise InputError(
                f"the event {RETURN!r} is recorded automatically when a user begins another visit",
                hint="name users when you serve them, and send other events under another kind", field="events",
            )  # fmt: skip
        values = (event.value for event in self.stored_events.get(decision_id, ()) if event.kind == RETURN)
        return value > 0 and sum(-1 if earlier < 0 else 1 for earlier in values) > 0

    def _compare_line(self, line: Line, target: FeedbackTarget) -> None:
        """Raise Conflict if the key of a line belongs to a different line, in the store or in this group."""
        from rlrec.app.inputs.canonical import line_digest

        entry = self.keys[line.key or ""]
        # An imported key does not tell whether its line gave `at`; a retry without `at` is then no conflict.
        at = entry[1] if target.imported and line.at is None else line.at
        # No stored line has a value that is not a finite number.
        numbers = all(type(value) in (int, float) and isfinite(value) for value in line.events.values())
        content = target.decision_id, line.position, line.events, line.censor
        if not numbers or entry != (line_digest(*content), at, target.decision_id):
            raise events.key_conflict(line.key or "")

    def _answer(self, line: Line, target: FeedbackTarget, result: bool | InputError) -> Outcome:
        if isinstance(result, InputError):
            return result
        decision_id, served_at, size = target.decision_id, target.at, target.size
        rows = self.new_rows.get(decision_id, [])
        reward_events, n_taken = self.reward_events.get(decision_id) or ([*self.stored_events.get(decision_id, ())], 0)
        reward_events += [Event(*row) for row in rows[n_taken:] if row[2] in self.weighed_kinds or row[2] == CENSOR]
        self.reward_events[decision_id] = reward_events, len(rows)
        position, count = 1 if size == 1 else line.position, len(line.events) + (line.censor is not None)
        positions = self.pages.get(decision_id, ()) if position is None else (position,)
        reward = self.versions[target.version_id].reward
        slot_rewards = rewards_of(reward, reward_events, served_at=served_at, slots=positions)
        return Result(
            decision_id=decision_id, events=count if result else 0, duplicates=0 if result else count,
            reward=sum(slot_rewards.values()) if position is None else slot_rewards[position],
        )  # fmt: skip

    def policy_sums(self) -> dict[str, tuple[int, float]]:
        """Return, by name of policy, how many events this group added, and how much reward they added."""
        sums = {} if self.later_transaction is None else self.later_transaction.policy_sums()
        targets = {target.decision_id: target for target in self.targets}
        for decision_id, new_rows in self.new_rows.items():
            target, past_events = targets[decision_id], [*self.stored_events.get(decision_id, ())]
            version, new_events = self.versions[target.version_id], [Event(*row) for row in new_rows]
            positions = self.pages.get(decision_id) or {row.position for row in new_events if row.position is not None}
            earlier_reward, reward = (
                sum(rewards_of(version.reward, rows, served_at=target.at, slots=positions).values())
                for rows in (past_events, past_events + new_events)
            )
            n_events, total = sums.get(version.policy.name, (0, 0.0))
            n_added = sum(event.kind != CENSOR for event in new_events)
            sums[version.policy.name] = n_events + n_added, total + reward - earlier_reward
        return sums


def policies_of(unit: Unit, lines: Sequence[Line]) -> set[int]:
    """Return the ids of the policies that made the decisions which the lines name. For a line that names a user, these
    are the decisions that the line credits."""
    if any(line.user is not None for line in lines):
        from rlrec.app.requests.credit import CreditedLines

        lines = [line for line in CreditedLines(unit, lines).lines if isinstance(line, Line)]
    names = [(line.decision_id, line.request_id) for line in lines]
    return decisions.policies_of(unit, {name for name, _ in names} - {None}, {name for _, name in names} - {None})


def _event_error(line: Line, decision_id: int, *, is_early: bool) -> InputError:
    if len(line.events) > MAX_KINDS:
        hint = f"send at most {MAX_KINDS:,} kinds in a line"
        return InputError(f"{len(line.events):,} kinds of events are given", hint=hint, field="events")
    if not line.events and line.censor is None:
        return InputError("no event is given", hint="for example click, or dwell_s=31.5", field="events")
    if is_early:
        return InputError(f"the event lies before decision {decision_id}", hint="check `at`", field="at")
    return InputError("the event lies in the future", hint="check `at` and the clock", field="at")


def _decision_error(line: Line) -> InputError:
    hint = "`rlrec session list` shows what is stored"
    if line.request_id is not None:
        return InputError(f"unknown request {line.request_id!r}", hint=hint, field="request_id")
    if line.decision_id is not None:
        return InputError(f"unknown decision {line.decision_id}", hint=hint, field="decision_id")
    return InputError("no decision is named", hint="give decision_id or request_id", field="decision_id")


def _check_event(kind: str, value: float) -> None:
    if not rewards.KIND.fullmatch(kind):
        hint = "letters, digits, _ and ., at most 64"
        raise InputError(f"{kind[:80]!r} is no kind of event", hint=hint, field="events")
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise InputError(f"the value of {kind} is {value!r}", hint="give a finite number", field=f"events.{kind}")
    if not rewards.is_bounded(value):
        hint = f"values stay within {rewards.LIMIT:g}"
        raise InputError(f"the value of {kind}, {value:g}, is too large", hint=hint, field=f"events.{kind}")
