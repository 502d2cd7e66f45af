"""The slots of decisions from a table: checks of pages, and what follows from their slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log
from typing import cast

from rlrec.app.imports.columns import NULL, LoggedEvents, LoggedSlots, values
from rlrec.app.imports.layouts.fields import is_certain
from rlrec.errors import InputError
from rlrec.store.database.loading import Column, Same


def sizes(slots: LoggedSlots, starts: Sequence[int], stated: Column) -> Column:
    """The length of each page: as stated, else its last position."""
    n = len(slots.row)
    if isinstance(slots.position, Same) or len(starts) == n:
        last = slots.position
    else:
        last = [max(slots.position[start:end]) for start, end in pairwise([*starts, n])]
    if stated == NULL:
        return last
    listed = list(zip(values(stated, len(starts)), values(last, len(starts)), strict=True))
    for size, shown in listed:
        if size is not None and size < shown:
            raise InputError(f"a page of {size}, but position {shown} was shown")
    return [shown if size is None else size for size, shown in listed]


def check(
    slots: LoggedSlots, sizes: Column, eligible: Sequence[int], sets: Sequence[tuple[str, ...]] | None
) -> None:  # fmt: skip
    """Raises InputError for a page that no policy can have shown. eligible: the index of the set of each decision;
    sets: None where any arm may be."""
    n = len(slots.arm)
    positions, propensities = values(slots.position, n), values(slots.propensity, n)
    if slots.row and n > slots.row[-1] + 1:
        for column, what in ((slots.arm, "an arm is shown twice"), (positions, "a position is filled twice")):
            if len(set(zip(slots.row, column, strict=True))) < n:
                raise InputError(what)
        for (row, position), (other, following) in pairwise(zip(slots.row, positions, strict=True)):
            if row == other and following < position:
                raise InputError("the rows of a decision are in order of position")
    if sets is None:
        return
    members, size = list(map(frozenset, sets)), values(sizes, len(eligible))
    for row, arm, position, propensity in zip(slots.row, slots.arm, positions, propensities, strict=True):
        arms = members[eligible[row]]
        if arm not in arms:
            raise InputError(f"arm {arm[:80]!r} was shown, but not eligible")
        if size[row] > len(arms):
            raise InputError(f"a page of {size[row]}, but only {len(arms)} arms were eligible")
        if len(arms) == position and not is_certain(propensity, len(arms)):
            raise InputError(f"{propensity!r} must be 1: no other eligible arm was left at its position")


def log_propensities(slots: LoggedSlots, sizes: Column, starts: Sequence[int]) -> Column:
    """The log of the probability of each page, None where it is not complete."""
    n = len(slots.arm)
    if slots.propensity == NULL:
        return NULL
    log_of = {value: None if value is None else log(value) for value in set(values(slots.propensity, n))}
    logs = [log_of[value] for value in values(slots.propensity, n)]
    if n == len(starts) and isinstance(sizes, Same) and sizes.value == 1:
        return logs
    bounds, lengths = pairwise([*starts, n]), values(sizes, len(starts))
    totals = []
    for (start, end), size in zip(bounds, lengths, strict=True):
        of_page = logs[start:end]
        is_complete = end - start == size and None not in of_page
        totals.append(sum(cast(list[float], of_page)) if is_complete else None)
    return totals


def events(
    columns: Mapping[str, list[float | None]], row: Sequence[int], positions: Sequence[int]
) -> LoggedEvents:  # fmt: skip
    """Events on the slots of their rows, from the values of each kind, None without one."""
    if len(columns) == 1:
        ((kind, column),) = columns.items()
        if None not in column:
            return LoggedEvents(row=row, position=positions, kind=Same(kind), value=column)
        chosen = [n for n, value in enumerate(column) if value is not None]
        return LoggedEvents(
            row=[row[n] for n in chosen], position=[positions[n] for n in chosen], kind=Same(kind),
            value=[column[n] for n in chosen],
        )  # fmt: skip
    listed = [
        (row[n], positions[n], kind, value)
        for n, of_row in enumerate(zip(*columns.values(), strict=True))
        for kind, value in zip(columns, of_row, strict=True)
        if value is not None
    ]
    rows, positions, kinds, amounts = zip(*listed, strict=True) if listed else ((), (), (), ())
    return LoggedEvents(row=rows, position=positions, kind=kinds, value=amounts)
