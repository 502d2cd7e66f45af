"""The gates of routes and training in memory: how often they let candidates pass that are no better, or are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import sqrt
from statistics import NormalDist

import numpy as np

from rlrec import ope
from rlrec.arrays import Array, Ids
from rlrec.ope.comparisons.comparison import BEST_NIGHTS, NIGHTS, compare, gate_alpha, look_alpha, nightly_alpha
from rlrec.ope.sums.base import LogBatch
from rlrec.ope.units.fold import ImpressionFold
from rlrec.policy.gradients.gradient import Parameters
from tests.benchmarks.measure import Figure, Setting
from tests.benchmarks.spools import KIND, Night, Server, Shelf, drawn, night, spooled

RUNS, MONTHS, MONTH = 500, 200, 30
YEARS, STORED_YEARS = 20_000, 2_000
NEAR = 0.99  # of the reach of a bound, from which on a look is worked out
CLUSTERS, GAIN = 200, 0.02  # of the gate's part a night; of the standard deviation of a cluster
VISITS, MANY = 2_000, 4_000
RATE = 0.3
VALUE = 4 * RATE  # of a visit
EQUAL = Shelf(rates=(RATE,) * 4)
RICHER = Shelf(rates=(RATE, RATE, RATE + 0.21))  # a gain of four standard errors on the gate's part of MANY visits
WORSE, MUCH, LITTLE = 0.01, 0.5, 0.1
FIRST = Shelf(
    rates=(RATE * (1 + WORSE / (MUCH - LITTLE)), RATE, RATE, RATE)
)  # MUCH of it is worth 1 % more than LITTLE
LEANING = 0.5  # standard deviation of a log odds
FALSE_ALARMS, POWER = 0.05, 0.9


@dataclass(frozen=True, kw_only=True)
class Look:
    """A look at a candidate. passed: the gate alone lets it pass; gain: its estimate; ratio: in standard errors."""

    promising: bool
    passed: bool
    gain: float
    ratio: float

    @property
    def promoted(self) -> bool:
        """As `train-pg --promote if-better` decides."""
        return self.promising and self.passed

    @classmethod
    def at(cls, trained: Night, candidate: int = 1) -> Look:
        gain = trained.gain(nightly_alpha(candidate))
        return cls(
            promising=trained.climbed.is_promising, gain=gain.value or 0.0,
            passed=(gain.lower or 0.0) > 0 and gain.verdict != "insufficient",
            ratio=(gain.value or 0.0) / (gain.std_error or np.inf),
        )  # fmt: skip


def gates(setting: Setting) -> Iterator[Figure]:
    """Shares of runs; `gate alone`: had every candidate been looked at, whatever the tune split said of it."""
    yield from looks_at_pairs(setting)
    runs, months = setting.size(RUNS), setting.size(MONTHS)
    for name, looks in (
        ("equal candidates", [equal(seed) for seed in range(runs)]),
        (f"candidates {WORSE:.0%} worse", [worse(seed) for seed in range(runs)]),
    ):
        yield _mean(f"{name}: estimated gain, of the value of a visit", [look.gain / VALUE for look in looks])
        yield _share(f"{name}: promoted", [look.promoted for look in looks], at_most=FALSE_ALARMS)
        yield _share(f"{name}: gate alone", [look.passed for look in looks])
    looks = [better(seed) for seed in range(runs)]
    yield _mean("a gain, in standard errors", [look.ratio for look in looks])
    yield _share("that gain: promoted", [look.promoted for look in looks], at_least=POWER)
    yield _share("that gain: gate alone", [look.passed for look in looks])
    of_months = [month(seed) for seed in range(months)]
    yield _share(
        f"{MONTH} nights of equal candidates: any promoted",
        [promoted for promoted, _ in of_months],
        at_most=FALSE_ALARMS,
    )
    yield _share(f"{MONTH} nights of them: gate alone, any", [passed for _, passed in of_months])


def looks_at_pairs(setting: Setting) -> Iterator[Figure]:
    """A look every night of a year: at one pair of versions, at a new one each month, at a new candidate each night."""
    years, rng = setting.size(YEARS), np.random.default_rng(1)
    noise = rng.normal(scale=CLUSTERS**-0.5, size=(years, NIGHTS))
    reach, night = reaches(NIGHTS), np.arange(1, NIGHTS + 1)
    for gain in (0.0, GAIN):
        z = np.cumsum(noise + gain, axis=1) / night * np.sqrt(CLUSTERS * night)
        passed = z > reach
        goals = {"at_least": 0.98} if gain else {"at_most": FALSE_ALARMS}
        yield _share(f"one pair for a year, gain {gain:g} sd: promoted", list(passed.any(axis=1)), **goals)
    nights = np.where(passed.any(axis=1), passed.argmax(axis=1) + 1, np.inf)
    yield Figure(name=f"that gain: median night, {years:,} years", value=float(np.median(nights)), unit="", at_most=90)
    monthly = np.zeros(years, bool)
    for pair in range(12):
        z = np.cumsum(rng.normal(size=(years, MONTH)), axis=1) / np.sqrt(night[:MONTH])
        monthly |= (z > reaches(MONTH, pair=pair + 1)).any(axis=1)
    yield _share("a new pair every month, equal: any promoted", list(monthly), at_most=FALSE_ALARMS)
    far = np.array([-NormalDist().inv_cdf(nightly_alpha(candidate)) for candidate in night.tolist()])
    nightly = (rng.normal(size=(years, NIGHTS)) > far).any(axis=1)
    yield _share("train-pg, a new candidate each night, equal: any promoted", list(nightly), at_most=FALSE_ALARMS)
    for rate, weight in ((0.3, 1.5), (0.01, 5.0)):
        world = EqualArms(rate=rate, largest=weight)
        name, years = f"rewards of {rate:g}, weights to {weight:g}, equal, by all bounds", setting.size(STORED_YEARS)
        yearly = [world.promotes_in_a_year(seed) for seed in range(years)]
        yield _share(f"{name}: one pair for a year", yearly, at_most=FALSE_ALARMS)
        for clusters in (2_000, 20_000):
            promoted = [world.promotes_a_candidate(seed, clusters=clusters) for seed in range(years)]
            yield _share(f"{name}: train-pg, {clusters:,} sessions a night", promoted, at_most=FALSE_ALARMS)


def reaches(nights: int, *, pair: int = 1) -> Array:
    """How many standard errors a candidate must be better at each of the first nights."""
    best_n, alpha = BEST_NIGHTS * CLUSTERS, gate_alpha(pair)
    levels = [look_alpha(alpha, CLUSTERS * night, best_n=best_n, is_first=night == 1) for night in range(1, nights + 1)]
    return np.array([-NormalDist().inv_cdf(level) for level in levels])


@dataclass(frozen=True, kw_only=True)
class EqualArms:
    """Two arms that are worth the same: the log shows the second one once in `largest` sessions, and a candidate shows
    it always. A session lies in one of four cells: the arm it was shown, and whether that was clicked."""

    rate: float
    largest: float

    def promotes_in_a_year(self, seed: int) -> bool:
        """Whether any look of the nights of a year, at a log that grows, lets the candidate pass."""
        rng, best_n = np.random.default_rng(seed), BEST_NIGHTS * CLUSTERS
        counts = rng.multinomial(CLUSTERS, self.chances, size=NIGHTS)
        cells, clusters = np.repeat(np.tile(np.arange(4), NIGHTS), counts.ravel()), digests(rng, NIGHTS * CLUSTERS)
        for number in self.telling(np.cumsum(counts, axis=0), reaches(NIGHTS)):
            n = CLUSTERS * (number + 1)
            level = look_alpha(gate_alpha(1), n, best_n=best_n, is_first=number == 0)
            if self.passes(cells[:n], clusters[:n], alpha=level):
                return True
        return False

    def promotes_a_candidate(self, seed: int, *, clusters: int) -> bool:
        """Whether any night of a year promotes its own candidate, each on sessions of its own."""
        rng, levels = np.random.default_rng(seed), [nightly_alpha(candidate + 1) for candidate in range(NIGHTS)]
        counts = rng.multinomial(clusters, self.chances, size=NIGHTS)
        reach = np.array([-NormalDist().inv_cdf(level) for level in levels])
        return any(
            self.passes(np.repeat(np.arange(4), counts[number]), digests(rng, clusters), alpha=levels[number])
            for number in self.telling(counts, reach)
        )

    @property
    def chances(self) -> Array:
        """The probability of each cell."""
        shown, clicked = np.array([1 - 1 / self.largest, 1 / self.largest]), np.array([1 - self.rate, self.rate])
        return np.outer(shown, clicked).ravel()

    def telling(self, counts: Array, reach: Array) -> list[int]:
        """The looks at which the candidate is so many standard errors better that it may pass: no bound of `compare`
        is nearer than that of the normal distribution. counts (looks, 4)."""
        gain = np.array([0.0, -1.0, 0.0, self.largest - 1])
        n, total, squares = counts.sum(axis=1), counts @ gain, counts @ gain**2
        return np.flatnonzero(total > NEAR * reach * np.sqrt(np.maximum(squares - total**2 / n, 0.0))).tolist()

    def passes(self, cells: Ids, clusters: Ids, *, alpha: float) -> bool:
        """Whether all bounds of the gate let the candidate pass. cells, clusters (n,): of the sessions."""
        fold = ImpressionFold(estimators=ope.parse("ips").impressions, spans_batches=False)
        arm, clicked = np.divmod(cells, 2)
        propensity = np.where(arm, 1 / self.largest, 1 - 1 / self.largest)
        log = LogBatch(reward=1.0 * clicked, cluster=clusters, propensity=propensity, target=1.0 * arm)
        ours, theirs = (fold.estimator_folds(fold.row_sums(side))[0] for side in (log, replace(log, target=propensity)))
        return compare(ours, theirs, alpha=alpha, reward=0.5).answer.answer == "better"


def digests(rng: np.random.Generator, n: int) -> Ids:
    return rng.integers(0, 2**62, n)


def _mean(name: str, values: Sequence[float]) -> Figure:
    n = len(values)
    error = float(np.std(values, ddof=1)) / sqrt(n)
    return Figure(name=f"{name}, mean of {n:,} (+- {error:.2g})", value=float(np.mean(values)), unit="")


def _share(name: str, passed: Sequence[bool], *, at_most: float | None = None, at_least: float | None = None) -> Figure:
    n, share = len(passed), float(np.mean(passed))
    text = f"{name}, {sum(passed)} of {n:,} (+- {sqrt(share * (1 - share) / n):.2g})"
    return Figure(name=text, value=share, unit="", at_most=at_most, at_least=at_least)


def equal(seed: int) -> Look:
    """All arms are worth the same: wherever the climb leads, it is to nothing better. Every other one begins at a
    version that is not live, and far from that which is."""
    start = leaning(seed, 4)
    with closing(climbed(EQUAL, start, live=leaning(seed + RUNS, 4) if seed % 2 else None, seed=seed)) as trained:
        return Look.at(trained)


def worse(seed: int) -> Look:
    """Live shows much of an arm that is a little better, of which the log tells next to nothing; the candidate comes
    from a version that shows little of it."""
    start, live = (KIND.zero_parameters(4) for _ in range(2))
    for parameters, share in ((start, LITTLE), (live, MUCH)):
        parameters["bias"][0] = np.log(share / (1 - share) * 3)
    with closing(climbed(FIRST, start, live=live, seed=seed)) as trained:
        return Look.at(trained)


def better(seed: int) -> Look:
    """One arm is better, and live shows all equally."""
    with closing(climbed(RICHER, KIND.zero_parameters(3), visits=MANY, seed=seed)) as trained:
        return Look.at(trained)


def month(seed: int, *, nights: int = MONTH, visits: int = VISITS) -> tuple[bool, bool]:
    """Whether any night of equal candidates brings a promotion; and whether one would, were all of them looked at.

    As `train-pg` does it, a look that is not taken spends nothing."""
    start, looks, promoted, passed = leaning(seed, len(EQUAL.rates)), 0, False, False
    for number in range(nights):
        with closing(climbed(EQUAL, start, visits=visits, seed=(seed + 1) * 1_000 + number)) as trained:
            passed |= Look.at(trained, number + 1).passed
            if trained.climbed.is_promising:
                looks += 1
                promoted |= Look.at(trained, looks).promoted
    return promoted, passed


def leaning(seed: int, arms: int) -> Parameters:
    """A policy that likes some arms more than others."""
    parameters = KIND.zero_parameters(arms)
    parameters["bias"][:] = np.random.default_rng(seed).normal(scale=LEANING, size=arms)
    return parameters


def climbed(
    audience: Shelf, start: Parameters, *, live: Parameters | None = None, visits: int = VISITS, seed: int
) -> Night:
    """A night's training on what live served; where it begins elsewhere, on what was shown at random, to judge both."""
    server = Server(parameters=start if live is None else KIND.zero_parameters(audience.arms))
    spool = spooled(server, drawn(server, audience, visits=visits, seed=seed), seed=seed)
    return night(spool, start, live=live)
