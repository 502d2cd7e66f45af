"""Lines of JSON: each is a decision, and many are gathered into columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from rlrec import times
from rlrec.app.imports.columns import LogColumns, LoggedEvents, LoggedSlots, transposed
from rlrec.app.imports.layouts.base import Decoded, Layout, RefusedLine, refused_line
from rlrec.errors import InputError
from rlrec.store.database.loading import Column, Same

AT_ONCE = 1_000  # lines decoded at once
DEFAULT_POLICY, REWARD = "imported", "reward"


class EventEntry(Struct, forbid_unknown_fields=True):
    """An event of a line. position: None for the page; UNSET where the line leaves it to its reader."""

    kind: str
    position: int | UnsetType | None = UNSET
    value: float = 1.0
    at: str | None = None
    key: str | None = None


class LineSlot(NamedTuple):
    """A slot of a line, as LoggedSlots names its fields."""

    position: int
    arm: str
    propensity: float | None
    marginal: float | None
    min_propensity: float | None
    score: float | None = None
    censored: int = 0
    rounded: int = 0
    id: str | None = None


class LineEvent(NamedTuple):
    """An event of a line, as LoggedEvents names its fields."""

    position: int | None
    kind: str
    value: float
    at: int | None = None
    key: str | None = None


class GatheredLines:
    """Decisions of lines, gathered one by one. names: of the columns that `add` is handed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = ("number", "eligible", *names)
        self._rows, self._slots, self._events = list[Any](), list[Any](), list[Any]()
        self._sets, self._index = list[tuple[str, ...]](), dict[int, int]()

    def add(
        self, number: int, eligible: tuple[str, ...], row: Sequence[Any], slots: Sequence[LineSlot],
        events: Sequence[LineEvent],
    ) -> None:  # fmt: skip
        """Add the decision of a line. eligible: the same object for decisions that have the same arms, mostly."""
        index = self._index.setdefault(id(eligible), len(self._sets))
        if index == len(self._sets):
            self._sets.append(eligible)
        self._slots += [(len(self._rows), *slot) for slot in slots]
        self._events += [(len(self._rows), *event) for event in events]
        self._rows.append((number, index, *row))

    def columns(self, **constants: Column) -> LogColumns:
        """The decisions. same: columns that are no names of rows."""
        return LogColumns(
            eligible_sets=self._sets, slots=LoggedSlots(**transposed(("row", *LineSlot._fields), self._slots)),
            events=LoggedEvents(**transposed(("row", *LineEvent._fields), self._events)),
            **(transposed(self._names, self._rows) | constants),
        )  # fmt: skip


Row = tuple[tuple[str, ...], Sequence[Any], Sequence[LineSlot], Sequence[LineEvent]]


class LineLayout(Layout):
    """A layout of lines of JSON. kind: what a line decodes to; columns: of decisions, by name."""

    kind: ClassVar[type[Struct]]
    columns: ClassVar[Sequence[str]]

    @abstractmethod
    def row(self, line: Any, text: bytes) -> Row | None:
        """The eligible arms of a line, its values in the order of `columns`, its slots and its events; None for a line
        that is no decision."""

    def decode(self, numbers: Sequence[int], texts: list[bytes]) -> Decoded:
        decisions, refused_lines, zoneless = GatheredLines(self.columns), list[RefusedLine](), 0
        for start in range(0, len(texts), AT_ONCE):
            group = list(zip(numbers[start : start + AT_ONCE], texts[start : start + AT_ONCE], strict=True))
            for (number, text), line in zip(group, self.source.decode(group, self.kind), strict=True):
                try:
                    if isinstance(line, InputError):
                        raise line
                    if (row := self.row(line, text)) is not None:
                        decisions.add(number, *row)
                except InputError as error:
                    refused_lines.append(refused_line(error, number, text))
                if times.zoneless:
                    zoneless += 1
                    times.zoneless.clear()
        constants = {} if self.policy is None else {"policy": Same(self.policy)}
        return Decoded(decisions.columns(**constants), refused_lines, zoneless=zoneless)


def time(text: str | None, field: str) -> int | None:
    """Microseconds since 1970 UTC. Raises InputError for what is no time."""
    try:
        return None if text is None else times.parse(text)
    except InputError as error:
        error.field = field
        raise
