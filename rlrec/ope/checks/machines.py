"""Sessions that click nearly everything: whether there are more of them than people account for.

People differ in how often they click. If they do so by a beta distribution, the clicks of a session are beta-binomial.
Such a distribution is fitted to the sessions that did not click nearly everything, among those of similar length, and
says how many others go with them: the most that a fit says which is about as likely as the best one. Machines that
click whatever they are shown, at any position, stand apart from that, the more the longer their sessions are.
Source: own derivation; truncated beta-binomial likelihoods within 1 of the largest one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from rlrec.arrays import Array, Flags, Ids
from rlrec.records import Sums

FEWEST, LARGEST = 4, 64  # slots of sessions that are looked at; of longer ones the share of clicks counts
NEARLY_ALL = 0.8, 0.85  # shares of slots; either tells
LEAST_SHARE = 0.02  # of all clicks, that such sessions must have to matter
EXCESS = 1.3  # times as many sessions as people account for
LARGEST_RATE = 0.6  # of clicks in all other sessions, up to which they stand apart
_CLASSES = (FEWEST, 8, 16, 32, LARGEST + 1)  # of lengths
_SHORTER = 15.0  # sessions that all shorter ones count as in a fit, at most
_MEANS = np.array([0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8])
_SPREADS = 2.0 ** np.arange(-5, 8)  # a + b of the beta distribution
_MARGIN = 1.0  # of log likelihoods


@dataclass(frozen=True, eq=False)
class SessionSums(Sums):
    """How many sessions have so many slots and clicks, (65, 65)."""

    counts: Array

    @classmethod
    def from_sessions(cls, slots: Ids, clicks: Ids) -> SessionSums:
        """The sums of one batch of entire sessions. slots, clicks (n,): of each, as counts."""
        scale = np.minimum(1.0, LARGEST / np.maximum(slots, 1))
        cell = np.rint(slots * scale).astype(np.int64) * (LARGEST + 1) + np.rint(clicks * scale).astype(np.int64)
        return cls(np.bincount(cell, minlength=(LARGEST + 1) ** 2).reshape(LARGEST + 1, -1).astype(np.float64))

    @property
    def alarms(self) -> bool:
        """Whether more sessions click nearly everything than people account for, and have a share of all clicks."""
        return any(_stand_apart(self.counts, share) for share in NEARLY_ALL)


def _stand_apart(counts: Array, share: float) -> bool:
    number = np.arange(LARGEST + 1)
    others = np.where(_eager_cells(share), 0.0, counts)
    slots, clicks, all_clicks = (others.sum(axis=1) @ number, others.sum(axis=0) @ number, counts.sum(axis=0) @ number)
    if all_clicks - clicks <= LEAST_SHARE * all_clicks or clicks > LARGEST_RATE * slots:
        return False
    eager, expected = eager_sessions(counts, share)
    return eager > EXCESS * expected + 4 * expected**0.5 + 5


def eager_sessions(counts: Array, share: float) -> tuple[float, float]:
    """How many sessions click nearly everything, and how many of them people account for at most. counts: as in
    `SessionSums`."""
    log_pmf, log_eager = _beta_binomials(share)
    is_eager = _eager_cells(share)
    others, eager = np.where(is_eager, 0.0, counts), np.where(is_eager, counts, 0.0)
    log_eager = np.minimum(log_eager, -1e-9)
    log_other = np.log1p(-np.exp(log_eager))
    fit, fitted = np.einsum("gnk,nk->g", log_pmf[:, 2:FEWEST], counts[2:FEWEST]), counts[2:FEWEST].sum()
    expected = 0.0
    for start, end in pairwise(_CLASSES):
        lengths, numbers = slice(start, end), others[start:end].sum(axis=1)
        class_fit = np.einsum("gnk,nk->g", log_pmf[:, lengths], others[lengths]) - log_other[:, lengths] @ numbers
        fit = class_fit + fit * min(1.0, _SHORTER / max(fitted, 1.0))
        fitted = numbers.sum() + min(fitted, _SHORTER)
        odds = np.exp(log_eager[:, lengths] - log_other[:, lengths]) @ numbers
        expected += float(odds[fit >= fit.max() - _MARGIN].max())
    return float(eager.sum()), expected


def _eager_cells(share: float) -> Flags:
    number = np.arange(LARGEST + 1)
    return (number[:, None] >= FEWEST) & (number > share * number[:, None])


@cache
def _beta_binomials(share: float) -> tuple[Array, Array]:
    """Log probabilities of so many clicks of so many slots by each fit, (g, 65, 65), and of nearly all of them,
    (g, 65)."""
    mean, spread = (grid.ravel() for grid in np.meshgrid(_MEANS, _SPREADS, indexing="ij"))
    a, b, number = mean * spread, (1 - mean) * spread, np.arange(LARGEST)

    def log_rising(x: Array) -> Array:
        return np.cumsum(np.c_[np.zeros(len(x)), np.log(x[:, None] + number)], axis=1)

    n, k = np.tril_indices(LARGEST + 1)
    log_factorial = np.r_[0.0, np.cumsum(np.log(np.arange(1, LARGEST + 1)))]
    log_pmf = np.full((len(a), LARGEST + 1, LARGEST + 1), -1e3)
    ways = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    log_pmf[:, n, k] = ways + log_rising(a)[:, k] + log_rising(b)[:, n - k] - log_rising(a + b)[:, n]
    eager = np.where(_eager_cells(share), np.exp(log_pmf), 0.0).sum(axis=2)
    return log_pmf, np.log(np.maximum(eager, 1e-300))
