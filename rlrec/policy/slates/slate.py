"""This module computes exact probabilities of positions and slates for every kind of policy. `slate_draws.py` draws
slates by these probabilities.

A slate is filled from the top. One vector of noisy scores is drawn. At every position, with the probability `floor`
of that position, one of the arms left is picked uniformly. Otherwise the best arm left in the vector is taken. For
correlated scores every position has a separate vector, which is one of the samples of the decision. Without a
decision, the samples are those of seed 0, decision 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlrec.arrays import Array, Index, best_of_rows, run_starts
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.scores import ExactOrder, Order, Scores

if TYPE_CHECKING:
    from rlrec.policy.scores.families.correlated import Correlated

_MAX_ENTRIES = 1 << 20  # numbers in a working array
_SWEPT_ENTRIES = 1 << 16  # the same where slates are swept, so that it fits in the cache
_MAX_SLATES_PER_CASE, _MAX_ARMS = 8, 100  # slates per case, and arms, up to which cases are swept together


def p_first(scores: Scores, *, floor: Floor) -> Array:
    """Return the probability of each arm at position 1, (m,), with sum 1. Arms with equal scores are equally likely.

    floor: the probability of a uniform pick, in [0, 1]. The absolute error is below 1e-9, and the relative error is
    below 1e-6 for probabilities above 1e-6. Source: own derivation (`maximum.p_best`)."""
    return mix_floor(scores.order(1).p_best(), at_positions(floor, 1)[0], len(scores))


def marginals(scores: Scores, *, size: int, floor: Floor) -> Array:
    """Return the probability that each arm stands at position 1..size, (size, m). Rows sum to 1. For samples, which
    have no closed form below position 1, the lower rows are NaN.

    size: the number of positions, 1..m; floor: the probability of a uniform pick, in [0, 1]. Source: own derivation
    (`maximum.ranks` and `placement_probabilities`)."""
    if size == 1:
        return p_first(scores, floor=floor)[None]
    return to_positions(scores.order(size).ranks(size), floor)


def marginals_each(case_scores: Sequence[Scores], *, size: int, floor: Floor, is_shared: bool = False) -> list[Array]:
    """Return the `marginals` of each of several scores with the same number of arms. Independent continuous scores are
    computed together.

    is_shared: whether continuous scores are also computed together for a single position. This pays if many cases
    have scores in common."""
    orders = [scores.order(size) for scores in case_scores]
    if size > 1 or (is_shared and orders[0].is_continuous):
        from rlrec.policy.contexts.pooled import pool_orders  # a single request needs none of it

        if (pooled_orders := pool_orders(orders, positions=size)) is not None:
            return list(to_positions(pooled_orders.ranks(size), floor))
    return [marginals(scores, size=size, floor=floor) for scores in case_scores]


def simulated_marginals(scores: Correlated, *, size: int, floor: Floor, runs: int, rng: np.random.Generator) -> Array:
    """Return unbiased estimates of the `marginals` of scores without a closed form, (size, m).

    runs: the number of simulated pages. Each page adds, position by position, the probability of each arm given the
    arms above and the sample that ranks the arms left. Source: own derivation."""
    m, floors = len(scores), at_positions(floor, size)
    total, step = np.zeros((size, m)), max(1, _MAX_ENTRIES // (size * m))
    for start in range(0, runs, step):
        values = scores.simulate_pages(min(step, runs - start), size, rng)
        page, shown_arms = np.arange(values.shape[1]), np.empty((values.shape[1], 0), np.intp)
        for position, page_values in enumerate(values):
            # the best one of the arms left, with the floor
            page_values[page[:, None], shown_arms] = -np.inf
            row, best_arms = best_of_rows(page_values)
            floor_here, best_share = float(floors[position]), (1 - floors[position]) / np.bincount(row)
            n_left = len(page) - np.bincount(shown_arms.ravel(), minlength=m)
            total[position] += n_left * (floor_here / (m - position)) + np.bincount(
                best_arms, best_share[row], minlength=m
            )
            arm = _invert_best_arms(row, best_arms, best_share, floor_here, rng.random(len(page)), shown_arms, m)
            shown_arms = np.column_stack([shown_arms, arm])
    return total / runs


def conditionals(scores: Scores, slates: Index, *, floor: Floor) -> Array:
    """Return the probability of each arm of a slate, given the arms at the positions above, (n, k). The product of a
    row is the probability of the slate.

    slates (n, k): the arms, 0..m-1, each at most once per slate; floor: the probability of a uniform pick, in [0,
    1].

    The results are as accurate as those of `p_first` if the policy can draw the arms above. If the probability of the
    arms above is below 1e-9, fewer digits of the following values are right. After an arm with probability less than
    1e-13 at its position, the remaining arms are ranked again without the arms above. `sweep` has the derivation."""
    k = slates.shape[1]
    probability, _ = scores.order(k).conditionals(slates, floor=floor, with_minimum=False)
    return mix_floor(probability, at_positions(floor, k), len(scores) - np.arange(k))


def remaining(scores: Scores, prefix: Index, *, floor: Floor) -> Array:
    """Return the probability of each arm at the position after a prefix, given this prefix, (m,), with sum 1. The arms
    in the prefix have 0.

    prefix (k,): the arms at the first k positions, k < m. The numerical errors are those of `conditionals`."""
    return remaining_each(scores, np.asarray(prefix, np.intp)[None], floor=floor)[0]


def remaining_each(scores: Scores, prefixes: Index, *, floor: Floor) -> Array:
    """Return the probability of each arm at the position after each of n prefixes, (n, m), as `remaining` does.

    prefixes (n, k): the arms at the first k positions."""
    k = prefixes.shape[1]
    probability = scores.order(k + 1).next_arms(prefixes, floor=floor)
    shares = mix_floor(probability, at_positions(floor, k + 1)[-1], len(scores) - k)
    shares[np.arange(len(prefixes))[:, None], prefixes] = 0.0
    return shares


def conditionals_each(case_scores: Sequence[Scores], case: Index, slates: Index, *, floor: Floor) -> Array:
    """Return the `conditionals` of slates, each under the scores of its case, (n, k).

    case_scores: the scores of each case, all with the same number of arms; case (n,): the case of each slate; slates
    (n, k): the arms."""
    probability = np.empty(slates.shape)
    n_cases, n_arms = len(case_scores), len(case_scores[0])
    if case_scores[0].order(1).is_continuous and _few_slates_per_case(n_cases, n_arms, slates):
        for rows, position, by_prefix, prefix in each_position(case_scores, case, slates, floor=floor):
            probability[rows, position] = by_prefix[prefix, slates[rows, position]]
        return probability
    order = np.argsort(case, kind="stable")
    for rows in np.split(order, run_starts(case[order])[1:]):
        probability[rows] = conditionals(case_scores[case[rows[0]]], slates[rows], floor=floor)
    return probability


def each_position(
    case_scores: Sequence[Scores], case: Index, slates: Index, *, floor: Floor
) -> Iterator[tuple[Index, int, Array, Index]]:
    """Yield the probability of each arm at each position of slates, given the arms above, under the exact scores of the
    slate's case. The slates are processed in portions.

    Four values are yielded: the indices of the sorted slates of the portion, (r,), the position from 0, the
    probabilities after each distinct case and prefix, (u, m), and the index of the case and prefix of each slate,
    (r,).

    case_scores: the scores of each case, all with the same number of arms; case (n,): the case of each slate; slates
    (n, k): the arms."""
    orders = [scores.order(slates.shape[1]) for scores in case_scores]
    yield from each_position_of(orders, case, slates, arms=len(case_scores[0]), floor=floor)


def each_position_of(
    orders: Sequence[Order], case: Index, slates: Index, *, arms: int, floor: Floor
) -> Iterator[tuple[Index, int, Array, Index]]:
    """Yield the four values of `each_position`, computed from the random rankings of cases instead of their scores.

    orders: the distribution of the ranking of each case, which keeps its table afterwards; case (n,): the case of
    each slate; slates (n, k): the arms; arms: the number of arms of a case."""
    floors = at_positions(floor, slates.shape[1])
    for rows, by_position in _sweep_portions(orders, case, slates, arms, floor):
        for position, (probability, prefix) in enumerate(by_position):
            shares = mix_floor(probability, floors[position], arms - position)
            shares[prefix[:, None], slates[rows, :position]] = 0.0
            yield rows, position, shares, prefix


def _few_slates_per_case(cases: int, arms: int, slates: Index) -> bool:
    """Tell whether cases have so few slates that a table for each case costs more than one table for all cases.

    cases, arms: the number of cases, and of arms of a case."""
    return len(slates) < _MAX_SLATES_PER_CASE * cases and arms <= _MAX_ARMS


def _sweep_portions(
    orders: Sequence[Order], case: Index, slates: Index, arms: int, floor: Floor
) -> Iterator[tuple[Index, Iterator[tuple[Array, Index]]]]:
    """Yield portions of the slates: the indices of the slates, sorted by case and arms, and the result of
    `ExactOrder.each_position` for these slates."""
    from rlrec.policy.contexts.pooled import pool_orders

    order, k = np.lexsort((*slates.T[::-1], case)), slates.shape[1]
    is_swept = orders[0].is_continuous and _few_slates_per_case(len(orders), arms, slates)
    pooled_orders = pool_orders(orders, positions=k) if is_swept else None
    if pooled_orders is not None:
        step = max(1, _MAX_ENTRIES // pooled_orders.rows[0].size // len(pooled_orders.table.nodes))
        for rows in np.split(order, range(step, len(order), step)):
            yield rows, pooled_orders.each_position(case[rows], slates[rows], floors=at_positions(floor, k))
        return
    for case_rows in np.split(order, run_starts(case[order])[1:]):
        for rows in np.split(case_rows, range(_SWEPT_ENTRIES // arms + 1, len(case_rows), _SWEPT_ENTRIES // arms + 1)):
            case_order = orders[case[rows[0]]]
            assert isinstance(case_order, ExactOrder)
            yield rows, case_order.each_position(slates[rows], floor=floor)


def placement_probabilities(size: int, m: int, *, floor: Floor) -> tuple[Array, Array]:
    """Return the probability that the arm at rank r of the vector of scores is placed at position p, (size, size) by
    [p, r].

    Return also the probability that the arm at any single rank below `size` is placed at position p, (size,). Both
    results depend only on the floor and the number of arms m, since the place of a rank depends on how many better
    arms are left. Source: own derivation."""
    probability, deeper_probability = np.zeros((size, size)), np.zeros(size)
    not_placed, lower_waiting = np.eye(size), 1.0  # [r, better arms left]: not placed yet
    n_better = np.arange(size)
    for position, p_floor in enumerate(at_positions(floor, size).tolist()):
        n_left = m - position
        uniform_share = p_floor / n_left
        # taken here: picked uniformly, or as the best one left
        probability[position] = uniform_share * not_placed.sum(axis=1) + (1 - p_floor) * not_placed[:, 0]
        deeper_probability[position], lower_waiting = lower_waiting * uniform_share, lower_waiting * (1 - uniform_share)
        # not taken: a worse or a better arm was
        still_not_placed = not_placed * (uniform_share * np.maximum(n_left - 1 - n_better, 0))
        still_not_placed[:, :-1] += not_placed[:, 1:] * ((1 - p_floor) + uniform_share * n_better[1:])
        not_placed = still_not_placed
    return probability, deeper_probability


def invert_rows(probability: Array, uniforms: Array) -> Index:
    """Return the arm that each uniform draws, (n,).

    probability (n, m): the probability of each arm in each row; uniforms (n,): the uniform of each row."""
    cdf = probability.cumsum(axis=1)
    arm = (cdf <= (uniforms * cdf[:, -1])[:, None]).sum(axis=1)
    last_arm = probability.shape[1] - 1 - (probability[:, ::-1] > 0).argmax(axis=1)
    return np.minimum(arm, last_arm)


def pick_left_arms(prefixes: Index, uniforms: Array, m: int) -> Index:
    """Return the arm that each uniform picks among the arms that are not in the prefix, (n,).

    prefixes (n, p): the arms of each prefix; uniforms (n,): the uniform of each row; m: the number of arms."""
    n_left = m - prefixes.shape[1]
    picked_rank = np.minimum((uniforms * n_left).astype(np.intp), n_left - 1)
    # the i-th smallest arm of a prefix, from 0, has so many smaller arms that are left: its index minus i
    n_left_below = np.sort(prefixes, axis=1) - np.arange(prefixes.shape[1])
    return picked_rank + (n_left_below <= picked_rank[:, None]).sum(axis=1)


def _invert_best_arms(
    row: Index, arm: Index, best_share: Array, floor: float, uniforms: Array, shown_arms: Index, m: int
) -> Index:
    """Return the arm that each uniform draws, (n,), as `invert_rows` does, for rows in which the best arms have more
    probability than the other arms.

    row, arm (r,): the best arms and the row of each, in order; best_share (n,): the probability that each best arm
    of a row has beyond the floor; floor: the probability that is divided equally among all m arms but the arms
    shown; uniforms (n,): the uniform of each row; shown_arms (n, p): the arms shown."""
    ties, uniform_share = np.bincount(row), floor / (m - shown_arms.shape[1])
    first_best = ties.cumsum() - ties
    # where the interval of each best arm begins
    interval_start = uniform_share * (arm - (shown_arms[row] < arm[:, None]).sum(axis=1))
    interval_start += best_share[row] * (np.arange(len(row)) - first_best[row])
    n_begun = np.bincount(row, interval_start <= uniforms[row]).astype(np.intp)
    last_begun = first_best + np.maximum(n_begun, 1) - 1
    if not floor:
        return arm[last_begun]
    is_best = (n_begun > 0) & (uniforms < interval_start[last_begun] + uniform_share + best_share)
    return np.where(is_best, arm[last_begun], pick_left_arms(shown_arms, (uniforms - n_begun * best_share) / floor, m))


def mix_floor(probability: Array, floor: float | Array, n_left: int | Index) -> Array:
    """Return the probability of being shown, in the shape of `probability`: a uniform pick with probability `floor`,
    else the best arm. An arm that is the only arm left has 1.

    probability: the probability of being the best; n_left: the number of arms left."""
    with_floor = np.asarray(floor / n_left + (1 - floor) * probability)
    np.minimum(np.maximum(with_floor, 0.0, out=with_floor), 1.0, out=with_floor)
    with_floor[..., np.equal(n_left, 1)] = 1.0
    return with_floor


def to_positions(ranks: Array, floor: Floor) -> Array:
    """Return the probability that each arm stands at each position, (..., size, m).

    ranks (..., size, m): the probability that each arm stands at each rank of the vector of scores."""
    size, m = ranks.shape[-2:]
    if np.isnan(ranks[..., -1, 0]).any():  # only the first has a closed form
        return np.vstack([mix_floor(ranks[0], at_positions(floor, 1)[0], m), ranks[1:]])
    if not np.any(floor):
        return ranks
    probability, deeper_probability = placement_probabilities(size, m, floor=floor)
    p_deeper = np.maximum(1 - np.cumsum(ranks, axis=-2), 0)
    return np.tril(probability) @ ranks + deeper_probability[:, None] * p_deeper
