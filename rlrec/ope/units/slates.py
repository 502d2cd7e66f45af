"""This module has the estimators of the mean reward of a slate, and the fold that computes estimates from slates.

A slate is treated as a visit whose steps are its slots, from the top: `visits.Course`, without a discount, computes
the weights down to each slot. An estimator defines the weight of each slot's reward; clusters, intervals and
diagnostics are shared."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array, Flags
from rlrec.errors import InputError
from rlrec.ope.checks.diagnostics import weight_diagnostics
from rlrec.ope.sums.base import CORE_COLUMNS, TABLE_COLUMNS, Estimator, ValueRange, require
from rlrec.ope.sums.moments import ClusterSummary
from rlrec.ope.sums.visits import MAX_WEIGHT, Course, VisitBatch
from rlrec.ope.units.estimate import Estimate, EstimatorFold, ratios_differ
from rlrec.ope.units.fold import FLAT_CURVE, Fold, PositionCurve, RowSums
from rlrec.records import Record

# Share of page events in the logged rewards from which on diagnostics are those of the ratios of whole slates. (Where
# these ratios collapse, page events are a small share of the estimate for this reason alone.)
_PAGE_EVENT_SHARE = 0.1


class SlateBatch(VisitBatch, eq=False):
    """A SlateBatch holds s slates of the log, n slots in all, with the ratios of one target's probabilities to the
    logged ones. Slate i has rows start[i] to start[i + 1] - 1, from the top. An estimator leaves a slate out if a value
    that it needs is NaN (not known).

    log_ratio (n,): the logarithm of the ratio of the probabilities of the slot's arm given the slots above; largest
    (n,): the upper bound of log_ratio; reward (n,): the reward of each slot; page (s,): the reward of events that
    belong to the whole slate; predicted, expected (n,): a model's value of the slate's reward from this slot on, for
    the arm shown and averaged over the target's choice, given the slots above; marginal_ratio (n,): the ratio of the
    probabilities of the arm at its position; largest_marginal (n,): the upper bound of this ratio at that position;
    target_at, logged_at (n, k): the target's and the logger's probabilities of the arm at positions 1 to k; 0 below
    the end of the slate; additive (n,): the part of each slot in the weight of a reward that is a sum over slots,
    from `pseudo_inverse`."""

    visit_columns: ClassVar[tuple[str, ...]] = ("cluster", "count", "page")
    page: Array
    marginal_ratio: Array | None = None
    largest_marginal: Array | None = None
    target_at: Array | None = None
    logged_at: Array | None = None
    additive: Array | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("page", self.page, np.isfinite(self.page), "a finite number")
        if self.marginal_ratio is not None:
            require("marginal_ratio", self.marginal_ratio, ~(self.marginal_ratio < 0), "0 or more")
        for name in TABLE_COLUMNS:
            if (table := getattr(self, name, None)) is not None and (table < 0).any():
                raise InputError(f"{name} of the batch has a probability below 0")

    def _is_ratio(self, log_ratio: Array) -> Flags:
        return ~(log_ratio == np.inf)


class SlateCourse(Course, kw_only=False, eq=False):
    """A SlateCourse computes columns of one batch of slates, with a value per slot, (n,), or per slate, (s,)."""

    batch: SlateBatch
    gamma: float = 1.0

    @property
    def value_at_end(self) -> Array:
        """Return the reward of events that belong to the whole slate, which the model counts after the last slot."""
        return self.batch.page

    @cached_property
    def page_reward(self) -> Array:
        """Return the reward of each slate: the sum over its slots plus the reward of events of the whole slate."""
        return self.sum(self.batch.reward) + self.batch.page

    @cached_property
    def weighted_page_events(self) -> Array:
        """Return the weight of the whole slate x the reward of events of the whole slate. The result is 0 without such
        events, even if the weight is not known."""
        return np.where(self.batch.page == 0, 0.0, self.weight * self.batch.page)

    @cached_property
    def has_reward(self) -> Flags:
        """Return flags, which are true for slates with a reward that is not the default."""
        return super().has_reward | (self.batch.page != 0)

    @cached_property
    def bound(self) -> Array:
        """Return the largest weight that the slate could have had. The result is inf for more than one slot, since
        bounds of the factors do not bound the product."""
        return np.where(self.batch.length > 1, np.inf, super().bound)

    @cached_property
    def bound_of_marginals(self) -> Array:
        """Return the largest bound of the ratios of marginals in each slate, or inf if no bound is known."""
        largest_marginal = self.batch.largest_marginal
        if largest_marginal is None or not len(self.batch):
            return np.full(len(self.batch), np.inf)
        return np.maximum.reduceat(np.nan_to_num(largest_marginal, nan=np.inf), self.batch.start[:-1])

    def table(self, name: str) -> Array:
        """Return the probabilities of each slot's arm at positions 1 to k, (n, k). Raises InputError if they are not
        known.

        name: `target_at` or `logged_at`."""
        table = getattr(self.batch, name)
        if table is None:
            raise InputError("pbm and interpol need the probabilities of every position", hint="use iips")
        return np.asarray(table)


class Weighing(Record, kw_only=False, eq=False):
    """A Weighing holds the weights that an estimator gives to s slates. Each array is (s,); a weight is NaN if it is
    not known.

    weight: the weight of the slate, 1 on average; weighted_reward: the sum of the slate's rewards times their
    weights; bound: the largest weight that the slate could have had."""

    weight: Array
    weighted_reward: Array
    bound: Array


class SlateEstimator(Estimator):
    """SlateEstimator is the base of the estimators of slates. Bounds are not cut, since the reward of a slate has no
    simple range.

    The columns of an estimator are `weighted_reward`, `weight`, `rows`, and `robust` for an estimator that corrects
    a reward model."""

    unit: ClassVar[str] = "slate"
    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "rows")
    widens_interval: ClassVar[bool] = True
    needs_joint: ClassVar[bool] = False  # needs the probability of the slate, slot by slot
    needs_table: ClassVar[bool] = False  # needs the probabilities of every position
    is_additive: ClassVar[bool] = False  # assumes that what a page earns is a sum over its slots
    shape: PositionCurve | None = None  # the position curve that it assumes

    @property
    @abstractmethod
    def weighing(self) -> str:
        """Return the name of the estimator's weights. Estimators that return the same name have the same weights."""

    @property
    def prefix(self) -> str:
        return f"{self.weighing} "

    @abstractmethod
    def weigh(self, course: SlateCourse) -> Weighing:
        """Return the weights of the slates of a batch."""


