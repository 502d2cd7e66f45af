"""Policies for a shop, and visitors who are shown them until they come no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array, Index
from rlrec.simulate.shop import Shop

Pages = Callable[[Shop, np.random.Generator], Array]  # scores of the arms for each present visitor, (n, arms)
DURABLE = {"click": 0.05, "purchase": 2.0, "return": 1.0}


class Played(NamedTuple):
    """Figures of visitors, (n,) each, over all of their visits."""

    decisions: Array
    visits: Array
    clicks: Array
    purchases: Array

    @property
    def durable(self) -> Array:
        """Reward of each visitor by the weights `DURABLE`."""
        returns = self.visits - 1
        return DURABLE["click"] * self.clicks + DURABLE["purchase"] * self.purchases + DURABLE["return"] * returns


def play(shop: Shop, policy: Pages, *, positions: int, visitors: int = 5_000, seed: int = 1) -> Played:
    """Show every fresh visitor the pages with the highest scores until they come no more."""
    rng = np.random.default_rng(seed)
    shop.reset(visitors, np.random.default_rng(seed + 1))
    there, sums = np.ones(visitors, np.bool_), np.zeros((4, visitors))
    while there.any():
        scores = policy(shop, rng)
        best = scores.argmax(axis=1)[:, None] if positions == 1 else np.argsort(-scores, axis=1, kind="stable")
        pages: Index = best[:, :positions]
        _, clicks, terminated, truncated, info = shop.step(pages)
        ended = there & (terminated | truncated)
        sums += there * np.stack([np.ones(visitors), ended, clicks.sum(axis=1), info["purchase"].sum(axis=1)])
        there &= ~ended | (info["again"] > 0)
    return Played(*sums)


def uniform(shop: Shop, rng: np.random.Generator) -> Array:
    """Random pages."""
    return rng.random((len(shop.looks), shop.arms))


def myopic(shop: Shop, rng: np.random.Generator) -> Array:
    """The most clicks of every single decision, which is clickbait as long as it is fresh."""
    return shop.attraction * shop._freshness[shop.looks[:, shop._category]]


def clickbait(shop: Shop, rng: np.random.Generator) -> Array:
    """Clickbait in random order."""
    return uniform(shop, rng) + shop.is_bait


def honest(shop: Shop, rng: np.random.Generator) -> Array:
    """The most clicks of a decision without clickbait."""
    return myopic(shop, rng) - shop.is_bait


def favourite(shop: Shop, rng: np.random.Generator) -> Array:
    """The same page of the most attractive honest items of category 0, whatever was looked at."""
    score = shop.attraction - shop.is_bait + (shop._category == 0)
    return np.broadcast_to(score, (len(shop.looks), shop.arms))
