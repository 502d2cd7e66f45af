"""Which visit and step of its session an imported decision has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, values
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
    (visit, step), grown = np.zeros((2, n), np.int64), np.zeros(n, np.bool_)
    stated, unordered_rows = [values(column, n) for column in (rows.visit, rows.step)], np.arange(n)
    if (is_silent := (rows.visit, rows.step) == (NULL, NULL)) or not any(None in column for column in stated):
        newest = sessions.newest_visits(unit, stored) if stored else ()
        numbers_of_lines = None if is_silent else np.array(stated, np.int64)
        timeout_us = settings.session_timeout_us
        visit, step, grown, is_assigned, new, extended = in_order(
            session_ids, at, newest, stated=numbers_of_lines, timeout_us=timeout_us
        )
        if len(new["number"]):
            columns = {name: column.tolist() for name, column in new.items()}
            loading.write(unit, "visit", {**columns, "recent": Same("[]")})
        sessions.extend_visits(unit, {name: column.tolist() for name, column in extended.items()})
        unordered_rows = np.flatnonzero(~is_assigned)
    if len(unordered_rows):
        row_sessions = [session_ids[row] for row in unordered_rows.tolist()]
        numbers = VisitNumbers(unit, set(row_sessions).intersection(stored), settings, moves)
        row_values = list(zip(session_ids, *stated, at, strict=True))
        visit[unordered_rows], step[unordered_rows] = np.transpose(
            [numbers.assign(*row_values[row]) for row in unordered_rows.tolist()]
        )
        grown[unordered_rows] = np.fromiter(map(set(stored).__contains__, row_sessions), np.bool_, len(row_sessions))
        numbers.write()
    visits, steps = (Same(int(ids[0])) if (ids == ids[0]).all() else ids.tolist() for ids in (visit, step))
    return AssignedVisits(visits, steps, frozenset(np.flatnonzero(grown).tolist()))


class OrderedVisits(NamedTuple):
    """Visits of sessions, (n,) a row: its visit and step, whether the visit had begun before, and whether the row is of
    a session that could be assigned so. new, extended: the columns of new visits and of the others, by session and
    number."""

    visit: Ids
    step: Ids
    grown: Flags
    assigned: Flags
    new: Columns
    extended: Columns


def in_order(
    session_ids: Sequence[int],
    at: Sequence[int],
    newest: Sequence[NewestVisit],
    *,
    timeout_us: int,
    stated: Ids | None = None,
) -> OrderedVisits:
    """The visits of rows as `VisitNumbers` assigns them, of all sessions at once. newest: the newest visit of each
    session that has one; stated: the visit and step of each line, (2, n), None where lines name none.

    Without them a session is left out where a live request may go on with its newest visit, or a row is older, or rows
    are not in order of time; with them where it is stored already, or two rows have the same step."""
    session, time, n = np.array(session_ids, np.int64), np.array(at, np.int64), len(at)
    order = np.argsort(session, kind="stable") if stated is None else np.lexsort((stated[1], stated[0], session))
    session, time = session[order], time[order]
    first = run_starts(session)
    run = np.repeat(np.arange(len(first)), np.diff(first, append=n))
    # the newest visit of each session, zeros without one
    newest_rows = np.array([(0,) * len(NewestVisit._fields), *sorted(newest)], np.int64)
    index, has = look_up(newest_rows[:, 0], session[first])
    _, number, newest_at, steps, is_live = np.where(has, newest_rows[index].T, 0)
    # where visits begin, and the rows of each
    if stated is None:
        gap = np.diff(time, prepend=0)
        gap[first] = np.where(has, time[first] - newest_at, timeout_us + 1)
        begins, cannot = gap > timeout_us, (gap < 0) | (is_live != 0)[run]
        count = np.cumsum(begins)
        visit = number[run] + count - (count - begins)[first][run]
        start = run_starts(run, visit)
        step = numbers_in_runs(start, n) + np.repeat(
            np.where(begins[start], 0, steps[run[start]]), np.diff(start, append=n)
        )
    else:
        visit, step = stated[:, order]
        start, begins = run_starts(run, visit), np.ones(n, np.bool_)
        cannot = has[run] | (np.diff(step, prepend=-1) == 0)
        cannot[start] = has[run[start]]
    assigned, is_new = ~np.logical_or.reduceat(cannot, first), begins[start]
    last_at = np.maximum.reduceat(time, start)
    columns = {
        "session_id": session[start], "number": visit[start], "started_at": np.minimum.reduceat(time, start),
        "last_at": last_at, "ended_at": last_at, "steps": np.maximum.reduceat(step, start) + 1,
    }  # fmt: skip
    back, is_assigned = np.argsort(order), assigned[run[start]]
    return OrderedVisits(
        visit=visit[back], step=step[back], grown=np.repeat(~is_new, np.diff(start, append=n))[back],
        assigned=assigned[run][back], new=take(columns, is_assigned & is_new),
        extended=take(columns, is_assigned & ~is_new),
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
