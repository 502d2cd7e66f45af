"""This module tracks the spend of a policy with a budget, and computes a price. The score of an arm is reduced by price
x expected cost. The price is set so that the policy spends exactly what is left of the budget.

The price is the multiplier of the budget in the linear program that maximises the expected reward of the remaining
requests, under the remaining expected cost. The price is computed again at every change of the belief, as in
Agrawal, Wang and Ye 2014 (a dynamic near-optimal algorithm for online linear programming), with the means of arms
learned so far, as in primal-dual bandits with knapsacks (Badanidiyuru, Kleinberg and Slivkins 2013). The forecast of
requests by slices of the period is our addition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from rlrec.arrays import Array, Ids, look_up
from rlrec.policy.beliefs.budget import N_SLICES, Budget

N_PERIODS = 7  # before the newest one, from which costs and requests are learned
N_RECENT_SLICES = N_SLICES * (N_PERIODS + 1)  # slices
HALF_LIFE_SLICES = 0.7  # in slices; the weight of a slice's requests in the forecast halves after so many
N_PRIOR_SLICES = 0.25  # slices of the usual level, with which a period's level is shrunk towards that of the others
N_NODES = 12  # of the quadrature of one score
MAX_RIVALS = 64  # arms among which the best one is searched
MAX_DOUBLINGS, N_HALVINGS = 60, 40
PRICE_TOLERANCE = 1e-5  # of a price
MAX_DEVIATIONS = 8.0  # standard deviations, beyond which a normal score has probability 0
_TANH_FACTOR = (2 / np.pi) ** 0.5


class Spend:
    """A Spend object holds the spend of a policy and the number of slots that the policy has shown, for each slice (a
    period of the budget has N_SLICES slices). It also holds the expected cost of each arm.

    A slot whose cost is not known yet counts with the expected cost of its arm. The expected cost is the mean of the
    arm's known costs and of one additional cost, which is the mean cost over all arms. cost (m,): the expected cost
    of each arm, in the order of `arms`; mean_cost: the expected cost of an unknown arm."""

    def __init__(self, budget: Budget, rows: Sequence[tuple[float, ...]]) -> None:
        """Sum the rows by arm and by slice.

        rows: a tuple for each slice and arm, which holds the slice, the arm, the number of slots shown, their known
        cost, and the number of slots with a known cost."""
        self.budget = budget
        table = np.array(rows, np.float64).reshape(len(rows), 5)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        slices = table[:, 0].astype(np.int64)
        if len(slices):
            newest_slice = int(slices[-1])
            is_recent = slices >= newest_slice - newest_slice % N_SLICES - N_PERIODS * N_SLICES  # in these periods
            slices, table = slices[is_recent], table[is_recent]
        n_shown, cost, n_paid = table[:, 2:].T
        self.arms, arm_index = np.unique(table[:, 1].astype(np.int64), return_inverse=True)
        sums_by_arm = [np.bincount(arm_index, weights=column, minlength=len(self.arms)) for column in (cost, n_paid)]
        self.mean_cost = max(0.0, float(cost.sum() / n_paid.sum())) if n_paid.sum() > 0 else 0.0
        self.cost: Array = np.maximum((sums_by_arm[0] + self.mean_cost) / (np.maximum(sums_by_arm[1], 0.0) + 1), 0.0)
        self.slices, slice_index = np.unique(slices, return_inverse=True)
        self.slots = np.bincount(slice_index, weights=n_shown, minlength=len(self.slices)).astype(np.float64)
        expected_cost = cost + np.maximum(n_shown - n_paid, 0.0) * self.cost[arm_index]
        self.spend = np.bincount(slice_index, weights=expected_cost, minlength=len(self.slices)).astype(np.float64)

    def costs(self, arms: Ids) -> Array:
        """Return the expected cost of showing each arm, (m,)."""
        index, has_cost = look_up(self.arms, arms)
        cost = np.full(len(arms), self.mean_cost)
        cost[has_cost] = self.cost[index[has_cost]]
        return cost

    def spent_in_period(self, time: int) -> float:
        """Return the spend so far in the period that contains a time.

        time: in microseconds since 1970-01-01."""
        period_start = _period_start(self.budget.slices(time))
        return float(self.spend[(self.slices >= period_start) & (self.slices < period_start + N_SLICES)].sum())

    def forecast_slots(self, time: int) -> float:
        """Return the expected number of slots from a time to the end of its period. The forecast is the mean of past
        periods, scaled to the level of the latest slices.

        In the first period, the forecast continues the rate so far."""
        slice_now = self.budget.slices(time)
        period_start = _period_start(slice_now)
        is_past, shown_today = self.slices < period_start, self._count_slots(period_start)
        n_elapsed = slice_now - period_start
        elapsed_shares = np.clip(n_elapsed - np.arange(N_SLICES), 0.0, 1.0)
        recency = np.where(elapsed_shares > 0, 0.5 ** ((n_elapsed - np.arange(N_SLICES)) / HALF_LIFE_SLICES), 0.0)
        if not is_past.any():
            recency[: int(self.slices[0] - period_start) if len(self.slices) else 0] = 0.0  # before the policy began
            return float(recency @ shown_today * (N_SLICES - n_elapsed) / max(recency @ elapsed_shares, 1 / N_SLICES))
        # for each slice of a period, the mean over the periods in which it was covered
        last_period_end = _period_start(float(self.slices[is_past][-1])) + N_SLICES
        period_starts = range(last_period_end - N_PERIODS * N_SLICES, last_period_end, N_SLICES)
        n_covered = sum(period_begin + np.arange(N_SLICES) >= self.slices[0] for period_begin in period_starts)
        total_shown = np.sum([self._count_slots(period_begin) for period_begin in period_starts], axis=0)
        usual_slots = np.where(
            n_covered > 0, total_shown / np.maximum(n_covered, 1), total_shown.sum() / n_covered.sum()
        )
        # today's level relative to that, from slices that are covered
        recency = np.where(n_covered > 0, recency, 0.0)
        prior_slots = N_PRIOR_SLICES * usual_slots.mean()
        current_level = (recency @ shown_today + prior_slots) / (recency @ (usual_slots * elapsed_shares) + prior_slots)
        return float(current_level * (usual_slots @ (1 - elapsed_shares)))

    def _count_slots(self, first_slice: int) -> Array:
        """Return the number of slots that were shown in each slice of a period, (N_SLICES,).

        first_slice: the first slice of the period."""
        is_inside = (self.slices >= first_slice) & (self.slices < first_slice + N_SLICES)
        counts = np.zeros(N_SLICES)
        counts[self.slices[is_inside] - first_slice] = self.slots[is_inside]
        return counts

    def slots_of_period(self) -> float:
        """Return the expected number of slots of a period, which is the mean of all periods before the last period.

        If there is only one period, its number of slots is returned."""
        if not len(self.slices):
            return 0.0
        first_period, last_period = _period_start(float(self.slices[0])), _period_start(float(self.slices[-1]))
        past_slots = self.slots[self.slices < last_period]
        n_past = last_period - first_period
        return float(past_slots.sum() * N_SLICES / n_past if len(past_slots) else self.slots.sum())

    def price(
        self, location: Array, deviation: Array | None, cost: Array, *, p_uniform: float, at: int | None = None
    ) -> float:
        """Return the price at which the expected cost of a slot equals the target, which is the remaining budget
        divided by the expected number of remaining slots of the period. The price is 0 if the expected cost is at most
        the target without a price.

        location (m,), deviation (m,): the location and the standard deviation of the noisy score of each arm
        (deviation is None for scores without noise); cost (m,): the cost of showing each arm; p_uniform: the
        probability of a uniform pick; at: the time (None for the beginning of a new period that is like the known
        periods)."""
        if at is None:
            max_cost = self.budget.amount / max(self.slots_of_period(), 1.0)
        else:
            max_cost = (self.budget.amount - self.spent_in_period(at)) / max(self.forecast_slots(at), 1.0)
        return solve_price(location, deviation, cost, p_uniform=p_uniform, max_cost=max_cost)


def _period_start(slices: float) -> int:
    return int(slices) - int(slices) % N_SLICES


def solve_price(location: Array, deviation: Array | None, cost: Array, *, p_uniform: float, max_cost: float) -> float:
    """Return the smallest price, up to rounding, at which the expected cost of a slot is at most `max_cost`. If no
    price reaches the target, the result is a price with the lowest possible cost.

    If the expected cost jumps over the target, the price on the closer side of the jump is returned. location,
    deviation (m,): the mean and the standard deviation of each arm's score (deviation is None without noise); cost
    (m,): the cost of showing each arm; p_uniform: the probability of a uniform pick."""
    is_finite = np.isfinite(location)
    location, cost = location[is_finite], cost[is_finite]
    deviation = None if deviation is None else deviation[is_finite]
    cost_range = float(np.ptp(cost)) if len(cost) else 0.0
    if cost_range <= 0:
        return 0.0

    def find_cost(price: float) -> float:
        share = best_arm_probabilities(location - price * cost, deviation)
        return float((1 - p_uniform) * (share @ cost) + p_uniform * cost.mean())

    low_price, low_cost = 0.0, find_cost(0.0)
    if low_cost <= max_cost:
        return 0.0
    least_cost = float((1 - p_uniform) * cost.min() + p_uniform * cost.mean())
    reachable_target = max(max_cost, least_cost + 1e-6 * cost_range)
    high_price = (float(np.ptp(location)) + 1e-9 + (0.0 if deviation is None else float(deviation.max()))) / cost_range
    for _ in range(MAX_DOUBLINGS):
        if (high_cost := find_cost(high_price)) <= reachable_target:
            break
        low_price, low_cost, high_price = high_price, high_cost, 2 * high_price
    if max_cost <= least_cost:
        return high_price
    for _ in range(N_HALVINGS):
        if high_price - low_price <= PRICE_TOLERANCE * high_price:
            break
        middle_price = (low_price + high_price) / 2
        if (middle_cost := find_cost(middle_price)) <= reachable_target:
            high_price, high_cost = middle_price, middle_cost
        else:
            low_price, low_cost = middle_price, middle_cost
    return low_price if low_cost - reachable_target < reachable_target - high_cost else high_price


def best_arm_probabilities(location: Array, deviation: Array | None) -> Array:
    """Return the approximate probability that each arm has the largest score, (m,). The result is exact for scores
    without noise.

    Propensities stay exact although this result is not: only the price is computed from it, and the price is logged.
    An inexact probability delays the right spend a little. location, deviation (m,): the mean and the standard
    deviation of each arm's score (deviation is None without noise)."""
    if deviation is None:
        is_best = location == location.max()
        return np.asarray(is_best / is_best.sum())
    best_probability = np.zeros(len(location))
    upper, lower = location + MAX_DEVIATIONS * deviation, location - MAX_DEVIATIONS * deviation
    rivals = np.flatnonzero(upper >= lower.max())
    rivals = rivals[np.argsort(-(location + 2 * deviation)[rivals], kind="stable")[:MAX_RIVALS]]
    node, weight = _normal_quadrature()
    mean, sd = location[rivals], deviation[rivals]
    score_nodes = mean[:, None] + sd[:, None] * node
    z_score = np.clip((score_nodes[:, :, None] - mean) / sd, -MAX_DEVIATIONS, MAX_DEVIATIONS)
    cdf = 0.5 * (1 + np.tanh(_TANH_FACTOR * (z_score + 0.044715 * z_score**3)))  # of the normal law, to 1e-3
    cdf[np.arange(len(rivals)), :, np.arange(len(rivals))] = 1.0
    probability = cdf.prod(axis=2) @ weight
    best_probability[rivals] = probability / probability.sum()
    return best_probability


@cache
def _normal_quadrature() -> tuple[Array, Array]:
    """Return two arrays (N_NODES,): the nodes and the weights that give the mean of a function of a standard normal
    variable."""
    node, weight = np.polynomial.hermite_e.hermegauss(N_NODES)
    return node, weight / weight.sum()
