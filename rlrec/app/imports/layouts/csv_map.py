"""Any table in CSV: a map says which of its columns is what. A row is a slot; a decision of several has several rows.

A group of lines is read in columns, and equal cells are parsed once. Where anything is amiss, its decisions are read
one by one, to say which line and why.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from msgspec import UNSET

from rlrec.app.imports.columns import NULL, LogColumns, LoggedEvents, LoggedSlots, distinct, transposed, values
from rlrec.app.imports.layouts import csv_cells, csv_pages, csv_writer, fields
from rlrec.app.imports.layouts.base import SPANNED, Decoded, Layout, Note, Options, RefusedLine, Source, refused
from rlrec.app.imports.layouts.line_groups import LINE_BYTES
from rlrec.errors import InputError, quantity, suggest
from rlrec.policy.beliefs import reward as rewards
from rlrec.store.database.loading import Column, Same
from rlrec.store.log import contents

OF_DECISION = ("at", "eligible", *csv_cells.OF_DECISION)  # words for columns that are equal in all rows of a decision
SINGLE = ("decision", "arm", "reward", *OF_DECISION, *csv_cells.OF_SLOT)  # words for one column
KEYS = frozenset({"session", "user", "request_id"})  # words for keys that few rows share
DELIMITERS = ",\t;|"
CACHE = 50_000  # cells remembered of a column
csv.field_size_limit(LINE_BYTES)  # a list of 10,000 arms is longer than the 128 KB that a cell may have elsewhere

V = TypeVar("V")


class ColumnMap(NamedTuple):
    """Which column holds what. columns: by the words of SINGLE; events: the column of each kind, or one of lists of
    events in JSON; context: its columns, in order of their names, or one of objects in JSON."""

    columns: Mapping[str, str]
    events: Mapping[str, str] | str
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
        if not isinstance(events, dict | str) or not isinstance(context, list | str):
            reason = '"events" is an object of kind: column, "context" a list of columns, or either a column of JSON'
            raise InputError(reason, hint=hint)
        for kind in () if isinstance(events, str) else events:
            if not rewards.KIND.fullmatch(kind):
                raise InputError(f"{kind[:80]!r} is no kind of event", hint="letters, digits, _ and .", field="events")
        for name in (stated := cls(columns, events, context)).entries:
            if not isinstance(name, str):
                raise InputError(f"{json.dumps(name)[:80]} is no name of a column", hint=hint)
        if "arm" not in columns:
            raise InputError("the map does not say which column holds the arm", hint=hint)
        if "reward" in columns and events:
            raise InputError('the map has "reward" and "events"', hint="a reward is an event of the kind reward")
        return stated if isinstance(context, str) else stated._replace(context=sorted(set(context)))

    @property
    def entries(self) -> list[str]:
        """The names of the columns, as often as the map has them."""
        listed = [self.events] if isinstance(self.events, str) else self.events.values()
        of_context = [self.context] if isinstance(self.context, str) else self.context
        return [*self.columns.values(), *listed, *of_context]

    @property
    def names(self) -> list[str]:
        """The names of all columns, each once."""
        return list(dict.fromkeys(self.entries))


class CsvMap(Layout):
    """A table with a header; `options.map` names its columns. What `export-log` has written needs none."""

    headed = True
    reads = frozenset({"map"})

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Options | None = None) -> None:
        self.map = ColumnMap.of(csv_writer.MAP if options is None or options.map is None else options.map)
        super().__init__(source, policy=policy, now=now, options=options)
        self._parsed: dict[str, dict[str, Any]] = {}
        self.spans = "decision" in self.map.columns or {"session", "at", "position"} <= self.map.columns.keys()
        self._eligible: tuple[str, ...] = ()
        self._decision_digests: Sequence[int] = ()  # of the rows that were decoded last, see Note
        self._all_decision_digests = array("q")

    # -- rows --

    def header(self, text: bytes) -> None:
        line = text.decode(errors="replace")
        self._delimiter = max(DELIMITERS, key=line.count)
        names = self._cells(text)
        if self.options.map is None and tuple(names) != csv_writer.COLUMNS:
            example = '{"session": COLUMN, "arm": COLUMN, "propensity": COLUMN, "reward": COLUMN}'
            hint = f"--map FILE, with {example}; the columns are {', '.join(names)[:200]}"
            raise InputError("the layout csv needs a map of its columns", hint=hint)
        if "policy" not in self.map.columns:
            self.policy = self.policy or fields.DEFAULT_POLICY
        fields.check_columns("the header", names, self.map.names)
        self._width = len(names)
        self._number = {name: names.index(name) for name in self.map.names}
        self._index = {word: self._number[name] for word, name in self.map.columns.items()}

    def goes_on(self, text: bytes, following: bytes) -> bool:
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
        starts = [n for n in range(len(texts)) if not (n and self.spans and self.goes_on(texts[n - 1], texts[n]))]
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
        self._stated(csv_cells.OF_DECISION, cells)
        ats = self._times("at", cells) if "at" in self._index else ()
        self._events(cells, [0], Same(1), ats or [None])

    def _decoded(self, numbers: Sequence[int], rows: list[list[str]]) -> Decoded:
        """The decisions of rows that can all be taken. Raises InputError where one cannot."""
        cells = list(zip(*rows, strict=True)) or [()] * self._width
        starts = self._starts(rows, cells)
        n, first = len(starts), starts if len(starts) < len(rows) else range(len(rows))
        decided = cells if n == len(rows) else [_picked(column, first) for column in cells]
        if "decision" in self._index:
            self._decision_digests = contents.key_digests(list(filter(None, decided[self._index["decision"]])))
        lengths = [end - start for start, end in pairwise([*starts, len(rows)])]
        of_each = ([index] * count for index, count in enumerate(lengths))
        row = range(n) if n == len(rows) else list(chain.from_iterable(of_each))
        slots, (eligible, sets) = replace(self._slots(cells), row=row), self._eligible_sets(decided)
        if n < len(rows):
            slots = _numbered(slots, lengths)
            self._check_equal(cells, starts, row)
        stated = self._stated(csv_cells.OF_DECISION, decided)
        policy, states = stated.pop("policy", NULL), stated.pop("state", NULL)
        if states != NULL:
            stated["state"], stated["history"] = zip(*(each or ("{}", None) for each in states), strict=True)
        sizes = csv_pages.sizes(slots, starts, stated.pop("size", NULL))
        csv_pages.check(slots, sizes, eligible, sets)
        at = self._times("at", decided) if "at" in self._index else NULL
        logs = stated.pop("log_propensity", NULL)
        columns = LogColumns(
            number=_picked(numbers, first), policy=Same(self.policy) if self.policy else policy,
            session=stated.pop("session", ()), at=at, context=self._contexts(decided),
            eligible=Same(0) if sets is None else eligible, eligible_sets=sets or (), size=sizes, slots=slots,
            log_propensity=csv_pages.log_propensities(slots, sizes, starts) if logs == NULL else logs,
            events=self._events(cells, row, slots.position, values(at, n)), **stated,
        )  # fmt: skip
        return Decoded(columns, [], lines=None if n == len(rows) else lengths)

    def _starts(self, rows: list[list[str]], cells: Sequence[Sequence[str]]) -> list[int]:
        """The index of the first row of each decision."""
        if not self.spans or not rows:
            return list(range(len(rows)))
        starts = [0, *(n for n in range(1, len(rows)) if not self._same_decision(rows[n - 1], rows[n]))]
        if max(end - start for start, end in pairwise([*starts, len(rows)])) > SPANNED:
            raise InputError(f"a decision of more than {SPANNED} rows")
        return starts

    def _check_equal(self, cells: Sequence[Sequence[str]], starts: list[int], row: Sequence[int]) -> None:
        """Raises InputError where the rows of a decision differ in what it has once."""
        names = [self.map.columns[word] for word in OF_DECISION if word in self._index]
        for name in [*names, *self._of_context]:
            column = cells[self._number[name]]
            if any(column[starts[index]] != cell for index, cell in zip(row, column, strict=True)):
                hint = "a decision has its session, user, time, eligible arms and context once"
                raise InputError(f"the rows of one decision differ in the column {name!r}", hint=hint)

    # -- columns --

    def _each(self, word: str, cells: Sequence[str], name: str, parse: csv_cells.Parse) -> list[Any]:
        """The parsed cells of a column; equal cells are parsed once."""
        if word in KEYS and csv_cells.are_keys(cells):
            return list(cells)
        parsed = self._parsed.setdefault(f"{word} {name}", {})
        with suppress(KeyError):
            return list(map(parsed.__getitem__, cells))
        if len(parsed) > CACHE:
            parsed.clear()
        parsed.update((cell, parse(cell, name)) for cell in set(cells).difference(parsed))
        return list(map(parsed.__getitem__, cells))

    def _column(self, word: str, cells: Sequence[Sequence[str]], parse: csv_cells.Parse) -> list[Any]:
        """The parsed column of a word that the map has."""
        return self._each(word, cells[self._index[word]], self.map.columns[word], parse)

    def _stated(self, words: Mapping[str, csv_cells.Parse], cells: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The parsed columns of the words that the map has."""
        return {word: _nulls(self._column(word, cells, parse)) for word, parse in words.items() if word in self._index}

    def _slots(self, cells: Sequence[Sequence[str]]) -> LoggedSlots:
        """One slot a row, without the index of its decision."""
        stated = {"position": Same(1)} | self._stated(csv_cells.OF_SLOT, cells)
        return LoggedSlots(row=(), **stated)

    def _times(self, word: str, cells: Sequence[Sequence[str]]) -> Sequence[int]:
        name, column = self.map.columns[word], cells[self._index[word]]
        ats = csv_cells.instants(column)
        if ats is None:
            return self._each(word, column, name, lambda cell, name: csv_cells.epoch(cell) or self.time(cell, name))
        if ats and max(ats) > self.now:
            raise InputError("one lies in the future", field=name)
        return ats

    def _eligible_sets(self, cells: Sequence[Sequence[str]]) -> tuple[Sequence[int], Sequence[tuple[str, ...]] | None]:
        """The index of the eligible arms of each decision, and the sets; None where the table has none."""
        if "eligible" not in self._index:
            return (), None
        listed = self._column("eligible", cells, csv_cells.arms)
        sets = {id(each): each for each in listed}
        index = {key: number for number, key in enumerate(sets)}
        return [index[id(each)] for each in listed], list(sets.values())

    def _events(
        self, cells: Sequence[Sequence[str]], row: Sequence[int], position: Column, served_at: Sequence[int | None]
    ) -> LoggedEvents:  # fmt: skip
        """The events on the slots of their rows."""
        events = self.map.events
        if isinstance(events, str):
            listed = self._each("events", cells[self._number[events]], events, csv_cells.events)
            return self._listed_events(listed, row, values(position, len(row)), served_at)
        if "reward" in self._index:
            columns = {"reward": self._column("reward", cells, csv_cells.number)}
        else:
            columns = {
                kind: self._each("event", cells[self._number[name]], name, csv_cells.count)
                for kind, name in events.items()
            }
        return csv_pages.events(columns, row, values(position, len(row)))

    def _listed_events(
        self, listed: Sequence[Sequence[fields.EventEntry]], row: Sequence[int], positions: Sequence[int],
        served_at: Sequence[int | None],
    ) -> LoggedEvents:  # fmt: skip
        name, events = "events", list[tuple[int, fields.LineEvent]]()
        for index, position, entries in zip(row, positions, listed, strict=True):
            for entry in entries:
                at = position if entry.position is UNSET else entry.position
                if at not in (position, None):
                    raise InputError(f"an event at position {at} stands in the row of {position}", field=name)
                event = fields.event(entry, position=at, served_at=served_at[index], now=self.now, path=name)
                events.append((index, event))
        for _, of_decision in groupby(events, itemgetter(0)):
            fields.check_keys([event for _, event in of_decision])
        rows = ((index, *event) for index, event in events)
        return LoggedEvents(**transposed(("row", *fields.LineEvent._fields), rows))

    @property
    def _of_context(self) -> Sequence[str]:
        return [self.map.context] if isinstance(self.map.context, str) else self.map.context

    def _contexts(self, cells: Sequence[Sequence[str]]) -> list[str]:
        """Canonical JSON of the columns of the context, empty cells left out."""
        if isinstance(name := self.map.context, str):
            return self._each("context", cells[self._number[name]], name, csv_cells.objects)
        if not self.map.context:
            return ["{}"] * len(cells[0])
        columns = [csv_cells.pieces(cells[self._number[name]], name) for name in self.map.context]
        rows, is_complete = list(zip(*columns, strict=True)), not any("" in column for column in columns)
        distinct = set(rows)
        objects = [f"{{{','.join(row if is_complete else filter(None, row))}}}" for row in distinct]
        return list(map(dict(zip(distinct, objects, strict=True)).__getitem__, rows))

    # -- what is known at the end --

    def note(self, rows: LogColumns) -> Note:
        note = replace(super().note(rows), decision_digests=self._decision_digests)
        if "eligible" in self._index:
            return note
        return replace(note, arms=set(rows.slots.arm), largest=max(distinct(rows.size), default=0))

    def remember(self, note: Note) -> None:
        super().remember(note)
        self._all_decision_digests.extend(note.decision_digests)

    def join(self, files: Sequence[Layout]) -> list[str]:
        counts = {file.source.name: file.scattered for file in files if isinstance(file, CsvMap) and file.scattered}
        return [
            f"{name}: the rows of {quantity(number, 'decision')} are not one after the other, and count as several "
            "decisions; sort the table by them"
            for name, number in counts.items()
        ]

    def end(self) -> None:
        ordered = np.sort(self._all_decision_digests)
        self.scattered = len(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
        self._eligible = tuple(sorted(self.arms))
        if self.largest > len(self.arms):
            raise InputError(
                f"a page of {self.largest}, but {self.source.name} shows {len(self.arms)} arms only",
                hint='"eligible" in the map names the column that lists the arms that could be shown',
            )

    def complete(self, rows: LogColumns) -> LogColumns:
        """With the arms of the file where no column lists those that were eligible, and, where none names a session,
        each decision in one of its own."""
        if "eligible" not in self._index:
            rows = replace(rows, eligible_sets=(self._eligible,))
        return rows.in_sessions()


def _picked(column: Sequence[V], indexes: Sequence[int]) -> Sequence[V]:
    return column if indexes == range(len(column)) else [column[index] for index in indexes]


def _nulls(column: Sequence[Any]) -> Column:
    return NULL if column and all(value is None for value in column) else column


def _numbered(slots: LoggedSlots, lengths: Sequence[int]) -> LoggedSlots:
    """The slots with their positions in order: those of a decision as the table has them, else as they come."""
    if isinstance(slots.position, Same):
        return replace(slots, position=list(chain.from_iterable(range(1, count + 1) for count in lengths)))
    return slots
