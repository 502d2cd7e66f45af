"""This module simulates visitors whom quick pleasures wear out. Chocolate earns clicks now. Kale makes visits longer,
and makes visitors come back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.simulate.base import MAX_DECISIONS, Regulars, bounded_parameter

LEVEL_MOVES = np.array([-1, 1])  # change of the trait by each arm, in levels
KALE_SHARES = np.linspace(0, 1, 201)  # shares of kale that are tried for the best context-free policy
SMALLEST_GAIN = 1e-12  # gain of a round below which the search for the best policy ends


@dataclass(kw_only=True, eq=False)
class ChocKale(Regulars):
    """ChocKale offers chocolate or kale to visitors whose trait is their well-being w. The trait is a number from 0 to
    1 in steps of 1 / levels. New visitors have 1/2.

    At each decision the visitor clicks with probability c (1 + w) / 2, where c is the parameter `chocolate` or
    `kale` of the arm shown. Then chocolate lowers w by one step, and kale raises w by one step. Then the visit goes
    on with probability low + (high - low) w, up to `cap` decisions. After the visit, the visitor comes again with
    probability loyalty w, `away` decisions later, with the same w. The idea is that of long-term satisfaction in
    RecSim (Ie et al. 2019), with different equations."""

    chocolate: float = bounded_parameter(0.8, 0, 1)
    kale: float = bounded_parameter(0.3, 0, 1)
    levels: int = bounded_parameter(20, 2, 100)
    low: float = bounded_parameter(0.5, 0, 1)
    high: float = bounded_parameter(0.95, 0, 1)
    loyalty: float = bounded_parameter(0.9, 0, 0.99)
    away: int = bounded_parameter(100, 0, 1_000_000)
    cap: int = bounded_parameter(20, 1, MAX_DECISIONS)

    arms = 2
    names = ("chocolate", "kale")
    has_returners = True

    def __post_init__(self) -> None:
        super().__post_init__()
        trait = np.arange(self.levels + 1) / self.levels
        self.start = self.levels // 2
        self._means = np.outer([self.chocolate, self.kale], (1 + trait) / 2)  # (arms, levels + 1)
        self._continue_probabilities = self.low + (self.high - self.low) * trait  # by the level after the decision
        self._return_probabilities = self.loyalty * trait

    # -- the value of a visit --

    def optimum(self, positions: int = 1) -> float:
        """Return the mean reward per visit in the long run, over all visits of a visitor, under the best policy that
        knows the trait.

        The method works in rounds. Each round assumes that a visit costs what the policy of the last round earned
        per visit on average, and finds the best policy at this cost. The search ends when no policy earns more than
        the cost."""
        kale, best_value = np.zeros((1, self.cap, self.levels + 1)), -1.0
        while True:
            mean_rewards, return_matrix = self._visit_rewards(kale)
            visit_cost = float(self._value_per_visitor(mean_rewards, return_matrix)[0])
            if visit_cost - best_value <= SMALLEST_GAIN:
                return best_value
            best_value = visit_cost
            visit_values = np.linalg.solve(np.eye(self.levels + 1) - return_matrix[0], mean_rewards[0] - visit_cost)
            kale = self._best_kale(visit_values)[None]

    def best_context_free(self) -> tuple[float, Array]:
        """Return the largest mean reward per visit in the long run, as in `optimum`, of 201 fixed distributions over
        the arms, and the best of these distributions, (arms,)."""
        fixed_shares = np.broadcast_to(KALE_SHARES[:, None, None], (len(KALE_SHARES), self.cap, self.levels + 1))
        values = self._value_per_visitor(*self._visit_rewards(fixed_shares))
        best_index = int(values.argmax())
        return float(values[best_index]), np.array([1 - KALE_SHARES[best_index], KALE_SHARES[best_index]])

    def _visit_rewards(self, kale: Array) -> tuple[Array, Array]:
        """Return two arrays for n policies: the mean reward of a visit that begins at each level of the trait, (n,
        levels + 1), and the probability that the visitor comes again with each level, (n, levels + 1, levels + 1), by
        the level at which the visit began and the level at its end.

        kale (n, cap, levels + 1): the probability with which each policy shows kale, by step and level."""
        size = self.levels + 1
        mean_rewards: Array = np.zeros((len(kale), size))
        return_matrix: Array = np.zeros((len(kale), size, size))
        for step in reversed(range(self.cap)):
            p_continue = self._continue_probability(step)
            mean_rewards = p_continue * mean_rewards
            return_matrix = p_continue[:, None] * return_matrix + np.diag((1 - p_continue) * self._return_probabilities)
            kale_share, level_down, level_up = kale[:, step], self._next_level(0), self._next_level(1)
            mean_rewards = (1 - kale_share) * (self._means[0] + mean_rewards[:, level_down]) + kale_share * (
                self._means[1] + mean_rewards[:, level_up]
            )
            kale_share = kale_share[..., None]
            return_matrix = (1 - kale_share) * return_matrix[:, level_down] + kale_share * return_matrix[:, level_up]
        return mean_rewards, return_matrix

    def _value_per_visitor(self, mean_rewards: Array, return_matrix: Array) -> Array:
        """Return the mean reward per visit, over all visits of a new visitor, for n policies, (n,).

        mean_rewards, return_matrix: the results of `_visit_rewards`, which are the mean reward of a visit by its first
        level, and the probability of another visit by the levels at the beginning and at the end."""
        rewards_and_visits = np.stack([mean_rewards, np.ones_like(mean_rewards)], axis=2)
        total = np.linalg.solve(np.eye(self.levels + 1) - return_matrix, rewards_and_visits)[:, self.start]
        return total[:, 0] / total[:, 1]

    def _best_kale(self, visit_values: Array) -> Array:
        """Return the best probability of kale at each step and level, (cap, levels + 1). It is always 0 or 1.

        visit_values (levels + 1,): the value of another visit that begins at each level."""
        values, kale = np.zeros(self.levels + 1), np.empty((self.cap, self.levels + 1))
        for step in reversed(range(self.cap)):
            p_continue = self._continue_probability(step)
            next_values = p_continue * values + (1 - p_continue) * self._return_probabilities * visit_values
            arm_values = np.stack([self._means[arm] + next_values[self._next_level(arm)] for arm in range(self.arms)])
            kale[step], values = arm_values.argmax(axis=0), arm_values.max(axis=0)
        return kale

    def _continue_probability(self, step: int) -> Array:
        """Return the probability that a visit goes on after the decision of a step, by the level after the decision,
        (levels + 1,)."""
        return self._continue_probabilities if step + 1 < self.cap else np.zeros(self.levels + 1)

    def _next_level(self, arm: int) -> Index:
        """Return the level to which an arm leads from each level, (levels + 1,)."""
        return np.clip(np.arange(self.levels + 1) + LEVEL_MOVES[arm], 0, self.levels)

    # -- visitors --

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        level = self.traits
        mean_reward = self._means[actions, level]
        reward = (self._rng.random(len(actions)) < mean_reward).astype(np.float64)
        level = np.clip(level + LEVEL_MOVES[actions], 0, self.levels)
        self.traits = level
        return reward, mean_reward, self._rng.random(len(actions)) >= self._continue_probabilities[level]

    def _end_visits(self, is_ended: Flags) -> Array:
        will_return = self._rng.random(len(is_ended)) < self._return_probabilities[self.traits]
        return (is_ended & will_return).astype(np.float64)
