"""This module holds logged decisions as columns. Every layout decodes lines to this form, and the store takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from itertools import accumulate, compress
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from rlrec.log_fields import STATED_FIELDS
from rlrec.records import Record
from rlrec.store.database.loading import Column, Same
from rlrec.store.log.reader import Batch

NULL, ZERO, EMPTY = Same(None), Same(0), Same("{}")
FIRST_STATE = '{"step":0}'  # the state of the first decision of a visit

T = TypeVar("T", "LoggedSlots", "LoggedEvents")
R = TypeVar("R")


class LoggedSlots(Record):
    """This record holds slots in the columns of the table `slot`, but with keys of arms in place of ids. row: the index
    of each slot's decision, ascending; id: the name by which other lines refer to the slot, which is not stored."""

    row: Sequence[int]
    position: Column
    arm: Sequence[str]
    propensity: Column = NULL
    marginal: Column = NULL
    min_propensity: Column = NULL
    score: Column = NULL
    censored: Column = ZERO
    rounded: Column = ZERO
    id: Column = NULL


class LoggedEvents(Record):
    """This record holds the events of decisions in columns. row: the index of each event's decision, ascending; at: the
    time of each event, or None for the time of its decision."""

    row: Sequence[int]
    position: Column
    kind: Column
    value: Column
    at: Column = NULL
    key: Column = NULL


def _with_stated(kind: type[R]) -> type[R]:
    """Add to the class a column for each of STATED_FIELDS that the class does not declare, and return the class."""
    for field in STATED_FIELDS:
        if field.name not in kind.__annotations__:
            kind.__annotations__[field.name] = Column
            setattr(kind, field.name, NULL)
    return kind


class LoggedCandidates(NamedTuple):
    """This record holds the candidates of one decision, the arms from which its slate was ranked, as keys in order.
    catalogue: the arms from which the candidates were drawn, or None if these arms are unknown."""

    arms: tuple[str, ...]
    propensities: tuple[float, ...]
    log_propensity: float
    catalogue: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
@_with_stated
class LogColumns:
    """This record holds a group of logged decisions in columns. A None in a column means that the line does not state
    the value.

    number: the number of each decision's line; context, state: canonical JSON; eligible: the index of each
    decision's eligible arms in `eligible_sets` (keys, in order); size: the length of the slate; source: JSON of the
    policy and belief that the line names; history: the history of the visit, if the line states it; candidates: the
    LoggedCandidates of the decision, or None; reward: the reward that a line states besides its events;
    keep_probability: the probability with which the log kept such a line; estimated: 1 if the import computed the
    propensities; action_features: JSON of the features of the decision's arms, by key; slot_sets: the arms that each
    position could show, if positions differ; support: the probability of each eligible arm at position 1, by key;
    digest: a digest of the line in 16 bytes, which identifies the decision; text: the line, for messages."""

    number: Sequence[int]
    session: Sequence[str]
    context: Sequence[str]
    eligible: Column
    eligible_sets: Sequence[tuple[str, ...]]
    slots: LoggedSlots
    events: LoggedEvents
    size: Column = NULL
    at: Column = NULL
    policy: Column = NULL
    user: Column = NULL
    visit: Column = NULL
    step: Column = NULL
    state: Column = EMPTY
    log_propensity: Column = NULL
    seed: Column = NULL
    request_id: Column = NULL
    source: Column = NULL
    history: Column = NULL
    candidates: Column = NULL
    reward: Column = NULL
    keep_probability: Column = NULL
    estimated: Column = NULL
    action_features: Column = NULL
    slot_sets: Column = NULL
    support: Column = NULL
    digest: Sequence[bytes] = ()
    text: Column = NULL

    def __len__(self) -> int:
        return len(self.number)

    def batch(self, at: Sequence[int]) -> Batch:
        """Return the slots and events as a Batch, like the reader of the stored log. The id of a decision in the Batch
        is the decision's index in these columns. at: the time at which each decision was served."""
        slots, events, n = self.slots, self.events, len(self.events.row)
        event_row, served_at = np.array(events.row, np.int64), pick_values(at, events.row)
        event_at = np.array(fill_column(events.at, served_at), np.int64)
        positions = [position or 0 for position in values(events.position, n)]
        return Batch(
            slots={
                "decision_id": np.array(slots.row, np.int64),
                "position": np.array(values(slots.position, len(slots.row)), np.int64),
            },
            events={
                "decision_id": event_row, "position": np.array(positions, np.int64),
                "kind": np.array(values(events.kind, n), np.object_),
                "value": np.array(values(events.value, n), np.float64),
                "age_us": event_at - np.array(served_at, np.int64),
            },
        )  # fmt: skip

    def select(self, mask: Sequence[bool]) -> LogColumns:
        """Return some of the decisions, with their slots and events. mask: whether to keep each decision."""
        if all(mask):
            return self
        index = list(accumulate(mask, initial=0))
        selection = _select(self, mask, omissions=("eligible_sets", "slots", "events"))
        return replace(selection, slots=_cut(self.slots, mask, index), events=_cut(self.events, mask, index))

    def with_events(self, events_to_add: Iterable[tuple[int, tuple[Any, ...]]]) -> LogColumns:
        """Return these decisions with further events. events_to_add: pairs of the index of a decision and the other
        values of the event, in the order of `LoggedEvents`."""
        n, names = len(self.events.row), [field.name for field in fields(self.events)]
        rows = list(zip(*(values(getattr(self.events, name), n) for name in names), strict=True))
        events = sorted(rows + [(row, *event) for row, event in events_to_add], key=itemgetter(0))
        return replace(self, events=LoggedEvents(**transpose_rows(names, events)))

    def in_sessions(self) -> LogColumns:
        """Return the decisions with a session each. A decision without a session gets a new session for itself."""
        n = len(self)
        sessions = values(self.session or NULL, n)
        if None not in sessions:
            return self
        entries = zip(sessions, values(self.policy, n), values(self.at, n), self.digest, strict=True)
        return replace(
            self, session=[name or f"{owner}/{at or 0}/{digest[:12].hex()}" for name, owner, at, digest in entries]
        )

    def without_lines(self, policy: str, digests: Set[bytes]) -> LogColumns:
        """Return the decisions, but leave out decisions of this policy whose lines have one of these digests."""
        if digests.isdisjoint(self.digest):
            return self
        entries = zip(values(self.policy, len(self)), self.digest, strict=True)
        return self.select([name != policy or digest not in digests for name, digest in entries])


