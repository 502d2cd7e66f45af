"""This module holds the commands of `rlrec arm`, which change and list the catalogue of arms."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import Lines, lines_argument
from rlrec.cli.program.shared import CommandGroup, Store, takes_read_store, takes_write_store
from rlrec.cli.text.strict import utf8_error
from rlrec.cli.text.text import View
from rlrec.cli.text.values import KEY, KEYS, OBJECT, ParsedType, parse_key
from rlrec.errors import InputError, quantity
from rlrec.times import parse_local

NO_TIME = "none"  # typed in place of a time
TIME_OR_NONE = ParsedType("time or none", lambda text: text if text == NO_TIME else parse_local(text))
NUMBER_PATTERN = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


arm = CommandGroup("arm")


@arm.command()
@click.argument("keys", type=KEY, nargs=-1, required=True)
@click.option("--features", type=OBJECT, metavar="JSON|@FILE", help="The features of each arm.")
@click.option("--group", "groups", type=KEYS, metavar="a,b", help="Its groups; requests write @a for all arms of one.")
@click.option(
    "--from", "eligible_from", type=TIME_OR_NONE, metavar="TIME", help="Shown from this time on; `none`: at any time."
)
@click.option(
    "--until", "eligible_until", type=TIME_OR_NONE, metavar="TIME", help="Shown before this time; `none`: without end."
)
@takes_write_store(
    "rlrec arm add tea coffee milk",
    'rlrec arm add a1 --features \'{"topic": "tea", "price": 3.5}\' --group home',
    "rlrec arm add xmas --group home --from 2026-12-01 --until 2026-12-27",
)
def add(
    store: Store, show: Show, keys: Sequence[str], features: dict[str, Any] | None, groups: Sequence[str] | None,
    **times: Any,
) -> None:  # fmt: skip
    """Add arms, or change known ones.

    Options that are not given change nothing. --group replaces all groups of an arm; '[]' removes it from all."""
    stated_times = {name: None if time == NO_TIME else time for name, time in times.items() if time is not None}
    show(app.arm.put(store, lambda: [[(key, features, groups, stated_times) for key in keys]]))


@arm.command("import")
@lines_argument
@takes_write_store('printf \'{"arm": "a1"}\\n{"arm": "a2"}\\n\' | rlrec arm import -')
def import_(store: Store, show: Show, lines: Lines) -> None:
    """Add many arms from a file, or change their features.

    FILE holds one JSON object a line, {"arm": "a1", "features": {...}}, or is a CSV whose first column is `arm` and
    whose other columns are features. Importing again updates. An object may also have "groups": ["home"], "from" and
    "until"; without them these do not change, and null removes a time. A CSV may have such columns, with groups as
    home+deals."""
    lines.copy_unless_file()
    read_groups = _read_json_groups if lines.first_byte() in (b"{", b"[") else _read_csv_groups
    changes = app.arm.put(store, partial(read_groups, lines), at_once=not lines.refusals.quarantine)
    show(asdict(changes) | {"rejected": lines.refusals.count})


def _read_json_groups(lines: Lines) -> Iterator[Sequence[tuple[Any, ...]]]:
    import msgspec

    from rlrec.cli.text.lines import key_type

    key_kind: Any = key_type()
    time_kind: Any = str | None | msgspec.UnsetType
    fields: list[Any] = [("arm", key_kind), ("features", dict[str, Any], {}), ("groups", list[key_kind] | None, None)]
    fields += [(name, time_kind, msgspec.UNSET) for name in ("from_", "until")]
    kind: Any = msgspec.defstruct("Arm", fields, forbid_unknown_fields=True, rename={"from_": "from"})
    for group in lines.groups(kind):
        arms = []
        for number, arm in group:
            try:
                arms.append((arm.arm, arm.features, arm.groups, _stated_times(arm.from_, arm.until)))
            except InputError as error:
                error.line = number
                lines.refuse(error)
        yield arms


def _stated_times(start: Any, end: Any) -> dict[str, int | None]:
    """Return the times that a line states about an arm, by column of the store. A field that the line lacks is left
    out.

    `start` and `end` are the fields for the first and the last time at which the arm may be shown, None to remove a
    time."""
    return {
        name: None if time is None else parse_local(time)
        for name, time in (("eligible_from", start), ("eligible_until", end))
        if time is None or isinstance(time, str)
    }


def _read_csv_groups(lines: Lines) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Read a CSV, and yield groups of its rows, each row as an arm. A cell that holds a number becomes a number. An
    empty cell is no feature, and leaves the groups and the times of an arm unchanged."""
    header: list[str] = []
    for group in lines.raw():
        arms = []
        for number, text in group:
            try:
                cells = _split_cells(text)
                if header:
                    arms.append(_arm_of_cells(header, cells))
                else:
                    header = _check_header(cells)
                    lines.refusals.n_lines -= 1  # the header is no line that could be stored
            except InputError as error:
                error.line = number
                if not header:
                    raise
                lines.refuse(error)
        yield arms


