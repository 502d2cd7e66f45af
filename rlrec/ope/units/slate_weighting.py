"""Estimators of the mean reward of a page, each under an assumption of its own about what a slot's reward depends on.

w_l is the ratio of the probabilities of the slate down to slot l, r_l the reward of slot l. The reward of events that
belong to the whole page is weighed by the ratio of the whole slate, which is right under every assumption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope.units.fold import FLAT, PositionCurve
from rlrec.ope.units.slates import SlateCourse, SlateEstimator, Weighing


class SelfNormalised:
    """The columns of an estimator that is divided by its mean weight."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "weight")


class Sips(SlateEstimator):
    """Mean of w x page reward, w the ratio of the whole slate: unbiased whatever a reward depends on, as long as the
    logger could show what the target shows; its variance grows with every slot.

    Source: st-tech/zr-obp, obp/ope/estimators_slate.py (SlateStandardIPS)."""

    joint: ClassVar[bool] = True
    weighing: ClassVar[str] = "sips"

    def weigh(self, course: SlateCourse) -> Weighing:
        return Weighing(course.weight, course.weight * course.page_reward, course.bound)


class Rips(SlateEstimator):
    """Mean of sum_l w_l r_l, w_l the ratio of the slate down to slot l: unbiased where a reward depends on its slot and
    the slots above (cascade).

    Source: st-tech/zr-obp, obp/ope/estimators_slate.py (SlateRewardInteractionIPS, after McInerney et al. 2020)."""

    joint: ClassVar[bool] = True
    weighing: ClassVar[str] = "rips"

    def weigh(self, course: SlateCourse) -> Weighing:
        return Weighing(course.mean_weight, course.stepwise_return + course.weighted_page_events, course.bound)


class CascadeDr(Rips):
    """rips with a model of what a page still earns, which takes noise out: unbiased where rips is, whatever the model,
    as long as it was not fitted on the same cluster.

    Mean of sum_l w_l (r_l - Q_l) + w_(l-1) V_l; Q_l, V_l: the model's value of slot l and all below. Source: own
    derivation, as `sequential.DrRl` with slots as steps (Cascade-DR of Kiyohara et al. 2022, not read)."""

    columns: ClassVar[tuple[str, ...]] = ("robust", "rows")
    needs_model: ClassVar[bool] = True


class Iips(SlateEstimator):
    """Mean of sum_l r_l x ratio of the probabilities of that arm at position l: unbiased where a reward depends on its
    arm and position alone, whatever stands elsewhere.

    Source: st-tech/zr-obp, obp/ope/estimators_slate.py (SlateIndependentIPS, after Li et al. 2018)."""

    weighing: ClassVar[str] = "iips"
    independent_slots: ClassVar[bool] = True
    lacking: ClassVar[str] = "no-marginal"

    def weigh(self, course: SlateCourse) -> Weighing:
        ratio = course.batch.marginal_ratio
        if ratio is None:
            raise InputError("iips needs probabilities of positions", hint="use rips")
        return by_slot(course, ratio, np.ones(len(ratio)), course.bound_of_marginals)


class Pi(SlateEstimator):
    """Mean of w x page reward, w the pseudo-inverse weight q' G^+ 1_slate, with q the target's probabilities of arms at
    positions and G the logger's of pairs of them: unbiased where the page's mean reward is a sum over its slots of
    numbers of arm and position; the reward may come for the page alone. Weights can be negative. The logger must be
    uniform, or have few enough slates to list (up to 5,000).

    Source: `pseudo_inverse`, after Swaminathan et al. 2017."""

    weighing: ClassVar[str] = "pi"
    independent_slots: ClassVar[bool] = True
    lacking: ClassVar[str] = "no-pairs"
    entire: ClassVar[bool] = True

    def weigh(self, course: SlateCourse) -> Weighing:
        additive = course.batch.additive
        if additive is None:
            raise InputError("pi needs the logger's probabilities of pairs of slots", hint="use rips or iips")
        weight = course.sum(additive)
        return Weighing(weight, weight * course.page_reward, np.full(len(weight), np.inf))


