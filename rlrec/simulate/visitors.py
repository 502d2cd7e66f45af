"""The base of audiences with memory: visitors in so many seats, whose visits end by themselves."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.errors import InputError
from rlrec.simulate.base import Audience, Step

LONGEST = 10_000  # decisions of a visit


class Visitors(Audience):
    """Seats with a visitor each, (runs,). The memory of a visitor is never in the observation: a policy knows the arms
    that it has shown in the visit so far, and their rewards.
    cap: decisions at which a visit is cut off. daily: new visitors a day; 0 where days do not count: then a visitor who
    comes again is there after `away` decisions of all visitors."""

    cap: int
    away: float = 0
    daily: int = 0
    returning: bool = False  # whether a visitor may come again
    pages: bool = False  # whether they may be shown several arms at a time

    _state: Index  # of the visitor in each seat: what is to know of the visit, 0 when it begins

    def optimum(self, positions: int = 1) -> float:
        """The most that a visit can earn on average, by a policy that sees all that it has shown."""
        raise NotImplementedError

    def optimum_per_visitor(self, positions: int = 1) -> float | None:
        """The most that all visits of a visitor can earn on average; None where only visits are valued."""
        return None

    def context_free(self) -> tuple[float, Array]:
        """The most that a visit can earn on average by one distribution over arms, (arms,), for every decision."""
        raise NotImplementedError

    def reset(self, runs: int, rng: np.random.Generator, *, first: int | None = None) -> Array:
        self._rng, self._nothing = rng, np.empty((runs, 0))
        self._steps = np.zeros(runs, np.int64)  # decisions of the visit so far
        self._forget(runs)
        self.admit(np.arange(runs), (first or 0) + np.arange(runs))
        return self._nothing

    def admit(self, seats: Index, visitors: Index) -> None:
        """Begin visits of these visitors, by number, in these seats; a number that was there before is recognised."""
        self._steps[seats] = 0
        self._begin(seats, visitors)

    def step(self, actions: Index) -> Step:
        """Show an arm, or a page, in each seat. info has no `optimum`, which a single step does not have, but `again`,
        (runs,): above 0 where the visit has ended and the visitor will come again: after so many days where days count.
        Where a visit has ended, the next step begins another visit of the same visitor."""
        if actions.ndim > 1 and not self.pages:
            raise InputError("a visitor with memory is shown one arm at a time", hint="leave out -k")
        reward, expected, terminated = self._serve(actions)
        self._steps += 1
        truncated = ~terminated & (self._steps >= self.cap)
        ended = terminated | truncated
        return_delay = self._leave(ended)
        self._steps[ended] = 0
        return self._nothing, reward, terminated, truncated, {"expected": expected, "again": return_delay}

    def _forget(self, runs: int) -> None:
        """Forget all visitors."""
        self._state = np.zeros(runs, np.intp)

    def _begin(self, seats: Index, visitors: Index) -> None:
        """Begin visits."""
        self._state[seats] = 0

    def _serve(self, actions: Index) -> tuple[Array, Array, Flags]:
        """Reward, its mean, and whether the visitor leaves, (runs,) each; what they remember moves on."""
        raise NotImplementedError

    def _leave(self, ended: Flags) -> Array:
        """End visits: above 0 where the visitor will come again."""
        self._state[ended] = 0
        return np.zeros(len(ended))


class Regulars(Visitors):
    """Visitors with a trait, a whole number that lasts from visit to visit. start: that of a new visitor."""

    start: int

    @property
    def traits(self) -> Index:
        """The trait of the visitor in each seat, (runs,)."""
        return self._traits[self._visitors]

    @traits.setter
    def traits(self, values: Index) -> None:
        self._traits[self._visitors] = values

    def _forget(self, runs: int) -> None:
        self._visitors = np.zeros(runs, np.intp)
        self._traits = np.full(runs, self.start)  # of every visitor who was ever there

    def _begin(self, seats: Index, visitors: Index) -> None:
        if len(visitors) and visitors.max() >= len(self._traits):
            n_new = max(len(self._traits), int(visitors.max()) + 1 - len(self._traits))
            self._traits = np.append(self._traits, np.full(n_new, self.start))
        self._visitors[seats] = visitors
