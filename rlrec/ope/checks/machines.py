"""This module tests whether more sessions click nearly everything than people account for, so that some must be
machines.

People differ in how often they click. If these rates follow a beta distribution, and the arms attract the most eager
people only a share of the time, the clicks of a session are beta-binomial, thinned by that share. Machines click
whatever they are shown: nine in ten slots, or more. Among sessions of similar length, the best fit of people alone
is compared with the best fit of people and machines. Shorter sessions also count in a fit, but with a limited
weight, since people who stay longer may differ. Source: own derivation; likelihood ratios of mixtures of thinned
beta-binomials."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.records import Sums

MIN_SLOTS, MAX_SLOTS = 4, 64  # slots of sessions in the test; of longer sessions the share of clicks counts
LEAST_CLICK_SHARE = 0.02  # of all clicks, from which on machines matter
LEAST_LOG_RATIO = 7.0  # log likelihood ratio, over all lengths
MAX_RATE = 0.6  # of clicks of people; above it, machines cannot be told from them
_EAGER_SHARE = 0.8  # share of slots above which a session may be a machine's
_LEAST_LENGTHS = (MIN_SLOTS, 8, 16, 32, MAX_SLOTS + 1)  # the smallest lengths of the classes
_MAX_SHORTER_WEIGHT = 100.0  # most sessions that all shorter ones together count as in a fit
_MEANS = np.array([0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8])
_PEOPLE_SPREADS = 2.0 ** np.arange(-5, 8)  # a + b of the beta distribution
_ATTRACTIONS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # share of the time that arms attract the most eager people
_MACHINE_RATES = 0.9 + 0.1 * (np.arange(40) + 0.5) / 40  # of machines
_MACHINE_SHARES = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)  # among sessions
_LEAST_PROBABILITY = 1e-12  # stands for the probability of clicks that a fit rules out


class SessionSums(Sums):
    """SessionSums counts sessions by their numbers of slots and of clicks.

    counts (65, 65): the number of sessions with each number of slots (row) and of clicks (column), from 0 to 64;
    longer sessions are scaled down to 64 slots."""

    counts: Array

    @classmethod
    def from_sessions(cls, slots: Ids, clicks: Ids) -> SessionSums:
        """Return the counts of one batch of entire sessions.

        slots, clicks (n,): the number of slots and the number of clicks of each session."""
        cell = np.ravel_multi_index(cells_of(slots, clicks), (MAX_SLOTS + 1, MAX_SLOTS + 1))
        return cls(np.bincount(cell, minlength=(MAX_SLOTS + 1) ** 2).reshape(MAX_SLOTS + 1, -1).astype(np.float64))

    @property
    def raises_alarm(self) -> bool:
        """Tell whether more sessions click nearly everything than people account for, and whether their share of all
        clicks is large enough to matter."""
        number = np.arange(MAX_SLOTS + 1)
        slots, clicks = self.counts.sum(axis=1) @ number, self.counts.sum(axis=0) @ number
        is_eager = (number[:, None] >= MIN_SLOTS) & (number > _EAGER_SHARE * number[:, None])
        if np.where(is_eager, self.counts, 0.0).sum(axis=0) @ number <= LEAST_CLICK_SHARE * clicks:
            return False
        gain, shares = machines(self.counts)
        machine_sessions = np.where(number[:, None] >= MIN_SLOTS, shares * self.counts, 0.0)
        machine_slots, machine_clicks = machine_sessions.sum(axis=1) @ number, machine_sessions.sum(axis=0) @ number
        has_many_clicks = machine_clicks > LEAST_CLICK_SHARE * clicks
        is_distinct = clicks - machine_clicks <= MAX_RATE * (slots - machine_slots)
        return bool(gain > LEAST_LOG_RATIO and has_many_clicks and is_distinct)


def cells_of(slots: Ids, clicks: Ids) -> tuple[Ids, Ids]:
    """Return two arrays (n,), the row and the column of each session in `SessionSums.counts`.

    slots, clicks (n,): the number of slots and the number of clicks of each session."""
    scale = np.minimum(1.0, MAX_SLOTS / np.maximum(slots, 1))
    return np.rint(slots * scale).astype(np.int64), np.rint(clicks * scale).astype(np.int64)


def machines(counts: Array) -> tuple[float, Array]:
    """Return the logarithm of the likelihood ratio of a mixture of people and machines against people alone, and the
    probability that a session with each number of slots and clicks is a machine's, (65, 65). Shorter sessions say
    little about machines, so the share of machines among them is taken from the longer sessions.

    counts (65, 65): the number of sessions with each number of slots and clicks."""
    gain, shares = 0.0, np.zeros_like(counts)
    shorter_fit, n_fitted = np.zeros(len(_MEANS) * len(_PEOPLE_SPREADS) * len(_ATTRACTIONS)), 0.0
    for start, end in pairwise((2, *_LEAST_LENGTHS)):
        slots, clicks = np.nonzero(counts[start:end])
        if not len(slots):
            continue
        slots += start
        number = counts[slots, clicks]
        p_people, p_machine = _click_probabilities(slots, clicks)
        weights = _MACHINE_SHARES if start >= MIN_SLOTS else _MACHINE_SHARES[:1]
        shorter_fit *= min(1.0, _MAX_SHORTER_WEIGHT / max(n_fitted, 1.0))
        fits = [
            shorter_fit + np.log(np.maximum((1 - weight) * p_people + weight * p_machine, _LEAST_PROBABILITY)) @ number
            for weight in weights
        ]
        best_index = int(np.argmax([fit.max() for fit in fits]))
        gain += float(fits[best_index].max() - fits[0].max())
        machine_mass = weights[best_index] * p_machine
        people_mass = (1 - weights[best_index]) * p_people[fits[best_index].argmax()]
        shares[slots, clicks] = machine_mass / np.maximum(machine_mass + people_mass, _LEAST_PROBABILITY)
        shorter_fit, n_fitted = fits[best_index], min(n_fitted, _MAX_SHORTER_WEIGHT) + float(number.sum())
    slots, clicks = np.nonzero(counts[:MIN_SLOTS])
    weight = float((shares * counts)[MIN_SLOTS:].sum() / max(counts[MIN_SLOTS:].sum(), 1.0))
    if len(slots) and weight:
        p_people, p_machine = _click_probabilities(slots, clicks)
        mixtures = (1 - weight) * p_people + weight * p_machine
        best_index = int((np.log(np.maximum(mixtures, _LEAST_PROBABILITY)) @ counts[slots, clicks]).argmax())
        shares[slots, clicks] = weight * p_machine / np.maximum(mixtures[best_index], _LEAST_PROBABILITY)
    return gain, shares


def _click_probabilities(slots: Ids, clicks: Ids) -> tuple[Array, Array]:
    """Return the probability of each of c pairs of a number of slots and a number of clicks, for each of g
    distributions of people, (g, c), and for machines, (c,).

    slots, clicks (c,): the pairs, in ascending order of slots."""
    a, b, rising_both, log_choose, thinning = _log_tables()
    p_people = []
    for n in np.unique(slots).tolist():
        k, columns = np.arange(n + 1), clicks[slots == n]
        beta_binomial = np.exp(log_choose[n, : n + 1] + a[:, k] + b[:, n - k] - rising_both[:, n, None])
        p_people.append(np.concatenate([beta_binomial @ table[: n + 1, columns] for table in thinning]))
    log_machine = clicks[:, None] * np.log(_MACHINE_RATES) + (slots - clicks)[:, None] * np.log1p(-_MACHINE_RATES)
    return np.concatenate(p_people, axis=1), np.exp(log_choose[slots, clicks][:, None] + log_machine).mean(axis=1)


@cache
def _log_tables() -> tuple[Array, Array, Array, Array, list[Array]]:
    """Return tables for g beta distributions of people. Three tables (g, 65) are the logarithms of a (a + 1) ..., of b
    (b + 1) ..., and of the same product for a + b. The fourth has the logarithms of binomial coefficients, (65, 65).
    The last are, for each share in _ATTRACTIONS, the probabilities that k of n clicks remain, (65, 65)."""
    mean, spread = (grid.ravel() for grid in np.meshgrid(_MEANS, _PEOPLE_SPREADS, indexing="ij"))
    log_products = [
        np.cumsum(np.c_[np.zeros(len(x)), np.log(x[:, None] + np.arange(MAX_SLOTS))], axis=1)
        for x in (mean * spread, (1 - mean) * spread, spread)
    ]
    log_factorial = np.r_[0.0, np.cumsum(np.log(np.arange(1, MAX_SLOTS + 1)))]
    n, k = np.indices((MAX_SLOTS + 1, MAX_SLOTS + 1))
    n_lost = np.maximum(n - k, 0)
    log_choose = log_factorial[n] - log_factorial[k] - log_factorial[n_lost]
    thinning = [np.where(k <= n, np.exp(log_choose) * share**k * (1 - share) ** n_lost, 0.0) for share in _ATTRACTIONS]
    return log_products[0], log_products[1], log_products[2], log_choose, thinning
