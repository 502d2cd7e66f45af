"""This module replaces each line of feedback that names a user by lines that name the decisions which the user saw.

The new lines are ordinary lines, one for each credited decision. If several decisions are credited, each line gets
an equal share of every value. The keys of the second and later lines end in /2, /3, ..., so that a retry finds the
decisions that were credited."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypedDict, TypeVar

from rlrec.errors import InputError
from rlrec.records import Line, Record
from rlrec.store import Unit
from rlrec.store.log import decisions, events, sessions
from rlrec.store.policies import arms
from rlrec.times import FIRST, LAST, format_time

T = TypeVar("T")
MAX_SHOWINGS = 1_000  # showings over which one value may be spread
KEY_LENGTH = 200


Credit = TypedDict("Credit", {"decision_id": int, "position": int | None, "share": float, "reward": float})


class PersonalResult(Record):
    """This record is the answer to a line that names a user. events: the number of events that were stored; duplicates:
    the number of events that had been stored before; credited: the credited decisions, newest first, each with its
    share of the values."""

    user: str
    events: int
    duplicates: int
    credited: list[Credit]


class CreditedLines:
    """A CreditedLines object holds a group of lines of feedback, in which it has replaced each line that names a user.

    lines: the resulting lines, some of them errors; new_keys: the keys of the new lines that are not stored yet."""

    def __init__(self, unit: Unit, group: Sequence[Line | InputError]) -> None:
        self.unit, self._group = unit, group
        keyed_lines = [(line.key, line.user) for line in group if isinstance(line, Line) and line.key is not None]
        self._stored_keys, _ = events.keys_and_kinds(unit, {key for key, user in keyed_lines if user is not None})
        self._plain_keys = {key for key, user in keyed_lines if user is None}
        self.new_keys = set[str]()  # keys of lines that were replaced and are not stored yet
        # by key: the first line of this group that has it, and the lines that replace it
        self._first_lines: dict[str, tuple[Line, list[Line]]] = {}
        self.lines: list[Line | InputError] = []
        self._starts = [0]  # where the lines that replace each line begin
        for line in group:
            self.lines += [line] if isinstance(line, InputError) or line.user is None else self._replace_line(line)
            self._starts.append(len(self.lines))

    def _replace_line(self, line: Line) -> Sequence[Line | InputError]:
        """Return the lines that replace a line with a user, one for each credited decision. If the line is wrong,
        return a list with its error."""
        key = line.key or ""
        try:
            if events.RETURN in line.events:
                raise InputError(f"the event {events.RETURN!r} belongs to a decision", hint="name that", field="events")
            if key in self._first_lines:
                first_line, lines = self._first_lines[key]
                if first_line._replace(number=None) != line._replace(number=None):
                    raise events.key_conflict(key)
                return lines
            is_stored = key in self._stored_keys
            lines = _split_line(line, self._find_stored(line, key) if is_stored else self._find_showings(line))
            if key and not is_stored:
                keys, taken_keys = {replacing.key or "" for replacing in lines}, self._plain_keys | self.new_keys
                stored_keys, _ = events.keys_and_kinds(self.unit, keys)
                if key in stored_keys and not taken_keys & keys:  # by another transaction, since the keys were read
                    self._stored_keys = {**self._stored_keys, **stored_keys}
                    return _split_line(line, self._find_stored(line, key))
                if conflicting_keys := taken_keys & keys or stored_keys.keys():
                    raise events.key_conflict(min(conflicting_keys))
                self.new_keys |= keys
                self._first_lines[key] = line, lines
            return lines
        except InputError as error:
            error.line = line.number
            return [error]

    def _find_showings(self, line: Line) -> list[decisions.Showing]:
        """Return the decisions that a line credits, newest first. They showed the user of the line the arm of the line,
        or any arm if the line has none. Raises InputError if there are no such decisions."""
        until, user = self.unit.now if line.at is None else line.at, line.user or ""
        since, limit = until - line.window_us, MAX_SHOWINGS + 1 if line.is_spread else 1
        showings = decisions.find_showings(self.unit, user, arm=line.arm, since=since, until=until, limit=limit)
        if len(showings) > MAX_SHOWINGS:
            message = f"user {user!r} has more than {MAX_SHOWINGS:,} showings to spread over"
            raise InputError(message, hint="give a shorter window", field="window")
        if showings:
            return showings
        if not sessions.user_ids(self.unit, [user]):
            raise InputError(f"unknown user {user!r}", hint="`rlrec session list` shows users", field="user")
        if line.arm is not None and not arms.ids(self.unit, [line.arm]):
            raise InputError(f"unknown arm {line.arm!r}", hint="`rlrec arm list` shows them", field="arm")
        what, way_out = ("no page", "") if line.arm is None else (f"no arm {line.arm!r}", ", or no arm")
        if not decisions.find_showings(self.unit, user, arm=line.arm, since=FIRST, until=until, limit=1):
            message, hint = f"user {user!r} saw {what} before {format_time(until)}", "there is nothing to credit"
            raise InputError(message, hint=hint if line.arm is None else f"name another arm{way_out}", field="user")
        message = f"user {user!r} saw {what} from {format_time(since)} to {format_time(until)}"
        raise InputError(message, hint=f"give a longer window{way_out}", field="window")

    def _find_stored(self, line: Line, key: str) -> list[decisions.Showing]:
        """Return the decisions that a line credited when it was stored before. Raises Conflict if these decisions do
        not fit the user and the arm of the line. key: the key of the line."""
        further_keys = [_number_key(key, number) for number in range(2, MAX_SHOWINGS + 1)] if line.is_spread else []
        stored_keys = self._stored_keys | events.keys_and_kinds(self.unit, further_keys)[0]
        ids = [stored_keys[name][2] for name in (key, *further_keys) if name in stored_keys]
        times = {"since": FIRST, "until": LAST}
        showings = decisions.find_showings(self.unit, line.user or "", arm=line.arm, limit=len(ids), ids=ids, **times)
        by_id = {showing.decision_id: showing for showing in showings}
        if by_id.keys() != set(ids):
            raise events.key_conflict(key)
        return [by_id[number] for number in ids]

    def first_of_each(self, values: Sequence[T]) -> list[T]:
        """Return, for each line of the group, the value of the first line that replaces it. values: a value for each
        line in `lines`."""
        return [values[start] for start in self._starts[:-1]]

    def answers(self, outcomes: Sequence[Any]) -> list[Any]:
        """Return the answer to each line of the group. outcomes: the answer to each line in `lines`."""
        answers = self.first_of_each(outcomes)
        for index, (line, (start, end)) in enumerate(zip(self._group, pairwise(self._starts), strict=True)):
            if isinstance(line, Line) and line.user is not None and not isinstance(answers[index], InputError):
                results = outcomes[start:end]
                answers[index] = PersonalResult(
                    user=line.user, events=sum(result.events for result in results),
                    duplicates=sum(result.duplicates for result in results), credited=[
                        {"decision_id": result.decision_id, "position": getattr(replacing, "position", None),
                         "share": 1 / len(results), "reward": result.reward}
                        for replacing, result in zip(self.lines[start:end], results, strict=True)
                    ],
                )  # fmt: skip
        return answers


def _split_line(line: Line, showings: Sequence[decisions.Showing]) -> list[Line]:
    """Return a line for each credited decision, with an equal share of the values of the original line. Raises
    InputError if its key is too long to be numbered. showings: the decisions."""
    n, key = len(showings), line.key
    if key is not None and len(_number_key(key, n)) > KEY_LENGTH:
        message = f"feedback key {key[:20]!r}... is too long to be numbered"
        raise InputError(message, hint=f"at most {KEY_LENGTH - 5} characters", field="key")
    shared_line = line._replace(events={kind: value / n for kind, value in line.events.items()}, user=None)
    keys = [key and _number_key(key, number) for number in range(1, n + 1)]
    return [shared_line._replace(**showing._asdict(), key=name) for showing, name in zip(showings, keys, strict=True)]


def _number_key(key: str, number: int) -> str:
    """Return the key of the line for a credited decision. key: the key of the original line; number: the number of the
    decision, from 1."""
    return key if number == 1 else f"{key}/{number}"
