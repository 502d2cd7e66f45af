"""Logs of slates small enough to enumerate: all 12 ordered slates of 2 of 4 arms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from rlrec import ope
from rlrec.arrays import Array
from rlrec.ope.estimators import pseudo_inverse
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import PositionCurve
from rlrec.ope.units.slates import Interpol, Pbm, SlateBatch, SlateFold

SLATES = pseudo_inverse.slates(2, 4)  # (12, 2)
TARGET, LOGGER, UNIFORM = np.array([4.0, 3, 2, 1]), np.array([1.0, 2, 3, 4]), np.ones(4)
ATTRACTION, EXAMINATION = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 0.5])
RIGHT, WRONG = (
    PositionCurve(name="home@1", examination=(1.0, 0.5)),
    PositionCurve(name="home@2", examination=(1.0, 0.25)),
)

Rewards = Callable[[Array], Array]
_complete = cache(lambda rewards: complete(rewards))


def steps(weight: Array) -> Array:
    """Conditional probabilities of every slate by Plackett-Luce, (12, 2)."""
    first, second = weight[SLATES].T
    return np.stack([first / weight.sum(), second / (weight.sum() - first)], axis=1)


def marginals(weight: Array) -> Array:
    """Probability of each arm at each position, (2, 4)."""
    shares = np.zeros((2, 4))
    for position in range(2):
        np.add.at(shares[position], SLATES[:, position], steps(weight).prod(axis=1))
    return shares


def by_position(arms: Array) -> Array:
    """Clicks of examination x attraction, (n, 2)."""
    return EXAMINATION * ATTRACTION[arms]


def cascade(arms: Array) -> Array:
    """Who clicks leaves."""
    first, second = ATTRACTION[arms].T
    return np.stack([first, (1 - first) * second], axis=1)


def from_below(arms: Array) -> Array:
    """The arm below spoils the one above."""
    first, second = ATTRACTION[arms].T
    return np.stack([first * (1 - second), second], axis=1)


def truth(rewards: Rewards) -> float:
    return float(steps(TARGET).prod(axis=1) @ rewards(SLATES).sum(axis=1))


def complete(rewards: Rewards, logger: Array = LOGGER, *, page: float = 0.0) -> SlateBatch:
    """The log in which every slate stands as often as its logger shows it: 5040 slates, or 12 of a uniform logger.

    page: share of the reward that comes as events of the whole page."""
    total = 12 if logger is UNIFORM else 5040
    which = np.repeat(np.arange(12), np.rint(total * steps(logger).prod(axis=1)).astype(np.int64))
    assert len(which) == total
    slots = SLATES[which]
    arms, position = slots.ravel(), np.tile(np.arange(2), total)
    target, logged, value = marginals(TARGET), marginals(logger), rewards(slots)
    ratio = (steps(TARGET) / steps(logger))[which]
    additive = pseudo_inverse.coefficients(SLATES, steps(logger).prod(axis=1), target)
    # a model of what the page still earns, wrong on purpose
    model = 0.3 * ATTRACTION + 0.1
    above = np.where(np.arange(4) == slots[:, :1], 0.0, TARGET)
    expected = np.stack([np.full(total, target[0] @ model), above @ model / above.sum(axis=1)], axis=1)
    return SlateBatch(
        start=2 * np.arange(total + 1),
        reward=((1 - page) * value).ravel(),
        page=page * value.sum(axis=1),
        cluster=np.arange(total) // 3,
        log_ratio=np.log(ratio).ravel(),
        largest=np.full(2 * total, np.log(4.0)),
        marginal_ratio=(target / logged)[position, arms],
        largest_marginal=np.full(2 * total, 4.0),
        target_at=target[:, arms].T,
        logged_at=logged[:, arms].T,
        additive=additive[position, arms],
        predicted=model[arms],
        expected=expected.ravel(),
    )


def drawn(rewards: Rewards, seed: int, *, pages: int = 3_000, eager: float = 0.7) -> SlateBatch:
    """A log of pages of readers who see three each, and click with these probabilities times how eager they are."""
    rng, all_slates = np.random.default_rng(seed), _complete(rewards)
    batch = all_slates.take(rng.integers(len(all_slates), size=pages))
    reader = np.arange(pages) // 3
    taste = np.exp(eager * rng.normal(size=reader[-1] + 1) - eager**2 / 2)[np.repeat(reader, 2)]
    clicks = (rng.random(2 * pages) < np.minimum(batch.reward * taste, 1.0)).astype(np.float64)
    return replace(batch, reward=clicks, page=np.zeros(pages), cluster=reader)


def fold(names: str, curve: PositionCurve = RIGHT, *, spans_batches: bool = False) -> SlateFold:
    """The fold of these estimators; pbm and interpol rest on a curve."""
    chosen = ope.parse(names).slates
    resolved = {
        label: replace(each, shape=curve) if isinstance(each, Pbm | Interpol) and each.curve else each
        for label, each in chosen.items()
    }
    return SlateFold(estimators=resolved, spans_batches=spans_batches)


def judged(batch: SlateBatch, names: str, curve: PositionCurve = RIGHT, **options: object) -> list[Estimate]:
    of_names = fold(names, curve)
    return of_names.finish(of_names.row_sums(batch), FinishOptions(**options))


def value(batch: SlateBatch, name: str, curve: PositionCurve = RIGHT) -> float:
    (estimate,) = judged(batch, name, curve, interval="normal")
    assert estimate.value is not None
    return estimate.value
