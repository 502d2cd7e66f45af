"""The Open Bandit Dataset: a CSV of impressions, one item at one position of a page, with its marginal propensity.

Source: Saito, Aihara, Matsutani, Narita (2020), "Open Bandit Dataset and Pipeline", arXiv 2008.07146. A row is a
session of its own: the file has no key of one. Lines are read in columns, and a cell is understood once for all that
are equal: most of a row are features that many rows share and affinities of 0.0. Where anything is amiss, the lines of
a group are read one by one, to tell which and why.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from math import isfinite
from typing import TypeVar

import numpy as np

from rlrec import times
from rlrec.app.imports.layouts.base import Impressions, Layout, Refused, Source, Surprise, Taken, key, probability
from rlrec.app.inputs import canonical
from rlrec.errors import InputError

COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
FEATURE, AFFINITY = "user_feature_", "user-item_affinity_"
CLICKS = {"0": False, "1": True, "0.0": False, "1.0": True}
CACHE = 50_000  # texts remembered

FORM = "0000-00-00 00:00:00.000000+00:00"  # of nearly all times
FIRST, LAST = (np.frombuffer(form.encode(), np.uint8) for form in (FORM, "9999-19-39 29:59:59.999999+00:00"))
PARTS = np.zeros((len(FORM), 4), np.int64)  # digits to date, hour, seconds of the day and microseconds
PARTS[[0, 1, 2, 3, 5, 6, 8, 9], 0] = [10**place for place in range(7, -1, -1)]
PARTS[[11, 12], 1] = 10, 1
PARTS[[11, 12, 14, 15, 17, 18], 2] = 36_000, 3_600, 600, 60, 10, 1
PARTS[20:26, 3] = [10**place for place in range(5, -1, -1)]

V = TypeVar("V")
Columns = tuple[Sequence[int], Sequence[str], Sequence[int], Sequence[bool], Sequence[float], Sequence[str]]
"""Time, item, position, click, propensity and context."""


class Obd(Layout):
    """Columns timestamp, item_id, position, click, propensity_score, user_feature_*, user-item_affinity_*."""

    headed = True
    wants_policy = True

    def __init__(self, source: Source, *, policy: str | None, now: int) -> None:
        super().__init__(source, policy=policy, now=now)
        self._items: set[str] = set()
        self._size = 0
        self._eligible: tuple[str, ...] = ()
        self._known: dict[str, dict[bytes, object]] = {name: {} for name in (*COLUMNS, "context")}

    # -- columns --

    def header(self, text: bytes) -> None:
        names = next(csv.reader([_decoded(text)]))
        for name in COLUMNS:
            if names.count(name) != 1:
                what = "has no column" if name not in names else "names twice the column"
                raise InputError(f"the header {what} {name!r}", hint=f"the layout obd needs {', '.join(COLUMNS)}")
        self._width = len(names)
        self._where = [names.index(name) for name in COLUMNS]
        self._named = sorted((name, place) for place, name in enumerate(names) if name.startswith(FEATURE))
        affinities = [(name, place) for place, name in enumerate(names) if name.startswith(AFFINITY)]
        self._catalogue = {name.removeprefix(AFFINITY) for name, _ in affinities}
        self._affinities = affinities
        # What makes the context as one piece of text, where it stands together at the end; else picked cell by cell.
        rest = sorted(place for _, place in [*self._named, *affinities])
        first = rest[0] if rest else self._width
        self._cut = first if rest == list(range(first, self._width)) else self._width

    def _columns(self, texts: list[bytes]) -> Columns | None:
        """The cells of all these lines; None where one is amiss, or not of the usual form."""
        cut = self._cut
        rows = [text.split(b",", cut) for text in texts]
        if cut == self._width or set(map(len, rows)) != {cut + 1}:
            return None
        cells = list(zip(*rows, strict=True))
        time, item, place, click, share = (cells[where] for where in self._where)
        try:
            for where in set(range(cut)).difference(self._where):
                _plain(b"".join(cells[where]))
            return (
                self._times(time),
                self._each("item_id", item, _item),
                self._each("position", place, _position),
                self._each("click", click, _click),
                self._each("propensity_score", share, _share),
                self._each("context", cells[cut], self._rest),
            )
        except InputError:
            return None

    def _each(self, name: str, cells: Sequence[bytes], understand: Callable[[str], V]) -> list[V]:
        """What the cells of a column say; those seen before are looked up."""
        known: dict[bytes, V] = self._known[name]  # type: ignore[assignment]  # of its own V
        with suppress(KeyError):
            return list(map(known.__getitem__, cells))
        if len(known) > CACHE:
            known.clear()
        known.update((cell, understand(_plain(cell))) for cell in set(cells).difference(known))
        return list(map(known.__getitem__, cells))

    def _times(self, cells: Sequence[bytes]) -> list[int]:
        ats = _instants(cells) or [times.parse(_plain(cell)) for cell in cells]
        if max(ats) > self.now:
            raise InputError("one lies in the future")
        return ats

    # -- lines --

    def _lines(self, numbers: Sequence[int], texts: list[bytes]) -> tuple[list[int], Columns, list[Refused]]:
        """The places of the lines that can be taken, their cells, and the other lines."""
        if (columns := self._columns(texts)) is not None:
            return list(range(len(texts))), columns, []
        rows, bad = {}, []
        for place, (number, text) in enumerate(zip(numbers, texts, strict=True)):
            try:
                rows[place] = self._line(text)
            except InputError as error:
                error.line = number
                bad.append(Refused(error, text))
        cells: list[list[object]] = [list(column) for column in zip(*rows.values(), strict=True)] or [[]] * 6
        return list(rows), tuple(cells), bad  # type: ignore[return-value]  # zip tells no types

    def _line(self, text: bytes) -> tuple[int, str, int, bool, float, str]:
        line = _decoded(text)
        cells = next(csv.reader([line])) if '"' in line else line.split(",")
        if len(cells) != self._width:
            raise InputError(f"{len(cells)} cells, the header has {self._width}")
        context = self._context(cells)
        time, item, place, click, share = map(cells.__getitem__, self._where)
        position, marginal, clicked, arm = _position(place), _share(share), _click(click), _item(item)
        return self._time(time), arm, position, clicked, marginal, context

    def _rest(self, text: str) -> str:
        return self._context([*[""] * self._cut, *text.split(",")])

    def _context(self, cells: list[str]) -> str:
        """User features as text and the affinities other than 0: canonical JSON."""
        if len(cells) != self._width:
            raise InputError(f"{len(cells)} cells, the header has {self._width}")
        liked = {name: cells[place] for name, place in self._affinities if cells[place] != "0.0"}
        affinities = {name: value for name, word in liked.items() if (value := _number(word, name))}
        pieces = [canonical.text(affinities)[1:-1]] if affinities else []
        pieces += [_feature(name, cells[place]) for name, place in self._named]
        return f"{{{','.join(pieces)}}}"

    def _time(self, text: str) -> int:
        try:
            at = times.parse(text)
        except InputError as error:
            error.field = "timestamp"
            raise
        if at > self.now:
            raise InputError("the decision lies in the future", hint="check it and the clock", field="timestamp")
        return at

    # -- passes --

    def look(self, numbers: Sequence[int], texts: list[bytes]) -> Iterable[Refused]:
        _, (_, items, positions, *_), bad = self._lines(numbers, texts)
        self._items.update(items)
        self._size = max(self._size, max(positions, default=0))
        return bad

    def looked(self) -> None:
        items = self._catalogue | self._items
        self._eligible = tuple(sorted(items))
        if self._size > len(items):
            raise InputError(
                f"position {self._size} on a page, but {self.source.name} names {len(items)} items only",
                field="position",
            )

    def taken(self, numbers: Sequence[int], texts: list[bytes], digests: list[bytes]) -> Taken:
        places, (ats, items, positions, clicks, marginals, contexts), bad = self._lines(numbers, texts)
        if not self._catalogue.union(self._items).issuperset(items) or max(positions, default=0) > self._size:
            raise Surprise
        if bad:
            digests = [digests[place] for place in places]
        sessions = [f"{self.policy}/{at}/{digest[:12].hex()}" for at, digest in zip(ats, digests, strict=True)]
        columns = digests, sessions, ats, contexts, items, positions, marginals, clicks
        return Impressions(*columns, (), self._eligible, self._size), bad


def _instants(cells: Sequence[bytes]) -> list[int]:
    """Microseconds since 1970 of times that all have the usual FORM and can be; none where one has not."""
    if set(map(len, cells)) != {len(FORM)}:
        return []
    digits = np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), -1) - FIRST  # what is below 0 wraps around
    if (digits > LAST - FIRST).any():
        return []
    date, hour, seconds, micros = (digits.astype(np.int64) @ PARTS).T
    if hour.max() > 23:
        return []
    dates, which = np.unique(date, return_inverse=True)
    days = [times.parse(f"{day // 10_000:04d}-{day // 100 % 100:02d}-{day % 100:02d}") for day in dates.tolist()]
    found: list[int] = (np.array(days)[which] + seconds * times.SECOND + micros).tolist()
    return found


# -- cells --


def _decoded(text: bytes) -> str:
    if b"\x00" in text:
        raise InputError(f"a NUL at column {text.index(0) + 1}")
    try:
        return text.decode()
    except UnicodeDecodeError as bad:
        raise InputError(f"not UTF-8: byte 0x{text[bad.start]:02x} at column {bad.start + 1}") from None


def _plain(cell: bytes) -> str:
    """A cell as text. Raises InputError where it is quoted, or cannot be."""
    if b'"' in cell:
        raise InputError("it has quotes")
    return _decoded(cell)


def _item(text: str) -> str:
    return text if 0 < len(text) <= 200 else key(text, "item_id")


def _click(text: str) -> bool:
    if text not in CLICKS:
        raise InputError(f"{text[:40]!r} is no click", hint="0 or 1", field="click")
    return CLICKS[text]


def _position(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0):
        raise InputError(f"{text[:40]!r} is no position", hint="they count from 1", field="position")
    return int(text)


@lru_cache(CACHE)
def _share(text: str) -> float:
    value = probability(_number(text, "propensity_score"), "propensity_score")
    assert value is not None
    return value


@lru_cache(CACHE)
def _feature(name: str, text: str) -> str:
    return f"{json.dumps(name, ensure_ascii=False)}:{json.dumps(text, ensure_ascii=False)}"


def _number(text: str, field: str) -> float:
    try:
        value = float(text) if "_" not in text else float("nan")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise InputError(f"{text[:40]!r} is no finite number", field=field)
    return value
