"""rlrec arm: the catalogue."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import click

from rlrec.cli.output import Show, View
from rlrec.cli.shared import Group, Lines, lines_argument, printed, stored
from rlrec.cli.values import KEY, OBJECT, parse_key
from rlrec.errors import InputError


@click.group(cls=Group)
def arm() -> None:
    """Add, list, retire and restore arms."""


@arm.command()
@click.argument("key", type=KEY)
@click.option("--features", type=OBJECT, default="{}", metavar="JSON|@FILE", help="What is known of the arm.")
@printed
@stored
def add(store: Any, show: Show, key: str, features: dict[str, Any]) -> None:
    """Add an arm, or give a known one other features.

    \b
    Example:
      rlrec arm add a1 --features '{"topic": "tea", "price": 3.5}'
    """
    from rlrec.app import arm as use_case

    show(use_case.put(store, lambda: [[use_case.Line(arm=key, features=features)]]))


@arm.command("import")
@lines_argument
@printed
@stored
def import_(store: Any, show: Show, lines: Lines) -> None:
    """Add many arms from a file, or change their features.

    FILE holds one JSON object a line, {"arm": "a1", "features": {...}}, or is a CSV whose first column is `arm` and
    whose other columns are features. Importing again updates.

    \b
    Example:
      printf '{"arm": "a1"}\\n{"arm": "a2"}\\n' | rlrec arm import -
    """
    from rlrec.app import arm as use_case

    source = lines.kept()
    groups = _csv_groups(source, use_case.Line) if source.first_byte() != b"{" else _json_groups(source, use_case.Line)
    show(use_case.put(store, groups, one_transaction=not lines.refusals.quarantine))


def _json_groups(lines: Lines, line: Any) -> Any:
    import msgspec

    kind = msgspec.defstruct("Arm", [("arm", str), ("features", dict[str, Any], {})], forbid_unknown_fields=True)

    def groups() -> Iterator[Sequence[Any]]:
        for group in lines.groups(kind):
            yield [line(arm=one.arm, features=one.features) for one in _keyed(lines, group)]

    return groups


def _keyed(lines: Lines, group: Sequence[tuple[int, Any]]) -> Iterator[Any]:
    for number, one in group:
        try:
            parse_key(one.arm)
        except InputError as error:
            lines.refuse(InputError(error.message, hint=error.hint, field="arm", line=number))
        else:
            yield one


def _csv_groups(lines: Lines, line: Any) -> Any:
    """CSV in groups: numbers become numbers, an empty cell is no feature."""

    def groups() -> Iterator[Sequence[Any]]:
        header: list[str] = []
        for group in lines.raw():
            made = []
            for number, text in group:
                cells = next(csv.reader(io.StringIO(text.decode("utf-8", "strict"))))
                if not header:
                    header = cells
                    if header[:1] != ["arm"]:
                        raise InputError("the first column of a CSV of arms is `arm`", line=number)
                    continue
                try:
                    if len(cells) != len(header):
                        raise InputError(f"{len(cells)} cells, but {len(header)} columns", line=number)
                    key = parse_key(cells[0])
                except InputError as error:
                    error.line = number
                    lines.refuse(error)
                    continue
                features = {name: _value(cell) for name, cell in zip(header[1:], cells[1:], strict=True) if cell != ""}
                made.append(line(arm=key, features=features))
            yield made

    return groups


def _value(cell: str) -> str | float | int:
    try:
        number = float(cell)
    except ValueError:
        return cell
    return number if abs(number) < float("inf") else cell


@arm.command("list")
@printed
@stored
def list_(store: Any, show: Show) -> None:
    """List all arms, retired ones too.

    \b
    Example:
      rlrec arm list --format csv
    """
    from rlrec.app import arm as use_case

    found = use_case.listing(store)
    columns = ["arm", "status", "features", "added_at", "retired_at"]
    rows = [[one["arm"], one["status"], one["features"], one["added_at"]] for one in found]
    show(found, table=View(headers=["arm", "status", "features", "added"], rows=rows), columns=columns)


@arm.command()
@click.argument("keys", type=KEY, nargs=-1, required=True)
@printed
@stored
def retire(store: Any, show: Show, keys: Sequence[str]) -> None:
    """Make arms eligible no more; their log stays.

    \b
    Example:
      rlrec arm retire a1 a2
    """
    from rlrec.app import arm as use_case

    show(use_case.retire(store, keys, retired=True))


@arm.command()
@click.argument("keys", type=KEY, nargs=-1, required=True)
@printed
@stored
def restore(store: Any, show: Show, keys: Sequence[str]) -> None:
    """Make retired arms eligible again.

    \b
    Example:
      rlrec arm restore a1
    """
    from rlrec.app import arm as use_case

    show(use_case.retire(store, keys, retired=False))
