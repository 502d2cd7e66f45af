"""Slates for every kind of policy: exact probabilities of positions, slates and draws, and the draws themselves.

A slate is filled from the top. One vector of noisy scores is drawn; at every position a uniform arm of those left is
taken with the probability `floor` of that position, else the best one left in that vector. For correlated scores every
position has a vector of its own, one of the samples of the decision; without a decision they stand for those of seed 0,
decision 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index, Words, run_starts
from rlrec.policy import plackett_luce
from rlrec.policy.floors import Floor, at_positions
from rlrec.policy.sampler import uniforms, uniforms_at
from rlrec.policy.scores import DrawnOrder, Order, Scores, top
from rlrec.policy.sweep import ContinuousOrder

if TYPE_CHECKING:
    from rlrec.policy.families.correlated import Correlated

SMALLEST = 1e-300
"""The propensity that is logged for an arm that was drawn although its probability rounds to 0."""

_ENTRIES = 1 << 20  # numbers in a working array
_SWEPT = 1 << 16  # and where slates are swept: near the processor
_SLATES, _ARMS = 8, 100  # slates a case, and arms, up to which cases are swept together


@dataclass(frozen=True, eq=False)
class Draw:
    """n slates of k positions. All arrays are (n, k).

    slates: the arms. propensity: given the positions above. marginal: of the arm at its position, whatever is
    above; NaN where that has no closed form. minimum: the smallest propensity of the arms left there. rounded: whether
    SMALLEST replaces a 0."""

    slates: Index
    propensity: Array
    marginal: Array
    minimum: Array
    rounded: Flags


def first(scores: Scores, *, floor: Floor) -> Array:
    """Probability of each arm at position 1, (m,); the sum is 1.

    floor probability of a uniform pick, in [0, 1]. Error below 1e-9, relative below 1e-6 above 1e-6.
    Source: own derivation (`maximum.best`); ties share."""
    return _mix_floor(scores.order(1).best(), at_positions(floor, 1)[0], len(scores))


def marginals(scores: Scores, *, size: int, floor: Floor) -> Array:
    """Probability that each arm stands at position 1..size, whatever stands above it, (size, m); rows sum to 1.

    size 1..m; floor in [0, 1]. NaN beyond position 1 for samples, which have no closed form there.
    Source: own derivation (`maximum.ranks` and `placement`)."""
    if size == 1:
        return first(scores, floor=floor)[None]
    return _to_positions(scores.order(size).ranks(size), floor)


def marginals_each(many: Sequence[Scores], *, size: int, floor: Floor, shared: bool = False) -> list[Array]:
    """`marginals` of many scores of equally many arms; independent continuous ones are worked out together, also at one
    position where many cases share a few scores."""
    from rlrec.policy.pooled import pooled  # a single request needs none of it

    orders = [scores.order(size) for scores in many]
    alone = size == 1 and not (shared and isinstance(orders[0], ContinuousOrder))
    together = None if alone else pooled(orders, positions=size)
    if together is None:
        return [marginals(scores, size=size, floor=floor) for scores in many]
    return list(_to_positions(together.ranks(size), floor))


def simulated_marginals(scores: Correlated, *, size: int, floor: Floor, runs: int, rng: np.random.Generator) -> Array:
    """Unbiased estimates of `marginals` of scores that have no closed form, from so many simulated pages, (size, m).

    Each page adds, position by position, the probability of each arm given the arms above and the sample that ranks
    those left. Source: own derivation."""
    m, floors = len(scores), at_positions(floor, size)
    total, step = np.zeros((size, m)), max(1, _ENTRIES // (size * m))
    for start in range(0, runs, step):
        values = scores.of_pages(min(step, runs - start), size, rng)
        left, page = np.ones(values.shape[1:], np.bool_), np.arange(values.shape[1])
        for position, of_page in enumerate(values):
            # the best of the arms left, with the floor
            allowed = np.where(left, of_page, -np.inf)
            best = allowed == allowed.max(axis=1, keepdims=True)
            probability = _mix_floor(best / best.sum(axis=1, keepdims=True), floors[position], m - position)
            probability[~left] = 0.0
            total[position] += probability.sum(axis=0)
            left[page, invert_rows(probability, rng.random(len(page)))] = False
    return total / runs


def conditionals(scores: Scores, slates: Index, *, floor: Floor) -> Array:
    """Probability of each arm of a slate given the positions above it, (n, k); a row's product is the slate's.

    slates (n, k) arms 0..m-1, no arm twice on a slate; floor in [0, 1]. Errors as for `first`, below a prefix that the
    policy makes; the rarer the prefix, below 1e-9, the fewer digits of what follows are right, and below an arm with
    less than 1e-13 at its position the arms left compete anew. Source: own derivation (`sweep`)."""
    k = slates.shape[1]
    probability, _ = scores.order(k).conditionals(slates, floor=floor, least=False)
    return _mix_floor(probability, at_positions(floor, k), len(scores) - np.arange(k))


def remaining(scores: Scores, prefix: Index, *, floor: Floor) -> Array:
    """Probability of each arm at the position after prefix (k,), k < m, given that prefix, (m,); the sum is 1.

    0 for the arms in it; else the same as `conditionals`, and with the same errors."""
    return remaining_each(scores, np.asarray(prefix, np.intp)[None], floor=floor)[0]


def remaining_each(scores: Scores, prefixes: Index, *, floor: Floor) -> Array:
    """`remaining` below each of many prefixes (n, k), (n, m)."""
    k = prefixes.shape[1]
    probability = scores.order(k + 1).next_arms(prefixes, floor=floor)
    mixed = _mix_floor(probability, at_positions(floor, k + 1)[-1], len(scores) - k)
    mixed[np.arange(len(prefixes))[:, None], prefixes] = 0.0
    return mixed


def conditionals_each(many: Sequence[Scores], case: Index, slates: Index, *, floor: Floor) -> Array:
    """`conditionals` of slates (n, k), each of arms of its case (n,) among many scores of equally many arms, (n, k)."""
    probability = np.empty(slates.shape)
    if isinstance(many[0].order(1), ContinuousOrder) and _few_of_each(len(many), len(many[0]), slates):
        for rows, position, of_prefix, above in each_position(many, case, slates, floor=floor):
            probability[rows, position] = of_prefix[above, slates[rows, position]]
        return probability
    order = np.argsort(case, kind="stable")
    for rows in np.split(order, run_starts(case[order])[1:]):
        probability[rows] = conditionals(many[case[rows[0]]], slates[rows], floor=floor)
    return probability


def each_position(
    many: Sequence[Scores], case: Index, slates: Index, *, floor: Floor
) -> Iterator[tuple[Index, int, Array, Index]]:
    """`remaining` at each position of slates (n, k), some at a time, each of its case (n,) among many exact scores of
    equally many arms: the rows of slates in order (r,), the position from 0, the probabilities below each distinct case
    and slate above, (u, m), and which of these a row has, (r,)."""
    orders = [scores.order(slates.shape[1]) for scores in many]
    yield from each_position_of(orders, case, slates, arms=len(many[0]), floor=floor)


def each_position_of(
    orders: Sequence[Order], case: Index, slates: Index, *, arms: int, floor: Floor
) -> Iterator[tuple[Index, int, Array, Index]]:
    """`each_position` by the orders of equally many arms, whose tables outlive it."""
    m, floors = arms, at_positions(floor, slates.shape[1])
    for rows, by_position in _swept(orders, case, slates, arms, floor):
        for position, (probability, above) in enumerate(by_position):
            mixed = _mix_floor(probability, floors[position], m - position)
            mixed[above[:, None], slates[rows, :position]] = 0.0
            yield rows, position, mixed, above


def _few_of_each(cases: int, arms: int, slates: Index) -> bool:
    """Whether cases have so few slates each that a table for each costs more than one for all."""
    return len(slates) < _SLATES * cases and arms <= _ARMS


def _swept(
    orders: Sequence[Order], case: Index, slates: Index, arms: int, floor: Floor
) -> Iterator[tuple[Index, Iterator[tuple[Array, Index]]]]:
    """Slates in order of their cases and arms, some at a time, with `Order.each_position` of them."""
    from rlrec.policy.pooled import pooled

    order, k = np.lexsort((*slates.T[::-1], case)), slates.shape[1]
    swept = isinstance(orders[0], ContinuousOrder) and _few_of_each(len(orders), arms, slates)
    together = pooled(orders, positions=k) if swept else None
    if together is not None:
        step = max(1, _ENTRIES // together.rows[0].size // len(together.table.nodes))
        for rows in np.split(order, range(step, len(order), step)):
            yield rows, together.each_position(case[rows], slates[rows], floors=at_positions(floor, k))
        return
    for of_case in np.split(order, run_starts(case[order])[1:]):
        for rows in np.split(of_case, range(_SWEPT // arms + 1, len(of_case), _SWEPT // arms + 1)):
            of_scores = orders[case[rows[0]]]
            assert isinstance(of_scores, DrawnOrder)
            yield rows, of_scores.each_position(slates[rows], floor=floor)


def draw(
    scores: Scores, *, size: int, floor: Floor, seeds: Words, decisions: Ids, lists: bool = False
) -> Draw:  # fmt: skip
    """Slates of n decisions drawn from the scores, with the probability each of them had (`SlateSampler.draw`)."""
    return SlateSampler(scores, size=size, floor=floor).draw(seeds=seeds, decisions=decisions, lists=lists)


def draw_each(logits: Array, *, size: int, floor: Floor, seeds: Words, decisions: Ids) -> Draw:
    """Slates of n decisions, each with logits of its own (n, m), as `SlateSampler.draw` draws them from Gumbel scores.

    Marginals below position 1 are NaN: a quadrature for every decision would cost milliseconds."""
    m, floors = logits.shape[1], at_positions(floor, size)
    if size == 1:
        probability = _mix_floor(plackett_luce.softmax(logits), floors[0], m)
        slates = invert_rows(probability, uniforms(seeds, decisions, words=1)[:, 0])[:, None]
        propensity = np.take_along_axis(probability, slates, axis=1)
        return _to_log(slates, propensity, propensity, probability.min(axis=1, keepdims=True))
    noise = -np.log(-np.log(uniforms_at(seeds, decisions, 2 * size + np.arange(m))))
    coins = uniforms(seeds, decisions, words=2 * size).reshape(-1, size, 2)
    ranking = top(logits + noise, size)
    slates = _fill(ranking, coins, m, floors) if floors.any() else ranking
    return log_each(logits, slates, floor=floor)


def log_each(logits: Array, slates: Index, *, floor: Floor) -> Draw:
    """Slates (n, k) with the probabilities that `draw_each` logs for them."""
    shape, m, rows = slates.shape, logits.shape[1], np.arange(len(slates))
    propensity, least, floors = np.empty(shape), np.empty(shape), at_positions(floor, shape[1])
    gone = np.zeros(logits.shape, np.bool_)
    for position, probability in enumerate(plackett_luce.remaining(logits, slates)):
        mixed = _mix_floor(probability, floors[position], m - position)
        propensity[:, position] = mixed[rows, slates[:, position]]
        least[:, position] = np.where(gone, 1.0, mixed).min(axis=1)
        gone[rows, slates[:, position]] = True
    return _to_log(slates, propensity, _first_alone(propensity), least)


class SlateSampler:
    """Draws the slates of one belief: probabilities are computed once, and reused as the belief changes.

    size 1..m positions; floor in [0, 1]. before: the sampler of earlier scores of as many arms; where few arms changed,
    its tables of the others are reused. Errors as on nodes of their own; `before` stays right, and computes again
    what it may be asked for."""

    def __init__(self, scores: Scores, *, size: int, floor: Floor, before: SlateSampler | None = None) -> None:
        self._size, self._floor, self._arms, self._scores = size, floor, len(scores), scores
        self._order: Order = scores.order(size, before=before._order if before else None)

    def draw(self, *, seeds: Words, decisions: Ids, lists: bool = False) -> Draw:
        """Slates of n decisions, with the probability each of them had.

        seeds (n,) and decisions (n,) name the uniforms (`sampler.uniforms`), on which alone a slate depends. One
        position: the inverse of `first` at word 0. More: words 2p and 2p + 1 are the coin and the pick of position p
        from 0, word 2 size + i the noise of arm i. Of samples: the inverse of `remaining` at word 2p.
        lists: long ones, whose marginals and smallest propensities would cost the most, and are NaN."""
        if not isinstance(self._order, DrawnOrder):
            return self._draw_by_position(seeds, decisions)
        if self._size == 1:
            return self._draw_first(uniforms(seeds, decisions, words=1)[:, 0])
        slates = _draw_slates(self._order, self._arms, self._size, self._floor, seeds, decisions)
        probability, least = self._order.conditionals(slates, floor=self._floor, least=not lists)
        left, floors = self._arms - np.arange(self._size), at_positions(self._floor, self._size)
        propensity, minimum = (_mix_floor(each, floors, left) for each in (probability, least))
        if lists:
            unknown = np.full(propensity.shape, np.nan)
            return _to_log(slates, propensity, unknown, unknown)
        return _to_log(slates, propensity, self.marginals[np.arange(self._size), slates], minimum)

    def log_probabilities(self, slates: Index) -> Array:
        """Log of the probability of each of some slates (n, size), (n,); -inf where it is 0. Not of samples."""
        if self._size == 1:
            probability = self.first[slates]
        else:
            assert isinstance(self._order, DrawnOrder)
            shown, which = np.unique(slates, axis=0, return_inverse=True)
            probability, _ = self._order.conditionals(shown, floor=self._floor, least=False)
            left, floors = self._arms - np.arange(self._size), at_positions(self._floor, self._size)
            probability = _mix_floor(probability, floors, left)[which.reshape(-1)]
        with np.errstate(divide="ignore"):
            return np.log(probability).sum(axis=1)

    @cached_property
    def first(self) -> Array:
        """Probability of each arm at position 1, (m,), not to be written to; error as for `first`."""
        probability = _mix_floor(self._order.best(), at_positions(self._floor, 1)[0], self._arms)
        probability.flags.writeable = False
        return probability

    @cached_property
    def marginals(self) -> Array:
        """Probability that each arm stands at each position, (size, m), as `marginals` says."""
        if self._size == 1:
            return self.first[None]
        return _to_positions(self._order.ranks(self._size), self._floor)

    @cached_property
    def _cumulative(self) -> tuple[Array, float]:
        """The distribution function of position 1, (m,), and its smallest probability."""
        return self.first.cumsum(), float(self.first.min())

    def _draw_first(self, uniform: Array) -> Draw:
        cumulative, least = self._cumulative
        slates = _invert(self.first, cumulative, uniform)[:, None]
        propensity = self.first[slates]
        return _to_log(slates, propensity, propensity, np.full(propensity.shape, least))

    def _draw_by_position(self, seeds: Words, decisions: Ids) -> Draw:
        """Slates of decisions that have samples of their own."""
        uniform = uniforms(seeds, decisions, words=2 * self._size - 1)[:, ::2]
        shape, floors = uniform.shape, at_positions(self._floor, self._size)
        slates, propensity, least = np.empty(shape, np.intp), np.empty(shape), np.empty(shape)
        for row, (seed, decision) in enumerate(zip(seeds.tolist(), decisions.tolist(), strict=True)):
            order = self._scores.of_decision(seed, decision).order(self._size)
            for position in range(self._size):
                above = slates[[row], :position]
                left = np.delete(np.arange(self._arms), above[0])
                mixed = _mix_floor(order.next_arms(above, floor=self._floor)[0, left], floors[position], len(left))
                drawn = _invert(mixed, mixed.cumsum(), uniform[row, position])
                slates[row, position] = left[drawn]
                propensity[row, position], least[row, position] = mixed[drawn], mixed.min()
        return _to_log(slates, propensity, _first_alone(propensity), least)


def placement(size: int, m: int, *, floor: Floor) -> tuple[Array, Array]:
    """Probability that rank r of the vector ends at position p, (size, size) by [p, r], and that any rank beyond does,
    (size,).

    Only the floor and m matter: where a rank ends depends on how many better arms are left. Source: own derivation."""
    probability, beyond = np.zeros((size, size)), np.zeros(size)
    waiting, lasting = np.eye(size), 1.0  # [r, better arms left]: still on no position
    better = np.arange(size)
    for position, explored in enumerate(at_positions(floor, size).tolist()):
        left = m - position
        uniform = explored / left
        # taken here: picked uniformly, or the best one left
        probability[position] = uniform * waiting.sum(axis=1) + (1 - explored) * waiting[:, 0]
        beyond[position], lasting = lasting * uniform, lasting * (1 - uniform)
        # not taken: a worse arm was picked, or a better one was
        stays = waiting * (uniform * np.maximum(left - 1 - better, 0))
        stays[:, :-1] += waiting[:, 1:] * ((1 - explored) + uniform * better[1:])
        waiting = stays
    return probability, beyond


def _invert(probability: Array, cumulative: Array, uniform: Array) -> Index:
    """The arms of probabilities (m,) at uniforms (n,), (n,)."""
    # from the right: an arm without probability is never the answer
    arm = cumulative.searchsorted(uniform * cumulative[-1], side="right")
    return np.minimum(arm, np.flatnonzero(probability)[-1]) if arm.max(initial=0) == len(probability) else arm


def invert_rows(probability: Array, uniform: Array) -> Index:
    """The arms of probabilities (n, m) at uniforms (n,), (n,): `_invert`, row by row."""
    cumulative = probability.cumsum(axis=1)
    arm = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(axis=1)
    last = probability.shape[1] - 1 - (probability[:, ::-1] > 0).argmax(axis=1)
    return np.minimum(arm, last)


def _mix_floor(probability: Array, floor: float | Array, left: int | Index) -> Array:
    """The probability of being the best with the floor mixed in; the only arm left is certain."""
    mixed = np.asarray(floor / left + (1 - floor) * probability)
    np.minimum(np.maximum(mixed, 0.0, out=mixed), 1.0, out=mixed)
    mixed[..., np.equal(left, 1)] = 1.0
    return mixed


def _to_positions(ranks: Array, floor: Floor) -> Array:
    """Probabilities of positions (..., size, m) from those of ranks (..., size, m)."""
    size, m = ranks.shape[-2:]
    if np.isnan(ranks[..., -1, 0]).any():  # only the first has a closed form
        return np.vstack([_mix_floor(ranks[0], at_positions(floor, 1)[0], m), ranks[1:]])
    if not np.any(floor):
        return ranks
    probability, beyond = placement(size, m, floor=floor)
    deeper = np.maximum(1 - np.cumsum(ranks, axis=-2), 0)
    return np.tril(probability) @ ranks + beyond[:, None] * deeper


def _draw_slates(order: DrawnOrder, m: int, size: int, floor: Floor, seeds: Words, decisions: Ids) -> Index:
    slates = np.empty((len(seeds), size), np.intp)
    step = max(1, _ENTRIES // m)
    for start in range(0, len(seeds), step):
        chunk = slice(start, start + step)
        keys = uniforms_at(seeds[chunk], decisions[chunk], 2 * size + np.arange(m))
        ranking = order.ranking(keys, size)
        coins = uniforms(seeds[chunk], decisions[chunk], words=2 * size).reshape(-1, size, 2)
        slates[chunk] = _fill(ranking, coins, m, at_positions(floor, size)) if np.any(floor) else ranking
    return slates


def _fill(ranking: Index, coins: Array, m: int, floors: Array) -> Index:
    """Slates from the first arms of each order and a (coin, pick) a position, coins (n, size, 2), floors (size,)."""
    n, size = ranking.shape
    slates, taken, row = np.empty((n, size), np.intp), np.zeros((n, size), dtype=bool), np.arange(n)
    for position in range(size):
        best = ranking[row, (~taken).argmax(axis=1)]
        pick = _nth_left(slates[:, :position], coins[:, position, 1], m)
        slates[:, position] = np.where(coins[:, position, 0] < floors[position], pick, best)
        taken |= ranking == slates[:, position, None]
    return slates


def _nth_left(prefixes: Index, uniform: Array, m: int) -> Index:
    """A uniform arm of those not in prefixes (n, p), (n,)."""
    left = m - prefixes.shape[1]
    nth = np.minimum((uniform * left).astype(np.intp), left - 1)
    # the i-th smallest arm of a prefix, from 0, has that many less i arms left below it
    below = np.sort(prefixes, axis=1) - np.arange(prefixes.shape[1])
    return nth + (below <= nth[:, None]).sum(axis=1)


def _first_alone(propensity: Array) -> Array:
    """Marginals of position 1, which its propensities are; NaN below, where there is no closed form."""
    marginal = np.full(propensity.shape, np.nan)
    marginal[:, 0] = propensity[:, 0]
    return marginal


def _to_log(slates: Index, propensity: Array, marginal: Array, minimum: Array) -> Draw:
    """The draw as it is logged: no arm that was drawn has probability 0."""
    return Draw(
        slates=slates,
        propensity=np.minimum(np.maximum(propensity, SMALLEST), 1.0),
        marginal=np.minimum(np.maximum(marginal, SMALLEST), 1.0),
        minimum=np.minimum(minimum, 1),
        rounded=(propensity < SMALLEST) | (marginal < SMALLEST),
    )
