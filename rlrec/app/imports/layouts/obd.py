"""The Open Bandit Dataset: a CSV of impressions, one item at one position of a page, with its marginal propensity.

Source: Saito, Aihara, Matsutani, Narita (2020), "Open Bandit Dataset and Pipeline", arXiv 2008.07146. A row is a
session of its own: the file has no key of one. Lines are read in columns, and a cell is understood once for all that
are equal: most of a row are features that many rows share and affinities of 0.0. Where anything is amiss, the lines of
a group are read one by one, to tell which and why.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from itertools import compress
from typing import Any, TypeVar, cast

import numpy as np

from rlrec import times
from rlrec.app.imports.columns import NULL, LogColumns, LoggedEvents, LoggedSlots, distinct
from rlrec.app.imports.layouts.base import Decoded, Layout, Note, Options, RefusedLine, Source, refused
from rlrec.app.imports.layouts.fields import finite, key, probability
from rlrec.app.inputs import canonical
from rlrec.errors import InputError
from rlrec.store.database.loading import Same

COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
FEATURE, AFFINITY = "user_feature_", "user-item_affinity_"
CLICKS = {"0": False, "1": True, "0.0": False, "1.0": True}
CACHE = 50_000  # texts remembered
AT_ONCE = 2_000  # lines decoded at once
UTC = {b"+00:00"}

V = TypeVar("V")
Cells = Sequence[list[Any]]  # time, item, position, click, propensity and context


class Obd(Layout):
    """Columns timestamp, item_id, position, click, propensity_score, user_feature_*, user-item_affinity_*."""

    headed = True
    wants_policy = True

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Options | None = None) -> None:
        super().__init__(source, policy=policy, now=now, options=options)
        self._eligible: tuple[str, ...] = ()
        self._parsed: dict[str, dict[bytes, object]] = {name: {} for name in (*COLUMNS, "context")}

    # -- columns --

    def header(self, text: bytes) -> None:
        names = next(csv.reader([_decoded(text)]))
        for name in COLUMNS:
            if names.count(name) != 1:
                what = "has no column" if name not in names else "names twice the column"
                raise InputError(f"the header {what} {name!r}", hint=f"the layout obd needs {', '.join(COLUMNS)}")
        self._width = len(names)
        self._chosen = [names.index(name) for name in COLUMNS]
        self._features = sorted((name, index) for index, name in enumerate(names) if name.startswith(FEATURE))
        affinities = [(name, index) for index, name in enumerate(names) if name.startswith(AFFINITY)]
        self._catalogue = {name.removeprefix(AFFINITY) for name, _ in affinities}
        self._affinities = affinities
        # The columns of the context are one piece of text where they stand together at the end; else single cells.
        of_context = sorted(index for _, index in [*self._features, *affinities])
        first = of_context[0] if of_context else self._width
        self._split = first if of_context == list(range(first, self._width)) else self._width

    def _cells(self, texts: list[bytes]) -> Cells | None:
        """The cells of all these lines; None where one is amiss, or not of the usual form."""
        split = self._split
        rows = [text.split(b",", split) for text in texts]
        if split == self._width or set(map(len, rows)) != {split + 1}:
            return None
        cells = list(zip(*rows, strict=True))
        time, item, position, click, propensity = (cells[index] for index in self._chosen)
        try:
            for index in set(range(split)).difference(self._chosen):
                _unquoted(b"".join(cells[index]))
            return (
                self._times(time),
                self._each("item_id", item, partial(key, field="item_id")),
                self._each("position", position, _position),
                self._each("click", click, _click),
                self._each("propensity_score", propensity, _propensity),
                self._each("context", cells[split], self._context_of_text),
            )
        except InputError:
            return None

    def _each(self, name: str, cells: Sequence[bytes], parse: Callable[[str], V]) -> list[V]:
        """The parsed cells of a column; equal cells are parsed once."""
        parsed: dict[bytes, V] = self._parsed[name]  # type: ignore[assignment]  # of its own V
        with suppress(KeyError):
            return list(map(parsed.__getitem__, cells))
        if len(parsed) > CACHE:
            parsed.clear()
        parsed.update((cell, parse(_unquoted(cell))) for cell in set(cells).difference(parsed))
        return list(map(parsed.__getitem__, cells))

    def _times(self, cells: Sequence[bytes]) -> list[int]:
        ats = _instants(cells) or [times.parse(_unquoted(cell)) for cell in cells]
        if max(ats) > self.now:
            raise InputError("one lies in the future")
        return ats

    # -- lines --

    def _rows(self, numbers: Sequence[int], texts: list[bytes]) -> tuple[Sequence[int], Cells, list[RefusedLine]]:
        """The numbers of the lines that can be taken, their cells, and the other lines."""
        cells: Cells = ([], [], [], [], [], [])
        bad: list[RefusedLine] = []
        for start in range(0, len(texts), AT_ONCE):
            group = slice(start, start + AT_ONCE)
            columns = self._cells(texts[group]) or self._cells_line_by_line(numbers[group], texts[group], bad)
            for column, more in zip(cells, columns, strict=True):
                column += more
        if bad:
            refused_numbers = {line.error.line for line in bad}
            numbers = [number for number in numbers if number not in refused_numbers]
        return numbers, cells, bad

    def _cells_line_by_line(self, numbers: Sequence[int], texts: list[bytes], bad: list[RefusedLine]) -> Cells:
        """The cells of the lines that can be taken; the others go to `bad`."""
        rows = []
        for number, text in zip(numbers, texts, strict=True):
            try:
                rows.append(self._line(text))
            except InputError as error:
                bad.append(refused(error, number, text))
        return list(map(list, zip(*rows, strict=True))) or [[]] * 6

    def _line(self, text: bytes) -> tuple[int, str, int, bool, float, str]:
        line = _decoded(text)
        cells = next(csv.reader([line])) if '"' in line else line.split(",")
        context = self._context(cells)
        time, item, position, click, propensity = map(cells.__getitem__, self._chosen)
        values = key(item, "item_id"), _position(position), _click(click), _propensity(propensity)
        return self.time(time, "timestamp"), *values, context

    def _context_of_text(self, text: str) -> str:
        return self._context([*[""] * self._split, *text.split(",")])

    def _context(self, cells: list[str]) -> str:
        """User features as text and the affinities other than 0: canonical JSON."""
        if len(cells) != self._width:
            raise InputError(f"{len(cells)} cells, the header has {self._width}")
        words = {name: cells[index] for name, index in self._affinities if cells[index] != "0.0"}
        affinities = {name: value for name, word in words.items() if (value := finite(word, name))}
        pieces = [canonical.text(affinities)[1:-1]] if affinities else []
        pieces += [_feature(name, cells[index]) for name, index in self._features]
        return f"{{{','.join(pieces)}}}"

    # -- decisions --

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        numbers, (ats, items, positions, clicks, marginals, contexts), bad = self._rows(numbers, texts)
        clicked = list(compress(range(len(numbers)), clicks))
        rows = LogColumns(
            number=numbers, policy=Same(self.policy), session=(), context=contexts, at=ats, eligible=Same(0),
            eligible_sets=(), size=NULL,
            slots=LoggedSlots(row=range(len(numbers)), position=positions, arm=items, marginal=marginals),
            events=LoggedEvents(
                row=clicked, position=list(compress(positions, clicks)), kind=Same("click"), value=Same(1.0)
            ),
        )  # fmt: skip
        return Decoded(rows, bad)

    def note(self, rows: LogColumns) -> Note:
        return replace(super().note(rows), arms=set(rows.slots.arm), largest=max(distinct(rows.slots.position)))

    def end(self) -> None:
        self.without_propensity = 0  # each line has the marginal, which weighs an impression
        items = self._catalogue | self.arms
        self._eligible = tuple(sorted(items))
        if self.largest > len(items):
            raise InputError(
                f"position {self.largest} on a page, but {self.source.name} names {len(items)} items only",
                field="position",
            )

    def complete(self, rows: LogColumns) -> LogColumns:
        """Each row is a session of its own, its key made of its time first: keys that come in order are cheap to
        store."""
        ats = cast(Sequence[int], rows.at)
        sessions = [f"{self.policy}/{at}/{digest[:12].hex()}" for at, digest in zip(ats, rows.digest, strict=True)]
        return replace(rows, session=sessions, eligible_sets=(self._eligible,), size=Same(self.largest))


def _instants(cells: Sequence[bytes]) -> list[int]:
    """Microseconds since 1970 of times that all look like 2019-11-24 00:00:00.000000+00:00, as most do; else none."""
    if set(map(len, cells)) != {32} or {cell[4] for cell in cells} != {45} or {cell[26:] for cell in cells} != UTC:
        return []
    with suppress(ValueError):
        instants = np.array(cells, "S26").astype("datetime64[us]").astype(np.int64)
        return instants.tolist() if instants.min() >= times.FIRST else []
    return []


# -- cells --


def _decoded(text: bytes) -> str:
    if b"\x00" in text:
        raise InputError(f"a NUL at column {text.index(0) + 1}")
    try:
        return text.decode()
    except UnicodeDecodeError as bad:
        raise InputError(f"not UTF-8: byte 0x{text[bad.start]:02x} at column {bad.start + 1}") from None


def _unquoted(cell: bytes) -> str:
    """A cell as text. Raises InputError where it is quoted, or cannot be."""
    if b'"' in cell:
        raise InputError("it has quotes")
    return _decoded(cell)


def _click(text: str) -> bool:
    if text not in CLICKS:
        raise InputError(f"{text[:40]!r} is no click", hint="0 or 1", field="click")
    return CLICKS[text]


def _position(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0):
        raise InputError(f"{text[:40]!r} is no position", hint="they count from 1", field="position")
    return int(text)


@lru_cache(CACHE)
def _propensity(text: str) -> float:
    value = probability(finite(text, "propensity_score"), "propensity_score")
    assert value is not None
    return value


@lru_cache(CACHE)
def _feature(name: str, text: str) -> str:
    return f"{json.dumps(name, ensure_ascii=False)}:{json.dumps(text, ensure_ascii=False)}"
