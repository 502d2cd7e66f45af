"""rlrec feedback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import Lines, lines_input, printed, stored
from rlrec.cli.values import DECISION, KEY, TIME, Integer, parse_number
from rlrec.errors import InputError
from rlrec.times import parse as parse_time

if TYPE_CHECKING:
    from rlrec.app.opening import Store


@click.command()
@click.argument("decision_id", type=DECISION, required=False)
@click.argument("events", nargs=-1, metavar="[EVENT[=VALUE]]...")
@click.option("--position", type=Integer(1, 2**63 - 1), help="Slot meant; a slate of one slot needs none.")
@click.option("--at", type=TIME, help="When it happened [default: now].")
@click.option("--key", type=KEY, help="A retry under the same key changes nothing.")
@click.option("--censor", is_flag=True, help="Take slots out of beliefs and estimates.")
@click.option("--uncensor", is_flag=True, help="Put them back.")
@lines_input
@printed
@stored
def feedback(
    store: Store, show: Show, lines: Lines | None, decision_id: int | None, events: Sequence[str], censor: bool,
    uncensor: bool, **options: Any,
) -> None:  # fmt: skip
    """Record what the user did after a decision.

    VALUE is 1 if not given. Without --position a slate of one slot means that slot, a longer slate the page. With
    --input each line is {"decision_id": 7, "position": 1, "events": {"click": 1}, "at": "...", "key": "..."};
    `request_id` may stand for `decision_id`, and "censor": true or false censors or puts back.

    \b
    Example:
      rlrec feedback 17 click dwell_s=31.5 --position 1
    """
    from rlrec.app import feedback as use_case

    if censor and uncensor:
        raise click.UsageError("--censor and --uncensor contradict each other")
    flag = censor if censor or uncensor else None
    if lines is not None:
        if decision_id is not None or any(value is not None for value in (flag, *options.values())):
            raise click.UsageError("--input and a single decision do not go together")
        lines.copy_unless_file()
        summary = use_case.feedback_stream(
            store, lambda: _groups(lines, use_case.Line), quarantine=lines.refusals.quarantine, rejected=lines.refuse
        )
        show(replace(summary, rejected=lines.refusals.count))
        return
    if decision_id is None:
        raise click.UsageError("Missing argument 'DECISION_ID'.")
    line = use_case.Line(decision_id=decision_id, events=_events(events), censor=flag, **options)
    show(use_case.feedback(store, line))


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
    """The type of an input line; its fields are those of the use case's Line, in their order."""
    import msgspec

    from rlrec.cli.lines import key_type

    key = key_type()
    fields: list[Any] = [
        ("decision_id", int | None, None),
        ("request_id", key | None, None),
        ("position", int | None, None),
        ("events", dict[str, float], {}),
        ("at", str | None, None),
        ("key", key | None, None),
        ("censor", bool | None, None),
    ]
    return msgspec.defstruct("Feedback", fields, forbid_unknown_fields=True)


def _groups(lines: Lines, line_class: Any) -> Iterator[list[Any]]:
    """Groups of lines as the use case takes them; the lines that do not decode are refused."""
    from msgspec.structs import astuple

    from rlrec.cli.lines import decode_group

    kind = line_type()
    for group in lines.raw():
        decoded: list[Any] = decode_group(group, kind)
        for error in decoded:
            if isinstance(error, InputError):
                lines.refuse(error)
        yield [
            line_class(*astuple(entry), number)
            if entry.at is None and (entry.decision_id is None or entry.request_id is None)
            else to_line(line_class, number, entry)
            for (number, _), entry in zip(group, decoded, strict=True)
            if type(entry) is kind
        ]


def to_line(line_class: Any, number: int | None, entry: Any) -> Any:
    """A decoded line as the use case takes it, of its class `line_class`, or the error in it."""
    try:
        if entry.decision_id is not None and entry.request_id is not None:
            raise InputError("decision_id and request_id are both given", hint="give one of them", field="request_id")
        return line_class(
            decision_id=entry.decision_id,
            request_id=entry.request_id,
            position=entry.position,
            events=entry.events,
            at=_time(entry.at),
            key=entry.key,
            censor=entry.censor,
            number=number,
        )
    except InputError as error:
        error.line = number
        return error


def _time(text: str | None) -> int | None:
    try:
        return None if text is None else parse_time(text)
    except InputError as error:
        error.field = "at"
        raise
