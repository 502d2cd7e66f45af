"""The visitors of a simulated audience: visits begin in free places, end, and their visitors may come again."""

from __future__ import annotations

from collections import deque

import numpy as np

from rlrec.arrays import Index

FREE = -1


class Crowd:
    """So many seats for so many visits. Visitors are numbered in the order of their first visits.
    visitor, visit: one a seat, (seats,), by number from 0; the visitor is FREE where no visit is.
    visits: one a visitor, visits so far. away: decisions until a visitor who comes again is there."""

    def __init__(self, *, seats: int, visits: int, away: int) -> None:
        self.visitor: Index = np.full(seats, FREE)
        self.visit: Index = np.full(seats, FREE)
        self.visits: list[int] = []
        self._left, self._begun, self._away = visits, 0, away
        self._coming: deque[tuple[int, int]] = deque()  # decisions made when a visitor comes again, and the visitor

    @property
    def busy(self) -> Index:
        """The seats where a visit is."""
        return np.flatnonzero(self.visitor != FREE)

    @property
    def returned(self) -> int:
        """How many visitors came again."""
        return sum(visits > 1 for visits in self.visits)

    def arrive(self, decisions: int) -> Index:
        """Begin visits in free seats, those of visitors who come again first: the seats. decisions: made so far."""
        free = np.flatnonzero(self.visitor == FREE)[: self._left]
        for seat in free.tolist():
            self.visitor[seat] = self._next(decisions)
            self.visit[seat] = self._begun
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

    def leave(self, seats: Index, *, again: Index, decisions: int) -> None:
        """End the visits in these seats; the visitors in the seats `again` will come again."""
        self._coming.extend((decisions + self._away, visitor) for visitor in self.visitor[again].tolist())
        self.visitor[seats] = FREE
