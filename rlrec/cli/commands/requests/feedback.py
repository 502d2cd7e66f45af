"""This module holds the command `rlrec feedback`, which records what users did after a decision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, Literal

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import Lines, lines_input
from rlrec.cli.program.shared import GroupedCommand, Store, takes_write_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import DURATION, FIRST_WORD, KEY, TIME, Integer, parse_duration, parse_number
from rlrec.errors import InputError
from rlrec.times import DAY_US
from rlrec.times import parse as parse_time

FIELDS = ("decision_id", "request_id", "position", "events", "at", "key", "censor")
CREDIT_FIELDS = ("user", "arm", "credit", "window")  # of lines that name a user instead of a decision
WINDOW_US = 7 * DAY_US
_credit_values = attrgetter(*CREDIT_FIELDS)
_NO_CREDIT = (None,) * len(CREDIT_FIELDS)
_NOBODY = (None, None, False, 0)  # values of these fields in a line that names a decision


@click.command(cls=GroupedCommand)
@click.argument("decision_id", type=FIRST_WORD, required=False)
@click.argument("events", nargs=-1, metavar="[EVENT[=VALUE]]...")
@click.option("--position", type=Integer(1, 2**63 - 1), help="The slot; not needed if the slate has one.")
@click.option("--at", type=TIME, help="When it happened [default: now].")
@click.option("--key", type=KEY, help="A retry under the same key changes nothing.")
@click.option("--censor", is_flag=True, help="Take slots out of beliefs and estimates.")
@click.option("--uncensor", is_flag=True, help="Put them back.")
@click.option("--user", type=KEY, is_eager=True, help="In place of a decision: the page this user saw last.")
@click.option("--window", type=DURATION, help="With --user: how old that page may be.  [default: 7d]")
@click.option("--arm", type=KEY, help="With --user: the last showing of this arm.")
@click.option("--credit", type=click.Choice(["last", "spread"]), help="spread: shared by all in the window.")
@lines_input
@takes_write_store("rlrec feedback 17 click dwell_s=31.5 --position 1")
def feedback(
    store: Store, show: Show, lines: Lines | None, decision_id: int | None, events: Sequence[str], censor: bool,
    uncensor: bool, **options: Any,
) -> None:  # fmt: skip
    """VALUE is 1 if not given. Without --position, an event belongs to the slot if the slate has one slot, else to the
    page. With --input each line is {"decision_id": 7, "position": 1, "events": {"click": 1}, "at": "...", "key":
    "..."}; `request_id` may replace `decision_id`; "censor" is true or false. --user, or "user" in a line, replaces the
    decision: `rlrec feedback --user u1 purchase=29`."""
    if censor and uncensor:
        raise click.UsageError("--censor and --uncensor contradict each other")
    flag = censor if censor or uncensor else None
    if lines is not None:
        if decision_id is not None or any(value is not None for value in (flag, *options.values())):
            raise click.UsageError("--input and a single decision do not go together")
        lines.copy_unless_file()
        groups = partial(_groups, lines, app.feedback.Line)
        quarantine = lines.refusals.quarantine
        summary = app.feedback.feedback_stream(store, groups, quarantine=quarantine, reject=lines.refuse)
        show(replace(summary, rejected=lines.refusals.count))
        return
    credit = {name: options.pop(name) for name in CREDIT_FIELDS}
    if decision_id is None and credit["user"] is None:
        raise click.UsageError("Missing argument 'DECISION_ID'.")
    if isinstance(decision_id, str):
        decision_id, events = None, (decision_id, *events)
    line = app.feedback.Line(decision_id=decision_id, events=_events(events), censor=flag, **options)
    if tuple(credit.values()) == _NO_CREDIT:
        show(app.feedback.feedback(store, line))
        return
    line = line._replace(**_credit_rule(SimpleNamespace(**line._asdict() | credit)))
    answer: Any = app.feedback.feedback(store, line)
    title = [f"user {answer.user}: events {answer.events}, duplicates {answer.duplicates}"]
    show(answer, table=View.select(answer.credited, [*answer.credited[0]], title=title))


def _credit_rule(entry: Any) -> dict[str, Any]:
    """Return the fields that say which earlier slots of a user get credit for the events of a line. Raises InputError
    if a field is invalid.

    entry: the decoded line."""
    user, arm, credit, window = _credit_values(entry)
    if user is None:
        field = next(name for name in CREDIT_FIELDS if getattr(entry, name) is not None)
        raise InputError(f"{field} is given without a user", hint="name the user, or a decision alone", field=field)
    for field in ("decision_id", "request_id", "position", "censor"):
        if getattr(entry, field) is not None:
            hint = "an arm names the slot" if field == "position" else "give one of them"
            raise InputError(f"{field} and user are both given", hint=hint, field=field)
    try:
        window_us = parse_duration(window) if isinstance(window, str) else WINDOW_US if window is None else window
    except InputError as error:
        error.field = "window"
        raise
    if window_us <= 0:
        raise InputError("the window is 0", hint="give 7d, or another time", field="window")
    return {"user": user, "arm": arm, "is_spread": credit == "spread", "window_us": window_us}


def _events(words: Sequence[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for word in words:
        kind, equals, value = word.partition("=")
        if kind in values:
            raise InputError(f"event {kind!r} is given twice", hint="give the sum of its values")
        try:
            values[kind] = parse_number(value) if equals else 1.0
        except InputError as error:
            error.message = f"event {kind}: {error.message}"
            raise
    return values


@cache
def line_type() -> Any:
    """Return the msgspec Struct of an input line. It has the first fields of the class `Line` in `rlrec.records`, in
    the same order, followed by the fields that say which slots of a user get credit."""
    from rlrec.cli.text import lines

    key = lines.key_type()
    types: Any = {"request_id": key, "events": dict[str, float], "censor": bool, "credit": Literal["last", "spread"]}
    return lines.line_type("Feedback", feedback, (*FIELDS, *CREDIT_FIELDS), **types)


def _groups(lines: Lines, line_class: Any) -> Iterator[list[Any]]:
    """Yield groups of lines. A line is a `Line` of `rlrec.records`, or the error in it. Lines that cannot be decoded
    are refused.

    line_class: the class `Line`."""
    for group in lines.groups(line_type()):
        yield [line_of(entry, line_class, number) for number, entry in group]


@cache
def _values_of() -> Any:
    """Return a function that turns a decoded line into a tuple of its values. It is cached, since importing the
    function takes a tenth of the time of a line."""
    from msgspec.structs import astuple

    return astuple


def line_of(entry: Any, line_class: Any, number: int | None = None) -> Any:
    """Return a decoded line as a `Line` of `rlrec.records`, or the error in the line.

    entry: the decoded line; line_class: the class `Line`; number: the number of the line."""
    values = _values_of()(entry)
    line = tuple.__new__(line_class, (*values[: len(FIELDS)], number, *_NOBODY))
    if values[len(FIELDS) :] == _NO_CREDIT and entry.at is None and None in (entry.decision_id, entry.request_id):
        return line
    try:
        if entry.at is not None:
            line = line._replace(at=parse_time(entry.at))
        if _credit_values(entry) != _NO_CREDIT:
            return line._replace(**_credit_rule(entry))
        if entry.decision_id is None or entry.request_id is None:
            return line
        raise InputError("decision_id and request_id are both given", hint="give one of them", field="request_id")
    except InputError as error:
        error.field, error.line = error.field or "at", number
        return error
