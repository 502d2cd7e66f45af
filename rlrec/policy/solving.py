"""Posteriors of linear models: sums of regressors and a prior solved for weights and their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.policy.moments import Moments

LARGEST = 400
"""Weights of a shared model: numbers of a context times numbers of an arm."""

_SINGULAR = 1e-12  # of the largest eigenvalue: what a precision has at least in every direction
_SMALLEST = 1e-300  # of an eigenvalue


@dataclass(frozen=True, eq=False)
class Disjoint:
    """Each arm's own weights: normal with mean weights (..., m, q) and covariance root' root, root (..., m, q, q).

    x below are features of contexts, (..., q); equal arms get equal numbers to the last bit."""

    weights: Array
    root: Array

    @property
    def each(self) -> Array:
        """Weights of each arm, (..., m, q)."""
        return self.weights

    def mean(self, x: Array) -> Array:
        """Of each arm's score, (..., m)."""
        return np.asarray((self.weights * x[..., None, :]).sum(axis=-1))

    def deviation(self, x: Array) -> Array:
        """Standard deviation of each arm's score, (..., m)."""
        return _norm((self.root * x[..., None, None, :]).sum(axis=-1))


@dataclass(frozen=True, eq=False)
class Shared:
    """One matrix W for all arms, the score of an arm with features z being z'W x, as `Disjoint` in the rest.

    weights (..., p, q), root (..., pq, pq). kinds (g, p) are the different rows z of the m arms, kind (m,) whose."""

    weights: Array
    root: Array
    kinds: Array
    kind: Index

    @property
    def each(self) -> Array:
        """What the weights amount to for each arm, (..., m, q)."""
        return self._arms(self.kinds @ self.weights)

    def mean(self, x: Array) -> Array:
        """Of each arm's score, (..., m)."""
        return self._arms(self.kinds @ (self.weights @ x[..., None]))[..., 0]

    def factor(self, x: Array) -> Array:
        """A factor of the covariance of all scores, (..., m, p): they are mean + factor z, z standard normal.

        W x alone is normal in p dimensions, whatever q is."""
        halves = self.root.reshape(*self.root.shape[:-1], *self.weights.shape[-2:]) @ x[..., None, :, None]
        halves = halves[..., 0]
        return self._arms(self.kinds @ factored(halves.swapaxes(-1, -2) @ halves))

    def deviation(self, x: Array) -> Array:
        """Standard deviation of each arm's score, (..., m)."""
        return _norm(self.factor(x))

    def _arms(self, found: Array) -> Array:
        return found[..., self.kind, :]


def disjoint(moments: Moments, *, ridge: float, precision: Array, response: Array) -> Disjoint:
    """Weights of each arm by itself, from its own moments.

    ridge: prior precision of every weight; precision, response (..., m): what the prior adds to that of weight 0
    and to its response. Source: Li et al. 2010 (A and b of LinUCB), with a prior."""
    q = moments.gram.shape[-1]
    whole = moments.gram + ridge * np.eye(q)
    told = np.broadcast_to(moments.response, (*whole.shape[:-1],)).copy()
    if q:
        whole[..., 0, 0] += precision
        told[..., 0] += response
    return Disjoint(*_solved(whole, told))


def shared(pool: Moments, *, ridge: float, response: float) -> tuple[Array, Array]:
    """Weights (..., p, q) of all arms together, and their root, from the moments of the pool.

    The regressor of arm z in context x is the Kronecker product of both, so that sums per arm serve it too: A is the
    sum of zz' (x) gram, b that of z (x) response. response: what the prior adds to the response of weight 0."""
    z = pool.described
    assert z is not None
    (m, p), q = z.shape, pool.gram.shape[-1]
    flat = pool.gram.reshape(*pool.gram.shape[:-2], q * q)
    both = (z[:, :, None] * z[:, None, :]).reshape(m, p * p).T @ flat
    whole = both.reshape(*both.shape[:-2], p, p, q, q).swapaxes(-2, -3).reshape(*both.shape[:-2], p * q, p * q)
    told = (z.T @ pool.response).reshape(*both.shape[:-2], p * q)
    told[..., :1] += response
    weights, root = _solved(whole + ridge * np.eye(p * q), told)
    return weights.reshape(*weights.shape[:-1], p, q), root


def alike(described: Array) -> tuple[Array, Index]:
    """The different rows, and which of them each row is."""
    kinds, kind = np.unique(described, axis=0, return_inverse=True)
    return kinds, kind.reshape(-1)


def factored(matrix: Array) -> Array:
    """Cholesky factors of symmetric matrices (..., d, d).

    What is left of forgotten sums may be off by rounding. A matrix that is not positive definite is lifted by the
    least that gives it 1e-12 of its largest eigenvalue in every direction."""
    even = (matrix + matrix.swapaxes(-1, -2)) / 2
    try:
        return np.asarray(np.linalg.cholesky(even))
    except np.linalg.LinAlgError:
        values = np.linalg.eigvalsh(even)
        short = np.maximum(np.maximum(_SINGULAR * values[..., -1], _SMALLEST) - values[..., 0], 0.0)
        return np.asarray(np.linalg.cholesky(even + short[..., None, None] * np.eye(even.shape[-1])))


def _solved(precision: Array, response: Array) -> tuple[Array, Array]:
    """The weights that solve precision (..., d, d) w = response (..., d), and the inverse of the precision's factor."""
    factor = factored(precision)
    root = np.asarray(np.linalg.inv(factor))
    weights = root.swapaxes(-1, -2) @ (root @ response[..., None])
    return weights[..., 0], root


def _norm(rows: Array) -> Array:
    return np.asarray(np.sqrt((rows * rows).sum(axis=-1)))
