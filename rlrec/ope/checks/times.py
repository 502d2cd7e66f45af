"""This module tests whether the reward of an arm changes over the log, and whether all rewards have arrived.

Drift. An estimate is an average over the time of its log. It misleads where rewards change, in level or in which arm
is best. The test compares the mean reward of each arm before and after some time. A logger that learns gradually
changes to whom it shows an arm, so rows count by 1 / propensity; it also causes other states, so only the first slot
of each visit counts. For each time there is one test of all arms together, and one of each arm.

Young rewards. Imported decisions count at once, whatever their age at the end of their log. Their events show how fast
rewards come: among decisions that were watched up to some age, the share of the reward that had come by an earlier age.
The product of these shares is the share of the reward of younger decisions that has come (a chain ladder). Source: own
derivations, the second one after the chain ladder; errors by the jackknife over 64 blocks of clusters, tests of drift
by Student's t and Hotelling's T^2."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.checks.dependence import ALPHA, N_BLOCKS, block_numbers, block_sums
from rlrec.ope.intervals.tails import hotelling_above, t_below
from rlrec.records import Sums

MATERIAL_SHARE = 0.05  # share of the mean reward; smaller changes, or missing rewards, do not matter
N_PERIODS = 8  # of equal length; changes are tested at their ends
MAX_ARMS = 255  # arms that are compared, at most; all further arms count as one
LEAST_PROPENSITY = 0.005  # smaller propensities count as this
_LEAST_BLOCKS = 20  # blocks that a comparison needs
_LEAST_ROWS, _LEAST_REWARDS = 40, 10  # effective ones on either side of a change that the comparison of an arm needs
_MAX_TESTED_ARMS = 12  # arms that are compared one by one, at most

N_AGES = 40  # classes of ages; each ends at 1.25 times the end of the one before, the last at the window
_AGE_RATIO = 1.25
_ALARM_Z = 3
_MIN_EVENTS = 50  # events, of decisions that were watched up to an age, that a comparison needs


class DriftSums(Sums):
    """DriftSums holds sums over rows, for the test of drift.

    table (4, 64, periods, a): for each block of clusters, period and arm, the sums of weights, of weighted rewards,
    of squared weights, and of squared weighted rewards."""

    table: Array

    @classmethod
    def from_rows(
        cls, reward: Array, *, propensity: Array, arm: Ids, arms: int, period: Ids, cluster: Ids
    ) -> DriftSums:
        """Return the sums of n rows. All arrays are (n,).

        arm: a number from 0; arms: the number of arms; period: the number of the row's period, below N_PERIODS."""
        weight, width = 1 / np.maximum(propensity, LEAST_PROPENSITY), min(arms, MAX_ARMS + 1)
        columns = (weight, weight * reward, weight**2, (weight * reward) ** 2)
        cell = period * width + np.minimum(arm, MAX_ARMS)
        table = block_sums(columns, block_numbers(cluster), cell, cells=N_PERIODS * width)
        return cls(table.reshape(4, N_BLOCKS, N_PERIODS, width))

    def followed_by(self, other: DriftSums) -> DriftSums:
        """Return the sums of this log and a later log together. The later log becomes the last period, and the first
        two periods of this log are merged into the first period."""
        first_period, last_period = (
            self.table[:, :, :2].sum(axis=2, keepdims=True),
            other.table.sum(axis=2, keepdims=True),
        )
        return DriftSums(np.concatenate([first_period, self.table[:, :, 2:], last_period], axis=2))

    @property
    def raises_alarm(self) -> bool:
        """Tell whether rewards surely changed at the end of some period, by an amount that matters."""
        total, sums_until = self.table.sum(axis=2), np.cumsum(self.table, axis=2)
        weight, reward = total[:2].sum(axis=(1, 2))
        least_change = MATERIAL_SHARE * abs(reward / weight) if weight else 0.0
        return any(
            self._has_change(sums_until[:, :, cut], total - sums_until[:, :, cut], least_change)
            for cut in range(N_PERIODS - 1)
        )

    def _has_change(self, sums_before: Array, sums_after: Array, least_change: float) -> bool:
        """Tell whether rewards differ by at least `least_change` between two spans of time, from their sums, (4, 64,
        a)."""
        with np.errstate(all="ignore"):
            effective_rows, effective_rewards = (
                np.array(
                    [
                        side[sum_index].sum(axis=0) ** 2 / side[square_index].sum(axis=0)
                        for side in (sums_before, sums_after)
                    ]
                )
                for sum_index, square_index in ((0, 2), (1, 3))
            )
            arms = np.flatnonzero((effective_rows >= _LEAST_ROWS).all(axis=0))
            fewest_rewards = min(float(side[1].sum() ** 2 / side[3].sum()) for side in (sums_before, sums_after))
            columns = np.concatenate([sums_before[:2], sums_after[:2]])[:, :, arms]
            columns = columns[:, columns[[0, 2]].any(axis=(0, 2))]
            total, blocks, count = columns.sum(axis=1), columns.shape[1], 1 / (1 / effective_rows[:, arms]).sum(axis=0)
            if not len(arms) or blocks < _LEAST_BLOCKS:
                return False
            # the increase in each arm's reward, with all blocks and without each block
            difference, block_changes = _difference(total), _difference(total[:, None] - columns)
        deviations, arm_share = block_changes - block_changes.mean(axis=0), count / count.sum()
        mean_change, error = (
            float(difference @ arm_share),
            float(np.sqrt((blocks - 1) * np.mean((deviations @ arm_share) ** 2))),
        )
        p_value = 1.0
        if fewest_rewards >= _LEAST_REWARDS and error and abs(mean_change) > least_change:
            p_value = 2 * t_below(-abs(mean_change) / error, blocks - 1)
        # the arms with the most evidence, one by one
        tested_arms = np.flatnonzero((effective_rewards[:, arms] >= _LEAST_REWARDS).all(axis=0))
        tested_arms = tested_arms[np.argsort(-count[tested_arms], kind="stable")[:_MAX_TESTED_ARMS]]
        difference, deviations, arm_share = difference[tested_arms], deviations[:, tested_arms], arm_share[tested_arms]
        covariance = (blocks - 1) / blocks * deviations.T @ deviations
        if (
            len(tested_arms)
            and arm_share @ (difference**2 - np.diagonal(covariance)) > least_change**2 * arm_share.sum()
        ):
            wald = float(difference @ np.linalg.pinv(covariance, hermitian=True) @ difference)
            p_value = min(p_value, hotelling_above(wald, len(tested_arms), blocks))
        return 2 * (N_PERIODS - 1) * p_value < ALPHA


