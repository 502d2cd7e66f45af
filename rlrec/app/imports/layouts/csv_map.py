"""This module reads any table in CSV, with a map of its columns. A row is a slot, and a decision with several slots has
several rows.

The columns of a group of lines are parsed together, and equal cells are parsed once. If a line is no row of the
table, the lines of the group are read one by one. If a cell cannot be parsed, its line is found, and the error names
the line and the reason."""

from __future__ import annotations

import csv
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import tzinfo
from functools import lru_cache
from itertools import chain, pairwise, repeat
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import numpy as np
from msgspec import UNSET

from rlrec import times
from rlrec.app.imports.columns import NULL, LogColumns, LoggedEvents, LoggedSlots, pick_values, transpose_rows, values
from rlrec.app.imports.layouts import csv_cells, writers
from rlrec.app.imports.layouts.base import LINE_BYTES, SPANNED, Decoded, Layout, Note, Source
from rlrec.app.imports.layouts.jsonl import DEFAULT_POLICY, LineEvent, with_censor_events
from rlrec.errors import InputError, quantity, suggest
from rlrec.policy.beliefs import reward as rewards
from rlrec.store.database.loading import Column, Same
from rlrec.store.log import contents

SINGLE = ("decision", "reward", *csv_cells.DECISION_PARSERS, *csv_cells.SLOT_PARSERS)  # words that name one column
DELIMITERS = ",\t;|"
SPECIAL = b'"', b"\r"  # lines without these are split at delimiters alone
ELIGIBLE = '"eligible" in the map names the column that lists the arms that could be shown'
AT_ONCE = 2_000  # lines that are split at once
CACHE = 50_000  # cells remembered per column
Cells = Sequence[Sequence[str]]  # by column and line
csv.field_size_limit(LINE_BYTES)  # a list of 10,000 arms is longer than the 128 KB that a cell may have elsewhere


class ColumnMap(NamedTuple):
    """A ColumnMap tells the meaning of the columns of a table.

    columns: the column of each word of SINGLE, such as `arm`; events: the column of each kind of event, or one
    column with lists of events in JSON; context: the columns of the context in order of their names, or one column
    with JSON objects; zone: the zone of times that name no zone (None: UTC); decimal: the mark before the decimals
    of numbers."""

    columns: Mapping[str, str]
    events: Mapping[str, str] | str
    context: Sequence[str]
    zone: tzinfo | None = None
    decimal: str = "."

    @classmethod
    def read(cls, entries: Any) -> ColumnMap:
        """Return the map that a JSON object describes. Raises InputError if the object is no map of columns."""
        hint = 'such as {"session": "visit_id", "arm": "item", "propensity": "p", "reward": "clicked"}'
        if not isinstance(entries, dict):
            raise InputError("the map is no JSON object", hint=hint)
        words = [*SINGLE, "events", "context", "zone", "decimal"]
        for word in entries.keys() - {*words}:
            hint = suggest(word, words, cutoff=0.7) or f"its words are {', '.join(words)}"
            raise InputError(f"the map has no use for {word!r}", hint=hint)
        columns = {word: entries[word] for word in SINGLE if word in entries}
        events, context = entries.get("events", {}), entries.get("context", [])
        if not isinstance(events, dict | str) or not isinstance(context, list | str):
            reason = '"events" is an object of kind: column, "context" a list of columns, or either a column of JSON'
            raise InputError(reason, hint=hint)
        for kind in () if isinstance(events, str) else events:
            if not rewards.KIND.fullmatch(kind):
                raise InputError(f"{kind[:80]!r} is no kind of event", hint="letters, digits, _ and .", field="events")
        if not isinstance(zone := entries.get("zone", "UTC"), str):
            raise InputError(f'"zone" of the map is {json.dumps(zone)[:80]}', hint="such as Europe/Berlin")
        zone = times.find_zone(zone, prefix='"zone" of the map: ')
        if (decimal := entries.get("decimal", ".")) not in (".", ","):
            raise InputError(f'"decimal" of the map is {json.dumps(decimal)[:80]}', hint="a comma or a point")
        for name in (column_map := cls(columns, events, context, zone, decimal)).entries:
            if not isinstance(name, str):
                raise InputError(f"{json.dumps(name)[:80]} is no name of a column", hint=hint)
        if "arm" not in columns:
            raise InputError("the map does not say which column holds the arm", hint=hint)
        if "reward" in columns and events:
            raise InputError('the map has "reward" and "events"', hint="a reward is an event of the kind reward")
        return column_map if isinstance(context, str) else column_map._replace(context=sorted(set(context)))

    @property
    def entries(self) -> list[str]:
        """Return the names of the columns that the map uses. A name that is used several times is repeated."""
        pairs = [self.events] if isinstance(self.events, str) else self.events.values()
        return [*self.columns.values(), *pairs, *self.context_columns]

    @property
    def context_columns(self) -> Sequence[str]:
        """Return the names of the columns whose cells make up contexts."""
        return [self.context] if isinstance(self.context, str) else self.context

    @property
    def names(self) -> list[str]:
        """Return the names of all columns, each name once."""
        return list(dict.fromkeys(self.entries))


