"""Which visit and step of its session an imported decision has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rlrec.arrays import numbers_in_runs, run_starts
from rlrec.store import Unit, sessions
from rlrec.store.loading import Column
from rlrec.store.sessions import Visit
from rlrec.store.settings import StoreSettings


@dataclass(frozen=True)
class VisitMoves:
    """Visits of an import whose number the store had already: the number that (session, the line's number) got
    instead, and all that were given so."""

    to: dict[tuple[int, int], int] = field(default_factory=dict)
    targets: set[tuple[int, int]] = field(default_factory=set)


class NewVisits(NamedTuple):
    """The visit and the step of each row, and the columns of the visits by session and number."""

    visit: list[int]
    step: list[int]
    visits: dict[str, Column]


def of_new_sessions(session_ids: Sequence[int], at: Sequence[int], *, timeout_us: int) -> NewVisits | None:
    """The visits of rows whose sessions have no others, as `VisitNumbers` assigns them; None without rows, and where
    those of a session are not in order of time."""
    sessions, times = np.array(session_ids, np.int64), np.array(at, np.int64)
    order = np.argsort(sessions, kind="stable")
    sessions, times = sessions[order], times[order]
    same, gap = sessions[1:] == sessions[:-1], np.diff(times)
    if not len(times) or (same & (gap < 0)).any():
        return None
    # where sessions and visits begin
    begins = np.r_[True, ~same | (gap > timeout_us)]
    first = np.flatnonzero(begins)
    number = numbers_in_runs(run_starts(sessions[first]), len(first)) + 1
    steps = np.diff(first, append=len(times))
    # back in the order of the rows
    visit, step = np.empty((2, len(times)), np.int64)
    visit[order], step[order] = np.repeat(number, steps), numbers_in_runs(first, len(times))
    last = times[first + steps - 1].tolist()
    visits: dict[str, Column] = {
        "session_id": sessions[first].tolist(), "number": number.tolist(), "started_at": times[first].tolist(),
        "last_at": last, "ended_at": last, "steps": steps.tolist(),
    }  # fmt: skip
    return NewVisits(visit.tolist(), step.tolist(), visits)


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
            self._end_open(session)
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
        of_another = (session, visit) not in self.moves.to and (session, visit) in self.moves.targets
        if number in visits and (of_another or not self._is_free(session, number, step)):
            number = self.moves.to[session, visit] = newest + 1
            self.moves.targets.add((session, number))
        return number

    def _is_free(self, session: int, number: int, step: int | None) -> bool:
        return (session, number) not in self.live and step not in self.steps[session, number]

    def _end_open(self, session: int) -> None:
        """A visit that was open is over once there is a later one."""
        for visit in self.visits[session].values():
            if visit.ended_at is None:
                self._put(visit._replace(ended_at=min(self.unit.now, visit.last_at + self.timeout_us)))

    def _put(self, visit: Visit) -> None:
        self.visits[visit.session_id][visit.number] = visit
        self.changed[visit.session_id, visit.number] = visit

    def write(self) -> None:
        sessions.put_visits(self.unit, [visit for _, visit in sorted(self.changed.items())])
