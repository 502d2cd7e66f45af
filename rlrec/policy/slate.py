"""Slates for every kind of policy: exact probabilities of positions, pages and draws, and the draws themselves.

A page is filled from the top. One vector of noisy scores is drawn; at every position a uniform arm of those left is
taken with probability `floor`, else the best one left in that vector. For correlated scores every position has a
vector of its own, one of the samples of the decision; without a decision they stand for those of seed 0, decision 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlrec.arrays import Array, Flags, Index, Words
from rlrec.policy import plackett_luce
from rlrec.policy.sampler import uniforms, uniforms_at
from rlrec.policy.scores import Order, Scores, top

SMALLEST = 1e-300
"""What is logged for an arm that was drawn although its probability rounds to 0."""

_ENTRIES = 1 << 20


@dataclass(frozen=True, eq=False)
class Draw:
    """n pages of k positions. All arrays are (n, k).

    slates arms; propensity given the positions above; marginal of the arm at its position whatever stands above, NaN
    where that has no closed form; minimum smallest propensity any arm left had there; rounded where SMALLEST replaces
    a 0."""

    slates: Index
    propensity: Array
    marginal: Array
    minimum: Array
    rounded: Flags


def first(scores: Scores, *, floor: float) -> Array:
    """Probability of each arm at position 1, (m,); the sum is 1.

    floor share of uniform picks, in [0, 1]. Error below 1e-9, relative below 1e-6 above 1e-6.
    Source: own derivation (`maximum.best`); ties share."""
    return _mixed(scores.order(1).best(), floor, len(scores))


def marginals(scores: Scores, *, size: int, floor: float) -> Array:
    """Probability that each arm stands at position 1..size, whatever stands above it, (size, m); rows sum to 1.

    size 1..m; floor in [0, 1]. NaN beyond position 1 for samples, which have no closed form there.
    Source: own derivation (`maximum.ranks` and `placement`)."""
    if size == 1:
        return first(scores, floor=floor)[None]
    return _placed(scores.order(size).ranks(size), floor)


def conditionals(scores: Scores, slates: Index, *, floor: float) -> Array:
    """Probability of each shown arm given the positions above it, (n, k); a row's product is the slate's.

    slates (n, k) arms 0..m-1, no arm twice on a page; floor in [0, 1]. Errors as for `first`, after a page that the
    policy makes; the rarer the page, below 1e-9, the fewer digits of what follows are right, and after an arm with
    less than 1e-13 at its position the arms left compete anew. Source: own derivation (`sweep`)."""
    chance, _ = scores.order(slates.shape[1]).conditionals(slates, floor=floor, least=False)
    return _mixed(chance, floor, len(scores) - np.arange(slates.shape[1]))


def remaining(scores: Scores, prefix: Index, *, floor: float) -> Array:
    """Probability of each arm at the position after prefix (k,), k < m, given that prefix, (m,); the sum is 1.

    0 for the arms in it; else the same as `conditionals`, and with the same errors."""
    prefix = np.asarray(prefix, np.intp)
    chance = scores.order(len(prefix) + 1).next_arm(prefix, floor=floor)
    mixed = _mixed(chance, floor, len(scores) - len(prefix))
    mixed[prefix] = 0.0
    return mixed


def draw(scores: Scores, *, size: int, floor: float, seeds: Words, decisions: npt.NDArray[np.int64]) -> Draw:
    """Pages of n decisions drawn from the scores, with the probability each of them had (`Pages.draw`)."""
    return Pages(scores, size=size, floor=floor).draw(seeds=seeds, decisions=decisions)


def draw_each(logits: Array, *, size: int, floor: float, seeds: Words, decisions: npt.NDArray[np.int64]) -> Draw:
    """Pages of n decisions, each with logits of its own (n, m), as `Pages.draw` draws them from Gumbel scores.

    Marginals below position 1 are NaN: a quadrature for every decision would cost milliseconds."""
    m = logits.shape[1]
    if size == 1:
        chance = _mixed(plackett_luce.softmax(logits), floor, m)
        slates = _inverse_each(chance, uniforms(seeds, decisions, words=1)[:, 0])[:, None]
        shown = np.take_along_axis(chance, slates, axis=1)
        return _logged(slates, shown, shown, chance.min(axis=1, keepdims=True))
    noise = -np.log(-np.log(uniforms_at(seeds, decisions, 2 * size + np.arange(m))))
    coins = uniforms(seeds, decisions, words=2 * size).reshape(-1, size, 2)
    ranking = top(logits + noise, size)
    slates = _fill(ranking, coins, m, floor) if floor > 0 else ranking
    return logged_each(logits, slates, floor=floor)


def logged_each(logits: Array, slates: Index, *, floor: float) -> Draw:
    """What `draw_each` logs of pages (n, k) that are known."""
    shape, m, rows = slates.shape, logits.shape[1], np.arange(len(slates))
    shown, least = np.empty(shape), np.empty(shape)
    gone = np.zeros(logits.shape, np.bool_)
    for position, chance in enumerate(plackett_luce.remaining(logits, slates)):
        mixed = _mixed(chance, floor, m - position)
        shown[:, position] = mixed[rows, slates[:, position]]
        least[:, position] = np.where(gone, 1.0, mixed).min(axis=1)
        gone[rows, slates[:, position]] = True
    marginal = np.full(shape, np.nan)
    marginal[:, 0] = shown[:, 0]
    return _logged(slates, shown, marginal, least)


def _inverse_each(chance: Array, uniform: Array) -> Index:
    """The arms of probabilities chance (n, m) at uniforms (n,), (n,): `_inverse`, row by row."""
    cumulative = chance.cumsum(axis=1)
    arm = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(axis=1)
    last = chance.shape[1] - 1 - (chance[:, ::-1] > 0).argmax(axis=1)
    return np.asarray(np.minimum(arm, last))


class Pages:
    """The pages of one belief: computed once, drawn from many times, and kept up with the belief.

    size 1..m positions; floor in [0, 1]; `before` as for `changed`."""

    def __init__(self, scores: Scores, *, size: int, floor: float, before: Pages | None = None) -> None:
        self._size, self._floor, self._arms, self._scores = size, floor, len(scores), scores
        self._order: Order = scores.order(size, before=before._order if before else None)

    def changed(self, scores: Scores) -> Pages:
        """The pages of other scores of as many arms. Where few arms changed, what is known of the others goes over.

        Errors as on nodes of their own; this one stays right, and computes again what it may be asked for."""
        return Pages(scores, size=self._size, floor=self._floor, before=self)

    def probabilities(self) -> Array:
        """Probability of each arm at position 1, (m,), not to be written to; error as for `first`."""
        return self._first

    def draw(self, *, seeds: Words, decisions: npt.NDArray[np.int64]) -> Draw:
        """Pages of n decisions, with the probability each of them had.

        seeds (n,) and decisions (n,) name the uniforms (`sampler.uniforms`), on which alone a page depends. One
        position: the inverse of `first` at word 0. More: words 2p and 2p + 1 are the coin and the pick of position p
        from 0, word 2 size + i the noise of arm i. Of samples: the inverse of `remaining` at word 2p."""
        if self._scores.samples:
            return self._sampled(uniforms(seeds, decisions, words=2 * self._size - 1)[:, ::2], seeds, decisions)
        if self._size == 1:
            return self._single(uniforms(seeds, decisions, words=1)[:, 0])
        slates = _drawn(self._order, self._arms, self._size, self._floor, seeds, decisions)
        chance, least = self._order.conditionals(slates, floor=self._floor, least=True)
        left, marginal = self._arms - np.arange(self._size), self._marginals[np.arange(self._size), slates]
        return _logged(slates, _mixed(chance, self._floor, left), marginal, _mixed(least, self._floor, left))

    @cached_property
    def _first(self) -> Array:
        chance = _mixed(self._order.best(), self._floor, self._arms)
        chance.flags.writeable = False
        return chance

    @cached_property
    def _marginals(self) -> Array:
        return _placed(self._order.ranks(self._size), self._floor)

    @cached_property
    def _inverse(self) -> tuple[Array, float]:
        """Of position 1: the distribution function, and the smallest probability."""
        return self._first.cumsum(), float(self._first.min())

    def _single(self, uniform: Array) -> Draw:
        cumulative, least = self._inverse
        slates = _inverse(self._first, cumulative, uniform)[:, None]
        chance = self._first[slates]
        return _logged(slates, chance, chance, np.full(chance.shape, least))

    def _sampled(self, uniform: Array, seeds: Words, decisions: npt.NDArray[np.int64]) -> Draw:
        """Pages of decisions that have samples of their own, by uniforms (n, k)."""
        shape = uniform.shape
        slates, chance, least = np.empty(shape, np.intp), np.empty(shape), np.empty(shape)
        for page, (seed, decision) in enumerate(zip(seeds.tolist(), decisions.tolist(), strict=True)):
            order = self._scores.of_decision(seed, decision).order(self._size)
            for position in range(self._size):
                left = np.delete(np.arange(self._arms), slates[page, :position])
                mixed = _mixed(order.next_arm(slates[page, :position], floor=self._floor)[left], self._floor, len(left))
                place = _inverse(mixed, mixed.cumsum(), uniform[page, position])
                slates[page, position] = left[place]
                chance[page, position], least[page, position] = mixed[place], mixed.min()
        marginal = np.full(shape, np.nan)
        marginal[:, 0] = chance[:, 0]
        return _logged(slates, chance, marginal, least)


def placement(size: int, m: int, *, floor: float) -> tuple[Array, Array]:
    """Chance that rank r of the vector ends at position p, (size, size) by [p, r], and of any rank beyond p, (size,).

    Only floor and m matter: a rank's fate hangs on how many better arms are left. Source: own derivation."""
    chance, beyond = np.zeros((size, size)), np.zeros(size)
    waiting, lasting = np.eye(size), 1.0  # [r, better arms left]: still on no position
    better = np.arange(size)
    for position in range(size):
        left = m - position
        uniform = floor / left
        chance[position] = uniform * waiting.sum(axis=1) + (1 - floor) * waiting[:, 0]
        beyond[position], lasting = lasting * uniform, lasting * (1 - uniform)
        stays = waiting * (uniform * np.maximum(left - 1 - better, 0))
        stays[:, :-1] += waiting[:, 1:] * ((1 - floor) + uniform * better[1:])
        waiting = stays
    return chance, beyond


