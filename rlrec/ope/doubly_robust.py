"""Estimators that correct a reward model by the weighted errors it makes on the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.base import LogBatch, Ratio, model_of


@dataclass(frozen=True, kw_only=True)
class Dr(Ratio):
    """Mean of E_target q + weight x (reward - q): unbiased if the propensities are right, whatever the model q, as
    long as q was not fitted on the same cluster; a good model leaves small errors to weigh."""

    name: ClassVar[str] = "dr"
    modelled: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        return ("robust_reward", "rows")

    def terms(self, batch: LogBatch) -> Array:
        predicted, expected = model_of(batch, self.name)
        robust = expected + batch.weight * (batch.reward - predicted)
        return np.column_stack([np.where(batch.usable, robust, 0.0), batch.usable])
