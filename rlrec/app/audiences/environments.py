"""This module makes audiences from the name of an environment and its parameters as K=V. It also lets the visitors of
an audience arrive."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from rlrec import simulate
from rlrec.app.inputs import parameters
from rlrec.arrays import Array, Index, finite_or_none
from rlrec.errors import InputError, quantity
from rlrec.ope.checks.exposure import spread
from rlrec.simulate.base import Audience, Visitors

NO_VISITOR = -1


def make(name: str, texts: Mapping[str, str]) -> tuple[Audience, list[str]]:
    """Return an audience, and the names of its arms. Raises InputError for an unknown environment or impossible
    parameters.

    name: the name of the environment; texts: the values of parameters as the user typed them, by name."""
    defaults = simulate.default_parameters(name)
    values: dict[str, Any] = {}
    names: list[str] = []
    for word, text in texts.items():
        if word == "rates" and os.path.isfile(text):  # isfile, since a list of rates may be too long for a path
            table = parameters.read_tables(Path(text), "rate", by=False).get(parameters.ANY_VALUE, {})
            names, values[word] = list(table), tuple(table.values())
        else:
            values[word] = _parse_value(word, text, defaults.get(word))
    audience = simulate.make_audience(name, values)
    return audience, names or list(audience.names) or simulate.arm_names(audience.arms)


def check(environment: str, audience: Audience, arms: int, *, size: int = 1, steps: int | None = None) -> None:
    """Raise InputError for slates or visits that the audience does not allow.

    environment: the name of the environment; arms: the number of arms; size: the length of a slate; steps: the
    requested number of decisions per visit, or None."""
    if size > arms:
        raise InputError(f"k is {size}, but the audience has {quantity(arms, 'arm')}", field="k")
    if not isinstance(audience, Visitors):
        return
    if size > 1 and not audience.has_pages:
        raise InputError(f"visitors of {environment} are shown one arm at a time", hint="leave out -k")
    if steps is not None:
        hint = "leave --steps away; --env cap=N cuts visits off after N decisions"
        raise InputError(f"visits of {environment} end by themselves", hint=hint)


AudienceFigures = TypedDict("AudienceFigures", {
    "coverage": float | None, "gini": float | None, "effective_arms": float | None,
    "context_free_per_session": float | None, "session_length": float, "visitors": float | None,
    "visits_per_visitor": float | None, "retention": float | None, "reward_per_visitor": float | None,
    "optimum_per_visitor": float | None,
})  # fmt: skip


def figures(
    audience: Audience, shows: Array, *, length: float, visits: float, reward: float, size: int,
    visitors: float | None, returners: float,
) -> AudienceFigures:  # fmt: skip
    """Return how evenly the arms were shown, and figures of the visits, which are None where the audience does not
    recognise visitors. All figures are means over runs.

    shows (runs, arms): the number of slots that showed each arm; length: the number of decisions of a visit; visits:
    the number of visits; reward: the reward of all visits; size: the length of a slate; visitors: the number of
    visitors; returners: the number of visitors who came again."""
    names = ("coverage", "gini", "effective_arms")
    evenness = np.array([[row[name] for name in names] for row in map(spread, shows)], np.float64).mean(axis=0)
    coverage, gini, effective_arms = map(finite_or_none, evenness)
    with_memory = audience if isinstance(audience, Visitors) else None
    has_returners = with_memory is not None and with_memory.has_returners
    return {
        "coverage": coverage, "gini": gini, "effective_arms": effective_arms,
        "context_free_per_session": None if with_memory is None or size > 1 else with_memory.best_context_free()[0],
        "session_length": length, "visitors": visitors, "visits_per_visitor": visits / visitors if visitors else None,
        "retention": returners / visitors if visitors and has_returners else None,
        "reward_per_visitor": reward / visitors if visitors else None,
        "optimum_per_visitor": None if with_memory is None else with_memory.optimum_per_visitor(size),
    }  # fmt: skip


def _parse_value(word: str, text: str, default: Any) -> Any:
    """Return the value of a parameter. Except for lists, it has the type of the parameter's default.

    word: the name of the parameter; text: the value as the user typed it."""
    if word == "rates":
        hint = "give numbers, 0.9,0.8, or a CSV arm,rate"
        return tuple(_number(rate, "a rate", hint=hint) for rate in text.split(","))
    if word == "jumps":
        return tuple(_jump(jump) for jump in text.split(",")) if text != "none" else ()
    if isinstance(default, int):
        return _integer(text, word)
    return _number(text, word) if isinstance(default, float) else text


def _jump(text: str) -> tuple[int, float, int, int]:
    fields = text.split(":")
    if len(fields) != 4:
        raise InputError(f"a jump is {text!r}", hint="write ARM:RATE:FROM:TO, as 2:0.9:3000:5000")
    arm, rate, start, end = fields
    times = _integer(start, "a time"), _integer(end, "a time")
    return _integer(arm, "a jump's arm"), _number(rate, "a jump's rate"), *times


def _number(text: str, noun: str, *, hint: str = "give a number") -> float:
    try:
        return float(text.replace("_", "?"))
    except ValueError:
        raise InputError(f"{noun} is {text!r}", hint=hint) from None


def _integer(text: str, noun: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise InputError(f"{noun} is {text!r}", hint="give a whole number")
    return int(text)


class Returning(NamedTuple):
    """This record holds a visitor who is to come again.

    key: the key of the visitor; trait: a whole number that the visitor keeps from visit to visit; delay: the time
    until the visitor comes again."""

    key: str
    trait: int
    delay: float


class Crowd:
    """A Crowd decides which visitors come. A fixed number of visits take place at the same time, each in a numbered
    place called seat. Visitors and visits are numbered from 0, visitors in the order of their first visits. Visitors of
    an earlier run have the first numbers.

    visitor, visit (seats,): the number of the visitor (NO_VISITOR in a free seat) and of the visit in each seat;
    visits: the number of visits of each visitor so far; visits_left: the number of visits still to begin; n_earlier:
    the number of visitors of an earlier run; n_new: the number of new visitors so far; periods: the number of
    periods that are over.

    daily: the number of new visitors per day, spread over the `a_day` periods of a day. Time then counts days, and
    visitors come again after the number of days that the audience says. If daily is 0, time counts decisions, and a
    visitor comes again after `absence` decisions."""

    def __init__(
        self, *, seats: int, visits: int, absence: float, daily: int, a_day: int, returners: Sequence[Returning] = (),
        n_new: int = 0,
    ) -> None:  # fmt: skip
        self.visitor: Index = np.full(seats, NO_VISITOR)
        self.visit: Index = np.full(seats, NO_VISITOR)
        self.visits = [0] * len(returners)
        self.visits_left, self.daily, self.a_day, self.n_new, self._absence = visits, daily, a_day, n_new, absence
        self.periods = 0
        self.n_earlier = self._departures = len(returners)
        self._n_visits = 0
        # a heap: time, order of leaving, visitor
        self._returns_due = [(visitor.delay, number, number) for number, visitor in enumerate(returners)]
        heapq.heapify(self._returns_due)

    @property
    def busy_seats(self) -> Index:
        """Return the indices of the seats (places for simultaneous visits) in which a visit takes place."""
        return np.flatnonzero(self.visitor != NO_VISITOR)

    @property
    def n_visitors(self) -> int:
        """Return the number of visitors who have come at least once in this run."""
        return sum(visits > 0 for visits in self.visits)

    @property
    def n_returners(self) -> int:
        """Return the number of visitors of this run who have come again. For a visitor of an earlier run, the first
        visit of this run already counts as coming again."""
        return sum(visits + (number < self.n_earlier) > 1 for number, visits in enumerate(self.visits) if visits)

    def due_visitors(self, now: float) -> list[tuple[int, float]]:
        """Return the number of each visitor who is to come again, with the time from now until then."""
        return [(visitor, time - now) for time, _, visitor in sorted(self._returns_due)]

    def arrive(self, now: float) -> None:
        """Begin visits in all free seats (places for simultaneous visits), as far as visitors come. Visitors who are
        due to come again take seats before new visitors."""
        for seat in np.flatnonzero(self.visitor == NO_VISITOR)[: self.visits_left].tolist():
            visitor = self._next_visitor(now)
            if visitor == NO_VISITOR:
                break
            self.visitor[seat] = visitor
            self.visit[seat] = self._n_visits
            self._n_visits += 1
            self.visits_left -= 1

    def _next_visitor(self, now: float) -> int:
        if self._returns_due and self._returns_due[0][0] <= now:
            visitor = heapq.heappop(self._returns_due)[2]
            self.visits[visitor] += 1
            return visitor
        if self.daily and self.n_new * self.a_day >= self.daily * (self.periods + 1):
            return NO_VISITOR
        self.n_new += 1
        self.visits.append(1)
        return len(self.visits) - 1

    def leave(self, seats: Index, *, days: Array, now: float) -> None:
        """End the visits in n seats (places for simultaneous visits).

        days (n,): the days until the visitor of each seat comes again, or 0 for a visitor who does not come again.
        now: the present time."""
        for visitor, delay in zip(self.visitor[seats].tolist(), days.tolist(), strict=True):
            if delay > 0:
                self._departures += 1
                heapq.heappush(
                    self._returns_due, (now + (delay if self.daily else self._absence), self._departures, visitor)
                )
        self.visitor[seats] = NO_VISITOR
