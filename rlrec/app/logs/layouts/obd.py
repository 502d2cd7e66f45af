"""The Open Bandit Dataset: a CSV of impressions, one item at one position of a page, with its marginal propensity.

Source: Saito, Aihara, Matsutani, Narita (2020), "Open Bandit Dataset and Pipeline", arXiv 2008.07146. A row is a
session of its own: the file has no key of one. Nearly all of a row are features that many rows share and
affinities of 0.0, so that part is looked up as a whole among those seen before.
"""

from __future__ import annotations

import csv
import json
from math import isfinite
from typing import TypeVar

from rlrec import times
from rlrec.app import canonical
from rlrec.app.logs.layouts.base import Happened, Layout, Line, Shown, Source, key, probability
from rlrec.errors import InputError

COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
FEATURE, AFFINITY = "user_feature_", "user-item_affinity_"
CLICKS = {"0": False, "1": True, "0.0": False, "1.0": True}
CACHE = 50_000  # texts remembered

K = TypeVar("K")
V = TypeVar("V")
_Parsed = tuple[int, str, int, bool, float, str]


class Obd(Layout):
    """Columns timestamp, item_id, position, click, propensity_score, user_feature_*, user-item_affinity_*."""

    headed = True
    wants_policy = True

    def __init__(self, source: Source, *, policy: str | None, now: int) -> None:
        super().__init__(source, policy=policy, now=now)
        self._items: set[str] = set()
        self._size = 0
        self._eligible: tuple[str, ...] = ()
        self._shares: dict[str, float] = {}
        self._places: dict[str, int] = {}
        self._contexts: dict[str, str] = {}
        self._features: dict[tuple[str, str], str] = {}

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

    def _parsed(self, text: bytes) -> _Parsed:
        """Time, item, position, click, propensity and context."""
        line = _decoded(text)
        cut = self._cut
        quoted = '"' in line
        cells = next(csv.reader([line])) if quoted else line.split(",", cut)
        context = self._contexts.get(cells[-1]) if len(cells) == cut + 1 else None
        if context is None:
            context = self._context(cells, whole=quoted or cut == self._width)
        time, item, place, click, share = map(cells.__getitem__, self._where)
        position = self._places.get(place) or self._position(place)
        marginal = self._shares.get(share) or self._share(share)
        if click not in CLICKS:
            raise InputError(f"{click[:40]!r} is no click", hint="0 or 1", field="click")
        if not 0 < len(item) <= 200:
            key(item, "item_id")
        return self._time(time), item, position, CLICKS[click], marginal, context

    def _context(self, cells: list[str], *, whole: bool) -> str:
        """User features as text and the affinities other than 0: canonical JSON."""
        tail = cells[-1]
        if not whole:
            cells = [*cells[:-1], *tail.split(",")]
        if len(cells) != self._width:
            raise InputError(f"{len(cells)} cells, the header has {self._width}")
        liked = {name: cells[place] for name, place in self._affinities if cells[place] != "0.0"}
        affinities = {name: value for name, word in liked.items() if (value := _number(word, name))}
        pieces = [canonical.text(affinities)[1:-1]] if affinities else []
        pieces += [self._features.get((name, cells[place])) or self._feature(name, cells[place])
                   for name, place in self._named]  # fmt: skip
        found = f"{{{','.join(pieces)}}}"
        return found if whole else _remember(self._contexts, tail, found)

    # -- cells --

    def _time(self, text: str) -> int:
        try:
            at = times.parse(text)
        except InputError as error:
            error.field = "timestamp"
            raise
        if at > self.now:
            raise InputError("the decision lies in the future", hint="check it and the clock", field="timestamp")
        return at

    def _position(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0):
            raise InputError(f"{text[:40]!r} is no position", hint="they count from 1", field="position")
        return self._places.setdefault(text, int(text))

    def _share(self, text: str) -> float:
        value = probability(_number(text, "propensity_score"), "propensity_score")
        assert value is not None
        return _remember(self._shares, text, value)

    def _feature(self, name: str, text: str) -> str:
        piece = f"{json.dumps(name, ensure_ascii=False)}:{json.dumps(text, ensure_ascii=False)}"
        return _remember(self._features, (name, text), piece)

    # -- passes --

    def look(self, number: int, text: bytes) -> None:
        _, item, position, *_ = self._parsed(text)
        self._items.add(item)
        self._size = max(self._size, position)

    def looked(self) -> None:
        items = self._catalogue | self._items
        self._eligible = tuple(sorted(items))
        if self._size > len(items):
            raise InputError(
                f"position {self._size} on a page, but {self.source.name} names {len(items)} items only",
                field="position",
            )

    def line(self, number: int, text: bytes, digest: bytes) -> Line:
        at, item, position, clicked, marginal, context = self._parsed(text)
        return Line(
            number, text, digest, None, f"{self.policy}/{digest.hex()}", None, None, None, at, context, "{}",
            self._eligible, self._size, None, None, None, None, (Shown(position, item, None, marginal),),
            (Happened(position, "click", 1.0),) if clicked else (),
        )  # fmt: skip


def _decoded(text: bytes) -> str:
    if b"\x00" in text:
        raise InputError(f"a NUL at column {text.index(0) + 1}")
    try:
        return text.decode()
    except UnicodeDecodeError as bad:
        raise InputError(f"not UTF-8: byte 0x{text[bad.start]:02x} at column {bad.start + 1}") from None


def _number(text: str, field: str) -> float:
    try:
        value = float(text) if "_" not in text else float("nan")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise InputError(f"{text[:40]!r} is no finite number", field=field)
    return value


def _remember(cache: dict[K, V], name: K, value: V) -> V:
    if len(cache) >= CACHE:
        cache.clear()
    cache[name] = value
    return value
