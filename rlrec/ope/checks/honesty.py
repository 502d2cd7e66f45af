"""A test of logged propensities: whether arms were shown as often as the log says.

1{shown} / p has mean 1 where p is the true probability. A bet on "more" multiplies its money by 1 + stake (1{shown}/p -
1) at each decision and wins nothing from an honest log on average, so its wealth reaches w with probability 1 / w at
most (Markov's inequality). Where one arm is shown less than its propensities say, another one is shown more: bets on
"more" are enough. Source: own derivation; `betting.py` has the bets that may be repeated every night."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.intervals.betting import log_wealth
from rlrec.records import Sums

ALPHA = 1e-3  # false alarms of the test, over all arms of a log
STAKES = 2.0 ** -np.array([10, 7, 5, 3, 2, 1])
_LEAST = 1e-200  # propensities below are too small to bet on


@dataclass(frozen=True, eq=False)
class BetSums(Sums):
    """Log wealth of every bet on every arm, (bets, m); sums of batches add up."""

    log: Array = field(default_factory=lambda: np.zeros((len(STAKES), 1)))


def bet_sums(p: Array, arm: Ids, *, eligible: Array) -> BetSums:
    """Sums of one batch of decisions. p, arm (n,): the propensity and the number of the arm that each showed;
    eligible (m,): in how many of them each arm was eligible."""
    gain, arms = 1 / np.maximum(p, _LEAST) - 1, len(eligible)
    lost = np.log1p(-STAKES)
    won = [np.bincount(arm, weights=np.log1p(stake * gain), minlength=arms) for stake in STAKES]
    shown = np.bincount(arm, minlength=arms)
    return BetSums(np.array(won) + lost[:, None] * (eligible - shown))


def are_wrong(sums: BetSums) -> bool:
    """Whether some arm was shown more often than its propensities allow, with a false alarm in 1 of 1,000 logs."""
    arms = sums.log.shape[1]
    return bool(arms) and float(log_wealth(sums.log).max()) > np.log(arms / ALPHA)
