"""Ramps that go on by themselves, in memory: how often a bad candidate goes back within its first step, an equal one by
mistake, and how soon a better one gets everybody, also with a guard."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np

from rlrec.ope.comparisons.comparison import Comparison, MetricValue, difference
from rlrec.ope.intervals.sequences import LookSequence
from tests.benchmarks.measure import Figure, Setting

RUNS, DAYS, LOOKS = 100, 30, 4  # LOOKS: a day
STEPS, HOLD, ALPHA = (0.05, 0.2, 0.5), 2, 0.05  # the last step, to everybody, comes after these
RATE = 0.3  # of new users who click once
MORE_VISITS, LEAST = 1.0, -0.05  # of a new user, on average, beside the first; the guard of visits
BACK, MISTAKES, ARRIVED = 0.95, 0.05, 0.95


def ramps(setting: Setting) -> Iterator[Figure]:
    """Shares of runs."""
    runs = setting.size(RUNS)
    for users, lift in ((2_000, -0.5), (10_000, -0.25), (50_000, -0.12)):
        ends = [end(users, lift, seed) for seed in range(runs)]
        early = np.mean([did == "back" and step == 0 for did, step, _ in ends])
        name = f"{users:,} new users a day, {lift:.0%}: back within the first step"
        yield Figure(name=name, value=float(early), unit="", at_least=BACK)
        guarded = [end(users, lift, seed, visits=lift) for seed in range(runs)]
        early = np.mean([did == "back" and step == 0 for did, step, _ in guarded])
        yield Figure(name=f"{name}, as visits fall, too, with a guard", value=float(early), unit="", at_least=BACK)
    for lift, visits in ((0.0, None), (0.05, None), (0.05, 0.0), (0.05, -0.2)):
        ends = [end(10_000, lift, seed, visits=visits) for seed in range(runs)]
        back = float(np.mean([did == "back" for did, _, _ in ends]))
        arrived = [day for did, _, day in ends if did == "promoted"]
        name = f"10,000 new users a day, {lift:+.0%}" + ("" if visits is None else f", visits {visits:+.0%}, a guard")
        if visits is not None and visits < LEAST:
            yield Figure(name=f"{name}: back within {DAYS} days", value=back, unit="", at_least=BACK)
            yield Figure(name=f"{name}: promoted", value=len(arrived) / runs, unit="", at_most=MISTAKES)
            continue
        limit = MISTAKES if visits is None else 2 * MISTAKES
        yield Figure(name=f"{name}: back within {DAYS} days", value=back, unit="", at_most=limit)
        median = f"median day {np.median(arrived):.0f}"
        text = f"{name}: promoted within {DAYS} days, {median}"
        yield Figure(name=text, value=len(arrived) / runs, unit="", at_least=ARRIVED)


def end(users: int, lift: float, seed: int, *, visits: float | None = None) -> tuple[str, int, float]:
    """What became of a ramp, in which step, and on which day. users: new ones a day, each with one decision; visits:
    the lift of visits, where these have a guard."""
    rng, phases, begun = np.random.default_rng(seed), [np.zeros((2, 4))], 0.0
    sequence = LookSequence.tightest(HOLD * users, ALPHA)
    guard = LookSequence.tightest(HOLD * users, ALPHA, n_sides=1)
    for look in range(1, DAYS * LOOKS + 1):
        share, day = STEPS[len(phases) - 1], look / LOOKS
        for side, (weight, rate) in enumerate(((1 - share, RATE), (share, RATE * (1 + lift)))):
            units = rng.binomial(users // LOOKS, weight)
            mean = (1 + MORE_VISITS) * (1 + side * (visits or 0.0))
            counts = 1.0 + rng.poisson(mean - 1, 0 if visits is None else units)
            phases[-1][side] += units, rng.binomial(units, rate), counts.sum(), (counts**2).sum()
        compared = combined(phases).at_every_look(sequence)
        reserve = compared if visits is None else combined(phases, least=LEAST).at_every_look(guard)
        if any(row.upper is not None and row.upper < 0 for row in (compared, reserve)):
            return "back", len(phases) - 1, day
        holds = visits is None or (reserve.lower is not None and reserve.lower >= 0)
        if day - begun >= HOLD and compared.lower is not None and holds:
            if len(phases) == len(STEPS):
                return "promoted", len(phases), day
            phases, begun = [*phases, np.zeros((2, 4))], day
    return "waits", len(phases) - 1, DAYS


def combined(phases: list[np.ndarray], *, least: float | None = None) -> Comparison:
    """The difference of the candidate within each phase, weighed by the units of the phase. least: in visits, less what
    a guard asks; else in clicks."""
    if least is None:
        pairs = [[_mean(*sums[:2]) for sums in phase[::-1]] for phase in phases if phase[:, :2].all()]
    else:
        pairs = [[_visits(*phase[1]), _visits(*phase[0], scale=1 + least)] for phase in phases if phase[:, 0].all()]
    differences = [difference(*pair, level=1 - ALPHA) for pair in pairs]
    if not differences:
        return Comparison()
    units = np.array([row.clusters for row in differences], np.float64)
    weight = units / units.sum()
    careful = np.array([row.careful_error for row in differences])
    value = float(weight @ [row.value for row in differences])
    error = float(np.sqrt((weight**2) @ careful**2))
    return Comparison(
        value=value, lower=value - error, upper=value + error, clusters=int(units.sum()), careful_error=error,
        even_units=sum(row.even_units for row in differences),
        even_rewards=sum(row.even_rewards for row in differences),
    )  # fmt: skip


def _mean(units: float, clicks: float) -> MetricValue:
    rate = clicks / units
    error = sqrt(rate * (1 - rate) / (units - 1)) if units > 1 else np.nan
    return MetricValue(
        units=int(units), n_rewarded=int(clicks), numerator=clicks, denominator=units, value=rate, error=error
    )


def _visits(units: float, clicks: float, visits: float, squares: float, *, scale: float = 1.0) -> MetricValue:
    mean = visits / units
    error = sqrt(max(0.0, squares / units - mean**2) / (units - 1)) if units > 1 else np.nan
    return MetricValue(
        units=int(units), n_rewarded=int(units), numerator=visits, denominator=units, value=scale * mean,
        error=scale * error,
    )  # fmt: skip