def _difference(sums: Array) -> Array:
    """Return the increase of each arm's mean reward from the early to the late span of time, (..., a). The result is 0
    for an arm that lacks rows in either span.

    sums (4, ..., a): the early weights and weighted rewards, then the late ones."""
    difference = sums[3] / sums[2] - sums[1] / sums[0]
    return np.where(np.isfinite(difference), difference, 0.0)


class ArrivalSums(Sums):
    """ArrivalSums holds sums over decisions and events, for the test whether all rewards have arrived. Decisions are
    classed by their distance to the last decision of the log.

    decisions (64, N_AGES + 1): the number of decisions, by block of clusters and class; the last class has the
    decisions whose window is over; rewards (64, N_AGES + 1, N_AGES): the rewards of events, by block, class of the
    decision and class of the event's age; events (N_AGES + 1, N_AGES): the number of events, by class of the decision
    and class of the event's age; tail_length: how long the log goes on after the last decision, in windows."""

    decisions: Array
    rewards: Array
    events: Array
    tail_length: float

    def __add__(self, other: Self) -> Self:
        return replace(super().__add__(other), tail_length=max(self.tail_length, other.tail_length))

    @classmethod
    def from_rows(cls, distance: Array, *, cluster: Ids, decision: Ids, age: Array, reward: Array) -> ArrivalSums:
        """Return the sums of n decisions and their m events.

        distance (n,): the time from each decision to the last one of the log, in windows, infinite once the
        decision's window is over; cluster (n,): the cluster of each decision; decision, age, reward (m,): the
        decision of each event, the age of the event in windows (at most 1), and the event's contribution to the
        reward."""
        block, classes, n_cells = block_numbers(cluster), _age_classes(distance), (N_AGES + 1) * N_AGES
        (number,) = block_sums([None], block, classes, cells=N_AGES + 1)
        cell = classes[decision] * N_AGES + np.minimum(_age_classes(age), N_AGES - 1)
        (rewards,) = block_sums([reward], block[decision], cell, cells=n_cells)
        events = np.bincount(cell, minlength=n_cells).astype(np.float64)
        tail_length = float((age - distance[decision]).max(initial=0.0))
        return cls(
            number, rewards.reshape(N_BLOCKS, N_AGES + 1, N_AGES), events.reshape(N_AGES + 1, N_AGES), tail_length
        )

    @property
    def raises_alarm(self) -> bool:
        """Tell whether the share of the reward that has not arrived yet is surely large enough to matter."""
        decisions, rewards = self.decisions.sum(axis=0), self.rewards.sum(axis=0)
        missing_share = self._missing(decisions, rewards)
        if missing_share <= MATERIAL_SHARE:
            return False
        present_blocks = np.flatnonzero(self.decisions.any(axis=1))
        jackknife_shares = [
            self._missing(decisions - self.decisions[block], rewards - self.rewards[block]) for block in present_blocks
        ]
        error = np.sqrt((len(present_blocks) - 1) * np.var(jackknife_shares))
        return bool(missing_share - _ALARM_Z * error > MATERIAL_SHARE)

    def _missing(self, decisions: Array, rewards: Array) -> float:
        """Return the share of the reward that has not arrived yet, from sums that are added up over blocks."""
        edges = _AGE_RATIO ** np.arange(1.0 - N_AGES, 1.0)
        # the shortest and longest time that decisions of each class were watched
        least_watched, longest_watched = np.r_[0.0, edges] + self.tail_length, np.r_[edges, np.inf] + self.tail_length
        link_ratios = np.ones(N_AGES)
        for age in range(1, N_AGES):
            was_watched = least_watched >= edges[age]
            earlier_reward, later_reward = rewards[was_watched, :age].sum(), rewards[was_watched, : age + 1].sum()
            if self.events[was_watched, : age + 1].sum() >= _MIN_EVENTS and later_reward > 0:
                link_ratios[age] = earlier_reward / later_reward
        arrived_share = np.r_[arrived_shares(link_ratios), 1.0][np.searchsorted(edges, longest_watched)]
        return float(1 - decisions @ arrived_share / decisions.sum())


def arrived_shares(link_ratios: Array) -> Array:
    """Return the share of all reward that has come by each age, (a,).

    link_ratios (a,): for each age, the reward that came by the previous age as a share of the reward that came by this
    age, among decisions that were watched long enough; the first link is not used."""
    return np.append(np.cumprod(link_ratios[:0:-1])[::-1], 1.0)


def _age_classes(age: Array) -> Ids:
    """Return the class of each age. Ages are in windows; the class of a whole window or more is N_AGES."""
    with np.errstate(divide="ignore"):
        steps = np.ceil(np.log(age) / np.log(_AGE_RATIO)) + N_AGES - 1
    return np.clip(np.where(age >= 1, N_AGES, steps), 0, N_AGES).astype(np.int64)
