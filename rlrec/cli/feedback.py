"""rlrec feedback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import Lines, lines_input, printed, stored
from rlrec.cli.values import DECISION, KEY, TIME, Whole, parse_key, parse_number
from rlrec.errors import InputError
from rlrec.times import parse as parse_time


@click.command()
@click.argument("decision_id", type=DECISION, required=False)
@click.argument("events", nargs=-1, metavar="[EVENT[=VALUE]]...")
@click.option("--position", type=Whole(1, 2**63 - 1), help="Slot meant; a slate of one slot needs none.")
@click.option("--at", type=TIME, help="When it happened [default: now].")
@click.option("--key", type=KEY, help="A retry under the same key changes nothing.")
@click.option("--censor", is_flag=True, help="Take slots out of beliefs and estimates.")
@click.option("--uncensor", is_flag=True, help="Put them back.")
@lines_input
@printed
@stored
def feedback(
    store: Any, show: Show, lines: Lines | None, decision_id: int | None, events: Sequence[str], censor: bool,
    uncensor: bool, **rest: Any,
) -> None:  # fmt: skip
    """Record what the user did after a decision.

    VALUE is 1 if not given. Without --position a slate of one slot means that slot, a longer one the whole page. With
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
        if decision_id is not None or any(value is not None for value in (flag, *rest.values())):
            raise click.UsageError("--input and a single decision do not go together")
        source = lines.kept()
        summary = use_case.feedback_stream(
            store,
            lambda: _groups(source, use_case.Line),
            quarantine=lines.refusals.quarantine,
            rejected=source.refuse,
        )
        show(replace(summary, rejected=lines.refusals.count))
        return
    if decision_id is None:
        raise click.UsageError("Missing argument 'DECISION_ID'.")
    line = use_case.Line(decision_id=decision_id, events=_events(events), censor=flag, **rest)
    show(use_case.feedback(store, line))


def _events(words: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for word in words:
        kind, equals, value = word.partition("=")
        if kind in found:
            raise InputError(f"event {kind!r} is given twice", hint="give the sum of its values")
        try:
            found[kind] = parse_number(value) if equals else 1.0
        except InputError as error:
            error.message = f"event {kind}: {error.message}"
            raise
    return found


def _line_type() -> Any:
    import msgspec

    return msgspec.defstruct(
        "Feedback",
        [
            ("decision_id", int | None, None),
            ("request_id", str | None, None),
            ("position", int | None, None),
            ("events", dict[str, float], {}),
            ("at", str | None, None),
            ("key", str | None, None),
            ("censor", bool | None, None),
        ],
        forbid_unknown_fields=True,
    )


def _groups(lines: Lines, line: Any) -> Iterator[list[Any]]:
    kind = _line_type()
    for group in lines.groups(kind):
        made = []
        for number, one in group:
            try:
                made.append(_line(line, number, one))
            except InputError as error:
                error.line = number
                made.append(error)
        yield made


def _line(line: Any, number: int, one: Any) -> Any:
    if one.decision_id is not None and one.request_id is not None:
        raise InputError("decision_id and request_id are both given", hint="give one of them", field="request_id")
    for field in ("request_id", "key"):
        _checked(field, getattr(one, field), parse_key)
    return line(
        decision_id=one.decision_id,
        request_id=one.request_id,
        position=one.position,
        events=one.events,
        at=_checked("at", one.at, parse_time),
        key=one.key,
        censor=one.censor,
        number=number,
    )


def _checked(field: str, value: str | None, parse: Any) -> Any:
    if value is None:
        return None
    try:
        return parse(value)
    except InputError as error:
        error.field = field
        raise
