"""This module computes the probability that each of many independent random scores is the best, or has a given rank.

The results are exact up to the small error of a quadrature."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.scores.panels import sufficient_count
from rlrec.policy.scores.table import ScoreTable, spread

_MAX_ENTRIES = 1 << 18  # numbers in a working array
_MAX_RARE_ARRIVALS, _N_EXTRA_TERMS = 0.1, 14  # arrivals below which an arm is rare; terms of a series beyond the rank
# of panels in the logarithm of time; minus the log of the probability that an arm arrives before them
_PANEL_WIDTH, _UNLIKELY_LOG = 0.5, 43.0


def p_best(table: ScoreTable) -> Array:
    """Return, for each row of the table, the probability that one score of this row is the best of all scores, (g +
    1,).

    The probability is the integral of the score's density times the product of the distribution functions of all
    other scores. The error is below 1e-12. Source: own derivation."""
    return table.hazard @ (table.weights * np.exp(table.log_all_below()))


def ranks(table: ScoreTable, size: int) -> Array:
    """Return, for each row of the table, the probability that one score of this row stands at rank r = 1..size, (size,
    g + 1).

    The probability is the integral of the score's density times the probability that r - 1 of the other scores are
    larger (Poisson-binomial). The error is below 1e-11. Source: own derivation."""
    probability = np.zeros((size, len(table.count)))
    n_terms = len(table.count) * size
    # as many nodes as fit in the cache, with a minimum below which overhead would dominate
    step = max(_MAX_ENTRIES // n_terms, min(16, 16 * _MAX_ENTRIES // n_terms), 1)
    for start in range(0, len(table.nodes), step):
        nodes = slice(start, start + step)
        log_cdf = table.log_cdf[:, nodes]
        rows = np.flatnonzero(log_cdf.min(axis=1) < 0)  # rows whose other scores can be above these nodes
        single_rows, multiple_rows = rows[table.count[rows] == 1], rows[table.count[rows] > 1]
        p_larger = _probability_of_larger(table.count, log_cdf, single_rows, multiple_rows, size)
        for group, rank_probability in zip((single_rows, multiple_rows), p_larger, strict=True):
            density = table.pdf(group, nodes) * table.weights[nodes]
            probability[: len(rank_probability), group] += np.einsum("rgx,gx->rg", rank_probability, density)
    return probability


def ranks_of_arrivals(logits: Array, size: int) -> Array:
    """Return the probability that each of a thousand or more arms with Gumbel noise stands at rank 1..size, (size, m).

    logits (m,): the logit of each arm, to which standard Gumbel noise is added. The order of the arms is therefore
    that of random arrivals at rates exp(logits). Until enough arms have arrived, most arms are so rare that the
    dependence on the rate of a single arm is a short power series, and power sums of the rates represent all rare
    arms. The error is below 1e-11. Source: own derivation."""
    # the logarithm of the time by which enough arms have arrived, and the expected arrivals of each by then
    rate, low_time, high_time = np.exp(logits - logits.max()), -60.0, 60.0 + np.ptp(logits)
    for _ in range(40):
        mid_time = 0.5 * (low_time + high_time)
        has_enough = -np.expm1(-rate * np.exp(mid_time)).sum() > sufficient_count(size)
        low_time, high_time = (low_time, mid_time) if has_enough else (mid_time, high_time)
    expected_arrivals = rate * np.exp(high_time)
    is_rare = expected_arrivals < _MAX_RARE_ARRIVALS
    rare_rates = expected_arrivals[is_rare]
    common_rates = expected_arrivals[~is_rare]
    exponents = np.arange(size + _N_EXTRA_TERMS)
    # nodes: times as shares of that time, from 1 down to a share before which no arm has arrived
    n_panels = np.ceil((_UNLIKELY_LOG + np.log(expected_arrivals.sum())) / _PANEL_WIDTH)
    x, weights = spread(_PANEL_WIDTH * np.arange(n_panels + 1))
    time, powers = np.exp(-x), np.exp(-x * exponents[:, None])
    # coefficients of y^j in (exp(y) - 1)^s, (size, j), and their sums over the rare arms
    series = np.eye(size, len(exponents))
    step = np.append(0.0, 1 / np.cumprod(np.maximum(exponents[1:], 1.0)))
    for s in range(1, size):
        series[s] = np.convolve(series[s - 1], step)[: len(step)]
    power_sums = (series * [(rare_rates**j).sum() for j in exponents]) @ powers
    # probability that 0, 1, ... of the rare arms have arrived (Newton's identities), then of all arms
    p_count = np.empty((size, 1, len(x)))
    p_count[0] = np.exp(-rare_rates.sum() * time)
    for r in range(1, size):
        p_count[r] = np.sum([(-1) ** (s - 1) * power_sums[s] * p_count[r - s] / r for s in range(1, r + 1)], axis=0)
    probability, log_cdf = np.zeros((size, len(logits))), -common_rates[:, None] * time
    if len(common_rates):
        leaves = _product_tree(_binomial_coefficients(np.ones(len(common_rates)), log_cdf, size), size)
        density = -log_cdf * np.exp(log_cdf) * weights
        probability[:, ~is_rare] = np.einsum("rgx,gx->rg", _products_without_leaf(leaves, p_count, size), density)
        p_count = _multiply_polynomials(leaves[-1], p_count, size)
    # divide one rare arm out of the product of all
    integrals = (p_count[:, 0] * weights) @ (powers * time).T
    for r in range(size):
        coefficients = np.sum([(-1) ** s * series[s] * integrals[r - s] for s in range(r + 1)], axis=0)
        probability[r, is_rare] = rare_rates * np.polynomial.polynomial.polyval(rare_rates, coefficients)
    return probability


def _probability_of_larger(
    count: Array, log_cdf: Array, singles: Index, groups: Index, size: int
) -> tuple[Array, Array]:
    """Leave out one score of each row, and return the probability that 0, 1, ... (fewer than size) of the other scores
    exceed each node.

    Two arrays (terms, rows, nodes) are returned: for the rows `singles`, whose count is 1, and for the rows
    `groups`, whose counts are larger and whose polynomials are longer. The probabilities are the coefficients of a
    product of polynomials, F + S z for each score, where F is its distribution function and S = 1 - F. All terms are
    positive, and no division is needed.

    count (g + 1,): the number of equal scores of each row; log_cdf (g + 1, nodes): the logarithm of F."""
    # products over all scores with count 1, and over all with larger counts
    ones = np.ones((1, 1, log_cdf.shape[1]))
    single_tree = _product_tree(_binomial_coefficients(np.ones(len(singles)), log_cdf[singles], size), size)
    group_tree = _product_tree(_binomial_coefficients(count[groups], log_cdf[groups], size), size)
    all_singles, all_groups = single_tree[-1] if len(singles) else ones, group_tree[-1] if len(groups) else ones
    # without one score: the others of its row, and the other rows
    same_row = _binomial_coefficients(count[groups] - 1, log_cdf[groups], size)
    other_rows = _products_without_leaf(group_tree, all_singles, size)
    return _products_without_leaf(single_tree, all_groups, size), _multiply_polynomials(other_rows, same_row, size)


def probability_of_others_above(log_cdf: Array, size: int) -> Array:
    """Return, for each score, the probability that 0, 1, ... size - 1 of the other scores exceed the node, (size, s,
    N).

    log_cdf (s, N): the logarithms of the distribution functions of the scores at the nodes."""
    leaves = _product_tree(_binomial_coefficients(np.ones(len(log_cdf)), log_cdf, size), size)
    return _products_without_leaf(leaves, np.ones((1, 1, log_cdf.shape[1])), size)


def _product_tree(leaves: Array, size: int) -> list[Array]:
    """Return the levels of a tree in which each node is the product of two neighbours of the level below. The last
    level is the product of all leaves, (terms, 1, nodes).

    leaves (terms, b, nodes): the coefficients of b polynomials; size: the largest number of terms that is kept."""
    levels = [leaves]
    while levels[-1].shape[1] > 1:
        levels.append(_multiply_polynomials(*_split_siblings(levels[-1]), size))
    return levels


def _products_without_leaf(levels: list[Array], outside: Array, size: int) -> Array:
    """Return, for each leaf, the product of `outside` and of all leaves but this leaf, (terms, leaves, nodes).

    levels: the levels of a `_product_tree`. The product of everything outside a subtree is the product outside its
    parent times its sibling. This takes size log(size) operations per leaf, not size^2."""
    for tree_level in reversed(levels[:-1]):
        left_half, right_half = _split_siblings(tree_level)
        pairs = np.stack(
            [_multiply_polynomials(outside, right_half, size), _multiply_polynomials(outside, left_half, size)], axis=2
        )
        outside = pairs.reshape(len(pairs), -1, pairs.shape[-1])[:, : tree_level.shape[1]]
    return outside[:, : levels[0].shape[1]]


def _split_siblings(members: Array) -> tuple[Array, Array]:
    """Return the even and the odd members of an array (terms, b, nodes). If the last member has no sibling, the sibling
    is the constant 1."""
    if members.shape[1] % 2:
        members = np.concatenate([members, np.zeros_like(members[:, :1])], axis=1)
        members[0, -1] = 1
    return members[:, 0::2], members[:, 1::2]


def _multiply_polynomials(left: Array, right: Array, size: int) -> Array:
    """Return the products of polynomials, cut to `size` terms.

    left, right (terms, b, nodes): the coefficients of the polynomials; b may be 1 on one side."""
    if len(left) < len(right):
        left, right = right, left
    n_terms = min(size, len(left) + len(right) - 1)
    product = np.zeros((n_terms, max(left.shape[1], right.shape[1]) if right.shape[1] else 0, left.shape[2]))
    for shift in range(min(len(right), n_terms)):
        product[shift : shift + len(left)] += left[: n_terms - shift] * right[shift]
    return product


def _binomial_coefficients(count: Array, log_cdf: Array, size: int) -> Array:
    """Return the coefficients of (F + S z)^count, (min(size, largest count + 1), rows, nodes).

    count (rows,): the exponent of each row; log_cdf (rows, nodes): the logarithm of F, where S = 1 - F."""
    n_terms = min(size, int(count.max(initial=0)) + 1)
    log_sf = np.log(np.maximum(-np.expm1(log_cdf), 1e-300))
    log_choose, coefficients = np.zeros((len(count), 1)), np.empty((n_terms, *log_cdf.shape))
    for r in range(n_terms):
        n_others = np.maximum(count - r, 0)[:, None]
        coefficients[r] = np.exp(log_choose + r * log_sf + n_others * log_cdf)
        with np.errstate(divide="ignore"):  # a group has no more members than its count
            log_choose = log_choose + np.log(n_others) - np.log(r + 1)
    return coefficients
