"""This module computes scores that are logits with Gumbel noise (the Plackett-Luce model).

The probabilities of slates have closed forms; the probabilities of ranks are computed by quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores import maximum
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.panels import ALL_ROWS, MAX_DISTANCE, TAIL_DROP, Rows
from rlrec.policy.scores.scores import DrawnOrder, ExactScores, Order, find_top
from rlrec.policy.scores.sweep import ContinuousOrder
from rlrec.records import Record

_MAX_ENTRIES = 1 << 21  # numbers in a working array
_LOWEST_SCORE = -1e300  # below every finite logit plus noise
_MIN_MANY_ARMS, _MAX_RANKS = 1_000, 12  # arms from which on, and ranks up to which, rare arms are treated together


class Gumbel(ExactScores, Record, kw_only=False, eq=False):
    """Gumbel scores are logits with standard Gumbel noise, so that the probability of being the best is
    softmax(logits).

    logits (m,): the logit of each arm. Arms with logit -inf stand below all other arms, in random order."""

    logits: Array

    def order(self, positions: int, *, earlier_order: Order | None = None) -> PlackettLuceOrder:
        return PlackettLuceOrder(self.logits)

    def best_of_each(self) -> Array:
        weight = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        return np.asarray(weight / weight.sum(axis=-1, keepdims=True))

    def noise(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        return self.logits - np.log(rng.standard_exponential(shape))


@dataclass(frozen=True, eq=False)
class PlackettLuceOrder(DrawnOrder):
    """A PlackettLuceOrder draws every position by the softmax of the logits of the arms left, independently of the
    order of the arms above. Arms with logit -inf come last, in random order.

    logits (m,): the logit of each arm. Source: own derivation from the memoryless race of exponentials
    (Plackett-Luce)."""

    logits: Array

    def next_arms(self, prefixes: Index, *, floor: Floor) -> Array:
        left_logits = np.tile(self.logits, (len(prefixes), 1))
        rows = np.arange(len(prefixes))[:, None]
        left_logits[rows, prefixes] = -np.inf
        highest = left_logits.max(axis=1, keepdims=True)
        # where only arms at -inf are left, all of them share
        weight = np.where(highest > -np.inf, np.exp(left_logits - np.where(highest > -np.inf, highest, 0.0)), 1.0)
        weight[rows, prefixes] = 0.0
        return np.asarray(weight / weight.sum(axis=1, keepdims=True))

    def ranks(self, size: int) -> Array:
        finite_arms, m = np.flatnonzero(self.logits > -np.inf), len(self.logits)
        ranks = np.zeros((size, m))
        n_ranks = min(size, len(finite_arms))
        if n_ranks:
            logits = self.logits[finite_arms]
            if n_ranks <= _MAX_RANKS and len(logits) >= _MIN_MANY_ARMS:
                ranks[:n_ranks, finite_arms] = maximum.ranks_of_arrivals(logits, n_ranks)
            else:
                ranks[:n_ranks, finite_arms] = continuous_order(logits, positions=n_ranks).ranks(n_ranks)
        if size > len(finite_arms):
            infinite_arms = np.delete(np.arange(m), finite_arms)
            ranks[len(finite_arms) :, infinite_arms] = 1 / len(infinite_arms)
        return ranks

    def conditionals(self, slates: Index, *, floor: Floor, with_minimum: bool) -> tuple[Array, Array]:
        n, k = slates.shape
        probability, minimum = np.empty((n, k)), np.zeros((n, k))
        step = max(1, _MAX_ENTRIES // len(self.logits))
        for start in range(0, n, step):
            rows = slice(start, start + step)
            total = self._log_left(slates[rows])
            probability[rows] = self._softmax_left(self.logits[slates[rows]], total)
            if with_minimum:
                minimum[rows] = self._softmax_left(self._lowest_left(slates[rows]), total)
        return probability, minimum

    def _log_left(self, slates: Index) -> Array:
        """Return the logarithm of the summed weights of the arms left at each position, (n, k), computed without
        subtractions.

        slates (n, k): the arm at each position."""
        n, k = slates.shape
        # the arms on no position first, then upwards from the last position
        left_logits = np.tile(self.logits, (n, 1))
        np.put_along_axis(left_logits, slates, -np.inf, axis=1)
        sums = np.empty((n, k + 1))
        sums[:, k] = _log_sum(left_logits)
        for position in reversed(range(k)):
            sums[:, position] = np.logaddexp(sums[:, position + 1], self.logits[slates[:, position]])
        return sums[:, :k]

    def _softmax_left(self, logits: Array, total: Array) -> Array:
        """Return the probability that each of these logits is chosen among the arms left at its position, (n, k).

        logits (n, k): a logit for each position; total (n, k): the logarithm of the summed weights of the arms left."""
        n_left = len(self.logits) - np.arange(logits.shape[1])
        with np.errstate(invalid="ignore"):
            probability = np.exp(logits - total)
        return np.where(total == -np.inf, 1 / n_left, np.minimum(probability, 1))

    def _lowest_left(self, slates: Index) -> Array:
        """Return the smallest logit among the arms that are left at each position of each slate, (n, k).

        slates (n, k): the arm at each position."""
        n, k = slates.shape
        ascending_arms = np.argsort(self.logits, kind="stable")[:k]
        is_taken, minimum = np.zeros((n, len(ascending_arms)), dtype=bool), np.empty((n, k))
        for position in range(k):
            minimum[:, position] = self.logits[ascending_arms[(~is_taken).argmax(axis=1)]]
            is_taken |= ascending_arms == slates[:, position, None]
        return minimum

    def ranking(self, keys: Array, size: int) -> Index:
        with np.errstate(invalid="ignore"):
            noisy_scores = self.logits - np.log(-np.log(keys))
        noisy_scores = np.where(self.logits > -np.inf, noisy_scores, _LOWEST_SCORE * (2 - keys))
        return find_top(noisy_scores, size)


def continuous_order(logits: Array, *, positions: int) -> ContinuousOrder:
    """Return the order of finite logits with Gumbel noise, treated as general continuous scores. It is used for the
    probabilities of ranks.

    logits (m,): the logit of each arm; positions: the lowest rank whose probabilities are needed."""
    return ContinuousOrder(_density, logits, np.zeros(len(logits)), positions=positions)


def _density(logits: Array, _: Array) -> GumbelLogit:
    return GumbelLogit(logits)


class GumbelLogit:
    """A GumbelLogit object is the density of logit + standard Gumbel noise, one density for each logit.

    logits (g,): the logit of each density."""

    tails = None

    def __init__(self, logits: Array) -> None:
        self.mode, self.log_peak = logits, np.full(len(logits), -1.0)
        self.step = np.full(len(logits), 1.25)

    def log_drop(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        return distance + np.expm1(np.minimum(-distance, MAX_DISTANCE))

    def slope(self, distance: Array, rows: Rows = ALL_ROWS) -> Array:
        return -np.expm1(np.minimum(-distance, MAX_DISTANCE))

    def tail_distances(self) -> tuple[Array, Array]:
        ones = np.ones(len(self.mode))
        return math.log(TAIL_DROP + 6) * ones, (TAIL_DROP + 1) * ones


def _log_sum(logits: Array) -> Array:
    """Return ln(sum(exp(logits))) of each row, (n,). The result is -inf for a row whose logits are all -inf."""
    top_logit = logits.max(axis=1, initial=-np.inf)
    finite_top = np.where(top_logit > -np.inf, top_logit, 0.0)
    with np.errstate(divide="ignore"):
        return finite_top + np.log(np.exp(logits - finite_top[:, None]).sum(axis=1))
