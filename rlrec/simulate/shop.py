"""This module simulates a shop. Clickbait in the shop is clicked often and costs trust, and visitors come back only if
they trust the shop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.simulate.base import MAX_DECISIONS, Regulars, Step, bounded_parameter, examination, require_between

FULL_SATIATION = 3  # looks at a category within a visit after which its satiation is full
MAX_CATEGORIES, MAX_DEPTH = 5, 30  # categories, and levels and cap, at most: the chain of a visit stays small
MIN_HONEST, MIN_LURE = 0.25, 0.75  # rate of the least attractive item relative to the best
N_SHARES = 100  # units of probability in which the best context-free policy is made
SMALLEST_GAIN = 1e-7  # gain of a round below which the search for the best policy ends
CLICKS: Mapping[str, float] = {"click": 1.0}

# maps the values of arms in each state, (levels + 1, arms, n), to those of the states
StateValues = Callable[[Array], Array]


@dataclass(kw_only=True, eq=False)
class Shop(Regulars):
    """A Shop shows honest items and clickbait to visitors who trust it more or less. Item a is of category a modulo
    `categories`; the last `bait` of the `arms` items are clickbait. The attractions of honest items go from `rate` down
    to a quarter of `rate`, and the attractions of clickbait from `lure` down to three quarters of `lure`.

    At each decision the visitor reads the page from the top and examines position k with probability k^-power,
    whichever item is there. An examined item is clicked with probability attraction (1 - fade s), where s is how
    often its category was examined before in the visit, at most 3. A clicked honest item is bought with probability
    `purchase`; a purchase raises the visitor's trust by one level, up to `levels`. A click on clickbait lowers the
    trust by one level. Then the visit goes on with probability `stay`, up to `cap` decisions.

    After the visit, the visitor comes again with probability loyalty trust / levels. This happens half a day, one and a
    half days, two and a half days (and so on) later, `away` days on average. New visitors have two thirds of the
    highest trust; `daily` new visitors come every day. Clicks are events `click`, and purchases are events `purchase`.
    """

    arms: int = 50
    categories: int = bounded_parameter(5, 1, MAX_CATEGORIES)
    bait: int = 10
    rate: float = bounded_parameter(0.4, 0, 1)
    lure: float = bounded_parameter(0.6, 0, 1)
    power: float = bounded_parameter(1.0, 0, 10)
    fade: float = bounded_parameter(0.3, 0, 1 / FULL_SATIATION)
    purchase: float = bounded_parameter(0.2, 0, 1)
    levels: int = bounded_parameter(10, 1, MAX_DEPTH)
    loyalty: float = bounded_parameter(0.8, 0, 0.99)
    stay: float = bounded_parameter(0.8, 0, 1)
    cap: int = bounded_parameter(10, 1, MAX_DEPTH)
    away: float = bounded_parameter(2.0, 0.5, 1_000)
    daily: int = bounded_parameter(100, 1, 1_000_000)

    further_events = ("purchase",)
    has_pages = True
    has_returners = True

    def __post_init__(self) -> None:
        super().__post_init__()
        condition = f" with arms={self.arms} and categories={self.categories}"
        require_between(
            "arms", self.arms, 2 * self.categories, MAX_DECISIONS, condition=f" with categories={self.categories}"
        )
        require_between("bait", self.bait, self.categories, self.arms - self.categories, condition=condition)
        n_honest = self.arms - self.bait
        self._category = np.arange(self.arms) % self.categories
        self.is_bait: Flags = np.arange(self.arms) >= n_honest
        self.attraction: Array = np.append(
            self.rate * np.linspace(1, MIN_HONEST, n_honest), self.lure * np.linspace(1, MIN_LURE, self.bait)
        )
        self._return_probabilities = self.loyalty * np.arange(self.levels + 1) / self.levels
        self._freshness = 1 - self.fade * np.arange(FULL_SATIATION + 1)
        self.start = (2 * self.levels + 1) // 3  # trust of a new visitor

    def features_of(self, arm: int) -> dict[str, Any]:
        return {"category": f"c{self._category[arm]}"}

    def attraction_of(self, items: Index) -> Array:
        """Return the probability of a click on each of these items if it is examined for the first time in a visit."""
        return self.attraction[items]

    # -- the value of visits and of visitors --

    def optimum(self, positions: int = 1) -> float:
        """Return the largest mean number of clicks in a visit, whether or not the visitor comes again.

        For pages the result is an upper bound: it is the optimum over policies that learn whether a position was
        examined before they fill the next position, and that may repeat an item."""
        return float(self.visit_values(self._best_items, _best_value, positions=positions)[self.start])

    def optimum_per_visitor(self, positions: int = 1, *, weights: Mapping[str, float] = CLICKS) -> float:
        """Return the largest mean reward of a new visitor over all visits, by a policy that knows the visitor's trust
        and satiation. For pages the result is an upper bound, as in `optimum`.

        weights: the weights of `click`, `purchase` and `return` in the reward."""
        return self.value_per_visitor(self._best_items, _best_value, positions=positions, weights=weights)

    def best_context_free(self) -> tuple[float, Array]:
        """Return the largest mean number of clicks in a visit under a fixed distribution over arms, and this
        distribution, (arms,). Its probabilities are whole hundredths.

        How often a category is examined is binomial, and the mean number of clicks is concave in the probability of
        the category. The best distribution therefore takes, one by one, the hundredths with the largest gains."""
        best_items = [self._best_of(self._category == category) for category in range(self.categories)]
        shares = np.arange(N_SHARES + 1) / N_SHARES
        clicks_by_share = self.attraction[best_items, None] * shares * self._mean_freshness(shares)
        gains = np.diff(clicks_by_share, axis=1)
        chosen_cells = np.argsort(-gains, axis=None, kind="stable")[:N_SHARES]
        distribution = np.bincount(np.array(best_items)[chosen_cells // N_SHARES], minlength=self.arms) / N_SHARES
        return float(gains.ravel()[chosen_cells].sum()), distribution

    def _mean_freshness(self, shares: Array) -> Array:
        """Return the mean freshness of a category, summed over the decisions of a visit, for each probability of
        showing the category. Freshness is 1 before the category is examined, and falls with satiation.

        shares: the probabilities."""
        looks, freshness_sum = np.zeros((FULL_SATIATION + 1, len(shares))), np.zeros(len(shares))
        looks[0] = 1  # probability of each number of looks, times that of a visit this long
        for _ in range(self.cap):
            freshness_sum += self._freshness @ looks
            moved_looks = shares * looks
            looks -= moved_looks
            looks[1:] += moved_looks[:-1]
            looks[-1] += moved_looks[-1]
            looks *= self.stay
        return freshness_sum

    def value_per_visitor(
        self, arms: Index, state_values: StateValues, *, positions: int = 1, weights: Mapping[str, float] = CLICKS
    ) -> float:
        """Return the mean reward of a new visitor over all visits. The method works in rounds, each of which adds one
        further visit; the sum over all rounds is extrapolated from the ratio of the last two changes.

        arms: the arms that the policy may show; state_values: the policy, as a function that `visit_values`
        describes; weights: the weights of events in the reward."""
        values = np.zeros(self.levels + 1)
        while True:
            values_by_round = [values]
            for _ in range(2):
                end_values = self._return_probabilities * (weights.get("return", 0.0) + values_by_round[-1])
                values_by_round.append(
                    self.visit_values(arms, state_values, positions=positions, weights=weights, end_values=end_values)
                )
            previous_change, change = (float(np.abs(np.diff(values_by_round, axis=0))[row].max()) for row in (0, 1))
            if change < SMALLEST_GAIN:
                return float(values_by_round[-1][self.start])
            ratio = min(change / previous_change, self.loyalty)
            values = values_by_round[2] + (values_by_round[2] - values_by_round[1]) * ratio / (1 - ratio)

    def visit_values(
        self, arms: Index, state_values: StateValues, *, positions: int = 1, weights: Mapping[str, float] = CLICKS,
        end_values: Array | None = None,
    ) -> Array:  # fmt: skip
        """Return the mean reward of a visit, by the visitor's trust at the beginning, (levels + 1,).

        arms: the arms that the policy may show. state_values: the policy, as a function that turns the values of
        these arms in each state, (levels + 1, arms, n), into the values of the states, (levels + 1, n); it is used
        at every position of a page. weights: the weights of events in the reward. end_values (levels + 1,): the
        value of each trust at the end of the visit."""
        category, levels = self._category[arms], np.arange(self.levels + 1)
        values_if_ended = np.zeros((self.levels + 1, 1)) if end_values is None else end_values[:, None]
        values = np.broadcast_to(values_if_ended, (self.levels + 1, self._next_states.shape[1]))
        clicks = self.attraction[arms, None] * self._freshness[self._looks[category]]
        p_trust_moves = np.where(self.is_bait[arms], 1.0, self.purchase)  # probability that a click moves the trust
        reward_of_click = weights.get("click", 0.0) + np.where(
            self.is_bait[arms], 0.0, p_trust_moves * weights.get("purchase", 0.0)
        )
        trust = np.where(self.is_bait[arms], levels[:, None] - 1, levels[:, None] + 1).clip(0, self.levels)
        p_moves, p_stays = (clicks * p_trust_moves[:, None]), 1 - clicks * p_trust_moves[:, None]
        expected_reward = clicks * reward_of_click[:, None]
        for step in reversed(range(self.cap)):
            if step + 1 < self.cap:
                values = self.stay * values + (1 - self.stay) * values_if_ended
            for p_examined in examination(positions, self.power)[::-1]:
                # for each arm that is examined, the trust stays, or moves by a level
                next_values = values.take(self._next_states, axis=1)
                arm_values, moved_values = next_values[:, category], next_values[trust, category]
                arm_values *= p_stays
                arm_values += expected_reward
                arm_values += np.multiply(moved_values, p_moves, out=moved_values)
                values = (1 - p_examined) * values + p_examined * state_values(arm_values)
        return values[:, 0]

    @cached_property
    def _looks(self) -> Index:
        """Return how often each category was examined in each state of satiation, (categories, n). In state 0, no
        category was examined."""
        return np.indices((FULL_SATIATION + 1,) * self.categories).reshape(self.categories, -1)

    @cached_property
    def _next_states(self) -> Index:
        """Return the state of satiation to which each state leads when a category is examined, (categories, n)."""
        next_looks = np.minimum(
            self._looks[:, None] + np.eye(self.categories, dtype=np.intp)[:, :, None], FULL_SATIATION
        )
        return np.ravel_multi_index(tuple(next_looks), (FULL_SATIATION + 1,) * self.categories)

    @property
    def _best_items(self) -> Index:
        """Return the most attractive honest item and the most attractive clickbait item of each category. The best
        policy never needs another item."""
        kinds = [self.is_bait, ~self.is_bait]
        return np.array([self._best_of((self._category == c) & kind) for c in range(self.categories) for kind in kinds])

    def _best_of(self, items: Flags) -> int:
        """Return the most attractive of the flagged items."""
        return int(np.where(items, self.attraction, -1.0).argmax())

    # -- visitors --

    def _forget_visitors(self, runs: int) -> None:
        super()._forget_visitors(runs)
        self.looks = np.zeros((runs, self.categories), np.intp)  # at each category in the present visit

    def _begin_visits(self, seats: Index, visitors: Index) -> None:
        super()._begin_visits(seats, visitors)
        self.looks[seats] = 0

    def step(self, actions: Index) -> Step:
        observation, reward, has_left, is_cut_off, info = super().step(actions)
        return observation, reward, has_left, is_cut_off, info | {"purchase": self._purchases}

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        pages = actions.reshape(len(actions), -1)
        draws = self._rng.random((3, *pages.shape))
        p_examined, rows = examination(pages.shape[1], self.power), np.arange(len(pages))
        mean_clicks, clicks, purchases = np.zeros((3, *pages.shape))
        trust = self.traits
        is_examined = draws[0] < p_examined
        for position, items in enumerate(pages.T):
            category, is_bait = self._category[items], self.is_bait[items]
            attraction = self.attraction_of(items) * self._freshness[self.looks[rows, category]]
            is_clicked = is_examined[:, position] & (draws[1, :, position] < attraction)
            is_bought = is_clicked & ~is_bait & (draws[2, :, position] < self.purchase)
            trust = np.clip(trust + is_bought - (is_clicked & is_bait), 0, self.levels)
            self.looks[rows, category] = np.minimum(
                self.looks[rows, category] + is_examined[:, position], FULL_SATIATION
            )
            mean_clicks[:, position], clicks[:, position] = p_examined[position] * attraction, is_clicked
            purchases[:, position] = is_bought
        self.traits = trust
        self._purchases = purchases.reshape(actions.shape)
        has_left = self._rng.random(len(pages)) >= self.stay
        return clicks.reshape(actions.shape), mean_clicks.reshape(actions.shape), has_left

    def _end_visits(self, is_ended: Flags) -> Array:
        """End the visits in the flagged runs. Return the number of days until the visitor in each run comes again, or 0
        if the visitor never comes again or the visit has not ended."""
        self.looks[is_ended] = 0
        will_return = self._rng.random(len(is_ended)) < self._return_probabilities[self.traits]
        days = self._rng.geometric(1 / (self.away + 0.5), len(is_ended)) - 0.5
        return np.where(is_ended & will_return, days, 0.0)


def _best_value(arm_values: Array) -> Array:
    return arm_values.max(axis=1)