@dataclass(frozen=True, kw_only=True)
class Pbm(SlateEstimator):
    """Mean of sum_l r_l x sum_j t_j P_target(arm at j) / sum_j t_j P_log(arm at j), t_j the examination of position j
    by a curve of `position fit` (pbm:home): unbiased where a reward is examination x attraction of the arm and the
    curve is right; far steadier than iips, and blind to the curve's errors.

    curve: its name. Source: own derivation; position-based model of Li et al. 2018, not read."""

    tabled: ClassVar[bool] = True
    independent_slots: ClassVar[bool] = True
    lacking: ClassVar[str] = "no-marginal"
    curve: str = ""
    shape: PositionCurve = FLAT

    @property
    def weighing(self) -> str:
        return f"pbm:{self.curve}"

    @property
    def rests_on(self) -> PositionCurve | None:
        return self.shape

    def weigh(self, course: SlateCourse) -> Weighing:
        target, logged = course.table("target_at"), course.table("logged_at")
        examined = examination(self.shape, target.shape[1])
        weight = divide(target @ examined, logged @ examined)
        return by_slot(course, weight, examined[course.step], course.bound_of_marginals)


@dataclass(frozen=True, kw_only=True)
class Interpol(SlateEstimator):
    """Mean of sum_l r_l x sum_(j within window of l) t_j P_target(arm at j) / sum_(k within window of j) t_k P_log(arm
    at k): unbiased where pbm is; it trusts the curve t only between positions that are at most `window` apart, so it
    lies between iips (window 0) and pbm (window of the page). interpol:2:home has a window of 2 positions and the curve
    home; without a curve (interpol:2) positions within the window are taken to be examined alike.

    window: 1 or more positions. Source: the windows of INTERPOL (Buchholz, London, Di Benedetto & Joachims 2022), as
    public code has them for deterministic targets."""

    tabled: ClassVar[bool] = True
    independent_slots: ClassVar[bool] = True
    lacking: ClassVar[str] = "no-marginal"
    window: int = 1
    curve: str = ""
    shape: PositionCurve = FLAT

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window of interpol is {self.window}", hint="1 position or more; iips is window 0")

    @property
    def weighing(self) -> str:
        return f"interpol:{self.window}:{self.curve}"

    @property
    def rests_on(self) -> PositionCurve | None:
        return self.shape

    def weigh(self, course: SlateCourse) -> Weighing:
        target, logged = course.table("target_at"), course.table("logged_at")
        k = target.shape[1]
        examined, position = examination(self.shape, k), np.arange(k)
        in_window = (np.abs(position[:, None] - position) <= self.window).astype(np.float64)
        # of each position j, then of the position shown
        ratio = divide(target * examined, (logged * examined) @ in_window)
        weight = np.einsum("nj,nj->n", ratio, in_window[course.step])
        bound = course.bound_of_marginals * min(2 * self.window + 1, k)
        return by_slot(course, weight, examined[course.step], bound)


class SnSips(SelfNormalised, Sips):
    """sips divided by its mean weight: slightly biased in small logs, and steadier."""


class SnIips(SelfNormalised, Iips):
    """iips divided by its mean weight over slots: slightly biased in small logs, and steadier."""


class SnRips(SelfNormalised, Rips):
    """rips divided by its mean weight over slots: slightly biased in small logs, and steadier."""


class SnPi(SelfNormalised, Pi):
    """pi divided by its mean weight: slightly biased in small logs, and steadier."""


class SnPbm(SelfNormalised, Pbm):
    """pbm divided by its mean weight over slots, each by its examination: slightly biased in small logs."""


class SnInterpol(SelfNormalised, Interpol):
    """interpol divided by its mean weight over slots, each by its examination: slightly biased in small logs."""


def by_slot(course: SlateCourse, weight: Array, emphasis: Array, bound: Array) -> Weighing:
    """Slates whose slots have weights (n,) of their own; the weight of a slate is their mean by emphasis (n,)."""
    weighted = course.sum(weight * course.batch.reward) + course.weighted_page_events
    return Weighing(course.sum(weight * emphasis) / course.sum(emphasis), weighted, bound)


def examination(curve: PositionCurve, positions: int) -> Array:
    """Examination of positions 1 to `positions`, (k,). Raises InputError where the curve ends above the last one."""
    if curve == FLAT:
        return np.ones(positions)
    if len(curve.examination) < positions:
        raise InputError(
            f"curve {curve.name} ends at position {len(curve.examination)}, and slates have {positions}",
            hint="use iips, or fit a curve on a log that tells of lower positions",
        )
    return np.array(curve.examination[:positions])


def divide(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator; 0 where both are 0, NaN where either is not known."""
    ratio = np.where(np.isnan(numerator + denominator), np.nan, 0.0)
    return np.divide(numerator, denominator, out=ratio, where=denominator > 0)
