"""This module tests the propensities of a logger by betting against them. The tests may be repeated every night.

1{shown} / p, where p is the logged probability, has mean 1 given the past. A gambler who bets that it is larger, or
smaller, gains nothing from an honest log on average: his wealth is a martingale that starts at 1, and the
probability that it ever reaches w is at most 1 / w (Ville's inequality), however often it is checked. Several bets
side by side, in shares fixed before each draw, count as one such gambler. Source: own derivation from Ville's
inequality."""

from __future__ import annotations

from dataclasses import field

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.sums.moments import BET_SHARES as DYADIC_SHARES
from rlrec.records import Sums

# A bet on "more" stakes a fixed share of its money: each draw multiplies it by 1 + stake (1{shown}/p - 1), which needs
# the p of shown arms only. The best stake is (q - p) / (1 - p), where q is the true probability of the arm.
MORE_SHARES = np.r_[2.0 ** -np.arange(12, 0, -1), 0.9]
# A bet on "less" multiplies its money by 1 - stake (1{shown}/p - 1), and must not lose more than it has: its stake is
# this share of m / (1 - m), where m <= p is the smallest propensity of any arm, which is known before the draw.
LESS_SHARES = np.r_[2.0 ** -np.arange(6, 0, -1), 0.9]
# The first bet stakes nothing, so that bad luck never leaves the gambler without money.
N_BETS = 1 + len(MORE_SHARES) + len(LESS_SHARES)

REDISTRIBUTED_SHARE = 1e-3  # share of each bet's money that is redistributed over all bets between two batches
MAX_WEIGHT = 1e100  # larger weights 1 / p are cut to this


def log_factors_not_shown(least: Array) -> Array:
    """Return the logarithm of the factor by which the wealth of each bet is multiplied if the arm was eligible but not
    shown, (N_BETS, n).

    least (n,): the smallest propensity of any eligible arm, or 0 if it is unknown. If only one arm is eligible
    (least 1), nobody bets that it is shown less often."""
    more_factors = np.repeat(np.log1p(-MORE_SHARES)[:, None], len(least), axis=1)
    return np.vstack([np.zeros(len(least)), more_factors, np.log1p(LESS_SHARES[:, None] * _odds(least))])


def log_factors_shown(p: Array, least: Array) -> Array:
    """Return the logarithm of the factor by which the wealth of each bet is multiplied if the arm was shown, (N_BETS,
    n).

    p (n,): the propensity of the arm, above 0; least (n,): the smallest propensity of any eligible arm, or 0 if it
    is unknown."""
    gain = np.minimum(1 / p, MAX_WEIGHT) - 1
    # stays below 1 although p and least are rounded
    loss = np.minimum(LESS_SHARES[:, None] * _odds(least) * gain, LESS_SHARES[:, None])
    return np.vstack([np.zeros(len(p)), np.log1p(MORE_SHARES[:, None] * gain), np.log1p(-loss)])


def _odds(least: Array) -> Array:
    has_odds = (least > 0) & (least < 1)
    return np.where(has_odds, least, 0.0) / np.where(has_odds, 1 - least, 1.0)


def spread_wealth(log: Array) -> Array:
    """Return the logarithm of the wealth of the bets after a small share of it has been redistributed over all bets,
    (N_BETS, m). If a logger becomes wrong after a long honest time, there are then still bets with money.

    log (N_BETS, m): the logarithm of the wealth of each bet."""
    return np.logaddexp(np.log1p(-REDISTRIBUTED_SHARE) + log, np.log(REDISTRIBUTED_SHARE) + log_wealth(log))


def log_wealth(log: Array) -> Array:
    """Return the logarithm of the mean wealth of all bets, (m,).

    log (N_BETS, m): the logarithm of the wealth of each bet."""
    largest_log = log.max(axis=0)
    return largest_log + np.log(np.exp(log - largest_log).mean(axis=0))


# -- a test of logged propensities on one log: whether arms were shown as often as their propensities say --
#
# A bet on "more" multiplies its money by 1 + stake (1{shown}/p - 1) at each decision. It gains nothing from an honest
# log on average, so its wealth reaches w with probability at most 1 / w (Markov's inequality). Where one arm is shown
# less often than its propensities say, another is shown more often, so bets on "more" suffice. Source: own derivation.

BET_ALPHA = 1e-3  # probability of a false alarm, over all arms of a log
BET_SHARES = 2.0 ** -np.array([10, 7, 5, 3, 2, 1])
_LEAST_PROPENSITY = 1e-200  # smaller propensities are not bet on


class BetSums(Sums):
    """BetSums holds the logarithm of the wealth of every bet on every arm, `log` (bets, m). The sums of two batches can
    be added."""

    log: Array = field(default_factory=lambda: np.zeros((len(BET_SHARES), 1)))


def bet_sums(p: Array, arm: Ids, *, eligible: Array) -> BetSums:
    """Return what one batch of decisions adds to the logarithm of the wealth of every bet.

    p, arm (n,): the propensity and the number of the arm that each decision showed; eligible (m,): the number of
    decisions in which each arm was eligible."""
    gain, n_arms = 1 / np.maximum(p, _LEAST_PROPENSITY) - 1, len(eligible)
    log_lost = np.log1p(-BET_SHARES)
    log_won = [np.bincount(arm, weights=np.log1p(share * gain), minlength=n_arms) for share in BET_SHARES]
    times_shown = np.bincount(arm, minlength=n_arms)
    return BetSums(np.array(log_won) + log_lost[:, None] * (eligible - times_shown))


def propensities_are_wrong(sums: BetSums, *, alpha: float = BET_ALPHA) -> bool:
    """Tell whether any arm was shown more often than its propensities allow. A false alarm has probability alpha. Arms
    that were never eligible are left out."""
    eligible_wealth = sums.log[:, sums.log.any(axis=0)]
    return eligible_wealth.size > 0 and float(log_wealth(eligible_wealth).max()) > np.log(
        eligible_wealth.shape[1] / alpha
    )


# -- a lower bound of a mean, which holds however often the growing log is looked at --

_HALVINGS = 60  # of the interval in which a bound is searched


def mean_bound(growth: Array, rows: float, *, alpha: float, bet_shares: Array = DYADIC_SHARES) -> float:
    """Return a lower bound of the mean per row of values that are 0 or more. The probability that the bound is wrong at
    any look is at most alpha. The largest value need not be known. The bound is the largest v at which bets that the
    mean is above v, with equal money on each stake, have together won 1 / alpha.

    growth (s,): for each stake, the sum over clusters of ln(1 + stake x), where x is the sum of a cluster's values;
    rows: the number of rows of all clusters. A cluster of N rows whose x is v N on average multiplies the money by
    (1 + stake x) / (1 + stake v)^N, which is at most 1 on average.

    Source: Sakhi et al. 2024, Logarithmic Smoothing for Pessimistic Off-Policy Evaluation; Ville's inequality."""
    low, high = 0.0, float((np.expm1(growth / rows) / bet_shares).max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wealth = float(log_wealth((growth - rows * np.log1p(bet_shares * middle))[:, None])[0])
        low, high = (middle, high) if wealth >= -np.log(alpha) else (low, middle)
    return low