# -- the estimators, each with its own assumption about what the reward of a slot depends on --
#
# w_l is the ratio of the probabilities of the slate down to slot l, r_l the reward of slot l. Rewards of events that
# belong to the whole page are weighted by the ratio of the whole slate, which is right under every assumption.


class SelfNormalisedSlates:
    """SelfNormalised is a base class that makes an estimator divide by the mean weight."""

    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "weight")
    is_self_normalised: ClassVar[bool] = True


class Sips(SlateEstimator):
    """Average w x page reward, where w is the ratio of the probabilities of the whole slate. The result is unbiased
    whatever a reward depends on, if the logger could show everything that the target shows; each further slot makes it
    vary more.

    Source: st-tech/zr-obp, obp/ope/estimators_slate.py (SlateStandardIPS)."""

    needs_joint: ClassVar[bool] = True
    weighing: ClassVar[str] = "sips"

    def weigh(self, course: SlateCourse) -> Weighing:
        return Weighing(course.weight, course.weight * course.page_reward, course.bound)


class Rips(SlateEstimator):
    """Average sum_l w_l r_l, where w_l is the ratio of the probabilities of the slate down to slot l. The result is
    unbiased if a reward depends only on its slot and the slots above (cascade).

    Source: st-tech/zr-obp, obp/ope/estimators_slate.py (SlateRewardInteractionIPS, after McInerney et al. 2020)."""

    needs_joint: ClassVar[bool] = True
    weighing: ClassVar[str] = "rips"

    def weigh(self, course: SlateCourse) -> Weighing:
        return Weighing(course.mean_weight, course.stepwise_return + course.weighted_page_events, course.bound)


class CascadeDr(Rips):
    """Use rips with a model of what the rest of a page earns, which makes it vary less. The result is unbiased where
    rips is, even if the model is poor, as long as the model was not fitted on the same cluster.

    The estimate is the mean of sum_l w_l (r_l - Q_l) + w_(l-1) V_l; Q_l, V_l: the model's value of slot l and all
    below. Source: own derivation, as `sessions.DrRl` with slots as steps (Cascade-DR of Kiyohara et al. 2022, not
    read)."""

    columns: ClassVar[tuple[str, ...]] = ("robust", "rows")
    needs_model: ClassVar[bool] = True


