"""This module simulates a newspaper whose articles live for one day. The newspaper is a shop with a feed of new
articles, popularity, late subscriptions, bots and anonymous readers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.simulate.base import bounded_parameter, require_between
from rlrec.simulate.shop import MAX_CATEGORIES, MIN_HONEST, MIN_LURE, Shop

GOLDEN_RATIO = (5**0.5 - 1) / 2  # the fractional parts of its multiples are spread evenly
BOT_TRAIT = -1  # the trait of a bot
DAY_S = 86_400


@dataclass(kw_only=True, eq=False)
class News(Shop):
    """News is a `Shop` whose items are articles that live for one day. There are `arms` articles at any time; new
    articles replace the oldest articles, evenly over the hours. `bait` of the articles are clickbait. The attractions
    of articles are spread over the range of their sort, honest or clickbait. The attraction of an article falls to the
    share 1 - `fading` within its day. Popularity raises it: by the share `hype` for the article with the most clicks,
    and by less for all other articles.

    Purchases are subscriptions: readers decide when they click, and the event arrives `later` days after the click.
    The share `anonymous` of visits has no user. The share `bots` of new visitors are machines, which click
    everything, buy nothing, and have a new name at each visit. `optimum`, and the figures derived from it, are
    bounds: they assume that all articles are new and most popular."""

    arms: int = 48
    categories: int = bounded_parameter(5, 1, MAX_CATEGORIES)
    bait: int = 12
    rate: float = bounded_parameter(0.3, 0, 1)
    lure: float = bounded_parameter(0.45, 0, 1)
    purchase: float = bounded_parameter(0.2, 0, 1)
    daily: int = bounded_parameter(500, 1, 1_000_000)
    fading: float = bounded_parameter(0.5, 0, 1)
    hype: float = bounded_parameter(0.3, 0, 1)
    later: float = bounded_parameter(2.0, 0, 1_000)
    anonymous: float = bounded_parameter(0.3, 0, 1)
    bots: float = bounded_parameter(0.04, 0, 1)

    a_day = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("lure with hype", self.lure * (1 + self.hype), 0, 1)
        require_between("rate with hype", self.rate * (1 + self.hype), 0, 1)
        self.later_s = round(self.later * DAY_S)
        self.is_bait: Flags = np.diff(np.arange(self.arms + 1) * self.bait // self.arms) > 0
        peak = np.where(self.is_bait, self.lure, self.rate)
        self.attraction = peak * (1 + self.hype)  # the highest possible
        self._peak, self._least_share = peak, np.where(self.is_bait, MIN_LURE, MIN_HONEST)
        self._numbers = np.full(self.arms, -1)  # the number of each arm's article
        self.publish(self.a_day)

    # -- the feed --

    def publish(self, period: int) -> dict[str, dict[str, Any]]:
        """Publish the articles of a period, and return the features of all articles of the feed, by the name of the
        article. period: the number of an hour, counted from any start."""
        next_number = (period + 1) * self.arms // self.a_day
        numbers = np.arange(next_number - self.arms, next_number)
        arms = numbers % self.arms
        is_new = self._numbers[arms] != numbers
        self._numbers[arms] = numbers
        if is_new.all():
            self.clicks: Array = np.zeros(self.arms)
        self.clicks[arms[is_new]] = 0
        published_in = -(-(numbers + 1) * self.a_day // self.arms) - 1
        age_in_days = (period - published_in) / self.a_day
        quality = self._peak * (self._least_share + (1 - self._least_share) * (self._numbers * GOLDEN_RATIO % 1))
        self._attraction_without_hype = np.empty(self.arms)
        self._attraction_without_hype[arms] = quality[arms] * (1 - self.fading * age_in_days)
        articles = zip(numbers.tolist(), arms.tolist(), strict=True)
        return {f"article{number}": self.features_of(arm) for number, arm in articles}

    def features_of(self, arm: int) -> dict[str, Any]:
        return {"category": f"c{self._category[arm]}", "loud": bool(self.is_bait[arm])}

    def arm_of(self, name: str) -> int:
        """Return the arm that shows the article with this name."""
        return int(name.removeprefix("article")) % self.arms

    def is_article(self, name: str) -> bool:
        """Tell whether a name has the form of the names of articles."""
        return name.startswith("article") and name.removeprefix("article").isdigit()

    def count_clicks(self, arms: Index, clicks: Array) -> None:
        """Add clicks to the articles that these arms show. Clicks make an article more popular."""
        np.add.at(self.clicks, arms, clicks)

    def memory(self) -> dict[str, float]:
        articles = zip(self._numbers.tolist(), self.clicks.tolist(), strict=True)
        return {f"article{number}": clicks for number, clicks in articles}

    def recall(self, visitors: Index, traits: Index, memory: Mapping[str, float]) -> None:
        super().recall(visitors, traits, memory)
        for name, clicks in memory.items():
            arm = self.arm_of(name)
            self._numbers[arm], self.clicks[arm] = int(name.removeprefix("article")), clicks

    def attraction_of(self, items: Index) -> Array:
        popularity = self.clicks[items] / max(1.0, self.clicks.max())
        return self._attraction_without_hype[items] * (1 + self.hype * popularity)

    # -- readers --

    def new_traits(self, visitors: int) -> Index:
        traits = super().new_traits(visitors)
        traits[self._rng.random(visitors) < self.bots] = BOT_TRAIT
        return traits

    def _serve_arms(self, actions: Index) -> tuple[Array, Array, Flags]:
        is_bot = self.traits == BOT_TRAIT
        clicks, mean_clicks, has_left = super()._serve_arms(actions)
        clicks[is_bot], mean_clicks[is_bot], self._purchases[is_bot] = 1, 1, 0
        self.traits = np.where(is_bot, BOT_TRAIT, self.traits)
        return clicks, mean_clicks, has_left

    def _end_visits(self, is_ended: Flags) -> Array:
        return np.where(self.traits == BOT_TRAIT, 0.0, super()._end_visits(is_ended))