def _inverse(chance: Array, cumulative: Array, uniform: Array) -> Index:
    """The arms of probabilities chance (m,) at uniforms (n,), (n,)."""
    # from the right: an arm without probability is never the answer
    arm = cumulative.searchsorted(uniform * cumulative[-1], side="right")
    return np.asarray(np.minimum(arm, np.flatnonzero(chance)[-1]) if arm.max(initial=0) == len(chance) else arm)


def _mixed(chance: Array, floor: float, left: int | Index) -> Array:
    """The chance of being the best with the floor mixed in; the only arm left is certain."""
    mixed = np.asarray(floor / left + (1 - floor) * chance)
    np.minimum(np.maximum(mixed, 0.0, out=mixed), 1.0, out=mixed)
    mixed[..., np.equal(left, 1)] = 1.0
    return mixed


def _placed(ranks: Array, floor: float) -> Array:
    """Positions (size, m) from ranks (size, m)."""
    size, m = ranks.shape
    if np.isnan(ranks[-1, 0]):  # only the first has a closed form
        return np.vstack([_mixed(ranks[0], floor, m), ranks[1:]])
    if floor == 0:
        return ranks
    chance, beyond = placement(size, m, floor=floor)
    deeper = np.maximum(1 - np.cumsum(ranks, axis=0), 0)
    return np.tril(chance) @ ranks + beyond[:, None] * deeper


