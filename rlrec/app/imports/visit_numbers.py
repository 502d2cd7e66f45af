"""Where imported decisions stand in their sessions: visit and step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from rlrec.app.imports.layouts.base import Line
from rlrec.store import Unit, loading, sessions
from rlrec.store.sessions import Visit
from rlrec.store.settings import StoreSettings


@dataclass(frozen=True)
class Moved:
    """Visits of this import whose number was taken: (session, the line's number) to the one they got; and those."""

    to: dict[tuple[int, int], int] = field(default_factory=dict)
    targets: set[tuple[int, int]] = field(default_factory=set)


class Visits:
    """The visits that imported decisions belong to. They are ended: a live request opens the next one."""

    def __init__(self, unit: Unit, known: Collection[int], config: StoreSettings, moved: Moved) -> None:
        self.unit = unit
        self.timeout_us = config.session_timeout_us
        self.moved = moved
        self.visits = loading.visits(unit, known) if known else defaultdict(dict)
        self.taken: dict[tuple[int, int], set[int]] = defaultdict(set)
        self.live: set[tuple[int, int]] = set()
        for session, visit, step, imported in loading.steps(unit, known) if known else ():
            self.taken[session, visit].add(step)
            if not imported:
                self.live.add((session, visit))
        self.touched: dict[tuple[int, int], Visit] = {}

    def place(self, session: int, line: Line, at: int) -> tuple[int, int]:
        """Visit and step of the session's next line."""
        number = self._number(session, line, at)
        visit = self.visits[session].get(number)
        if visit is None:
            self._end_open(session)
            visit = Visit(
                session_id=session, number=number, started_at=at, last_at=at, steps=0, recent="[]", ended_at=at
            )
        step = visit.steps if line.step is None else line.step
        last = max(visit.last_at, at)
        self._put(visit._replace(last_at=last, ended_at=last, steps=max(visit.steps, step + 1)))
        self.taken[session, number].add(step)
        return number, step

    def _number(self, session: int, line: Line, at: int) -> int:
        """The visit that the line names, or the newest while it goes on; the next one where that place is taken."""
        known = self.visits[session]
        newest = max(known, default=0)
        if line.visit is None:
            goes_on = newest and abs(at - known[newest].last_at) <= self.timeout_us
            return newest if goes_on and self._free(session, newest, line.step) else newest + 1
        asked = session, line.visit
        number = self.moved.to.get(asked, line.visit)
        stranger = asked not in self.moved.to and asked in self.moved.targets
        if number in known and (stranger or not self._free(session, number, line.step)):
            number = self.moved.to[asked] = newest + 1
            self.moved.targets.add((session, number))
        return number

    def _free(self, session: int, number: int, step: int | None) -> bool:
        return (session, number) not in self.live and step not in self.taken[session, number]

    def _end_open(self, session: int) -> None:
        """A visit that was open is over once there is a later one."""
        for visit in self.visits[session].values():
            if visit.ended_at is None:
                self._put(visit._replace(ended_at=min(self.unit.now, visit.last_at + self.timeout_us)))

    def _put(self, visit: Visit) -> None:
        self.visits[visit.session_id][visit.number] = visit
        self.touched[visit.session_id, visit.number] = visit

    def close(self) -> None:
        sessions.put_visits(self.unit, [visit for _, visit in sorted(self.touched.items())])