class Iips(SlateEstimator):
    """Average sum_l r_l x ratio of the probabilities of that arm at position l. The result is unbiased if a reward
    depends only on its arm and position, not on the other slots.

    Source: st-tech/zr-obp, obp/ope/estimators_slate.py (SlateIndependentIPS, after Li et al. 2018)."""

    weighing: ClassVar[str] = "iips"
    has_independent_slots: ClassVar[bool] = True
    lack_reason: ClassVar[str] = "no-marginal"

    def weigh(self, course: SlateCourse) -> Weighing:
        ratio = course.batch.marginal_ratio
        if ratio is None:
            raise InputError("iips needs probabilities of positions", hint="use rips")
        return weigh_by_slot(course, ratio, np.ones(len(ratio)), course.bound_of_marginals)


class Pi(SlateEstimator):
    """Average w x page reward, where w is the pseudo-inverse weight q' G^+ 1_slate; q are the target's probabilities of
    arms at positions, G the logger's of pairs of them. The result is unbiased if the mean reward of a page is a sum of
    one number per slot, which depends on arm and position. The page may have one reward as a whole. Weights can be
    negative. The logger must be uniform, or have at most 5,000 slates to list.

    Source: `pseudo_inverse`, after Swaminathan et al. 2017."""

    weighing: ClassVar[str] = "pi"
    widens_interval: ClassVar[bool] = False  # weights below 0 have no such interval
    has_independent_slots: ClassVar[bool] = True
    is_additive: ClassVar[bool] = True
    lack_reason: ClassVar[str] = "no-pairs"
    needs_all_rows: ClassVar[bool] = True

    def weigh(self, course: SlateCourse) -> Weighing:
        slot_weights = course.batch.additive
        if slot_weights is None:
            raise InputError("pi needs the logger's probabilities of pairs of slots", hint="use rips or iips")
        weight = course.sum(slot_weights)
        return Weighing(weight, weight * course.page_reward, np.full(len(weight), np.inf))


class CurveEstimator(SlateEstimator):
    """Curved is the base of the estimators that use a position curve."""

    needs_table: ClassVar[bool] = True
    has_independent_slots: ClassVar[bool] = True
    lack_reason: ClassVar[str] = "no-marginal"
    shape: PositionCurve


@dataclass(frozen=True, kw_only=True)
class Pbm(CurveEstimator):
    """Average sum_l r_l x sum_j t_j P_target(arm at j) / sum_j t_j P_log(arm at j), where t_j is the examination of
    position j, from a curve of `position fit` (pbm:home). The result is unbiased if a reward is examination x
    attraction of the arm and the curve is right. It varies far less than iips, but does not see errors of the curve.

    curve: its name. Source: own derivation; position-based model of Li et al. 2018, not read."""

    curve: str = ""
    shape: PositionCurve = FLAT_CURVE

    @property
    def weighing(self) -> str:
        return f"pbm:{self.curve}"

    def weigh(self, course: SlateCourse) -> Weighing:
        target, logger = course.table("target_at"), course.table("logged_at")
        t = examination(self.shape, target.shape[1])
        weight = divide(target @ t, logger @ t)
        return weigh_by_slot(course, weight, t[course.step], course.bound_of_marginals)


@dataclass(frozen=True, kw_only=True)
class Interpol(CurveEstimator):
    """Average sum_l r_l x sum_(j within window of l) t_j P_target(arm at j) / sum_(k within window of j) t_k P_log(arm
    at k). The result is unbiased where pbm is. It uses the curve t only between positions at most `window` apart, so it
    lies between iips (window 0) and pbm (window of the page). interpol:2:home has a window of 2 positions and the curve
    home; without a curve (interpol:2), positions within the window count as equally examined.

    window: 1 or more positions. Source: the windows of INTERPOL (Buchholz, London, Di Benedetto & Joachims 2022), as
    public code has them for deterministic targets."""

    window: int = 1
    curve: str = ""
    shape: PositionCurve = FLAT_CURVE

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window of interpol is {self.window}", hint="1 position or more; iips is window 0")

    @property
    def weighing(self) -> str:
        return f"interpol:{self.window}:{self.curve}"

    def weigh(self, course: SlateCourse) -> Weighing:
        target, logger = course.table("target_at"), course.table("logged_at")
        k = target.shape[1]
        t, position = examination(self.shape, k), np.arange(k)
        in_window = (np.abs(position[:, None] - position) <= self.window).astype(np.float64)
        # sums around each position j, then around the position shown
        ratio = divide(target * t, (logger * t) @ in_window)
        weight = np.einsum("nj,nj->n", ratio, in_window[course.step])
        bound = course.bound_of_marginals * min(2 * self.window + 1, k)
        return weigh_by_slot(course, weight, t[course.step], bound)


