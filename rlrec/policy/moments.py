"""Sums of regressors per arm, which make the belief of a linear model; they add up as counts do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlrec.arrays import Array


@dataclass(frozen=True, eq=False)
class ArmMoments:
    """Sums over the slots of each of m arms, in q features of the context.

    gram (..., m, q, q) sums of weight x x'; response (..., m, q) sums of (weighed reward) x; without any prior.
    arm_features (m, p): for models that all arms share; pool: the moments of all arms that the belief knows, where they
    are not these. solutions: posteriors that were solved from them, by kind and parameters."""

    gram: Array
    response: Array
    arm_features: Array | None = None
    pool: ArmMoments | None = None
    solutions: dict[Any, Any] = field(default_factory=dict)


def width(q: int) -> int:
    """Numbers that the packed moments of one arm take."""
    return q * (q + 1) // 2 + q


def unpack(packed: Array, q: int) -> ArmMoments:
    """The moments from packed ones, (..., m, width): the upper triangle of each gram by rows, then its response."""
    row, column = np.triu_indices(q)
    gram = np.empty((*packed.shape[:-1], q, q))
    gram[..., row, column] = packed[..., : len(row)]
    gram[..., column, row] = packed[..., : len(row)]
    return ArmMoments(gram=gram, response=packed[..., len(row) :])


def pack_each(x: Array, *, weight: Array, response: Array) -> Array:
    """Packed moments of each of n observations, (n, width).

    x (n, q); weight (n,) of x x'; response (n,) of x."""
    row, column = np.triu_indices(x.shape[1])
    return np.concatenate([x[:, row] * x[:, column] * weight[:, None], x * response[:, None]], axis=1)
