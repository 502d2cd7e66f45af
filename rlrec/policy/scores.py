"""Distributions of the noisy score vector that ranks a page: what a policy kind declares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Point:
    """Scores without noise (greedy, UCB); equal scores stand in a random order.

    values (m,), any unit; +inf (an arm never tried) and -inf are allowed, NaN is not."""

    values: Array

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Beta:
    """Independent Beta posteriors. alpha, beta (m,), above 0; accuracy is promised from 0.1 to 1e7."""

    alpha: Array
    beta: Array

    def __len__(self) -> int:
        return len(self.alpha)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Independent normal posteriors. mean (m,), sd (m,) above 0, both in the unit of the reward."""

    mean: Array
    sd: Array

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True, eq=False)
class Gumbel:
    """Logits with standard Gumbel noise, the Plackett-Luce model: the best arm is softmax(logits).

    logits (m,); an arm at -inf stands below every finite one, and such arms are ordered at random."""

    logits: Array

    def __len__(self) -> int:
        return len(self.logits)


@dataclass(frozen=True, eq=False)
class Correlated:
    """Scores of one posterior that all arms share: location + factor z, z standard normal in d dimensions.

    location (m,), factor (m, d), in the unit of the reward; samples: how many posterior draws stand for it. It has no
    closed form: each decision draws samples of its own (`at`), and what is logged is exact for those."""

    location: Array
    factor: Array
    samples: int

    def __len__(self) -> int:
        return len(self.location)


@dataclass(frozen=True, eq=False)
class Sampled:
    """The samples of one decision: at every position an independent one of them ranks the arms that are left.

    values (samples, m), in the unit of the reward."""

    values: Array

    def __len__(self) -> int:
        return int(self.values.shape[1])


Scores = Point | Beta | Gaussian | Gumbel | Correlated | Sampled
