"""The probability of lists of candidates under the distribution of a first stage."""

from __future__ import annotations

import numpy as np

from rlrec.app.distributions.exact import EligibleDistribution
from rlrec.arrays import Array, Ids, Words
from rlrec.policy import slate


def conditionals(case: EligibleDistribution, lists: Ids, *, seeds: Words, decisions: Ids) -> Array:
    """Probability of each candidate given those before it, (n, k); 0 for lists that are not made of the case's arms.

    lists (n, k): ids in order. seeds, decisions (n,): those of correlated scores, whose samples each decision draws."""
    arms = case.arms
    places = np.minimum(np.searchsorted(arms, lists), len(arms) - 1)
    possible = np.flatnonzero((arms[places] == lists).all(axis=1))
    probability = np.zeros(lists.shape)
    if not case.scores.samples:
        probability[possible] = slate.conditionals(case.scores, places[possible], floor=case.floor)
        return probability
    for row in possible.tolist():
        scores = case.scores.of_decision(int(seeds[row]), int(decisions[row]))
        probability[row] = slate.conditionals(scores, places[row : row + 1], floor=case.floor)[0]
    return probability


def inclusion(case: EligibleDistribution, size: int) -> Array:
    """Probability that each arm is among `size` candidates, (m,); NaN for correlated scores."""
    return case.pages(size).marginals.sum(axis=0)
