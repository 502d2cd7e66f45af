"""This module simulates an audience at a coffee bar. A guest who gets the same item too often is satiated, a satiated
guest gets bored, and a bored guest leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.errors import InputError
from rlrec.records import Record
from rlrec.simulate.base import Visitors, bounded_parameter, check_rates

SATIATION_RISE, MAX_SATIATION = 2, 3  # levels of satiation that an item gains when it is served, and the highest level
MAX_ITEMS, MAX_DEPTH = 6, 20  # items, and cap and patience, at most: the chain stays small
SMALLEST_GAIN = 1e-13  # gain of a round below which the search for the best shares ends


class Chain(Record, eq=False):
    """A Chain has all n states that a visit can reach, in order of steps. A visit begins in state 0.

    states (n, arms + 2): the satiation of each item, the boredom, and the step (from 0) of each state. next_states (n,
    arms): the state to which each item leads, or -1 if the visit ends. mean_rewards (n, arms): the mean reward of each
    item. has_left (n, arms): whether the guest is bored after the item and leaves. layer_starts (steps + 1,): the first
    state of each step and, as last entry, n."""

    states: Index
    next_states: Index
    mean_rewards: Array
    has_left: Flags
    layer_starts: Index

    def layers(self) -> list[slice]:
        """Return a slice for each step, which has the states of this step."""
        return [slice(start, end) for start, end in pairwise(self.layer_starts.tolist())]


@dataclass(kw_only=True, eq=False)
class Barista(Visitors):
    """A Barista serves items to guests who tip, and who leave when they are bored.

    An item gains 2 levels of satiation (3 at most) when it is served; all other items lose one level. Boredom rises
    by the level of the item served if this level is 1 or more, and falls by 1 after a fresh item (level 0). At
    boredom `patience` the guest leaves; after `cap` items the guest leaves anyway.

    rates: the probability of a tip for each item when the item is fresh. Each level of satiation lowers this
    probability by the share `fade` of its fresh value."""

    rates: tuple[float, ...] = (0.8, 0.76, 0.72, 0.68)
    fade: float = bounded_parameter(0.05, 0, 1)
    patience: int = bounded_parameter(4, 1, MAX_DEPTH)
    cap: int = bounded_parameter(8, 1, MAX_DEPTH)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fresh_rates = check_rates(self.rates)[0]
        self.arms = len(self.rates)
        if self.arms > MAX_ITEMS:
            raise InputError(f"rates name {self.arms} items", hint=f"a bar has {MAX_ITEMS} at most")

    # -- the chain --

    @cached_property
    def chain(self) -> Chain:
        """Return the chain of states. A state has the satiation, the boredom and the step, which follow from the items
        served; nothing else about the visit matters for what comes next."""
        layers: list[tuple[Index, Index, Flags]] = []
        layer_states, first_state = np.zeros((1, self.arms + 1), np.intp), 0
        for step in range(self.cap):
            following_states, has_left = self._states_after_items(layer_states)
            is_continued = ~has_left & (step + 1 < self.cap)
            next_states, state_index = np.unique(following_states[is_continued], axis=0, return_inverse=True)
            first_state += len(layer_states)
            next_state = np.full(has_left.shape, -1, np.intp)
            next_state[is_continued] = first_state + state_index.reshape(-1)
            layers.append((np.column_stack([layer_states, np.full(len(layer_states), step)]), next_state, has_left))
            layer_states = next_states
            if not len(layer_states):
                break
        states, next_state, has_left = (np.concatenate(columns) for columns in zip(*layers, strict=True))
        freshness = np.maximum(0.0, 1 - self.fade * states[:, : self.arms])
        return Chain(
            states=states, next_states=next_state, mean_rewards=self._fresh_rates * freshness, has_left=has_left,
            layer_starts=np.cumsum([0, *(len(layer_states[0]) for layer_states in layers)]),
        )  # fmt: skip

    def _states_after_items(self, layer: Index) -> tuple[Index, Flags]:
        """Return two arrays for these n states: the satiation of each item and the boredom after each item is served,
        (n, arms, arms + 1), and whether the guest then leaves, (n, arms)."""
        level, boredom = layer[:, :-1], layer[:, -1:]
        boredom_after = np.where(level > 0, boredom + level, np.maximum(boredom - 1, 0))
        level_of_served = np.minimum(level + SATIATION_RISE, MAX_SATIATION)[:, None]
        levels_after = np.where(np.eye(self.arms, dtype=np.bool_), level_of_served, np.maximum(level - 1, 0)[:, None])
        return np.concatenate([levels_after, boredom_after[..., None]], axis=2), boredom_after >= self.patience

    # -- the exact value of a visit --

    def optimum(self, positions: int = 1) -> float:
        """Return the mean reward of a visit under the best policy. It is found by dynamic programming, from the last
        step back to the first."""
        return float(self._values(lambda item_values, _: item_values.max(axis=1))[0][0])

    def best_context_free(self) -> tuple[float, Array]:
        """Return the largest mean reward of a visit under a fixed distribution over the items, and this distribution,
        (arms,)."""
        starts = [np.full(self.arms, 1 / self.arms), *(0.8 * np.eye(self.arms) + 0.2 / self.arms)]
        return max((self._climb(start) for start in starts), key=lambda best: best[0])

    def _climb(self, shares: Array) -> tuple[float, Array]:
        """Search for the best fixed distribution over the items, beginning with the probabilities `shares`. Return the
        mean reward of a visit at the maximum, and the distribution there, (arms,).

        The mean reward is a polynomial in the probabilities without negative coefficients. Multiplying each
        probability by its derivative, and scaling all of them to sum to 1, therefore never lowers the mean reward
        (Baum-Eagon)."""
        previous_value, (value, slope) = 0.0, self._slope(shares)
        while value - previous_value > SMALLEST_GAIN:
            shares = shares * slope / (shares @ slope)
            previous_value, (value, slope) = value, self._slope(shares)
        return value, shares

    def _slope(self, shares: Array) -> tuple[float, Array]:
        """Return the mean reward of a visit under a fixed distribution over the items, and the derivative of this mean
        with respect to each probability, (arms,)."""
        values, item_values = self._values(lambda item_values, _: item_values @ shares)
        slope: Array = self._reach_probabilities(np.tile(shares, (len(values), 1))) @ item_values
        return float(values[0]), slope

    def _values(self, state_values: Callable[[Array, slice], Array]) -> tuple[Array, Array]:
        """Return the mean reward from each state to the end of the visit, (n,), and the same mean after each item is
        served in the state, (n, arms).

        state_values: the policy, as a function that turns the values of items in the states of a step, (states,
        arms), into the values of these states, (states,)."""
        chain = self.chain
        # next_state -1 is the last value, 0
        values, item_values = np.zeros(len(chain.states) + 1), chain.mean_rewards.copy()
        for layer in reversed(chain.layers()):
            item_values[layer] += values[chain.next_states[layer]]
            values[layer] = state_values(item_values[layer], layer)
        return values[:-1], item_values

    def _reach_probabilities(self, probabilities: Array) -> Array:
        """Return the probability that a visit reaches each state, (n,). probabilities (n, arms): the probability with
        which each item is served in each state."""
        chain, n = self.chain, len(self.chain.states)
        p_reached = np.zeros(n + 1)
        p_reached[0] = 1
        for layer in chain.layers():
            flow = p_reached[layer, None] * probabilities[layer]
            p_reached += np.bincount(chain.next_states[layer].ravel() % (n + 1), flow.ravel(), n + 1)
        return p_reached[:-1]

    # -- guests --

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        mean_reward, has_left = self.chain.mean_rewards[self._state, actions], self.chain.has_left[self._state, actions]
        self._state = self.chain.next_states[self._state, actions]
        return (self._rng.random(len(actions)) < mean_reward).astype(np.float64), mean_reward, has_left
