"""The order of logits with Gumbel noise: closed forms for pages, quadrature for the rank of an arm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy import maximum
from rlrec.policy.density import GumbelLogit
from rlrec.policy.orders import top
from rlrec.policy.scores import Gumbel
from rlrec.policy.table import tabulate

_ENTRIES = 1 << 21
_NEVER = -1e300  # below every finite logit plus noise


@dataclass(frozen=True, eq=False)
class PlackettLuceOrder:
    """Softmax of the arms left at every position, whatever was shown above and why; -inf stands last, at random.

    Source: own derivation from the memoryless race of exponentials (Plackett-Luce)."""

    scores: Gumbel

    @cached_property
    def _possible(self) -> Index:
        return np.flatnonzero(self.scores.logits > -np.inf)

    def best(self) -> Array:
        return _softmax(self.scores.logits)

    def given(self, prefix: Index, *, floor: float) -> Array:
        left = np.delete(np.arange(len(self.scores)), prefix)
        chance = np.zeros(len(self.scores))
        chance[left] = _softmax(self.scores.logits[left])
        return chance

    def ranks(self, size: int) -> Array:
        possible, m = self._possible, len(self.scores)
        found = np.zeros((size, m))
        inside = min(size, len(possible))
        if inside:
            logits, row, count = np.unique(self.scores.logits[possible], return_inverse=True, return_counts=True)
            density, alike = GumbelLogit(logits), count.astype(float)
            table, place = tabulate(density, alike, ranks=inside, together=maximum.together(inside))
            found[:inside, possible] = maximum.ranks(table, inside)[:, place[row]]
        if size > len(possible):
            never = np.delete(np.arange(m), possible)
            found[len(possible) :, never] = 1 / len(never)
        return found

    def shown(self, slates: Index, *, floor: float, least: bool) -> tuple[Array, Array]:
        n, k = slates.shape
        chance, smallest = np.empty((n, k)), np.zeros((n, k))
        step = max(1, _ENTRIES // len(self.scores))
        for start in range(0, n, step):
            part = slice(start, start + step)
            total = self._log_left(slates[part])
            chance[part] = self._share(self.scores.logits[slates[part]], total)
            if least:
                smallest[part] = self._share(self._lowest_left(slates[part]), total)
        return chance, smallest

    def _log_left(self, slates: Index) -> Array:
        """Log of the summed weights of the arms left at each position, (n, k); nothing is ever subtracted."""
        n, k = slates.shape
        unshown = np.tile(self.scores.logits, (n, 1))
        np.put_along_axis(unshown, slates, -np.inf, axis=1)
        sums = np.empty((n, k + 1))
        sums[:, k] = _log_sum(unshown)
        for position in reversed(range(k)):
            sums[:, position] = np.logaddexp(sums[:, position + 1], self.scores.logits[slates[:, position]])
        return sums[:, :k]

    def _share(self, logits: Array, total: Array) -> Array:
        left = len(self.scores) - np.arange(logits.shape[1])
        with np.errstate(invalid="ignore"):
            share = np.exp(logits - total)
        return np.where(total == -np.inf, 1 / left, np.minimum(share, 1))

    def _lowest_left(self, slates: Index) -> Array:
        """The smallest logit left at each position, (n, k)."""
        n, k = slates.shape
        ascending = np.argsort(self.scores.logits, kind="stable")[:k]
        taken, lowest = np.zeros((n, len(ascending)), dtype=bool), np.empty((n, k))
        for position in range(k):
            lowest[:, position] = self.scores.logits[ascending[(~taken).argmax(axis=1)]]
            taken |= ascending == slates[:, position, None]
        return lowest

    def ranking(self, keys: Array, size: int) -> Index:
        with np.errstate(invalid="ignore"):
            noisy = self.scores.logits - np.log(-np.log(keys))
        noisy = np.where(self.scores.logits > -np.inf, noisy, _NEVER * (2 - keys))
        return top(noisy, size)


def softmax(score: Array, *, temperature: float = 1.0) -> Array:
    """Probabilities in proportion to exp(score / temperature), rows of (n, m); arms at -inf have none.

    temperature 0: the best score of a row, equal bests share."""
    away = score - score.max(axis=1, keepdims=True)
    if temperature == 0:
        weight = (away == 0).astype(away.dtype)
    else:
        weight = np.exp(away if temperature == 1 else away / temperature, out=away)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.asarray(weight)


def remaining(score: Array, slates: Index, *, temperature: float = 1.0) -> Iterator[Array]:
    """At each position of n pages, each with scores of its own, the softmax of the arms left there, (n, m).

    score (n, m) finite; slates (n, k) arms 0..m - 1. Source: as for `PlackettLuceOrder`."""
    left, rows = np.array(score, np.float64), np.arange(len(slates))
    for position in range(slates.shape[1]):
        if position:
            left[rows, slates[:, position - 1]] = -np.inf
        yield softmax(left, temperature=temperature)


def _softmax(logits: Array) -> Array:
    highest = logits.max()
    if highest == -np.inf:
        return np.full(len(logits), 1 / len(logits))
    weight = np.exp(logits - highest)
    return np.asarray(weight / weight.sum())


def _log_sum(logits: Array) -> Array:
    """logsumexp of each row, -inf for a row of -inf."""
    highest = logits.max(axis=1, initial=-np.inf)
    shift = np.where(highest > -np.inf, highest, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(np.exp(logits - shift[:, None]).sum(axis=1)))
