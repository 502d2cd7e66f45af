"""This module computes the returns of visits, which are the sums of rewards from a decision on. It also reshapes
returns by potentials, and computes baselines.

Subtracting a baseline leaves the expected gradient the same and reduces the noise of the gradient."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array, Ids, numbers_in_runs
from rlrec.errors import InputError
from rlrec.records import Sums

BASELINES = ("none", "mean", "value", "rloo")
N_FOLDS = 2  # of cross-fitting
_RIDGE = 1.0  # of a ridge, in decisions, for features of size about 1


def discount_rewards(reward: Array, start: Ids, *, gamma: float) -> Array:
    """Return the discounted return of every step, (n,), in the unit of `reward`. Raises InputError unless every visit
    has a step and gamma is in [0, 1].

    reward (n,): the reward of every step, one visit after another; start (s + 1,): the index at which each visit
    begins, and the end of the last visit; gamma: the discount per step, in [0, 1]. Source: Sutton & Barto 2018, eq.
    3.8."""
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma is {gamma:g}", hint="it lies between 0 and 1")
    if len(start) == 0 or start[0] != 0 or start[-1] != len(reward) or (np.diff(start) < 1).any():
        raise InputError("visits do not lie end to end")
    step_returns = np.array(reward, np.float64)
    length = np.diff(start)
    order = np.argsort(-length, kind="stable")
    visit_starts, lengths = start[:-1][order], length[order]
    for step in range(int(lengths.max(initial=0)) - 2, -1, -1):
        rows = visit_starts[: np.searchsorted(-lengths, -(step + 2), side="right")] + step
        step_returns[rows] += gamma * step_returns[rows + 1]
    return step_returns


def steps(start: Ids) -> Ids:
    """Return the number of earlier decisions in the visit of each decision, (n,).

    start (s + 1,): the index at which each visit begins, and the end of the last visit."""
    return numbers_in_runs(start[:-1], int(start[-1]))


def shape_returns(returns: Array, potential: Array) -> Array:
    """Return the returns, (n,), under the rewards r + gamma Phi(s') - Phi(s), where the potential Phi is 0 after the
    end of the visit.

    Each return is reduced by the potential of its state, and the order of policies by their returns stays the same.
    returns (n,), potential (n,): the return and the potential of each state, in the unit of the reward. Source: Ng,
    Harada & Russell 1999 (own derivation of the sum, which telescopes)."""
    return returns - potential


# -- baselines --


class ValueSums(Sums):
    """A ValueSums object holds the normal equations of the regression of returns on states, for each fold (group of
    visits). The sums of batches can be added.

    gram (N_FOLDS, d + 1, d + 1), xty (N_FOLDS, d + 1): the sums of x x' and of x times the return, where the first
    feature is an intercept."""

    gram: Array
    xty: Array


def value_sums(x: Array, returns: Array, fold: Ids) -> ValueSums:
    """Return the `ValueSums` of one batch of n states.

    x (n, d): the features of the states; returns (n,): the returns; fold (n,): the fold of each state's visit."""
    width = x.shape[1] + 1
    gram, xty = np.zeros((N_FOLDS, width, width)), np.zeros((N_FOLDS, width))
    for k in range(N_FOLDS):
        rows = fold == k
        columns = np.column_stack([np.ones(int(rows.sum())), x[rows]])
        gram[k], xty[k] = columns.T @ columns, columns.T @ returns[rows]
    return ValueSums(gram, xty)


def fit(sums: ValueSums) -> Array:
    """Return the coefficients for each fold, (N_FOLDS, d + 1), fitted to the visits of the other folds.

    The value of a state thus does not depend on the return of the same state."""
    coefficients = np.empty(sums.xty.shape)
    for k in range(N_FOLDS):
        gram, xty = sums.gram.sum(axis=0) - sums.gram[k], sums.xty.sum(axis=0) - sums.xty[k]
        ridge = np.full(len(xty), _RIDGE)
        ridge[0] = 1e-9
        coefficients[k] = np.linalg.solve(gram + np.diag(ridge), xty)
    return coefficients


def values(x: Array, fold: Ids, coefficients: Array) -> Array:
    """Return the predicted value of each state, (n,), in the unit of the return.

    x (n, d): the features of the states; fold (n,): the fold of each state's visit; coefficients: the result of
    `fit`."""
    weights = coefficients[fold]
    return weights[:, 0] + np.einsum("nd,nd->n", x, weights[:, 1:])


def rloo(returns: Array, step: Ids) -> Array:
    """Return the leave-one-out baseline, (n,), which is the mean return of the other visits at the same step.

    If no other visit has this step, the baseline is the mean of all other returns. returns (n,): the return of each
    decision; step (n,): the step of the decision in its visit. Source: own derivation (a mean without one term is
    independent of this term)."""
    count, total = np.bincount(step), np.bincount(step, weights=returns)
    n_others = count[step] - 1
    mean_of_others = (returns.sum() - returns) / max(1, len(returns) - 1)
    return np.where(n_others > 0, (total[step] - returns) / np.maximum(n_others, 1), mean_of_others)