class SnSips(SelfNormalisedSlates, Sips):
    """Divide the estimate of sips by the mean weight. The result is slightly biased in small logs, but it varies
    less."""


class SnIips(SelfNormalisedSlates, Iips):
    """Divide the estimate of iips by the mean weight over slots. The result is slightly biased in small logs, but it
    varies less."""


class SnRips(SelfNormalisedSlates, Rips):
    """Divide the estimate of rips by the mean weight over slots. The result is slightly biased in small logs, but it
    varies less."""


class SnPi(SelfNormalisedSlates, Pi):
    """Divide the estimate of pi by the mean weight. The result is slightly biased in small logs, but it varies less."""


class SnPbm(SelfNormalisedSlates, Pbm):
    """Divide the estimate of pbm by the mean weight over slots, where each slot is weighted by its examination. The
    result is slightly biased in small logs."""


class SnInterpol(SelfNormalisedSlates, Interpol):
    """Divide the estimate of interpol by the mean weight over slots, where each slot is weighted by its examination.
    The result is slightly biased in small logs."""


def weigh_by_slot(course: SlateCourse, weight: Array, emphasis: Array, bound: Array) -> Weighing:
    """Return the weights of slates from the weights of their slots. The weight of a slate is the mean over its slots.

    weight (n,): the weight of each slot; emphasis (n,): how much each slot counts in the mean; bound (s,): the
    largest weight that each slate could have had."""
    weighted_reward = course.sum(weight * course.batch.reward) + course.weighted_page_events
    return Weighing(course.sum(weight * emphasis) / course.sum(emphasis), weighted_reward, bound)


def examination(curve: PositionCurve, positions: int) -> Array:
    """Return the examination of positions 1 to `positions`, (k,). Raises InputError if the curve ends before the last
    position."""
    if curve == FLAT_CURVE:
        return np.ones(positions)
    if len(curve.examination) < positions:
        raise InputError(
            f"curve {curve.name} ends at position {len(curve.examination)}, and slates have {positions}",
            hint="use iips, or fit a curve on a log with lower positions",
        )
    return np.array(curve.examination[:positions])


def divide(numerator: Array, denominator: Array) -> Array:
    """Return numerator / denominator. The result is 0 if both are 0, and NaN if either is NaN."""
    ratio = np.where(np.isnan(numerator + denominator), np.nan, 0.0)
    return np.divide(numerator, denominator, out=ratio, where=denominator > 0)


# -- their fold --


