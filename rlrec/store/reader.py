"""The log as columns, in ranges of session id: a batch holds whole sessions, one row an impression."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from rlrec.store import tables as t
from rlrec.store.bulk import Columns, columns
from rlrec.store.unit import Unit

BATCH = 50_000  # decisions in a batch, about

_d, _s = t.decision.c, t.slot.c
ABSENT = -1  # stands for a missing id

# name: (type, column); rows are ordered by session, decision and position
_SLOTS: dict[str, tuple[type, sa.ColumnElement[Any]]] = {
    "decision_id": (np.int64, _d.id),
    "session_id": (np.int64, _d.session_id),
    "user_id": (np.int64, sa.func.coalesce(t.session.c.user_id, ABSENT)),
    "split": (np.int64, t.session.c.split),
    "visit": (np.int64, _d.visit),
    "step": (np.int64, _d.step),
    "at": (np.int64, _d.at),
    "policy_id": (np.int64, _d.policy_id),
    "version_id": (np.int64, _d.version_id),
    "belief_seq": (np.int64, _d.belief_seq),
    "context_id": (np.int64, _d.context_id),
    "eligible_id": (np.int64, _d.eligible_id),
    "variant_id": (np.int64, sa.func.coalesce(_d.variant_id, ABSENT)),
    "size": (np.int64, _d.size),
    "imported": (np.bool_, _d.imported),
    "position": (np.int64, _s.position),
    "arm_id": (np.int64, _s.arm_id),
    "propensity": (np.float64, _s.propensity),
    "marginal": (np.float64, _s.marginal),
    "min_propensity": (np.float64, _s.min_propensity),
    "censored": (np.bool_, _s.censored),
}
_EVENTS: dict[str, tuple[type, sa.ColumnElement[Any]]] = {
    "decision_id": (np.int64, t.event.c.decision_id),
    "position": (np.int64, sa.func.coalesce(t.event.c.position, 0)),
    "kind": (object, t.event.c.kind),
    "value": (np.float64, t.event.c.value),
    "age_us": (np.int64, t.event.c.at - _d.at),
}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which decisions of the log; None means any. Times are microseconds, `since` included, `until` not."""

    policy_ids: Collection[int] | None = None
    version_ids: Collection[int] | None = None
    variant_ids: Collection[int] | None = None
    since: int | None = None
    until: int | None = None
    first_id: int | None = None
    last_id: int | None = None
    imported: bool | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        tests: list[sa.ColumnElement[bool]] = []
        for column, wanted in (
            (_d.policy_id, self.policy_ids),
            (_d.version_id, self.version_ids),
            (_d.variant_id, self.variant_ids),
        ):
            if wanted is not None:
                tests.append(column.in_(sorted(wanted)))
        if self.since is not None:
            tests.append(_d.at >= self.since)
        if self.until is not None:
            tests.append(_d.at < self.until)
        if self.first_id is not None:
            tests.append(_d.id >= self.first_id)
        if self.last_id is not None:
            tests.append(_d.id <= self.last_id)
        if self.imported is not None:
            tests.append(_d.imported == int(self.imported))
        return tests


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Whole sessions. slots: one row an impression; events: one row an event of them, position 0 the page."""

    slots: Columns
    events: Columns

    def __len__(self) -> int:
        return len(self.slots["decision_id"])


def batches(unit: Unit, selection: Selection, *, size: int = BATCH) -> Iterator[Batch]:
    """The selected log in ranges of session id, each of about `size` decisions. Memory is bounded by a batch."""
    conditions = selection.conditions()
    low = 0
    while (high := _upper(unit, low, size)) is not None:
        inside = [_d.session_id > low, _d.session_id <= high, *conditions]
        slots = _read(unit, _SLOTS, _slots(inside))
        if len(slots["decision_id"]):
            yield Batch(slots=slots, events=_read(unit, _EVENTS, _events(inside)))
        low = high


def ranges(unit: Unit, policy_id: int, *, first: int, last: int, size: int = BATCH) -> Iterator[Batch]:
    """The policy's own decisions by ranges of decision id: for beliefs, where sessions do not matter."""
    while first <= last:
        ahead = sa.select(_d.id).where(_d.policy_id == policy_id, _d.id >= first, _d.id <= last)
        high = unit.value(ahead.order_by(_d.id).offset(size - 1).limit(1)) or last
        inside = [_d.policy_id == policy_id, _d.id >= first, _d.id <= high, _d.imported == 0]
        slots = _read(unit, _SLOTS, _slots(inside))
        if len(slots["decision_id"]):
            yield Batch(slots=slots, events=_read(unit, _EVENTS, _events(inside)))
        first = high + 1


def _upper(unit: Unit, low: int, size: int) -> int | None:
    """The last session id of the range after `low` that holds about `size` decisions; None at the end."""
    after = sa.select(_d.session_id).where(_d.session_id > low).order_by(_d.session_id)
    found = unit.value(after.offset(size - 1).limit(1))
    if found is None:
        found = unit.value(sa.select(sa.func.max(_d.session_id)).where(_d.session_id > low))
    return None if found is None else int(found)


def _slots(inside: list[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    joined = t.decision.join(t.slot, _s.decision_id == _d.id).join(t.session, t.session.c.id == _d.session_id)
    chosen = sa.select(*(column for _, column in _SLOTS.values())).select_from(joined).where(*inside)
    return chosen.order_by(_d.session_id, _d.id, _s.position)


def _events(inside: list[sa.ColumnElement[bool]]) -> sa.Select[Any]:
    joined = t.decision.join(t.event, t.event.c.decision_id == _d.id)
    return sa.select(*(column for _, column in _EVENTS.values())).select_from(joined).where(*inside)


def _read(unit: Unit, wanted: dict[str, tuple[type, Any]], statement: sa.Select[Any]) -> Columns:
    return columns(unit, statement, {name: kind for name, (kind, _) in wanted.items()})


def last_id(unit: Unit, policy_id: int | None = None) -> int:
    """The newest decision of a policy, or of the store; 0 where there is none."""
    newest = sa.select(sa.func.coalesce(sa.func.max(_d.id), 0))
    return int(unit.value(newest if policy_id is None else newest.where(_d.policy_id == policy_id)))


def longest(unit: Unit, selection: Selection) -> int:
    """Positions of the longest selected page; 0 where nothing is selected."""
    found = unit.value(sa.select(sa.func.max(_d.size)).where(*selection.conditions()))
    return 0 if found is None else int(found)


def ids_after(unit: Unit, selection: Selection, *, low: int, limit: int) -> list[int]:
    """The first `limit` selected decisions whose id is above `low`, ascending."""
    wanted = sa.select(_d.id).where(_d.id > low, *selection.conditions()).order_by(_d.id).limit(limit)
    return [row[0] for row in unit.rows(wanted)]
