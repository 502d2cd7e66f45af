"""This module draws slates, with the probability of each of their slots (see `policy/slates/slate.py`)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index, Words
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.sampler import uniforms, uniforms_at
from rlrec.policy.scores.scores import DrawnOrder, Order, Scores, find_top
from rlrec.policy.slates import plackett_luce
from rlrec.policy.slates.slate import invert_rows, mix_floor, pick_left_arms, to_positions
from rlrec.records import Record

if TYPE_CHECKING:
    from rlrec.policy.scores.sweep import ContinuousOrder

MIN_PROBABILITY = 1e-300
"""The propensity that is logged for an arm that was drawn although its probability rounds to 0."""

_MAX_ENTRIES = 1 << 20  # numbers in a working array


class Draw(Record, kw_only=False, eq=False):
    """A Draw holds n slates of k positions. All arrays are (n, k).

    slates: the arms. propensity: the probability of each arm given the arms above. marginal: the probability of the
    arm at its position (NaN without a closed form). minimum: the smallest propensity of the arms left at the
    position. is_rounded: whether MIN_PROBABILITY replaces a probability of 0. teams: which of two rankers picked the
    arm, 0 or 1 (None without two rankers)."""

    slates: Index
    propensity: Array
    marginal: Array
    minimum: Array
    is_rounded: Flags
    teams: Index | None = None


def draw(scores: Scores, *, size: int, floor: Floor, seeds: Words, decisions: Ids, with_marginals: bool = True) -> Draw:
    """Return slates of n decisions, drawn from the scores, with the probability of each slot.

    size: the number of positions; floor: the probability of a uniform pick; seeds (n,), decisions (n,): the seed and
    the id of each decision; with_marginals: whether marginals and smallest propensities are computed; else they are
    NaN."""
    return SlateSampler(scores, size=size, floor=floor).draw(
        seeds=seeds, decisions=decisions, with_marginals=with_marginals
    )


def draw_each(logits: Array, *, size: int, floor: Floor, seeds: Words, decisions: Ids) -> Draw:
    """Return slates of n decisions, drawn with separate logits for each decision, as `SlateSampler.draw` draws from
    Gumbel scores.

    logits (n, m): the logits of each decision; seeds (n,), decisions (n,): the seed and the id of each decision.
    Marginals below position 1 are NaN, since a quadrature for every decision would take milliseconds."""
    m, floors = logits.shape[1], at_positions(floor, size)
    if size == 1:
        probability = mix_floor(plackett_luce.softmax(logits), floors[0], m)
        slates = invert_rows(probability, uniforms(seeds, decisions, words=1)[:, 0])[:, None]
        propensity = np.take_along_axis(probability, slates, axis=1)
        return logged_draw(slates, propensity, propensity, probability.min(axis=1, keepdims=True))
    noise = -np.log(-np.log(uniforms_at(seeds, decisions, 2 * size + np.arange(m))))
    coins = uniforms(seeds, decisions, words=2 * size).reshape(-1, size, 2)
    ranking = find_top(logits + noise, size)
    slates = _fill_slates(ranking, coins, m, floors) if floors.any() else ranking
    return log_each(logits, slates, floor=floor)


def log_each(logits: Array, slates: Index, *, floor: Floor) -> Draw:
    """Return slates with the probabilities that `draw_each` gives them.

    logits (n, m): the logits of each slate; slates (n, k): the arms."""
    shape, m, rows = slates.shape, logits.shape[1], np.arange(len(slates))
    propensity, minimum, floors = np.empty(shape), np.empty(shape), at_positions(floor, shape[1])
    is_shown = np.zeros(logits.shape, np.bool_)
    for position, probability in enumerate(plackett_luce.remaining(logits, slates)):
        with_floor = mix_floor(probability, floors[position], m - position)
        propensity[:, position] = with_floor[rows, slates[:, position]]
        minimum[:, position] = np.where(is_shown, 1.0, with_floor).min(axis=1)
        is_shown[rows, slates[:, position]] = True
    return logged_draw(slates, propensity, first_position_marginals(propensity), minimum)


class SlateSampler:
    """A SlateSampler draws the slates of one belief. Probabilities are computed once for all slates.

    size: the number of positions, 1..m; floor: the probability of a uniform pick, in [0, 1]. earlier_sampler: the
    sampler of earlier scores of the same number of arms. If few arms changed, its tables are reused for the other
    arms, with the same errors as a new table. The earlier sampler stays valid, and computes its tables again when it
    needs them."""

    def __init__(self, scores: Scores, *, size: int, floor: Floor, earlier_sampler: SlateSampler | None = None) -> None:
        self._size, self._floor, self._arms, self._scores = size, floor, len(scores), scores
        self._order: Order = scores.order(size, earlier_order=earlier_sampler._order if earlier_sampler else None)

    def prepare(self) -> None:
        """Compute in advance the tables for `draw` that depend only on the belief."""
        if isinstance(self._order, DrawnOrder):
            _ = self._cdf if self._size == 1 else self._shared_marginals

    def draw(self, *, seeds: Words, decisions: Ids, with_marginals: bool = True) -> Draw:
        """Return slates of n decisions, drawn with the probability of each slot.

        seeds (n,), decisions (n,): the seed and the id of each decision, which identify its uniforms
        (`sampler.uniforms`). A slate depends on nothing else of the decision. With one position, uniform 0 draws the
        arm from the probabilities of `p_first`. With more positions, uniforms 2p and 2p + 1 are the coin and the pick
        of position p. with_marginals: whether marginals and smallest propensities, the most expensive part for long
        slates, are computed; they are NaN otherwise."""
        if not isinstance(self._order, DrawnOrder):
            return self._draw_by_position(seeds, decisions)
        if self._size == 1:
            cdf, least = self._cdf
            slates = _invert_uniforms(self.p_first, cdf, uniforms(seeds, decisions, words=1)[:, 0])[:, None]
            propensity = self.p_first[slates]
            return logged_draw(slates, propensity, propensity, np.full(propensity.shape, least))
        slates = _draw_slates(self._order, self._arms, self._size, self._floor, seeds, decisions)
        probability, smallest_shares = self._order.conditionals(slates, floor=self._floor, with_minimum=with_marginals)
        n_left, floors = self._arms - np.arange(self._size), at_positions(self._floor, self._size)
        propensity, minimum = (mix_floor(values, floors, n_left) for values in (probability, smallest_shares))
        if not with_marginals:
            no_marginal = np.full(propensity.shape, np.nan)
            return logged_draw(slates, propensity, no_marginal, no_marginal)
        marginals, column = self._shared_marginals
        return logged_draw(slates, propensity, marginals[np.arange(self._size), column[slates]], minimum)

    def log_probabilities(self, slates: Index) -> Array:
        """Return the logarithm of the probability of each of these slates, (n,). The result is -inf if the probability
        is 0. The method does not work for samples.

        slates (n, size): the arms."""
        if self._size == 1:
            probability = self.p_first[slates]
        else:
            distinct_slates, slate_index = np.unique(slates, axis=0, return_inverse=True)
            probability, _ = self._order.conditionals(distinct_slates, floor=self._floor, with_minimum=False)
            n_left, floors = self._arms - np.arange(self._size), at_positions(self._floor, self._size)
            probability = mix_floor(probability, floors, n_left)[slate_index.reshape(-1)]
        with np.errstate(divide="ignore"):
            return np.log(probability).sum(axis=1)

    @cached_property
    def p_first(self) -> Array:
        """Return the probability of each arm at position 1, (m,), as a read-only array. The absolute error is below
        1e-9, and the relative error is below 1e-6 for probabilities above 1e-6."""
        probability = mix_floor(self._order.p_best(), at_positions(self._floor, 1)[0], self._arms)
        probability.flags.writeable = False
        return probability

    @cached_property
    def marginals(self) -> Array:
        """Return the probability that each arm stands at each position, (size, m), as in `slate.marginals`."""
        if self._size == 1:
            return self.p_first[None]
        return to_positions(self._order.ranks(self._size), self._floor)

    @cached_property
    def _shared_marginals(self) -> tuple[Array, Index]:
        """Return the marginals of distinct arms, (size, g), and the column of each arm in this array, (m,).

        Of very many arms most are equal, and share one column."""
        if np.any(self._floor) or not self._order.is_continuous:
            return self.marginals, np.arange(self._arms)
        return cast("ContinuousOrder", self._order).shared_ranks(self._size)

    @cached_property
    def _cdf(self) -> tuple[Array, float]:
        """Return the distribution function of the arm at position 1, (m,), and the smallest probability of an arm."""
        return self.p_first.cumsum(), float(self.p_first.min())

    def _draw_by_position(self, seeds: Words, decisions: Ids) -> Draw:
        """Return the slates of n decisions, each of which draws separate samples.

        seeds (n,), decisions (n,): the seed and the id of each decision."""
        uniform = uniforms(seeds, decisions, words=2 * self._size - 1)[:, ::2]
        shape, floors = uniform.shape, at_positions(self._floor, self._size)
        slates, propensity, minimum = np.empty(shape, np.intp), np.empty(shape), np.empty(shape)
        for row, (seed, decision) in enumerate(zip(seeds.tolist(), decisions.tolist(), strict=True)):
            order = self._scores.decision_scores(seed, decision).order(self._size)
            for position in range(self._size):
                prefix = slates[[row], :position]
                left_arms = np.delete(np.arange(self._arms), prefix[0])
                with_floor = mix_floor(
                    order.next_arms(prefix, floor=self._floor)[0, left_arms], floors[position], len(left_arms)
                )
                pick = _invert_uniforms(with_floor, with_floor.cumsum(), uniform[row, position])
                slates[row, position] = left_arms[pick]
                propensity[row, position], minimum[row, position] = with_floor[pick], with_floor.min()
        return logged_draw(slates, propensity, first_position_marginals(propensity), minimum)


def _invert_uniforms(probability: Array, cdf: Array, uniform: Array) -> Index:
    """Return the arm that each uniform draws, (n,).

    probability, cdf (m,): the probabilities of the arms, and their cumulative sums; uniform (n,): the
    uniforms."""
    # from the right, so that an arm with probability 0 is never drawn
    arms = cdf.searchsorted(uniform * cdf[-1], side="right")
    return np.minimum(arms, np.flatnonzero(probability)[-1]) if arms.max(initial=0) == len(probability) else arms


def _draw_slates(order: DrawnOrder, m: int, size: int, floor: Floor, seeds: Words, decisions: Ids) -> Index:
    slates = np.empty((len(seeds), size), np.intp)
    step = max(1, _MAX_ENTRIES // m)
    for start in range(0, len(seeds), step):
        chunk = slice(start, start + step)
        keys = uniforms_at(seeds[chunk], decisions[chunk], 2 * size + np.arange(m))
        ranking = order.ranking(keys, size)
        coins = uniforms(seeds[chunk], decisions[chunk], words=2 * size).reshape(-1, size, 2)
        slates[chunk] = _fill_slates(ranking, coins, m, at_positions(floor, size)) if np.any(floor) else ranking
    return slates


def _fill_slates(ranking: Index, coins: Array, m: int, floors: Array) -> Index:
    """Return slates, (n, size). At each position a coin decides between a uniform pick and the best arm left.

    ranking (n, size): the first arms of the order of each slate; coins (n, size, 2): two uniforms for each position,
    the coin and the pick; m: the number of arms; floors (size,): the probability of a uniform pick at each position."""
    n, size = ranking.shape
    slates, is_taken, row = np.empty((n, size), np.intp), np.zeros((n, size), dtype=bool), np.arange(n)
    for position in range(size):
        best_arm = ranking[row, (~is_taken).argmax(axis=1)]
        pick = pick_left_arms(slates[:, :position], coins[:, position, 1], m)
        slates[:, position] = np.where(coins[:, position, 0] < floors[position], pick, best_arm)
        is_taken |= ranking == slates[:, position, None]
    return slates


def first_position_marginals(propensity: Array) -> Array:
    """Return marginals that equal the propensities at position 1, (n, k). Lower positions have no closed form and are
    NaN."""
    marginal = np.full(propensity.shape, np.nan)
    marginal[:, 0] = propensity[:, 0]
    return marginal


def logged_draw(slates: Index, propensity: Array, marginal: Array, minimum: Array) -> Draw:
    """Return the draw in the form that is logged, where no arm that was drawn has probability 0.

    slates, propensity, marginal, minimum (n, k): the fields of `Draw`, before 0 is replaced by MIN_PROBABILITY."""
    return Draw(
        slates=slates,
        propensity=np.minimum(np.maximum(propensity, MIN_PROBABILITY), 1.0),
        marginal=np.minimum(np.maximum(marginal, MIN_PROBABILITY), 1.0),
        minimum=np.minimum(minimum, 1),
        is_rounded=(propensity < MIN_PROBABILITY) | (marginal < MIN_PROBABILITY),
    )
