"""Any table in CSV: a map says which of its columns is what. A row is a slot; a decision of several has several rows.

A group of lines is read in columns, and equal cells are parsed once. Where anything is amiss, its decisions are read
one by one, to say which line and why.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, pairwise
from math import isfinite, log
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from rlrec import times
from rlrec.app.imports.columns import NULL, LogColumns, LoggedEvents, LoggedSlots, values
from rlrec.app.imports.layouts.base import (
    SPANNED,
    Decoded,
    Layout,
    Options,
    RefusedLine,
    Source,
    key,
    probability,
    refused,
)
from rlrec.app.imports.layouts.jsonl import DEFAULT_POLICY, TIGHT
from rlrec.app.inputs import canonical
from rlrec.errors import InputError, suggest
from rlrec.policy import reward as rewards
from rlrec.store.loading import Column, Same

SINGLE = (
    "decision", "session", "user", "at", "arm", "propensity", "marginal", "position", "reward", "eligible",
    "keep_probability",
)  # fmt: skip
OF_DECISION = (
    "session",
    "user",
    "at",
    "eligible",
    "keep_probability",
)  # columns that are equal in all rows of a decision
DELIMITERS = ",\t;|"
CACHE = 50_000  # cells remembered of a column
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
WORDS = {"true": "true", "True": "true", "false": "false", "False": "false"}
EPOCH_UNITS = ((10**11, 1_000_000), (10**14, 1_000), (10**17, 1))  # below: seconds, milliseconds, microseconds

V = TypeVar("V")


class ColumnMap(NamedTuple):
    """Which column holds what. columns: by the words of SINGLE; events: the column of each kind; context: those of the
    context, in order of their names."""

    columns: Mapping[str, str]
    events: Mapping[str, str]
    context: Sequence[str]

    @classmethod
    def of(cls, entries: Any) -> ColumnMap:
        """Raises InputError for what is no map of columns."""
        hint = 'such as {"session": "visit_id", "arm": "item", "propensity": "p", "reward": "clicked"}'
        if not isinstance(entries, dict):
            raise InputError("the map is no JSON object", hint=hint)
        for word in entries.keys() - {*SINGLE, "events", "context"}:
            raise InputError(f"the map has no use for {word!r}", hint=suggest(word, [*SINGLE, "events", "context"]))
        columns = {word: entries[word] for word in SINGLE if word in entries}
        events, context = entries.get("events", {}), entries.get("context", [])
        if not isinstance(events, dict) or not isinstance(context, list):
            raise InputError('"events" is an object of kind: column, "context" a list of columns', hint=hint)
        for kind in events:
            if not rewards.KIND.fullmatch(kind):
                raise InputError(f"{kind[:80]!r} is no kind of event", hint="letters, digits, _ and .", field="events")
        for name in chain(columns.values(), events.values(), context):
            if not isinstance(name, str):
                raise InputError(f"{json.dumps(name)[:80]} is no name of a column", hint=hint)
        if "arm" not in columns:
            raise InputError("the map does not say which column holds the arm", hint=hint)
        if "reward" in columns and events:
            raise InputError('the map has "reward" and "events"', hint="a reward is an event of the kind reward")
        return cls(columns, events, sorted(set(context)))


class CsvMap(Layout):
    """A table with a header; `options.map` names its columns."""

    headed = True
    reads = frozenset({"map"})

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Options | None = None) -> None:
        if options is None or options.map is None:
            raise InputError("the layout csv needs a map of its columns", hint="--map FILE")
        self.map = ColumnMap.of(options.map)
        super().__init__(source, policy=policy or DEFAULT_POLICY, now=now, options=options)
        self._parsed: dict[str, dict[str, Any]] = {}
        self._arms: set[str] = set()
        self._largest = 0  # page
        self._eligible: tuple[str, ...] = ()

    # -- rows --

    def header(self, text: bytes) -> None:
        line = text.decode(errors="replace")
        self._delimiter = max(DELIMITERS, key=line.count)
        names = self._cells(text)
        for name in chain(self.map.columns.values(), self.map.events.values(), self.map.context):
            if names.count(name) != 1:
                reason = "has no column" if name not in names else "names twice the column"
                raise InputError(f"the header {reason} {name!r}", hint=suggest(name, names, cutoff=0.5))
        self._width = len(names)
        self._index = {word: names.index(name) for word, name in self.map.columns.items()}
        self._event_index = {kind: names.index(name) for kind, name in self.map.events.items()}
        self._context_index = [names.index(name) for name in self.map.context]
        self._spans = "decision" in self._index or {"session", "at", "position"} <= self._index.keys()

    def goes_on(self, text: bytes, following: bytes) -> bool:
        if not self._spans:
            return False
        try:
            return self._same_decision(self._cells(text), self._cells(following))
        except InputError:
            return False

    def _same_decision(self, row: Sequence[str], following: Sequence[str]) -> bool:
        """Whether two rows, one after the other, are of one decision: those with one `decision`; where no column holds
        that, those of one session at one time, as long as positions go up."""
        index = self._index
        try:
            if "decision" in index:
                return row[index["decision"]] == following[index["decision"]] != ""
            same = all(row[index[word]] == following[index[word]] for word in ("session", "at"))
            return same and int(row[index["position"]]) < int(following[index["position"]])
        except (IndexError, ValueError):
            return False

    def _cells(self, text: bytes) -> list[str]:
        """The cells of one line. Raises InputError where it has none, or goes on in the next."""
        if b"\x00" in text:
            raise InputError(f"a NUL at column {text.index(0) + 1}")
        try:
            return next(csv.reader([text.decode()], delimiter=self._delimiter, strict=True))
        except UnicodeDecodeError as bad:
            raise InputError(f"not UTF-8: byte 0x{text[bad.start]:02x} at column {bad.start + 1}") from None
        except csv.Error as error:
            hint = "a row is one line: cells hold no line break" if "unexpected end" in str(error) else None
            raise InputError(f"no line of CSV: {error}", hint=hint) from None

    def _rows(self, texts: Sequence[bytes]) -> list[list[str]]:
        """The cells of lines that are all good. Raises InputError where one is not."""
        with suppress(UnicodeDecodeError, csv.Error):
            rows = list(csv.reader(map(bytes.decode, texts), delimiter=self._delimiter, strict=True))
            if len(rows) == len(texts) and set(map(len, rows)) <= {self._width}:
                return rows
        rows = list(map(self._cells, texts))
        for row in rows:
            if len(row) != self._width:
                raise InputError(f"{len(row)} cells, the header has {self._width}")
        raise InputError("no line of CSV")

    # -- decisions --

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        try:
            return self._decoded(numbers, self._rows(texts))
        except InputError:
            return self._singly(numbers, texts)

    def _singly(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        """The decisions that can be taken, and the others with the reasons."""
        good, bad = list[int](), list[RefusedLine]()
        starts = [n for n in range(len(texts)) if n == 0 or not self.goes_on(texts[n - 1], texts[n])]
        for first, last in pairwise([*starts, len(texts)]):
            problem = next(self._problems(numbers, texts, first, last), None)
            if problem is None:
                good += range(first, last)
            else:
                bad.append(refused(problem[1], problem[0], b"\n".join(texts[first:last])))
        return self._decoded([numbers[n] for n in good], self._rows([texts[n] for n in good]))._replace(refused=bad)

    def _problems(
        self, numbers: Sequence[int], texts: list[bytes], first: int, last: int
    ) -> Iterator[tuple[int, InputError]]:
        """Errors in the lines of a decision: line by line, then in all together."""
        for start, end in [*((n, n + 1) for n in range(first, last)), (first, last)]:
            try:
                rows = self._rows(texts[start:end])
                if end - start == last - first:
                    self._decoded(numbers[start:end], rows)
                else:
                    self._check_cells(rows)
            except InputError as error:
                yield numbers[start], error

    def _check_cells(self, rows: list[list[str]]) -> None:
        """Raises InputError where a cell cannot be what its column holds."""
        cells = list(zip(*rows, strict=True))
        self._slots(cells)
        self._decision_columns(cells)
        self._event_columns(cells)

    def _decoded(self, numbers: Sequence[int], rows: list[list[str]]) -> Decoded:
        """The decisions of rows that can all be taken. Raises InputError where one cannot."""
        cells = list(zip(*rows, strict=True)) or [()] * self._width
        starts = self._starts(rows, cells)
        n, first = len(starts), starts if len(starts) < len(rows) else range(len(rows))
        decided = cells if n == len(rows) else [_picked(column, first) for column in cells]
        slots, (eligible, sets), events = self._slots(cells), self._eligible_sets(decided), self._event_columns(cells)
        lengths = [end - start for start, end in pairwise([*starts, len(rows)])]
        row = list(chain.from_iterable([index] * count for index, count in enumerate(lengths)))
        slots = replace(slots, row=row)
        if n < len(rows):
            slots = self._numbered(slots, lengths)
            self._check_equal(cells, starts, row)
        sizes = _last_positions(slots, starts, len(rows))
        _check(slots, sizes, None if sets is None else [sets[index] for index in eligible])
        session, user, at = self._decision_columns(decided)
        columns = LogColumns(
            number=_picked(numbers, first), policy=Same(self.policy), session=session, user=user, at=at,
            context=self._contexts(decided), eligible=Same(0) if sets is None else eligible, eligible_sets=sets or (),
            size=sizes, slots=slots, log_propensity=_log_propensities(slots, sizes, starts),
            events=_logged_events(events, row, slots.position),
            keep_probability=_nulls(self._column("keep_probability", decided, _probability)),
        )  # fmt: skip
        return Decoded(columns, [], lines=None if n == len(rows) else lengths)

    def _starts(self, rows: list[list[str]], cells: Sequence[Sequence[str]]) -> list[int]:
        """The index of the first row of each decision."""
        if not self._spans or not rows:
            return list(range(len(rows)))
        starts = [0, *(n for n in range(1, len(rows)) if not self._same_decision(rows[n - 1], rows[n]))]
        if max(end - start for start, end in pairwise([*starts, len(rows)])) > SPANNED:
            raise InputError(f"a decision of more than {SPANNED} rows")
        return starts

    def _check_equal(self, cells: Sequence[Sequence[str]], starts: list[int], row: list[int]) -> None:
        """Raises InputError where the rows of a decision differ in what it has once."""
        chosen = [self._index[word] for word in OF_DECISION if word in self._index] + self._context_index
        for column in map(cells.__getitem__, chosen):
            if any(column[starts[index]] != cell for index, cell in zip(row, column, strict=True)):
                raise InputError("the rows of one decision differ in what it has once: its session, user, time, "
                                 "eligible arms or context")  # fmt: skip

    # -- columns --

    def _each(self, name: str, cells: Sequence[str], parse: Callable[[str], V]) -> list[V]:
        """The parsed cells of a column; equal cells are parsed once."""
        parsed: dict[str, V] = self._parsed.setdefault(name, {})
        with suppress(KeyError):
            return list(map(parsed.__getitem__, cells))
        if len(parsed) > CACHE:
            parsed.clear()
        parsed.update((cell, parse(cell)) for cell in set(cells).difference(parsed))
        return list(map(parsed.__getitem__, cells))

    def _column(self, word: str, cells: Sequence[Sequence[str]], parse: Callable[[str, str], V]) -> list[V] | None:
        """The parsed column of a word of the map, None where the table has none."""
        if word not in self._index:
            return None
        name = self.map.columns[word]
        return self._each(name, cells[self._index[word]], lambda cell: parse(cell, name))

    def _slots(self, cells: Sequence[Sequence[str]]) -> LoggedSlots:
        """One slot a row, without the index of its decision."""
        propensity, marginal = (self._column(word, cells, _probability) for word in ("propensity", "marginal"))
        arm, position = self._column("arm", cells, key), self._column("position", cells, _position)
        return LoggedSlots(
            row=(), arm=arm or (), position=Same(1) if position is None else position,
            propensity=_nulls(propensity), marginal=_nulls(marginal),
        )  # fmt: skip

    def _numbered(self, slots: LoggedSlots, lengths: Sequence[int]) -> LoggedSlots:
        """The slots with their positions in order: those of a decision as the table has them, else as they come."""
        if isinstance(slots.position, Same):
            return replace(slots, position=list(chain.from_iterable(range(1, count + 1) for count in lengths)))
        return slots

    def _decision_columns(self, cells: Sequence[Sequence[str]]) -> tuple[Sequence[str], Column, Column]:
        """Session, user and time of decisions, from the cells of their first rows."""
        session, user = self._column("session", cells, key), self._column("user", cells, _key_or_none)
        at = self._times(self.map.columns["at"], cells[self._index["at"]]) if "at" in self._index else NULL
        return session or (), _nulls(user), at

    def _times(self, name: str, cells: Sequence[str]) -> Sequence[int]:
        ats = _instants(cells)
        if ats is None:
            return self._each(name, cells, lambda cell: _epoch(cell) or self.time(cell, name))
        if ats and max(ats) > self.now:
            raise InputError("one lies in the future", field=name)
        return ats

    def _eligible_sets(self, cells: Sequence[Sequence[str]]) -> tuple[Sequence[int], Sequence[tuple[str, ...]] | None]:
        """The index of the eligible arms of each decision, and the sets; None where the table has none."""
        listed = self._column("eligible", cells, _arms)
        if listed is None:
            return (), None
        index: dict[tuple[str, ...], int] = {}
        return [index.setdefault(arms, len(index)) for arms in listed], list(index)

    def _event_columns(self, cells: Sequence[Sequence[str]]) -> dict[str, list[float | None]]:
        """The value of each kind of event in each row, None without one."""
        if "reward" in self._index:
            return {"reward": self._column("reward", cells, _value) or []}
        columns = ((kind, index, self.map.events[kind]) for kind, index in self._event_index.items())
        return {
            kind: self._each(f"events {name}", cells[index], lambda cell, name=name: _count(cell, name))  # type: ignore[misc]  # bound here
            for kind, index, name in columns
        }

    def _contexts(self, cells: Sequence[Sequence[str]]) -> list[str]:
        """Canonical JSON of the columns of the context, empty cells left out."""
        named = zip(self.map.context, self._context_index, strict=True)
        pieces = [
            self._each(f"context {name}", cells[index], lambda cell, name=name: _piece(name, cell))  # type: ignore[misc]  # bound here
            for name, index in named
        ]
        if not pieces:
            return ["{}"] * len(cells[0])
        return [f"{{{','.join(filter(None, row))}}}" for row in zip(*pieces, strict=True)]

    # -- what is known at the end --

    def note(self, rows: LogColumns) -> None:
        super().note(rows)
        if "eligible" not in self._index:
            self._arms.update(rows.slots.arm)
            self._largest = max(self._largest, max(values(rows.size, len(rows)), default=0))

    def end(self) -> None:
        self._eligible = tuple(sorted(self._arms))
        if self._largest > len(self._arms):
            raise InputError(
                f"a page of {self._largest}, but {self.source.name} shows {len(self._arms)} arms only",
                hint='"eligible" in the map names the column that lists the arms that could be shown',
            )

    def complete(self, rows: LogColumns) -> LogColumns:
        """With the arms of the file where no column lists those that were eligible, and, where none names a session,
        each decision in one of its own."""
        if "eligible" not in self._index:
            rows = replace(rows, eligible_sets=(self._eligible,))
        if "session" not in self._index:
            ats = values(rows.at, len(rows))
            named = zip(ats, rows.digest, strict=True)
            rows = replace(rows, session=[f"{self.policy}/{at or 0}/{digest[:12].hex()}" for at, digest in named])
        return rows


# -- cells --


def _picked(column: Sequence[V], indexes: Sequence[int]) -> Sequence[V]:
    return column if indexes == range(len(column)) else [column[index] for index in indexes]


def _nulls(column: Sequence[Any] | None) -> Column:
    return NULL if column is None or not any(value is not None for value in column) else column


def _key_or_none(cell: str, name: str) -> str | None:
    return key(cell, name) if cell else None


def _probability(cell: str, name: str) -> float | None:
    return probability(_value(cell, name), name)


def _position(cell: str, name: str) -> int:
    if not (cell.isascii() and cell.isdigit() and len(cell) < 7 and int(cell) > 0):
        raise InputError(f"{cell[:40]!r} is no position", hint="they count from 1", field=name)
    return int(cell)


def _value(cell: str, name: str) -> float | None:
    """The number in a cell, None in an empty one."""
    if not cell:
        return None
    try:
        value = float(cell) if "_" not in cell else float("nan")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise InputError(f"{cell[:40]!r} is no finite number", field=name)
    if not rewards.is_bounded(value):
        raise InputError(f"{value!r} is too large", hint=f"values stay within {rewards.LIMIT:g}", field=name)
    return value


def _count(cell: str, name: str) -> float | None:
    """The value of an event; None where a cell says that there was none."""
    word = WORDS.get(cell)
    return {"true": 1.0, "false": None}[word] if word else _value(cell, name) or None


def _piece(name: str, cell: str) -> str:
    """A field of the context: a number where the cell looks like one in JSON, true, false, or text."""
    if not cell:
        return ""
    if NUMBER.fullmatch(cell) and isfinite(float(cell)):
        text = canonical.text(json.loads(cell))
    else:
        text = WORDS.get(cell) or json.dumps(cell, ensure_ascii=False)
    return f"{json.dumps(name, ensure_ascii=False)}:{text}"


def _arms(cell: str, name: str) -> tuple[str, ...]:
    """The arms that a cell lists: JSON, or keys between |, ; or commas."""
    if cell.startswith("["):
        try:
            listed = json.loads(cell)
        except ValueError:
            raise InputError(f"{cell[:40]!r} is no JSON list", field=name) from None
        keys = [str(arm) if isinstance(arm, str | int) and not isinstance(arm, bool) else "" for arm in listed]
    else:
        keys = cell.split(next((mark for mark in "|;" if mark in cell), ","))
    return tuple(sorted({key(arm.strip(), name) for arm in keys}))


def _instants(cells: Sequence[str]) -> list[int] | None:
    """Microseconds since 1970 of times that all look like 2026-01-31T12:00:00Z, of one length; else None."""
    ends = {cell[19:] for cell in cells} if len(cells) < 100 else {cell[-1:] for cell in cells}
    if set(map(len, cells)) & {0} or len(set(map(len, cells))) != 1 or any(cell[10:11] not in "T " for cell in cells):
        return None
    if not all(end.endswith("Z") or end.isdigit() or not end for end in ends):
        return None
    stripped = [cell.removesuffix("Z") for cell in cells]
    if len(stripped[0]) < 19 or any(cell[4] != "-" for cell in stripped):
        return None
    with suppress(ValueError):
        instants = np.array(stripped, f"U{len(stripped[0])}").astype("datetime64[us]").astype(np.int64)
        return instants.tolist() if instants.min() >= times.FIRST else None
    return None


def _epoch(cell: str) -> int | None:
    """Microseconds since 1970 of a time written as a number: of seconds, milliseconds or microseconds, by its size."""
    if not re.fullmatch(r"[0-9]{9,17}(\.[0-9]+)?", cell):
        return None
    value = float(cell) if "." in cell else int(cell)
    return next(int(value * unit) for limit, unit in EPOCH_UNITS if value < limit)


# -- slots --


def _last_positions(slots: LoggedSlots, starts: Sequence[int], n: int) -> Column:
    """The length of each page: its last position."""
    if isinstance(slots.position, Same):
        return slots.position
    if len(starts) == n:
        return slots.position
    bounds = pairwise([*starts, n])
    return [max(slots.position[start:end]) for start, end in bounds]


def _check(slots: LoggedSlots, sizes: Column, eligible: Sequence[tuple[str, ...]] | None) -> None:
    """Raises InputError for a page that no policy can have shown."""
    n = len(slots.arm)
    positions, propensities = values(slots.position, n), values(slots.propensity, n)
    if slots.row and len(slots.row) > slots.row[-1] + 1:
        for column, what in ((slots.arm, "an arm is shown twice"), (positions, "a position is filled twice")):
            if len(set(zip(slots.row, column, strict=True))) < n:
                raise InputError(what)
        for (row, position), (other, following) in pairwise(zip(slots.row, positions, strict=True)):
            if row == other and following < position:
                raise InputError("the rows of a decision are in order of position")
    if eligible is None:
        return
    members = {arms: frozenset(arms) for arms in set(eligible)}
    listed = zip(slots.row, slots.arm, positions, propensities, strict=True)
    size = values(sizes, len(eligible))
    for row, arm, position, propensity in listed:
        arms = eligible[row]
        if arm not in members[arms]:
            raise InputError(f"arm {arm[:80]!r} was shown, but not eligible")
        if size[row] > len(arms):
            raise InputError(f"a page of {size[row]}, but only {len(arms)} arms were eligible")
        if len(arms) == position and propensity is not None and propensity < 1 - TIGHT:
            raise InputError(f"{propensity!r} must be 1: no other eligible arm was left at its position")


def _log_propensities(slots: LoggedSlots, sizes: Column, starts: Sequence[int]) -> Column:
    """The log of the probability of each page, None where it is not complete."""
    n = len(slots.arm)
    if slots.propensity == NULL:
        return NULL
    logs = [None if value is None else min(0.0, log(value)) for value in values(slots.propensity, n)]
    bounds, lengths = pairwise([*starts, n]), values(sizes, len(starts))
    totals = []
    for (start, end), size in zip(bounds, lengths, strict=True):
        of_page = logs[start:end]
        is_complete = end - start == size and None not in of_page
        totals.append(min(0.0, sum(cast(list[float], of_page))) if is_complete else None)
    return totals


def _logged_events(columns: Mapping[str, list[float | None]], row: Sequence[int], position: Column) -> LoggedEvents:
    """Events on the slots of their rows."""
    positions = values(position, len(row))
    if len(columns) == 1:
        ((kind, column),) = columns.items()
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
