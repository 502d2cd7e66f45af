"""An audience that clicks each arm at a rate of its own, wherever it stands on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """rates: probability of a click for each arm, in [0, 1]; an arm without a rate is never clicked."""

    rates: Mapping[str, float]

    def clicks(self, slates: Sequence[Sequence[str]], *, rng: np.random.Generator) -> list[tuple[int, int]]:
        """(page, position) of every click on these pages, both in order; positions from 1."""
        pages = np.repeat(np.arange(len(slates)), [len(slate) for slate in slates])
        positions = np.concatenate([np.arange(1, len(slate) + 1) for slate in slates] or [np.empty(0, int)])
        rates = np.array([self.rates.get(arm, 0.0) for slate in slates for arm in slate])
        clicked = rng.random(len(rates)) < rates
        return list(zip(pages[clicked].tolist(), positions[clicked].tolist(), strict=True))

    def mean(self) -> float:
        """Clicks per impression of the uniform policy over the arms that have a rate."""
        return float(np.mean(list(self.rates.values())))