class SlateFold(Fold):
    """A SlateFold computes the requested estimators from slates.

    A cluster that spans batches takes 40 bytes per weighting, and 8 more bytes. Each weighting has two columns of
    weights: `weight`, the weights of the estimator, and `of_slate`, the ratios of whole slates, if they are known.
    The figures of its sums are sizes (2,), the logged sums of |reward of events of whole slates| and of |reward|,
    and rewards, the range of the rewards of slates."""

    @cached_property
    def robust_prefixes(self) -> frozenset[str]:
        """Return the prefixes of the weightings that an estimator with a reward model uses."""
        return frozenset(estimator.prefix for estimator in self.estimators.values() if estimator.needs_model)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(
            prefix + column
            for prefix in self.weighings
            for column in (*CORE_COLUMNS, "of_slate", *(["robust"] if prefix in self.robust_prefixes else []))
        )

    def row_sums(self, batch: SlateBatch, /) -> RowSums:
        """Return the sums of one batch. Raises InputError if an estimator needs a column that the batch lacks."""
        course = SlateCourse(batch)
        terms: list[Array] = []
        weights = {}
        for prefix, estimator in self.weighings.items():
            weighing = estimator.weigh(course)
            is_weighed = ~np.isnan(weighing.weight + weighing.weighted_reward)
            slate_ratio = np.where(np.isnan(course.weight), weighing.weight, course.weight)
            columns = [course.page_reward, weighing.weight, weighing.weighted_reward, slate_ratio]
            columns += [course.robust_return] if prefix in self.robust_prefixes else []
            finite_columns = (np.where(is_weighed, np.clip(column, -MAX_WEIGHT, MAX_WEIGHT), 0.0) for column in columns)
            terms += [is_weighed.astype(np.float64), *finite_columns]
            bounds = {"weight": (weighing.weight, weighing.bound), "of_slate": (slate_ratio, course.bound)}
            for column, (weight, bound) in bounds.items():
                weights[prefix + column] = weight_diagnostics(
                    batch, weight, weighted_reward=weighing.weighted_reward, reward=course.page_reward,
                    not_default=course.has_reward, bound=bound, rows=is_weighed,
                )  # fmt: skip
        matrix, slot_rewards = batch.with_counts(np.column_stack(terms)), course.sum(np.abs(batch.reward))
        sizes = np.abs(np.column_stack([batch.page, slot_rewards + np.abs(batch.page)]))
        figures = {"sizes": batch.with_counts(sizes).sum(axis=0), "rewards": ValueRange.from_values(course.page_reward)}
        return self.sums(matrix, batch.cluster, weights, figures)

    def factors(self, factor: Array, /) -> dict[str, float]:
        factor_by_prefix = dict(zip(self.weighings, factor.tolist(), strict=True))
        return {column: factor_by_prefix[f"{column.rpartition(' ')[0]} "] for column in self.columns}

    def estimator_fold(
        self, row_sums: RowSums, label: str, estimator: SlateEstimator, summary: ClusterSummary, /
    ) -> EstimatorFold:  # fmt: skip
        """Return the object that computes the estimate. The reward of a slate is a sum, so it has no upper limit. Its
        lower limit is 0 if no slate of the log earned less."""
        observed_range: ValueRange = row_sums.figures["rewards"]
        least = 0.0 if observed_range.least >= 0 and estimator.widens_interval else -np.inf
        # where page events are much of the reward, the ratios of whole slates count
        page_event_size, reward_size = row_sums.figures["sizes"].tolist()
        column = "of_slate" if page_event_size > _PAGE_EVENT_SHARE * reward_size else "weight"
        curve = estimator.shape
        assumptions = {
            "independent-slots": estimator.has_independent_slots, "sum-of-slots": estimator.is_additive,
            "position-model": curve is not None,
            "no-curve": curve is not None and curve.name is None,
        }  # fmt: skip
        return EstimatorFold(
            label=label, estimator=estimator, summary=summary, weights=row_sums.weights[estimator.prefix + column],
            weight_column=column, mean_column=column,
            reward_range=(least, np.inf), observed_range=observed_range,
            reasons=tuple(reason for reason, is_assumed in assumptions.items() if is_assumed),
            facts={} if curve is None else curve.facts,
        )  # fmt: skip

    def compare_estimates(
        self, estimates: list[Estimate], estimator_folds: Sequence[EstimatorFold], row_sums: RowSums
    ) -> list[Estimate]:
        """Return the estimates. An estimate that assumes independent slots gets the reason `refuted` if it differs from
        a reliable estimate without this assumption."""
        estimators, summary = list(self.estimators.values()), row_sums.moments.summary()
        reliable_estimators = [
            kind for kind, estimate in zip(estimators, estimates, strict=True)
            if kind.needs_joint and estimate.verdict != "insufficient" and "mean-weight" not in estimate.reasons
        ]  # fmt: skip
        reference = max(reliable_estimators, key=lambda kind: (kind.needs_model, kind.weighing == "rips"), default=None)
        rows = []
        for kind, estimate in zip(estimators, estimates, strict=True):
            is_different = False
            if reference is not None and kind.has_independent_slots and estimate.n:
                names = tuple(side.prefix + column for side in (kind, reference) for column in side.columns)
                is_different = ratios_differ(summary, names, clusters=estimate.clusters, value=estimate.value)
            rows.append(estimate.with_reasons(["refuted"]) if is_different else estimate)
        return rows
