"""Examination by position: the probability that a slot is looked at, relative to the first position, from the log.

A click takes examination and attraction: theta_k x gamma(arm, context). Naive click rates by position mix both, since
good arms stand higher. Neighbouring positions are compared on the arms that the logger could have put at either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import NormalDist

import numpy as np

from rlrec.arrays import Array, Flags, Ids
from rlrec.ope.intervals.intervals import value_and_error
from rlrec.ope.sums.moments import Moments, moments
from rlrec.records import Sums

VAGUE = 1.5  # ratio of upper to lower bound from which on an examination counts as uncertain
FEWEST = 10.0  # effective rewards, or slots, that each side of a comparison of neighbours needs


@dataclass(frozen=True, kw_only=True, eq=False)
class PositionRows:
    """Slots of pages in order, (n,) each: page, arm (a number from 0), position from 1, reward above the default,
    cluster, and count: how many pages its page stands for in a log that dropped some.

    marginals (n, K): the logger's probability of the slot's arm at each position of its page; NaN where unknown."""

    page: Ids
    arm: Ids
    position: Ids
    reward: Array
    cluster: Ids
    count: Array
    marginals: Array

    def take(self, rows: Flags) -> PositionRows:
        """Some of the rows."""
        return PositionRows(**{name: column[rows] for name, column in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class ExaminedPosition:
    """A position of a curve: its examination relative to position 1, with bounds (infinite where unknown), and the
    slots and rewards of the log there."""

    position: int
    examination: float
    lower: float
    upper: float
    rewards: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class EstimatedCurve:
    """A curve from position 1 on. reasons: from which position on it is uncertain, and why it ends, each as
    CODE:POSITION; empty if nothing is lacking."""

    positions: Sequence[ExaminedPosition]
    reasons: tuple[str, ...]
    clusters: int


@dataclass(frozen=True, kw_only=True)
class LogRatio:
    """The log of the examination at a position, from its chain of d ratios: a smooth function of 2d sums, alternately
    numerators and denominators."""

    def value(self, mean: Array) -> Array:
        return np.log(mean[..., 1::2]).sum(axis=-1) - np.log(mean[..., ::2]).sum(axis=-1)

    def gradient(self, mean: Array) -> Array:
        gradient = 1 / mean
        gradient[..., ::2] *= -1
        return gradient


@dataclass(frozen=True, eq=False)
class OverlapSums(Sums):
    """Sums of some batches, which can be added.

    moments: per cluster, of the weighted rewards of each pair of neighbours. effective (K - 1, 2, 2, 2): for every
    pair, its upper and lower side, over slots and over slots with a reward: the sum of the weights, and of their
    squares. slots, rewards (K,): that could be compared; unknown: slots whose marginals at their own and a neighbouring
    position are not known."""

    moments: Moments
    effective: Array
    slots: Ids
    rewards: Ids
    unknown: int


def overlap(rows: PositionRows, *, spans_batches: bool) -> OverlapSums:
    """The sums of one batch by overlap weights. With P_k the marginal of the slot's arm at position k, a slot at k has
    weight h / P_k and one at k + 1 has weight h / P_(k+1), where h = P_k P_(k+1) / (P_k + P_(k+1)), times its count.

    spans_batches: whether a cluster may have rows in another batch."""
    n, size = rows.marginals.shape
    terms, effective = np.zeros((n, 1 + 2 * (size - 1))), np.zeros((size - 1, 2, 2, 2))
    terms[:, 0] = 1.0
    rewarded = rows.reward != 0
    comparable = np.zeros(n, np.bool_)
    for pair in range(size - 1):
        for side in (0, 1):
            at = np.flatnonzero(rows.position == pair + 1 + side)
            p_slot, p_neighbour = rows.marginals[at, pair + side], rows.marginals[at, pair + 1 - side]
            # h / P_k = P_(k+1) / (P_k + P_(k+1)), for the upper slot; 0 where either is not known
            weight = np.nan_to_num(p_neighbour / np.maximum(p_slot + p_neighbour, 1e-300)) * rows.count[at]
            terms[at, 1 + 2 * pair + side] = weight * rows.reward[at]
            comparable[at] |= ~np.isnan(p_slot + p_neighbour)
            for number, weights in enumerate((weight, weight[rewarded[at]])):
                effective[pair, side, number] = weights.sum(), np.square(weights).sum()
    names = ("rows", *(f"{side}:{pair}" for pair in range(1, size) for side in ("upper", "lower")))
    return OverlapSums(
        moments(terms, rows.cluster, columns=names, spans_batches=spans_batches),
        effective,
        *count(rows, size, comparable),
        int(np.count_nonzero(~comparable & (rows.position <= size))),
    )


def count(rows: PositionRows, size: int, comparable: Flags | None = None) -> tuple[Ids, Ids]:
    """The number of slots at each position, or of those flagged as comparable, and how many of them have a reward,
    (size,) each."""
    inside = rows.position <= size if comparable is None else (rows.position <= size) & comparable
    at, rewarded = rows.position[inside] - 1, (rows.reward != 0)[inside]
    return np.bincount(at, minlength=size), np.bincount(at[rewarded], minlength=size)


def chained(sums: OverlapSums, *, level: float = 0.95) -> EstimatedCurve:
    """The curve, as the product of the ratios of neighbours from position 1 down, with intervals over clusters by the
    delta method on the logarithm. It ends above the first position that lacks overlap or rewards."""
    summary = sums.moments.summary()
    pair_sums = zip(sums.effective, summary.total[1:].reshape(-1, 2), strict=True)
    lacking = [_lack(pair, effective, totals) for pair, (effective, totals) in enumerate(pair_sums)]
    length = 1 + sum(1 for _ in takewhile(lambda reason: reason is None, lacking))
    clusters = int(summary.present[0])
    log, error = np.zeros(length), np.zeros(length)
    for depth in range(1, length):
        chain = slice(1, 1 + 2 * depth)
        total, moment = summary.total[chain], summary.moment[chain, chain]
        log[depth], error[depth] = value_and_error(LogRatio(), total, moment, clusters)
    reach = -NormalDist().inv_cdf((1 - level) / 2) * error
    vague = np.flatnonzero(np.exp(2 * reach) > VAGUE)
    reasons = [*(f"wide:{index + 1}" for index in vague[:1].tolist()), *filter(None, lacking[length - 1 : length])]
    return EstimatedCurve(
        positions=examined(np.exp(log), np.exp(log - reach), np.exp(log + reach), sums.rewards, sums.slots),
        reasons=tuple(reasons),
        clusters=clusters,
    )


def examined(value: Array, lower: Array, upper: Array, rewards: Ids, slots: Ids) -> list[ExaminedPosition]:
    """The positions of a curve that has these values."""
    names, n = ("examination", "lower", "upper", "rewards", "slots"), len(value)
    rows = zip(*(column.tolist() for column in (value, lower, upper, rewards[:n], slots[:n])), strict=True)
    return [ExaminedPosition(position=k, **dict(zip(names, row, strict=True))) for k, row in enumerate(rows, 1)]


def _lack(pair: int, effective: Array, totals: Array) -> str | None:
    """The reason why the lower one of two neighbours cannot be compared with the upper one; pair: counted from 0."""
    weight, squares = effective[..., 0], effective[..., 1]
    number = np.divide(np.square(weight), squares, out=np.zeros_like(weight), where=squares > 0)
    if number[:, 0].min() < FEWEST:
        return f"no-overlap:{pair + 2}"
    if number[:, 1].min() < FEWEST or not (totals > 0).all():
        return f"few-rewards:{pair + 2}"
    return None