def _split_cells(text: bytes) -> list[str]:
    """Return the cells of one line of a CSV. A quoted cell may not continue on the next line."""
    if b"\0" in text:
        raise InputError("the line holds a NUL character")
    try:
        return next(csv.reader(io.StringIO(text.decode()), strict=True))
    except UnicodeDecodeError as error:
        raise utf8_error(text, error) from None
    except csv.Error as error:
        raise InputError(f"not CSV: {error}") from None


def _check_header(cells: list[str]) -> list[str]:
    if cells[:1] != ["arm"]:
        has_other_separator = len(cells) == 1 and re.match(r"arm[;\t]", cells[0])
        hint = "separate its columns by commas" if has_other_separator else "or write one JSON object a line"
        raise InputError("the first column of a CSV of arms is `arm`", hint=hint)
    if repeated_names := [name for index, name in enumerate(cells) if name in cells[:index]]:
        raise InputError(f"two columns have the name {repeated_names[0]!r}")
    return cells


def _arm_of_cells(header: list[str], cells: list[str]) -> tuple[Any, ...]:
    """Return the key, the features, the groups and the times of the arm in a row of a CSV."""
    if len(cells) != len(header):
        raise InputError(f"{quantity(len(cells), 'cell')}, but {quantity(len(header), 'column')}")
    cells_by_name = {name: cell for name, cell in zip(header[1:], cells[1:], strict=True) if cell != ""}
    groups = cells_by_name.pop("groups", None)
    times = _stated_times(cells_by_name.pop("from", ...), cells_by_name.pop("until", ...))
    features = {name: _cell_value(cell) for name, cell in cells_by_name.items()}
    return parse_key(cells[0]), features, groups and [parse_key(key) for key in groups.split("+")], times


def _cell_value(cell: str) -> str | float:
    """Return the value of a cell. The value is a number if JSON would write it in this form; other text, such as 007
    and 1_000, stays text."""
    if not NUMBER_PATTERN.fullmatch(cell):
        return cell
    number = float(cell)
    return number if abs(number) < float("inf") else cell


@arm.command("list")
@click.argument("names", nargs=-1, metavar="[KEY|@GROUP]...", type=KEY)
@click.option("--exposure", is_flag=True, help="Slots of each arm in the log, expected and realised, and its rate.")
@takes_read_store("rlrec arm list --format csv", "rlrec arm list @home --exposure")
def list_(store: Store, show: Show, names: Sequence[str], exposure: bool) -> None:
    """List arms, retired ones too: all of them, or those named.

    --exposure adds the figures of `rlrec exposure`; they are null if the arm was never eligible."""
    arms = app.arm.list_arms(store, names)
    headers, figure_columns = ["arm", "status", "features", "added"], []
    columns = [name for name in ("groups", "from", "until") if any(row[name] for row in arms)]
    if exposure:
        arms, figure_columns = app.exposure.add_figures(store, arms), [*app.exposure.ARM_FIGURES]
    rows = [arm | {"added": arm["added_at"], "groups": ", ".join(arm["groups"])} for arm in arms]
    table = View.select(rows, [*headers, *columns, *figure_columns])
    show(
        arms, table=table, columns=[*headers[:3], "added_at", "retired_at", "groups", "from", "until", *figure_columns]
    )


@arm.command()
@click.argument("keys", type=KEY, nargs=-1, required=True)
@takes_write_store("rlrec arm retire a1 a2")
def retire(store: Store, show: Show, keys: Sequence[str]) -> None:
    """Take arms out of the catalogue; their log stays."""
    show(app.arm.retire(store, keys, is_retired=True))


@arm.command()
@click.argument("keys", type=KEY, nargs=-1, required=True)
@takes_write_store("rlrec arm restore a1")
def restore(store: Store, show: Show, keys: Sequence[str]) -> None:
    """Make retired arms eligible again."""
    show(app.arm.retire(store, keys, is_retired=False))
