"""Estimators of the mean discounted return of a visit: by trajectory or step by step, with and without a model.

Names as in Thomas & Brunskill 2016; w_t is the product of the ratios up to step t, G the discounted return. Source:
scope-rl, scope_rl/ope/discrete/basic_estimators.py; weights after the end of a visit, and the doubly robust estimators
as sums of columns: own derivation (`visits.Course`)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.sums.base import Estimator


class SessionEstimator(Estimator):
    """Base of the estimators of visits: a smooth function of sums over visits, and over visits at each step. Bounds are
    not cut: the return of a visit has no simple range.

    Its columns are attributes of `visits.Course` of the same name. Where `step_column` names one (0 after a visit's
    end), `value` and `gradient` take the columns, then that one at each step, then w_t at each step (held after
    the end): (..., d + 2 horizon)."""

    unit: ClassVar[str] = "session"
    sees_visits: ClassVar[bool] = True
    weight_column: ClassVar[str] = "weight"  # of a visit: effective sample size and tail are about it
    step_column: ClassVar[str | None] = None


class Tis(SessionEstimator):
    """Mean of weight x return, the weight that of the whole session: unbiased; its variance grows with every step."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_return", "rows")
    widens: ClassVar[bool] = True


class Wis(SessionEstimator):
    """tis divided by the mean weight: slightly biased, and steadier."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_return", "weight")
    widens: ClassVar[bool] = True


class Pdis(SessionEstimator):
    """Mean of sum_t gamma^t w_t r_t, where w_t is the weight up to step t: later slates do not weigh a reward."""

    columns: ClassVar[tuple[str, ...]] = ("stepwise_return", "rows")
    weight_column: ClassVar[str] = "mean_weight"


class DrRl(SessionEstimator):
    """pdis with a model of returns, which takes noise out: unbiased if the propensities are right, whatever the model,
    as long as it was not fitted on the same cluster.

    Mean of v_0, where v_t = V_t + rho_t (r_t + gamma v_{t+1} - Q_t). Source: after Jiang & Li 2016."""

    columns: ClassVar[tuple[str, ...]] = ("robust_return", "rows")
    weight_column: ClassVar[str] = "mean_weight"
    needs_model: ClassVar[bool] = True


class ByStep(SessionEstimator):
    """A mean over visits (where `leading`), and at every step one sum over visits divided by another."""

    weight_column: ClassVar[str] = "mean_weight"

    @property
    def leading(self) -> bool:
        return len(self.columns) == 3

    def value(self, mean: Array) -> Array:
        numerator, denominator = self._steps(mean)
        value = (numerator / denominator).sum(axis=-1)
        return value + mean[..., 2] / mean[..., 1] if self.leading else value

    def gradient(self, mean: Array) -> Array:
        numerator, denominator = self._steps(mean)
        gradient = np.zeros_like(mean)
        if self.leading:
            gradient[..., 1], gradient[..., 2] = -mean[..., 2] / mean[..., 1] ** 2, 1 / mean[..., 1]
        d, steps = len(self.columns), numerator.shape[-1]
        gradient[..., d : d + steps] = 1 / denominator
        gradient[..., d + steps :] = -numerator / denominator / denominator
        return gradient

    def _steps(self, mean: Array) -> tuple[Array, Array]:
        numerator, denominator = np.split(mean[..., len(self.columns) :], 2, axis=-1)
        return numerator, denominator


class Wpdis(ByStep):
    """pdis with w_t divided by its mean over sessions at every step: slightly biased, and steadier."""

    columns: ClassVar[tuple[str, ...]] = ("stepwise_return", "rows")
    step_column: ClassVar[str | None] = "stepwise_reward"


class Wdr(ByStep):
    """dr-rl with w_t divided by its mean over sessions at every step: slightly biased, and much steadier.

    Source: own derivation after Thomas & Brunskill 2016: sum_t gamma^t sum_i [u_t (r_t - Q_t) + u_{t-1} V_t], where u_t
    = w_t / sum_i w_t and u_{-1} = 1 / n, is the mean of V_0 plus sum_t (sum_i correction_t) / (sum_i w_t)."""

    columns: ClassVar[tuple[str, ...]] = ("robust_return", "rows", "first_value")
    step_column: ClassVar[str | None] = "correction"
    needs_model: ClassVar[bool] = True