def _cut(columns: T, mask: Sequence[bool], index: Sequence[int]) -> T:
    """Return the slots or events of those decisions that are kept. mask: whether each decision is kept; index: the new
    index of each decision."""
    selection = _select(columns, list(map(mask.__getitem__, columns.row)))
    return replace(selection, row=list(map(index.__getitem__, selection.row)))


def _select(columns: R, mask: Sequence[bool], *, omissions: Sequence[str] = ()) -> R:
    entries = {field.name: getattr(columns, field.name) for field in fields(cast(Any, columns))}
    lists = {name: column for name, column in entries.items() if name not in omissions and not isinstance(column, Same)}
    return cast(
        R, replace(cast(Any, columns), **{name: list(compress(column, mask)) for name, column in lists.items()})
    )


def pick_values(column: Any, order: Sequence[Any]) -> Sequence[Any]:
    """Return the values of a column at the indexes in `order`. If these are all indexes in order, the result is the
    column itself."""
    return column if order == range(len(column)) else list(map(column.__getitem__, order))


def values(column: Column, count: int) -> Sequence[Any]:
    """Return the values of a column as a sequence of `count` values, even if the column holds one value for all
    rows."""
    return [column.value] * count if isinstance(column, Same) else column


def fill_column(column: Column, defaults: Sequence[Any]) -> Sequence[Any]:
    """Return the value of each row, or the row's default if the line states no value."""
    if column == NULL:
        return defaults
    pairs = zip(values(column, len(defaults)), defaults, strict=True)
    return [default if value is None else value for value, default in pairs]


def value_set(column: Column) -> set[Any]:
    """Return the distinct values of a column, except None."""
    return ({column.value} if isinstance(column, Same) else set(column)) - {None}


def map_column(column: Column, mapping: Mapping[Any, Any] | Sequence[Any]) -> Column:
    """Return a column with each value replaced by the entry of `mapping` for this value."""
    if isinstance(column, Same):
        return Same(mapping[column.value])
    return list(map(mapping.__getitem__, column))


def transpose_rows(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """Return rows as columns, by name. A column in which no row has a value becomes NULL."""
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return {
        name: NULL if column and column.count(None) == len(column) else column
        for name, column in zip(names, columns, strict=True)
    }
