"""Who of a simulated audience is where: visits begin in free places, end, and their visitors may come again."""

from __future__ import annotations

from collections import deque

import numpy as np

from rlrec.arrays import Index

FREE = -1


class Crowd:
    """So many places for so many visits. Visitors are numbered in the order of their first visits.

    visitor, visit: of each place, (places,), by number from 0; the visitor is FREE where no visit is.
    visits: of each visitor so far. away: decisions until a visitor who comes again is there."""

    def __init__(self, *, places: int, visits: int, away: int) -> None:
        self.visitor: Index = np.full(places, FREE)
        self.visit: Index = np.full(places, FREE)
        self.visits: list[int] = []
        self._left, self._begun, self._away = visits, 0, away
        self._coming: deque[tuple[int, int]] = deque()  # decisions made when a visitor comes again, and who it is

    @property
    def busy(self) -> Index:
        """The places where a visit is."""
        return np.flatnonzero(self.visitor != FREE)

    @property
    def returned(self) -> int:
        """How many visitors came again."""
        return sum(visits > 1 for visits in self.visits)

    def arrive(self, decisions: int) -> Index:
        """Visits begin in free places, those of visitors who come again first: the places. decisions: made so far."""
        free = np.flatnonzero(self.visitor == FREE)[: self._left]
        for place in free.tolist():
            self.visitor[place] = self._next(decisions)
            self.visit[place] = self._begun
            self._begun += 1
        self._left -= len(free)
        return free

    def _next(self, decisions: int) -> int:
        if self._coming and self._coming[0][0] <= decisions:
            visitor = self._coming.popleft()[1]
            self.visits[visitor] += 1
            return visitor
        self.visits.append(1)
        return len(self.visits) - 1

    def leave(self, places: Index, *, again: Index, decisions: int) -> None:
        """The visits in these places end; the visitors of `again`, places too, will come again."""
        self._coming.extend((decisions + self._away, visitor) for visitor in self.visitor[again].tolist())
        self.visitor[places] = FREE
