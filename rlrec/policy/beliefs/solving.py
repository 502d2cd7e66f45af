"""This module solves linear models. The sums of regressors per arm add up like counts, and determine the posteriors."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.records import Record

MAX_SHARED_WEIGHTS = 400
"""Weights that arms share: numbers of a context times numbers of an arm."""

_MIN_EIGENVALUE_SHARE = 1e-12  # smallest eigenvalue of a precision, as a share of its largest
_MIN_EIGENVALUE = 1e-300  # of an eigenvalue


class ArmMoments(Record, kw_only=False, eq=False):
    """An ArmMoments object holds sums over the slots of each of m arms. A slot has q features x of the context, and an
    arm has p features z.

    gram (..., m, q, q): sums of weight x x'; response (..., m, q): sums of (weighted reward) x; both without any
    prior. arm_features (m, p): the features of the arms, for models that all arms share; pool: the moments of all
    arms of the belief, if this object has fewer arms; solutions: the posteriors that were already computed from this
    object, by kind and parameters.

    Slots that were shown with stated features instead of the features of the catalogue are not in these sums.
    stated_sums: gram (pq, pq) and response (pq,) of the products z (x) x over all such slots. terms: the sums of such
    slots per arm, if arms also have separate weights."""

    gram: Array
    response: Array
    arm_features: Array | None = None
    pool: ArmMoments | None = None
    stated_sums: tuple[Array, Array] | None = None
    terms: StatedTerms | None = None
    solutions: dict[Any, Any] = field(default_factory=dict)


class StatedTerms(Record, kw_only=False, eq=False):
    """A StatedTerms object holds sums over all slots of each of t arms. A slot has the features z with which the arm
    was shown, and q features x of the context.

    rows (t,): the indices of these arms among the m arms of an `ArmMoments`; gram (t, q, q): sums of weight x x';
    response (t, q): sums of (weighted reward) x; cross (t, q, pq): sums of weight x (z (x) x)'."""

    rows: Index
    gram: Array
    response: Array
    cross: Array


def packed_width(q: int) -> int:
    """Return the length of the packed moments of one arm, with q features of the context."""
    return q * (q + 1) // 2 + q


def unpack(sums: Array, q: int) -> ArmMoments:
    """Return the moments of arms from their packed form.

    sums (..., m, width): for each arm the upper triangle of its gram by rows, then its response; q: the number of
    features."""
    return ArmMoments(gram=_fill_symmetric(sums[..., :-q], q), response=sums[..., -q:])


def _fill_symmetric(triangle: Array, q: int) -> Array:
    """Return symmetric matrices, (..., q, q), from their upper triangles.

    triangle (..., q (q + 1) / 2): the upper triangle of each matrix by rows."""
    row, column = np.triu_indices(q)
    matrix = np.empty((*triangle.shape[:-1], q, q))
    matrix[..., row, column] = triangle
    matrix[..., column, row] = triangle
    return matrix


def pack_each(x: Array, *, weight: Array, response: Array) -> Array:
    """Return the packed moments of each of n observations, (n, width).

    x (n, q): the features of each observation; weight (n,): the factor of x x'; response (n,): the factor of x."""
    row, column = np.triu_indices(x.shape[1])
    return np.concatenate([x[:, row] * x[:, column] * weight[:, None], x * response[:, None]], axis=1)


def pack_stated(rows: Array, z: Array, q: int) -> Array:
    """Return the packed moments of the products z (x) x, summed over n observations, (w,).

    rows (n, width): the weighted moments of x, as returned by `pack_each`; z (n, p): the features of the arm in each
    observation; q: the number of features of x. Of the gram zz' (x) xx', only the upper triangles of zz' and of xx'
    are stored."""
    row, column = np.triu_indices(z.shape[1])
    return np.concatenate([((z[:, row] * z[:, column]).T @ rows[:, :-q]).ravel(), (z.T @ rows[:, -q:]).ravel()])


