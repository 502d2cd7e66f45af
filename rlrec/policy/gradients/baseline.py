"""Baselines: what is subtracted from returns. The gradient stays the same on average, and has less noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.records import Sums

BASELINES = ("none", "mean", "value", "rloo")
FOLDS = 2
_PULL = 1.0  # of a ridge, in decisions: features are of the size of 1


@dataclass(frozen=True, eq=False)
class ValueSums(Sums):
    """Normal equations of the regression of returns on states, for each fold: they add up.

    gram (FOLDS, d + 1, d + 1), xty (FOLDS, d + 1); the first column is an intercept."""

    gram: Array
    xty: Array


def value_sums(x: Array, returns: Array, fold: Ids) -> ValueSums:
    """Sums of one batch: states x (n, d), returns (n,), and the fold of the visit that each belongs to, (n,)."""
    width = x.shape[1] + 1
    gram, xty = np.zeros((FOLDS, width, width)), np.zeros((FOLDS, width))
    for k in range(FOLDS):
        rows = fold == k
        columns = np.column_stack([np.ones(int(rows.sum())), x[rows]])
        gram[k], xty[k] = columns.T @ columns, columns.T @ returns[rows]
    return ValueSums(gram, xty)


def fit(sums: ValueSums) -> Array:
    """Coefficients for each fold, (FOLDS, d + 1), from the visits of the others: no state is valued by its own
    return."""
    coefficients = np.empty(sums.xty.shape)
    for k in range(FOLDS):
        gram, xty = sums.gram.sum(axis=0) - sums.gram[k], sums.xty.sum(axis=0) - sums.xty[k]
        pull = np.full(len(xty), _PULL)
        pull[0] = 1e-9
        coefficients[k] = np.linalg.solve(gram + np.diag(pull), xty)
    return coefficients


def values(x: Array, fold: Ids, coefficients: Array) -> Array:
    """Value of each state, (n,), in the unit of the return."""
    weights = coefficients[fold]
    return weights[:, 0] + np.einsum("nd,nd->n", x, weights[:, 1:])


def rloo(returns: Array, step: Ids) -> Array:
    """Leave-one-out baseline, (n,): the mean return of the other visits at the same step; where no other visit has that
    step, the mean of all other returns.

    returns (n,); step (n,): of its visit. Source: own derivation (a mean without one term is independent of it)."""
    count, total = np.bincount(step), np.bincount(step, weights=returns)
    n_others = count[step] - 1
    mean_of_others = (returns.sum() - returns) / max(1, len(returns) - 1)
    return np.where(n_others > 0, (total[step] - returns) / np.maximum(n_others, 1), mean_of_others)
