"""Which visit and step of its session an imported decision has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, picked, values
from rlrec.arrays import Flags, Ids, look_up, numbers_in_runs, run_starts, take
from rlrec.store import Unit
from rlrec.store.database import loading
from rlrec.store.database.bulk import Columns
from rlrec.store.database.loading import Column, Same
from rlrec.store.log import sessions
from rlrec.store.log.sessions import NewestVisit, Visit
from rlrec.store.log.settings import StoreSettings


@dataclass(frozen=True)
class VisitMoves:
    """Visits of an import whose number the store had already: the number that (session, the line's number) got
    instead, and all that were given so."""

    to: dict[tuple[int, int], int] = field(default_factory=dict)
    targets: set[tuple[int, int]] = field(default_factory=set)


class AssignedVisits(NamedTuple):
    """Visit and step of each row; grown: the rows whose visit had begun before these."""

    visit: Column
    step: Column
    grown: frozenset[int] = frozenset()


def assign(
    unit: Unit, rows: LogColumns, session_ids: Sequence[int], at: Sequence[int], *, stored: Collection[int],
    settings: StoreSettings, moves: VisitMoves,
) -> AssignedVisits:  # fmt: skip
    """The visits of rows, which are stored. stored: ids of the sessions that the store has already."""
    n = len(rows)
    if not stored and len(set(session_ids)) == n:
        return _single(unit, rows, session_ids, at)
    (visit, step), grown = np.zeros((2, n), np.int64), np.zeros(n, np.bool_)
    unordered_rows = np.arange(n)
    if (rows.visit, rows.step) == (NULL, NULL):
        newest = sessions.newest_visits(unit, stored) if stored else ()
        ordered = in_order(session_ids, at, newest, timeout_us=settings.session_timeout_us)
        visit, step, grown, unordered_rows = (
            ordered.visit,
            ordered.step,
            ordered.grown,
            np.flatnonzero(~ordered.assigned),
        )
        new, extended = ({name: column.tolist() for name, column in columns.items()} for columns in ordered[-2:])
        if new["number"]:
            loading.write(unit, "visit", {**new, "recent": Same("[]")})
        sessions.extend_visits(unit, extended)
    if len(unordered_rows):
        row_sessions = [session_ids[row] for row in unordered_rows.tolist()]
        numbers = VisitNumbers(unit, set(row_sessions).intersection(stored), settings, moves)
        row_values = list(zip(session_ids, values(rows.visit, n), values(rows.step, n), at, strict=True))
        visit[unordered_rows], step[unordered_rows] = np.transpose(
            [numbers.assign(*row_values[row]) for row in unordered_rows.tolist()]
        )
        grown[unordered_rows] = np.fromiter(map(set(stored).__contains__, row_sessions), np.bool_, len(row_sessions))
        numbers.write()
    return AssignedVisits(visit.tolist(), step.tolist(), frozenset(np.flatnonzero(grown).tolist()))


def _single(unit: Unit, rows: LogColumns, session_ids: Sequence[int], at: Sequence[int]) -> AssignedVisits:
    """The visits of sessions that have one row each."""
    n = len(rows)
    visit = Same(1) if rows.visit == NULL else [number or 1 for number in values(rows.visit, n)]
    step = Same(0) if rows.step == NULL else [number or 0 for number in values(rows.step, n)]
    order = range(n) if isinstance(session_ids, range) else sorted(range(n), key=session_ids.__getitem__)
    at = picked(at, order)
    loading.write(unit, "visit", {
        "session_id": picked(session_ids, order), "started_at": at, "last_at": at, "ended_at": at,
        "number": visit if isinstance(visit, Same) else picked(visit, order), "recent": Same("[]"),
        "steps": Same(1) if isinstance(step, Same) else [step[index] + 1 for index in order],
    })  # fmt: skip
    return AssignedVisits(visit, step)


class OrderedVisits(NamedTuple):
    """Visits of the sessions whose rows are in order of time, (n,) a row: whether it is of such a session, its visit
    and step, and whether the visit had begun before. new, extended: the columns of new visits and of the others, by
    session and number."""

    assigned: Flags
    visit: Ids
    step: Ids
    grown: Flags
    new: Columns
    extended: Columns


def in_order(
    session_ids: Sequence[int], at: Sequence[int], newest: Sequence[NewestVisit], *, timeout_us: int
) -> OrderedVisits:
    """The visits of rows that name none, as `VisitNumbers` assigns them, of all sessions at once. newest: the newest
    visit of each session that has one; where a live request may go on with it, or a row is older, or rows are not in
    order of time, the session is left out."""
    session, time, n = np.array(session_ids, np.int64), np.array(at, np.int64), len(at)
    order = np.argsort(session, kind="stable")
    session, time = session[order], time[order]
    first = run_starts(session)
    run = np.repeat(np.arange(len(first)), np.diff(first, append=n))
    # the newest visit of each session, zeros without one
    newest_rows = np.array([(0,) * len(NewestVisit._fields), *sorted(newest)], np.int64)
    index, has = look_up(newest_rows[:, 0], session[first])
    _, number, last_at, steps, is_live = np.where(has, newest_rows[index].T, 0)
    # where visits begin
    gap = np.diff(time, prepend=0)
    gap[first] = np.where(has, time[first] - last_at, timeout_us + 1)
    assigned = ~np.logical_or.reduceat(gap < 0, first) & (is_live == 0)
    begins = gap > timeout_us
    count = np.cumsum(begins)
    visit = number[run] + count - (count - begins)[first][run]
    # the rows of each visit
    start = run_starts(run, visit)
    length, visit_runs, is_new = np.diff(start, append=n), run[start], begins[start]
    earlier = np.where(is_new, 0, steps[visit_runs])
    step = numbers_in_runs(start, n) + np.repeat(earlier, length)
    columns = {
        "session_id": session[start], "number": visit[start], "started_at": time[start],
        "last_at": time[start + length - 1], "ended_at": time[start + length - 1], "steps": earlier + length,
    }  # fmt: skip
    back = np.argsort(order)
    return OrderedVisits(
        assigned=assigned[run][back], visit=visit[back], step=step[back], grown=np.repeat(~is_new, length)[back],
        new=take(columns, assigned[visit_runs] & is_new), extended=take(columns, assigned[visit_runs] & ~is_new),
    )  # fmt: skip


class VisitNumbers:
    """The visits of sessions that imported decisions join. They are ended: a live request opens the next one."""

    def __init__(self, unit: Unit, stored: Collection[int], settings: StoreSettings, moves: VisitMoves) -> None:
        """stored: ids of the sessions that the store has already."""
        self.unit = unit
        self.timeout_us = settings.session_timeout_us
        self.moves = moves
        self.visits = sessions.numbered_visits(unit, stored) if stored else defaultdict(dict)
        self.steps: dict[tuple[int, int], set[int]] = defaultdict(set)
        self.live: set[tuple[int, int]] = set()
        for session, visit, step, imported in sessions.steps(unit, stored) if stored else ():
            self.steps[session, visit].add(step)
            if not imported:
                self.live.add((session, visit))
        self.changed: dict[tuple[int, int], Visit] = {}

    def assign(self, session: int, visit: int | None, step: int | None, at: int) -> tuple[int, int]:
        """Visit and step of the session's next decision. visit, step: as its line says."""
        number = self._number(session, visit, step, at)
        row = self.visits[session].get(number)
        if row is None:
            for visit_row in self.visits[session].values():  # one that was open is over once there is a later one
                if visit_row.ended_at is None:
                    self._put(visit_row._replace(ended_at=min(self.unit.now, visit_row.last_at + self.timeout_us)))
            row = Visit(session_id=session, number=number, started_at=at, last_at=at, steps=0, recent="[]", ended_at=at)
        step = row.steps if step is None else step
        first, last = min(row.started_at, at), max(row.last_at, at)
        self._put(row._replace(started_at=first, last_at=last, ended_at=last, steps=max(row.steps, step + 1)))
        self.steps[session, number].add(step)
        return number, step

    def _number(self, session: int, visit: int | None, step: int | None, at: int) -> int:
        """The visit that a line names, or the newest while it goes on; the next one where that is occupied."""
        visits = self.visits[session]
        newest = max(visits, default=0)
        if visit is None:
            goes_on = newest and abs(at - visits[newest].last_at) <= self.timeout_us
            return newest if goes_on and self._is_free(session, newest, step) else newest + 1
        number = self.moves.to.get((session, visit), visit)
        is_of_another = (session, visit) not in self.moves.to and (session, visit) in self.moves.targets
        if number in visits and (is_of_another or not self._is_free(session, number, step)):
            number = self.moves.to[session, visit] = newest + 1
            self.moves.targets.add((session, number))
        return number

    def _is_free(self, session: int, number: int, step: int | None) -> bool:
        return (session, number) not in self.live and step not in self.steps[session, number]

    def _put(self, visit: Visit) -> None:
        self.visits[visit.session_id][visit.number] = visit
        self.changed[visit.session_id, visit.number] = visit

    def write(self) -> None:
        sessions.put_visits(self.unit, [visit for _, visit in sorted(self.changed.items())])