def unpack_stated(sums: Array, p: int, q: int) -> tuple[Array, Array]:
    """Return the gram, (pq, pq), and the response, (pq,), from the result of `pack_stated`."""
    blocks = _fill_symmetric(sums[: -p * q].reshape(p * (p + 1) // 2, -1), q)
    gram = _fill_symmetric(blocks.transpose(1, 2, 0), p)
    return gram.transpose(2, 0, 3, 1).reshape(p * q, p * q), sums[-p * q :]


def pack_terms(rows: Array, z: Array, q: int) -> Array:
    """Return the packed sums of `StatedTerms` of one arm, (w,).

    rows (n, width): the weighted moments of x for n observations, as returned by `pack_each`; z (n, p): the features
    of the arm in each observation; q: the number of features of x."""
    return np.concatenate([(np.column_stack([np.ones(len(z)), z]).T @ rows[:, :-q]).ravel(), rows[:, -q:].sum(axis=0)])


def unpack_terms(sums: Array, moments: ArmMoments, features: Array, rows: Index) -> StatedTerms:
    """Return the `StatedTerms` of t arms from their packed sums.

    sums (t, w): the results of `pack_terms`, for slots with stated features; moments: the moments of all arms, for
    the other slots, which are added; features (t, p): the features of the catalogue, with which these other slots
    were shown; rows (t,): the indices of the t arms in `moments`."""
    (t, p), q = features.shape, moments.response.shape[-1]
    gram, blocks = moments.gram[rows], _fill_symmetric(sums[:, :-q].reshape(t, 1 + p, q * (q + 1) // 2), q)
    cross = (features[:, :, None, None] * gram[:, None] + blocks[:, 1:]).swapaxes(1, 2).reshape(t, q, p * q)
    return StatedTerms(rows, gram + blocks[:, 0], moments.response[rows] + sums[:, -q:], cross)


def terms_width(p: int, q: int) -> int:
    """Return the length of the packed `StatedTerms` of one arm."""
    return (1 + p) * (packed_width(q) - q) + q


class DisjointPosterior(Record, kw_only=False, eq=False):
    """A DisjointPosterior is the normal posterior of a model in which each of m arms has separate weights.

    weights (..., m, q): the mean weights; root (..., m, q, q): the covariance of an arm's weights is root' root.

    The methods take the features x of contexts, (..., q). Equal arms get bitwise equal numbers."""

    weights: Array
    root: Array

    @property
    def by_arm(self) -> Array:
        """Return the mean weights of each arm, (..., m, q)."""
        return self.weights

    def mean(self, x: Array) -> Array:
        """Return the mean of each arm's score, (..., m)."""
        return (self.weights * x[..., None, :]).sum(axis=-1)

    def deviation(self, x: Array) -> Array:
        """Return the standard deviation of each arm's score, (..., m)."""
        return np.linalg.norm((self.root * x[..., None, None, :]).sum(axis=-1), axis=-1)


class SharedPosterior(Record, kw_only=False, eq=False):
    """A SharedPosterior is the normal posterior of a model in which all arms share a matrix W. The score of an arm with
    features z is z'W x, for a context with features x.

    weights (..., p, q): the mean of W; root (..., pq, pq): the covariance of W is root' root. rows (g, p): the
    distinct features z of the m arms; row (m,): the index of each arm's features in `rows`."""

    weights: Array
    root: Array
    rows: Array
    row: Index

    @property
    def by_arm(self) -> Array:
        """Return the mean weights z'W of each arm, (..., m, q)."""
        return self._take_arms(self.rows @ self.weights)

    def mean(self, x: Array) -> Array:
        """Return the mean of each arm's score, (..., m)."""
        return self._take_arms(self.rows @ (self.weights @ x[..., None]))[..., 0]

    def factor(self, x: Array) -> Array:
        """Return a factor of the covariance of all scores, (..., m, p). The scores are mean + factor e, where e is a
        standard normal vector.

        The factor has p columns whatever q is, since W x is normal in p dimensions."""
        root_times_x = self.root.reshape(*self.root.shape[:-1], *self.weights.shape[-2:]) @ x[..., None, :, None]
        root_times_x = root_times_x[..., 0]
        return self._take_arms(self.rows @ cholesky(root_times_x.swapaxes(-1, -2) @ root_times_x))

    def deviation(self, x: Array) -> Array:
        """Return the standard deviation of each arm's score, (..., m)."""
        return np.linalg.norm(self.factor(x), axis=-1)

    def _take_arms(self, values: Array) -> Array:
        return values[..., self.row, :]


class HybridPosterior(Record, kw_only=False, eq=False):
    """A HybridPosterior is the normal posterior of a model in which all arms share a matrix W, and each arm also has
    separate weights v. The score of an arm with features z is (z'W + v) x. Given W, arms are independent.

    rows (g, p): the features of g distinct arms (arms are equal if neither their features nor their learned weights
    differ); row (m,): the index of each arm in `rows`. weights (..., g, q): the means of z'W + v; root (..., pq,
    pq): the root of the covariance of W; term_root (..., g, q, q): the root of the covariance of v given W; ridge:
    the prior precision of v."""

    weights: Array
    root: Array
    term_root: Array
    ridge: float
    rows: Array
    row: Index

    @property
    def by_arm(self) -> Array:
        """Return the mean weights of each arm, (..., m, q)."""
        return self.weights[..., self.row, :]

    def mean(self, x: Array) -> Array:
        """Return the mean of each arm's score, (..., m)."""
        return (self.weights * x[..., None, :]).sum(axis=-1)[..., self.row]

    def factor(self, x: Array) -> Array:
        """Return a factor of the part of the scores' covariance that is due to W, (..., m, pq).

        If W changes by D, the posterior mean of v changes in the opposite direction, the more the arm has learned.
        In total the score changes by z'D (ridge term_root'term_root) x."""
        residual_x = self.ridge * (self.term_root.swapaxes(-1, -2) @ self._term_halves(x)[..., None])[..., 0]
        regressors = (self.rows[:, :, None] * residual_x[..., None, :]).reshape(
            *residual_x.shape[:-1], self.root.shape[-1]
        )
        return (regressors @ self.root.swapaxes(-1, -2))[..., self.row, :]

    def term_deviation(self, x: Array) -> Array:
        """Return the standard deviation of each arm's score given W, (..., m)."""
        return np.linalg.norm(self._term_halves(x), axis=-1)[..., self.row]

    def deviation(self, x: Array) -> Array:
        """Return the standard deviation of each arm's score, (..., m)."""
        return np.hypot(np.linalg.norm(self.factor(x), axis=-1), self.term_deviation(x))

    def _term_halves(self, x: Array) -> Array:
        return (self.term_root * x[..., None, None, :]).sum(axis=-1)


class StatedHybridPosterior(HybridPosterior, kw_only=False, eq=False):
    """A StatedHybridPosterior is a `HybridPosterior` for arms whose features were stated, by the current request or by
    requests in which the arms were shown.

    rows (g, p): the requested features; cross (g, q, pq): the cross sums of `StatedTerms`."""

    cross: Array

    def factor(self, x: Array) -> Array:
        """Return a factor of the part of the scores' covariance that is due to W, (..., m, pq). If W changes by D, the
        score changes by z'D x minus the opposite change of v."""
        solved_x = self._term_halves(x)[..., None, :] @ self.term_root
        movement = (solved_x @ self.cross)[..., 0, :]
        regressors = (self.rows[:, :, None] * x[..., None, None, :]).reshape(movement.shape) - movement
        return (regressors @ self.root.swapaxes(-1, -2))[..., self.row, :]


def shared_moments(moments: ArmMoments, *, ridge: float) -> ArmMoments:
    """Return the moments from which the shared weights are computed if each arm also has separate weights.

    The separate weights are normal around 0 with precision `ridge`, and are integrated out. The regressors of an arm
    are thereby multiplied by ridge (ridge + gram)^-1. Source: Li et al. 2010, algorithm 2, whose B_a is gram times
    the features of the arm."""
    eigenvalues, eigenvectors = np.linalg.eigh(moments.gram)
    # forgetting may leave values slightly below 0
    eigenvalues = np.maximum(eigenvalues, 0.0)[..., None, :]
    remaining_share, stated_sums, terms = ridge / (ridge + eigenvalues), moments.stated_sums, moments.terms
    if stated_sums is not None and terms is not None:  # of these arms, minus B'A^-1 B, where B are the cross sums
        remaining_share[terms.rows] = 1.0
        inverse_factor = np.linalg.inv(cholesky(terms.gram + ridge * np.eye(terms.gram.shape[-1])))
        cross_root = (inverse_factor @ terms.cross).reshape(-1, terms.cross.shape[-1])
        response_root = (inverse_factor @ terms.response[..., None]).ravel()
        stated_sums = stated_sums[0] - cross_root.T @ cross_root, stated_sums[1] - cross_root.T @ response_root
    gram = (eigenvectors * (remaining_share * eigenvalues)) @ eigenvectors.swapaxes(-1, -2)
    response = (eigenvectors * remaining_share) @ (eigenvectors.swapaxes(-1, -2) @ moments.response[..., None])
    return replace(moments, gram=gram, response=response[..., 0], pool=None, stated_sums=stated_sums, solutions={})


def solve_shared(pool: ArmMoments, *, ridge: float, response: float) -> tuple[Array, Array]:
    """Return the shared weights of all arms, (..., p, q), and the root of their covariance, (..., pq, pq).

    pool: the moments of all arms; ridge: the prior precision of every weight; response: the response of the prior,
    which is added to the response of the first weight. The regressor of an arm with features z in context x is the
    Kronecker product z (x) x, so sums per arm suffice: A is the sum of zz' (x) gram over the arms, and b is the sum
    of z (x) response."""
    z = pool.arm_features
    assert z is not None
    (m, p), q = z.shape, pool.gram.shape[-1]
    # A: sums of zz' (x) gram over the arms, axes in the order of the Kronecker product
    flat_grams = pool.gram.reshape(*pool.gram.shape[:-2], q * q)
    grams = (z[:, :, None] * z[:, None, :]).reshape(m, p * p).T @ flat_grams
    a = grams.reshape(*grams.shape[:-2], p, p, q, q).swapaxes(-2, -3).reshape(*grams.shape[:-2], p * q, p * q)
    # b: sums of z (x) response
    b = (z.T @ pool.response).reshape(*grams.shape[:-2], p * q)
    b[..., :1] += response
    if pool.stated_sums is not None:
        a, b = a + pool.stated_sums[0], b + pool.stated_sums[1]
    weights, root = solve(a + ridge * np.eye(p * q), b)
    return weights.reshape(*weights.shape[:-1], p, q), root


def cholesky(matrix: Array) -> Array:
    """Return the Cholesky factor of each symmetric matrix, (..., d, d).

    Rounding may leave sums slightly wrong after forgetting. If a matrix is not positive definite, the smallest
    multiple of the identity is added that makes its smallest eigenvalue 1e-12 of the largest."""
    half_sum = (matrix + matrix.swapaxes(-1, -2)) / 2
    try:
        return np.asarray(np.linalg.cholesky(half_sum))
    except np.linalg.LinAlgError:
        eigenvalues = np.linalg.eigvalsh(half_sum)
        least = np.maximum(_MIN_EIGENVALUE_SHARE * eigenvalues[..., -1], _MIN_EIGENVALUE)
        shortfall = np.maximum(least - eigenvalues[..., 0], 0.0)
        return np.asarray(np.linalg.cholesky(half_sum + shortfall[..., None, None] * np.eye(half_sum.shape[-1])))


def solve(precision: Array, response: Array) -> tuple[Array, Array]:
    """Return the weights w that solve precision w = response, (..., d), and the inverse of the Cholesky factor of the
    precision, (..., d, d).

    precision (..., d, d): positive definite matrices; response (..., d): the right sides."""
    factor = cholesky(precision)
    root = np.asarray(np.linalg.inv(factor))
    weights = root.swapaxes(-1, -2) @ (root @ response[..., None])
    return weights[..., 0], root