def _drawn(order: Order, m: int, size: int, floor: float, seeds: Words, decisions: npt.NDArray[np.int64]) -> Index:
    slates = np.empty((len(seeds), size), np.intp)
    step = max(1, _ENTRIES // m)
    for start in range(0, len(seeds), step):
        part = slice(start, start + step)
        keys = uniforms_at(seeds[part], decisions[part], 2 * size + np.arange(m))
        ranking = order.ranking(keys, size)
        coins = uniforms(seeds[part], decisions[part], words=2 * size).reshape(-1, size, 2)
        slates[part] = _fill(ranking, coins, m, floor) if floor > 0 else ranking
    return slates


def _fill(ranking: Index, coins: Array, m: int, floor: float) -> Index:
    """Pages from the first arms of each order and a (coin, pick) a position, coins (n, size, 2)."""
    n, size = ranking.shape
    slates, taken, page = np.empty((n, size), np.intp), np.zeros((n, size), dtype=bool), np.arange(n)
    for position in range(size):
        best = ranking[page, (~taken).argmax(axis=1)]
        pick = _nth_left(slates[:, :position], coins[:, position, 1], m)
        slates[:, position] = np.where(coins[:, position, 0] < floor, pick, best)
        taken |= ranking == slates[:, position, None]
    return slates


def _nth_left(shown: Index, uniform: Array, m: int) -> Index:
    """A uniform arm of those not in shown (n, p), (n,)."""
    left = m - shown.shape[1]
    nth = np.minimum((uniform * left).astype(np.intp), left - 1)
    # the i-th smallest arm shown, from 0, has that many less i arms left below it
    below = np.sort(shown, axis=1) - np.arange(shown.shape[1])
    return np.asarray(nth + (below <= nth[:, None]).sum(axis=1))


def _logged(slates: Index, propensity: Array, marginal: Array, minimum: Array) -> Draw:
    rounded = (propensity < SMALLEST) | (marginal < SMALLEST)
    return Draw(
        slates=slates,
        propensity=np.minimum(np.maximum(propensity, SMALLEST), 1.0),
        marginal=np.minimum(np.maximum(marginal, SMALLEST), 1.0),
        minimum=np.minimum(minimum, 1),
        rounded=rounded,
    )
