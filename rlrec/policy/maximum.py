"""Who is the best, and who stands at which rank, when independent random scores are ranked: exact, by quadrature."""

from __future__ import annotations

import numpy as np

from rlrec.policy.scores import Array
from rlrec.policy.table import Table

_ENTRIES = 1 << 21  # numbers in a working array


def best(table: Table) -> Array:
    """Probability that one score of each row is the best of all, (g + 1,).

    The integral of f_i times the product of the other F_j. Source: own derivation; error below 1e-12."""
    return np.asarray(table.hazard @ (table.weights * np.exp(table.log_all)))


def ranks(table: Table, size: int) -> Array:
    """Probability that one score of each row stands at rank r = 1..size, (size, g + 1).

    The integral of f_i times the probability that r - 1 of the others are larger (Poisson-binomial, truncated).
    Source: own derivation; all terms are positive, nothing is divided out."""
    found = np.zeros((size, len(table.count)))
    step = max(1, _ENTRIES // (len(table.count) * size))
    for start in range(0, len(table.nodes), step):
        part = slice(start, start + step)
        others = _others(table.count, table.log_cdf[:, part], size)
        found[: others.shape[1]] += np.einsum(
            "grx,gx->rg", others, table.pdf[:, part] * table.weights[part], optimize=True
        )
    return found


def _others(count: Array, log_cdf: Array, size: int) -> Array:
    """Probability that 0..size-1 of the scores other than one of row g exceed the node, (g, up to size, nodes).

    Polynomials in z, whose coefficients these are, multiplied up a binary tree and then down it: what stands outside
    a subtree is what stands outside its parent times the sibling. Cost g size log(size) a node, not g size^2."""
    levels = [_binomial(count, log_cdf, size)]
    while len(levels[-1]) > 1:
        levels.append(_product(*_siblings(levels[-1]), size))
    outside = np.ones((1, 1, log_cdf.shape[1]))
    for level in reversed(levels[:-1]):
        left, right = _siblings(level)
        both = np.stack([_product(outside, right, size), _product(outside, left, size)], axis=1)
        outside = both.reshape(-1, *both.shape[2:])[: len(level)]
    if count.max() > 1:
        outside = _product(outside, _binomial(np.maximum(count - 1, 0), log_cdf, size), size)
    return outside


def _siblings(level: Array) -> tuple[Array, Array]:
    """Even and odd members; a last one without sibling gets the constant 1."""
    if len(level) % 2:
        one = np.zeros((1, *level.shape[1:]))
        one[:, 0] = 1
        level = np.concatenate([level, one])
    return level[0::2], level[1::2]


def _product(left: Array, right: Array, size: int) -> Array:
    """Products of polynomials (b, terms, nodes), cut to `size` terms."""
    if left.shape[1] < right.shape[1]:
        left, right = right, left
    terms = min(size, left.shape[1] + right.shape[1] - 1)
    product = np.zeros((len(left), terms, left.shape[2]))
    for shift in range(min(right.shape[1], terms)):
        product[:, shift : shift + left.shape[1]] += left[:, : terms - shift] * right[:, shift : shift + 1]
    return product


def _binomial(count: Array, log_cdf: Array, size: int) -> Array:
    """Coefficients of (F + S z)^count, (g, min(size, largest count + 1), nodes)."""
    terms = min(size, int(count.max()) + 1)
    r = np.arange(terms)[:, None]
    with np.errstate(divide="ignore"):
        log_sf = np.log(-np.expm1(log_cdf))[:, None]
        choose = np.cumsum(
            np.log(np.maximum(count[:, None, None] - r + 1, 0)) - np.log(np.maximum(r, 1)), axis=1
        )
    choose -= choose[:, :1]
    with np.errstate(invalid="ignore"):
        power = np.where(r > 0, r * log_sf, 0.0)
    inside = r <= count[:, None, None]
    log_terms = np.where(inside, choose + power + (count[:, None, None] - r) * log_cdf[:, None], -np.inf)
    return np.exp(log_terms)
