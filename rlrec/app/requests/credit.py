"""Feedback that names a user: the showings that it credits, as lines that name their decisions.

What comes out are ordinary lines with ordinary events, one for each decision. Of several, each has its share of every
value, and the feedback key of the second and later ones ends in /2, /3, ...: so that a retry finds what it credited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypedDict, TypeVar

from rlrec.errors import Conflict, InputError, quantity
from rlrec.records import CreditRule, Line, Reward
from rlrec.store import Unit
from rlrec.store.log import decisions, events, sessions
from rlrec.store.log.decisions import Showing
from rlrec.store.log.events import RETURN, FeedbackTarget
from rlrec.store.policies import arms
from rlrec.times import FIRST, LAST, format_time

T = TypeVar("T")
MAX_SHOWINGS = 1_000  # that a value is spread over
KEY_LENGTH = 200

# position: None for a page; share: of every value; in_window: whether the event lies in the window of the decision's
# reward (None for a duplicate): estimates leave out what comes later; reward: as of `feedback.Result`.
Credit = TypedDict("Credit", {
    "decision_id": int, "position": int | None, "share": float, "in_window": bool | None, "reward": float,
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PersonalResult:
    """The answer to a line that names a user. credited: the newest decision first."""

    user: str
    events: int
    duplicates: int
    credited: list[Credit]


class CreditedLines:
    """A group of lines in which each one that names a user is replaced by lines of decisions: `counts` says by how
    many, 1 for any other."""

    def __init__(self, unit: Unit, group: Sequence[Line | InputError]) -> None:
        self.unit, self._group = unit, group
        keyed_lines = [line for line in group if isinstance(line, Line) and line.key is not None]
        self._stored = events.stored_keys(unit, {line.key or "" for line in keyed_lines if line.credit is not None})
        self._taken = {line.key or "" for line in keyed_lines if line.credit is None}
        self._first: dict[str, tuple[Line, list[Line]]] = {}  # by key: the line of this group, and what replaces it
        self.lines: list[Line | InputError] = []
        self.counts: list[int] = []
        for line in group:
            credited = self._credited(line) if isinstance(line, Line) and line.credit is not None else [line]
            self.lines += credited
            self.counts.append(len(credited))

    def _credited(self, line: Line) -> Sequence[Line | InputError]:
        """The lines that replace one with a user, or the error in it."""
        rule, key = line.credit, line.key
        assert rule is not None
        try:
            if RETURN in line.events:
                raise InputError(f"the event {RETURN!r} belongs to a decision", hint="name that", field="events")
            if key is None:
                return _shared(line, self._find(rule, line.at))
            if key in self._first:
                first, credited = self._first[key]
                if first._replace(number=None) != line._replace(number=None):
                    raise _conflict(key)
                return credited
            if key in self._stored:
                return _shared(line, self._find_stored(rule, key))
            credited = _shared(line, self._find(rule, line.at))
            keys = {_numbered_key(key, number) for number in range(1, len(credited) + 1)}
            if conflicting_keys := self._taken & keys or events.stored_keys(self.unit, keys).keys():
                raise _conflict(min(conflicting_keys))
            self._taken |= keys
            self._first[key] = line, credited
            return credited
        except InputError as error:
            error.line = line.number
            return [error]

    def _find(self, rule: CreditRule, at: int | None) -> list[Showing]:
        """The showings that a rule credits with an event at a time (None: now), newest first."""
        until = self.unit.now if at is None else at
        since, limit = until - rule.window_us, MAX_SHOWINGS + 1 if rule.is_spread else 1
        showings = decisions.find_showings(self.unit, rule.user, arm=rule.arm, since=since, until=until, limit=limit)
        if len(showings) > MAX_SHOWINGS:
            message = f"user {rule.user!r} has more than {quantity(MAX_SHOWINGS, 'showing')} to spread over"
            raise InputError(message, hint="give a shorter window", field="window")
        if showings:
            return showings
        if not sessions.user_ids(self.unit, [rule.user]):
            raise InputError(f"unknown user {rule.user!r}", hint="`rlrec session list` shows users", field="user")
        if rule.arm is not None and not arms.ids(self.unit, [rule.arm]):
            raise InputError(f"unknown arm {rule.arm!r}", hint="`rlrec arm list` shows them", field="arm")
        times = f"from {format_time(since)} to {format_time(until)}"
        if rule.arm is None:
            raise InputError(f"user {rule.user!r} saw no page {times}", hint="give a longer window", field="window")
        hint = "give a longer window, or leave the arm out to credit the page"
        raise InputError(f"arm {rule.arm!r} was not shown to user {rule.user!r} {times}", hint=hint, field="arm")

    def _find_stored(self, rule: CreditRule, key: str) -> list[Showing]:
        """The showings that a line credited when it was stored under its key. Raises Conflict where the rule means
        other ones."""
        decision_ids = [self._stored[key].decision_id]
        if rule.is_spread:
            names = [_numbered_key(key, number) for number in range(2, MAX_SHOWINGS + 1)]
            further_keys = events.stored_keys(self.unit, names)
            decision_ids += [further_keys[name].decision_id for name in names if name in further_keys]
        showings = decisions.find_showings(
            self.unit, rule.user, arm=rule.arm, since=FIRST, until=LAST, limit=len(decision_ids), ids=decision_ids
        )
        by_id = {showing.decision_id: showing for showing in showings}
        if by_id.keys() != set(decision_ids):
            raise _conflict(key)
        return [by_id[decision_id] for decision_id in decision_ids]

    # -- answers --

    def first_of_each(self, values: Sequence[T]) -> list[T]:
        """For each line of the group the value of the first of `lines` that stands for it; all of these have one
        fate."""
        return [values[start] for start in accumulate(self.counts[:-1], initial=0)]

    def answers(
        self, outcomes: Sequence[Any], targets: Sequence[FeedbackTarget], definitions: Mapping[int, Reward]
    ) -> list[Any]:
        """The answer to each line of the group. outcomes: of `lines`; targets: of those that are no errors;
        definitions: of rewards, by version."""
        answers, next_target, rows = list[Any](), iter(targets), list(zip(self.lines, outcomes, strict=True))
        for line, count, start in zip(self._group, self.counts, accumulate(self.counts, initial=0), strict=False):
            credited = [
                (replacing, result, next(next_target))
                for replacing, result in rows[start : start + count]
                if isinstance(replacing, Line)
            ]
            result = outcomes[start]
            if isinstance(line, Line) and line.credit is not None and not isinstance(result, InputError):
                at = self.unit.now if line.at is None else line.at
                credits_of_line: list[Credit] = [
                    {
                        "decision_id": target.decision_id, "position": 1 if target.size == 1 else replacing.position,
                        "share": 1 / count, "in_window": None if result.duplicates else at <= target.at
                        + definitions[target.version_id].window_us, "reward": result.reward,
                    }
                    for replacing, result, target in credited
                ]  # fmt: skip
                result = PersonalResult(
                    user=line.credit.user, events=sum(result.events for _, result, _ in credited),
                    duplicates=sum(result.duplicates for _, result, _ in credited), credited=credits_of_line,
                )  # fmt: skip
            answers.append(result)
        return answers


def _shared(line: Line, showings: Sequence[Showing]) -> list[Line]:
    """A line for each of these showings, with its share of the values."""
    n, key = len(showings), line.key
    if key is not None and len(_numbered_key(key, n)) > KEY_LENGTH:
        message = f"feedback key {key[:20]!r}... is too long to be numbered"
        raise InputError(message, hint=f"give one of at most {KEY_LENGTH - 5} characters", field="key")
    values = line.events if n == 1 else {kind: value / n for kind, value in line.events.items()}
    return [
        line._replace(
            decision_id=showing.decision_id, position=showing.position, events=values, credit=None,
            key=None if key is None else _numbered_key(key, number),
        )
        for number, showing in enumerate(showings, 1)
    ]  # fmt: skip


def _numbered_key(key: str, number: int) -> str:
    """The feedback key of the n-th decision that a line credits."""
    return key if number == 1 else f"{key}/{number}"


def _conflict(key: str) -> Conflict:
    hint = "a key names one line for ever: use another"
    return Conflict(f"feedback key {key!r} is known with other content", hint=hint, field="key")
