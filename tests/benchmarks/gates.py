"""The gate of `train-pg` in memory: how often it lets candidates live that are no better, and such that are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import sqrt

import numpy as np

from rlrec.ope.paired import gate_alpha
from rlrec.policy.gradient import Parameters
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.spools import KIND, Night, Server, Shelf, drawn, night, spooled

RUNS, MONTHS, NIGHTS = 500, 200, 30
VISITS, MANY = 2_000, 4_000
RATE = 0.3
VALUE = 4 * RATE  # of a visit
ALIKE = Shelf(rates=(RATE,) * 4)
RICHER = Shelf(rates=(RATE, RATE, RATE + 0.21))  # a gain of four standard errors on the gate's part of MANY visits
WORSE, MUCH, LITTLE = 0.01, 0.5, 0.1
FIRST = Shelf(
    rates=(RATE * (1 + WORSE / (MUCH - LITTLE)), RATE, RATE, RATE)
)  # MUCH of it is worth 1 % more than LITTLE
LEANING = 0.5  # standard deviation of a log odds
FALSE_ALARMS, FOUND = 0.05, 0.9


@dataclass(frozen=True, kw_only=True)
class Look:
    """What became of a candidate. passed: what the gate alone says; gain: its estimate; ratio: in standard errors."""

    promising: bool
    passed: bool
    gain: float
    ratio: float

    @property
    def promoted(self) -> bool:
        """As `train-pg --promote if-better` decides."""
        return self.promising and self.passed

    @classmethod
    def at(cls, found: Night, candidate: int = 1) -> Look:
        gain = found.gain(gate_alpha(candidate))
        return cls(
            promising=found.climbed.promising, passed=gain.is_gain, gain=gain.value or 0.0,
            ratio=(gain.value or 0.0) / (gain.std_error or np.inf),
        )  # fmt: skip


def gates(setting: Setting) -> Iterator[Figure]:
    """Shares of runs; `gate alone`: had every candidate been looked at, whatever the tune split said of it."""
    runs, months = setting.size(RUNS), setting.size(MONTHS)
    for what, looks in (
        ("equal candidates", [equal(seed) for seed in range(runs)]),
        (f"candidates {WORSE:.0%} worse", [worse(seed) for seed in range(runs)]),
    ):
        yield _mean(f"{what}: estimated gain, of the value of a visit", [one.gain / VALUE for one in looks])
        yield _share(f"{what}: promoted", [one.promoted for one in looks], at_most=FALSE_ALARMS)
        yield _share(f"{what}: gate alone", [one.passed for one in looks])
    looks = [better(seed) for seed in range(runs)]
    yield _mean("a gain, in standard errors", [one.ratio for one in looks])
    yield _share("that gain: promoted", [one.promoted for one in looks], at_least=FOUND)
    yield _share("that gain: gate alone", [one.passed for one in looks])
    found = [month(seed) for seed in range(months)]
    yield _share(f"{NIGHTS} nights of equal candidates: any promoted", [one[0] for one in found], at_most=FALSE_ALARMS)
    yield _share(f"{NIGHTS} nights of them: gate alone, any", [one[1] for one in found])


def _mean(what: str, found: Sequence[float]) -> Figure:
    n = len(found)
    error = float(np.std(found, ddof=1)) / sqrt(n)
    return Figure(name=f"{what}, mean of {n:,} (+- {error:.2g})", value=float(np.mean(found)), unit="")


def _share(what: str, found: Sequence[bool], *, at_most: float | None = None, at_least: float | None = None) -> Figure:
    n, share = len(found), float(np.mean(found))
    told = f"{what}, {sum(found)} of {n:,} (+- {sqrt(share * (1 - share) / n):.2g})"
    return Figure(name=told, value=share, unit="", at_most=at_most, at_least=at_least)


def equal(seed: int) -> Look:
    """All arms are worth the same: wherever the climb leads, it is to nothing better. Every other one begins at a
    version that is not live, and far from that which is."""
    start = leaning(seed, 4)
    with closing(climbed(ALIKE, start, live=leaning(seed + RUNS, 4) if seed % 2 else None, seed=seed)) as found:
        return Look.at(found)


def worse(seed: int) -> Look:
    """Live shows much of an arm that is a little better, of which the log tells next to nothing; the candidate comes
    from a version that shows little of it."""
    start, live = (KIND.nothing(4) for _ in range(2))
    for one, share in ((start, LITTLE), (live, MUCH)):
        one["bias"][0] = np.log(share / (1 - share) * 3)
    with closing(climbed(FIRST, start, live=live, seed=seed)) as found:
        return Look.at(found)


def better(seed: int) -> Look:
    """One arm is better, and live shows all alike."""
    with closing(climbed(RICHER, KIND.nothing(3), visits=MANY, seed=seed)) as found:
        return Look.at(found)


def month(seed: int, *, nights: int = NIGHTS, visits: int = VISITS) -> tuple[bool, bool]:
    """Whether any night of equal candidates brings a promotion; and whether one would, were all of them looked at.

    As `train-pg` does it, a look that is not taken spends nothing."""
    start, looks, promoted, passed = leaning(seed, len(ALIKE.rates)), 0, False, False
    for number in range(nights):
        with closing(climbed(ALIKE, start, visits=visits, seed=(seed + 1) * 1_000 + number)) as found:
            passed |= Look.at(found, number + 1).passed
            if found.climbed.promising:
                looks += 1
                promoted |= Look.at(found, looks).promoted
    return promoted, passed


def leaning(seed: int, arms: int) -> Parameters:
    """A policy that likes some arms more than others."""
    found = KIND.nothing(arms)
    found["bias"][:] = np.random.default_rng(seed).normal(scale=LEANING, size=arms)
    return found


def climbed(
    audience: Shelf, start: Parameters, *, live: Parameters | None = None, visits: int = VISITS, seed: int
) -> Night:
    """A night's training on what live served; where it begins elsewhere, on what was shown at random, to judge both."""
    server = Server(parameters=start if live is None else KIND.nothing(audience.arms))
    spool = spooled(server, drawn(server, audience, visits=visits, seed=seed), seed=seed)
    return night(spool, start, live=live)