class CsvMap(Layout):
    """This layout reads a table with a header. `options.map` says what the columns mean. A table that `export-log`
    wrote needs no map."""

    has_header = True
    reads = frozenset({"map"})
    slot_parsers: ClassVar[Mapping[str, csv_cells.Parse]] = csv_cells.SLOT_PARSERS
    count = staticmethod(csv_cells.count)  # parses the cell of an event
    piece = staticmethod(csv_cells.piece)  # parses the cell of a field of the context

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        self.map = ColumnMap.read(writers.MAPS[0] if options.get("map") is None else options["map"])
        super().__init__(source, policy=policy, now=now, options=options)
        self.spans = "decision" in self.map.columns or {"session", "at", "position"} <= self.map.columns.keys()
        self._cache: dict[Any, dict[Any, Any]] = defaultdict(dict)
        self._piece = lru_cache(CACHE)(self.piece)
        self._bad: dict[int, InputError] = {}  # the lines of a group that cannot be read, by index
        # the lines of a group, and the cells of all groups, with a time without a zone
        self._zoneless, self._zoneless_cells = set[int](), set[str]()
        self._eligible: tuple[str, ...] = ()
        self._decision_names: dict[int, str] = {}  # of the group decoded last, by the number of the line
        self._decision_digests = array("q")

    def map_of(self, names: Sequence[str]) -> ColumnMap:
        """Return the map of a table whose columns have these names. Raises InputError if the table needs a map and has
        none."""
        if self.options.get("map") is not None:
            return self.map
        if tuple(names) not in writers.HEADERS:
            example = '{"session": COLUMN, "arm": COLUMN, "propensity": COLUMN, "reward": COLUMN}'
            hint = f"--map FILE, with {example}; the columns are {', '.join(names)[:200]}"
            raise InputError("the layout csv needs a map of its columns", hint=hint)
        return ColumnMap.read(writers.MAPS[writers.HEADERS.index(tuple(names))])

    # -- lines --

    def header(self, text: bytes) -> None:
        line = text.decode(errors="replace")
        self._delimiter = max(DELIMITERS, key=line.count)
        names = self._cells(text)
        self.map = self.map_of(names)
        if "policy" not in self.map.columns:
            self.policy = self.policy or DEFAULT_POLICY
        check_columns("the header", names, self.map.names)
        self._width = len(names)
        self._number = {name: names.index(name) for name in self.map.names}
        self._index = {word: self._number[name] for word, name in self.map.columns.items()}
        words = ["decision"] * 2 if "decision" in self._index else ["session", "at", "position"] if self.spans else []
        self._grouping = [self._index[word] for word in words]
        # the context columns are read as one text where they are the last ones, side by side
        in_context = [self._number[name] for name in self.map.context_columns]
        self._split, outside = self._width - len(in_context), {*self._number.values()}.difference(in_context)
        self._reads_end = not self.spans and len(in_context) > 1 and min(in_context) == self._split > max(outside)
        self._at_end = itemgetter(*(number - self._split for number in in_context or [0]))

    def goes_on(self, text: bytes, next_text: bytes, *, gap: bool) -> bool:
        try:
            rows = self._cells(text), self._cells(next_text)
            return _same_decision(*([row[index] for index in self._grouping] for row in rows))
        except (InputError, IndexError):
            return False

    def _cells(self, text: bytes) -> list[str]:
        """Return the cells of one line. Raises InputError if the line is no CSV, or if a cell continues on the next
        line."""
        if b"\x00" in text:
            raise InputError(f"a NUL at column {text.index(0) + 1}")
        try:
            return next(csv.reader([text.decode()], delimiter=self._delimiter, strict=True))
        except UnicodeDecodeError as bad:
            raise InputError(f"not UTF-8: byte 0x{text[bad.start]:02x} at column {bad.start + 1}") from None
        except csv.Error as error:
            hint = "a row is one line: cells hold no line break" if "unexpected end" in str(error) else None
            raise InputError(f"no line of CSV: {error}", hint=hint) from None

    def _columns(self, texts: Sequence[bytes]) -> Cells:
        """Return the cells of lines as columns. A line that cannot be read has empty cells."""
        rows = list[list[str]]()
        with suppress(UnicodeDecodeError, csv.Error):
            if self._reads_end and (columns := self._split_columns(texts)) is not None:
                return columns
            rows = list(csv.reader(map(bytes.decode, texts), delimiter=self._delimiter, strict=True))
        if len(rows) != len(texts) or not {*map(len, rows)} <= {self._width}:
            rows = [self._row(line, text) for line, text in enumerate(texts)]
        return list(zip(*rows, strict=True)) or [()] * self._width

    def _split_columns(self, texts: Sequence[bytes]) -> list[list[str]] | None:
        """Return the cells of lines as columns, if it is enough to split lines at delimiters, else None. The last
        columns, which make the context, stay together as one text per line; equal texts are one object."""
        columns, ends = [list[str]() for _ in range(self._split + 1)], dict[str, str]()
        for start in range(0, len(texts), AT_ONCE):  # so few that the memory of their texts is reused
            lines = texts[start : start + AT_ONCE]
            if any(map(b"".join(lines).__contains__, SPECIAL)):
                return None
            rows = list(map(str.split, map(bytes.decode, lines), repeat(self._delimiter), repeat(self._split)))
            if {*map(len, rows)} != {self._split + 1}:
                return None
            *cells, end = zip(*rows, strict=True)
            for column, further_cells in zip(columns, (*cells, map(ends.setdefault, end, end)), strict=True):
                column += further_cells
        return columns

    def _row(self, line: int, text: bytes) -> list[str]:
        cells = list[str]()
        try:
            cells = self._cells(text)
            self._check_width(len(cells))
        except InputError as error:
            self._bad[line] = error
        return (cells + [""] * self._width)[: self._width]

    def _check_width(self, width: int) -> None:
        if width != self._width:
            raise InputError(f"{quantity(width, 'cell')}, the header has {self._width}")

    # -- decisions --

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        self._bad, self._zoneless = {}, set()
        cells, indexes = self._columns(texts), range(len(texts))
        starts = self._starts(cells, indexes)
        lengths = [end - start for start, end in pairwise([*starts, len(indexes)])]
        n, row, heads = len(starts), starts, cells
        if n < len(indexes):
            row = list(chain.from_iterable([index] * count for index, count in enumerate(lengths)))
            heads = [pick_values(column, starts) for column in cells]
        slots = self._words(self.slot_parsers, cells, indexes)
        columns: dict[str, Any] = {"session": (), "eligible": Same(0)}
        columns |= self._words(csv_cells.DECISION_PARSERS, heads, starts)
        if "position" not in slots:
            positions = chain.from_iterable(range(1, count + 1) for count in lengths)
            slots["position"] = list(positions) if n < len(indexes) else Same(1)
        states = values(columns.pop("state", NULL), n)
        if states.count(None) < n:
            pairs = (state or ("{}", None) for state in states)
            columns["state"], columns["history"] = zip(*pairs, strict=True)
        sets: dict[int, tuple[str, ...]] = {}
        if "eligible" in self._index:
            arms = values(columns["eligible"], n)
            sets = {id(arm_list): arm_list or () for arm_list in arms}
            index = dict(zip(sets, range(len(sets)), strict=True))
            columns["eligible"] = [index[id(arm_list)] for arm_list in arms]
        if self.policy:
            columns["policy"] = Same(self.policy)
        rows = LogColumns(
            number=pick_values(numbers, starts), context=self._contexts(heads, starts), eligible_sets=[*sets.values()],
            slots=LoggedSlots(row=row, **slots), events=self._events(cells, row, slots["position"]), **columns,
        )  # fmt: skip
        if "decision" in self._index:
            self._decision_names = dict(zip(rows.number, heads[self._index["decision"]], strict=True))
        errors: dict[int, InputError] = {}
        for line, error in sorted(self._bad.items(), key=itemgetter(0)):
            error.line = numbers[line]
            errors.setdefault(row[line], error)
        for number, name in self._differing(cells, starts, row) if n < len(indexes) else ():
            hint = "a decision has its session, user, time, eligible arms and context once"
            reason = f"the rows of one decision differ in the column {name!r}"
            errors.setdefault(number, InputError(reason, hint=hint))
        lines = None if n == len(indexes) else lengths
        return Decoded(rows, [], errors, n_zoneless=len(self._zoneless), lines=lines)

    def _starts(self, cells: Cells, indexes: range) -> Sequence[int]:
        """Return the index of the first row of each decision."""
        if not self.spans or not indexes:
            return indexes
        rows = list(zip(*(cells[index] for index in self._grouping), strict=True))
        starts = [0, *(n for n in indexes[1:] if not _same_decision(rows[n - 1], rows[n]))]
        for start, end in pairwise([*starts, len(indexes)]):
            if end - start > SPANNED:
                self._bad[start] = InputError(f"a decision of more than {SPANNED} rows")
        return starts

    def _differing(self, cells: Cells, starts: Sequence[int], row: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Yield decisions whose rows differ in a column that must have one value per decision. Each item is the index
        of the decision and the name of the column. starts: the first row of each decision; row: the decision of each
        row."""
        words = [self.map.columns[word] for word in csv_cells.DECISION_PARSERS if word in self._index]
        for name in [*words, *self.map.context_columns]:
            column = cells[self._number[name]]
            for index, cell in zip(row, column, strict=True):
                if column[starts[index]] != cell:
                    yield index, name

    def path(self, table: str, field: str, number: int, text: bytes) -> str | None:
        if table == "events":
            return self.map.events if isinstance(self.map.events, str) else self.map.columns.get("reward")
        return self.map.columns.get(field)

    # -- columns --

    def _parse_cells(
        self, name: str, cells: Sequence[Any], lines: Sequence[int], parse: csv_cells.Parse, *, fallback: Any = None
    ) -> Sequence[Any]:
        """Return the parsed cells of a column. Equal cells are parsed once. A cell that cannot be parsed becomes
        `fallback`, and its line is refused. name: the name of the column, or "" for several columns; lines: the index
        of each cell's line."""
        if parse is str:
            return cells
        if self.map.decimal == "," and parse in (csv_cells.number, self.count):
            cells = [*map(csv_cells.with_point, cells)]
        if parse is csv_cells.optional_text:
            return [cell or None for cell in cells] if "" in cells else cells
        cache = self._cache[parse, name]
        try:
            results = list(map(cache.__getitem__, cells))
        except KeyError:
            if len(cache) > CACHE:
                cache.clear()
            errors = self._fill_cache(cache, set(cells).difference(cache), parse)
            for line, cell in zip(lines, cells, strict=True) if errors else ():
                if (error := errors.get(cell)) is not None:
                    field = error.field or name or None
                    self._bad.setdefault(line, InputError(error.message, hint=error.hint, field=field))
            results = [cache.get(cell, fallback) for cell in cells] if errors else list(map(cache.__getitem__, cells))
        if self._zoneless_cells:
            self._zoneless.update(line for line, cell in zip(lines, cells, strict=True) if cell in self._zoneless_cells)
        return results

    def _fill_cache(self, cache: dict[Any, Any], cells: Iterable[Any], parse: csv_cells.Parse) -> dict[Any, InputError]:
        """Parse cells, and add the values to a cache. Returns the errors of cells that cannot be parsed, by cell."""
        errors: dict[Any, InputError] = {}
        for cell in cells:
            try:
                cache[cell] = parse(cell)
            except InputError as error:
                errors[cell] = error
            if times.zoneless:
                self._zoneless_cells.add(cell)
                times.zoneless.clear()
        return errors

    def _time(self, cell: str) -> int:
        return csv_cells.time(cell, self.map.zone)

    def _words(self, parsers: Mapping[str, csv_cells.Parse], cells: Cells, lines: Sequence[int]) -> dict[str, Any]:
        """Return the parsed columns of those words of `parsers` that the map of columns has, by word, such as `arm`.
        lines: the index of each row's line."""
        columns: dict[str, Any] = {}
        for word in [word for word in parsers if word in self._index]:
            column = cells[self._index[word]]
            if word == "at" and (ats := csv_cells.instants(column, self.map.zone)) is not None:
                has_zone = self.map.zone or column[0][-1] == "Z" or column[0][-6] in "+-"
                self._zoneless.update(() if has_zone else lines)
                columns["at"] = ats
                continue
            name, fallback = self.map.columns[word], 1 if word == "position" else None
            parse = self._time if word == "at" else parsers[word]
            results = self._parse_cells(name, column, lines, parse, fallback=fallback)
            columns[word] = NULL if results and all(value is None for value in results) else results
        return columns

    def _events(self, cells: Cells, row: Sequence[int], position: Column) -> LoggedEvents:
        """Return the events in these cells. An event has the position of the slot in its row. row: the index of each
        row's decision; position: the position of each row's slot."""
        events, lines, positions = self.map.events, range(len(row)), values(position, len(row))
        if isinstance(events, str):
            lists = self._parse_cells(events, cells[self._number[events]], lines, csv_cells.events, fallback=())
            pairs = (
                (row[line], *event) for line in lines for event in self._row_events(line, positions[line], lists[line])
            )
            return LoggedEvents(**transpose_rows(("row", *LineEvent._fields), pairs))
        reward = {"reward": self.map.columns["reward"]} if "reward" in self._index else {}
        parse = csv_cells.number if reward else self.count
        columns = {
            kind: self._parse_cells(name, cells[self._number[name]], lines, parse)
            for kind, name in (reward or events).items()
        }
        by_row = [
            (row[line], positions[line], kind, column[line])
            for line in lines
            for kind, column in columns.items()
            if column[line] is not None
        ]
        return LoggedEvents(**transpose_rows(("row", "position", "kind", "value"), by_row))

    def _row_events(self, line: int, position: int, entries: csv_cells.TimedEvents) -> Iterator[LineEvent]:
        """Yield the events that a row lists. They belong to the slot of the row, or to the whole slate."""
        for entry, at in entries:
            entry_position = position if entry.position is UNSET else entry.position
            if entry_position not in (position, None):
                reason = f"an event at position {entry_position} stands in the row of {position}"
                self._bad.setdefault(line, InputError(reason, field="events"))
            yield LineEvent(entry_position, entry.kind, entry.value, at, entry.key)

    def _contexts(self, cells: Cells, lines: Sequence[int]) -> Sequence[str]:
        """Return the context of each row as canonical JSON, without fields whose cells are empty."""
        names = self.map.context_columns
        columns = [cells[self._number[name]] for name in names if self._number[name] < len(cells)]
        if isinstance(self.map.context, str):
            return self._parse_cells(names[0], columns[0], lines, csv_cells.objects, fallback="{}")
        if len(cells) <= self._split + 1 < self._width:
            return self._parse_cells("", cells[-1], lines, self._object_at_end, fallback="{}")
        rows = list(zip(*columns, strict=True)) or [()] * len(lines)
        return self._parse_cells("", rows, lines, self._object, fallback="{}")

    def _object_at_end(self, text: str) -> str:
        cells = text.split(self._delimiter)
        self._check_width(self._split + len(cells))
        return self._object(self._at_end(cells))

    def _object(self, cells: Sequence[str]) -> str:
        texts = cells if self.map.decimal == "." else map(csv_cells.with_point, cells)
        return f"{{{','.join(filter(None, map(self._piece, self.map.context, texts)))}}}"

    # -- what is known at the end --

    def note(self, rows: LogColumns, group: Decoded) -> Note:
        names = filter(None, map(self._decision_names.get, rows.number))
        note = replace(super().note(rows, group), decision_digests=contents.key_digests(list(names)))
        if "eligible" in self._index:
            return note
        return replace(note, arms=set(rows.slots.arm), max_length=max(values(rows.size, len(rows)), default=0))

    def remember(self, note: Note) -> None:
        super().remember(note)
        self._decision_digests.extend(note.decision_digests)

    def join(self, files: Sequence[Layout]) -> list[str]:
        counts = {file.source.name: file.n_scattered for file in files if isinstance(file, CsvMap) and file.n_scattered}
        notices = [
            f"--policy {self.policy} owns all decisions: the column {self.map.columns.get('policy')!r} is not read"
        ]
        return notices * (self.policy is not None and "policy" in (self.options.get("map") or {})) + [
            f"{name}: the rows of {quantity(number, 'decision')} are not one after the other, and count as several "
            "decisions; sort the table by them"
            for name, number in counts.items()
        ]

    def finish_decoding(self) -> None:
        self.n_scattered = int((np.unique(self._decision_digests, return_counts=True)[1] > 1).sum())
        self._eligible = tuple(sorted(self.arms))
        if self.max_length > len(self.arms):
            raise InputError(
                f"a page of {self.max_length}, but {self.source.name} names only {quantity(len(self.arms), 'arm')}",
                hint=ELIGIBLE if "map" in self.reads else None,
            )

    def complete(self, rows: LogColumns) -> LogColumns:
        """Return the rows with what follows from the whole file. If no column lists the eligible arms, all arms of the
        file count as eligible. A decision without a session gets a session. Slots marked as censored get events that
        censor them."""
        if "eligible" not in self._index:
            rows = replace(rows, eligible_sets=(self._eligible,))
        rows = rows.in_sessions()
        return with_censor_events(rows) if "censored" in self._index else rows


def _same_decision(row: Sequence[str], next_row: Sequence[str]) -> bool:
    """Tell whether two successive rows belong to one decision. They do if both have the same `decision`. In a table
    without this column, they do if session and time are the same, and the second row has a higher position."""
    with suppress(ValueError):
        return row[:2] == next_row[:2] and (row[0] != "" if len(row) == 2 else int(row[2]) < int(next_row[2]))
    return False


def check_columns(source: str, names: Sequence[str], wanted_names: Iterable[str]) -> None:
    """Raise InputError unless each wanted column occurs exactly once in the table. source: the name of the table in
    messages; names: the names of its columns."""
    for name in wanted_names:
        if name not in names:
            hint = suggest(name, list(names), cutoff=0.5) or f"its columns are {', '.join(names)[:200]}"
            raise InputError(f"{source} has no column {name!r}", hint=hint)
        if names.count(name) > 1:
            raise InputError(f"{source} has two columns {name!r}", hint="rename all but the one to take")
