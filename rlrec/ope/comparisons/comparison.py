"""This module computes metrics, which are ratios of two sums, and compares two metrics or targets: their difference,
its interval and verdict, and which one is better.

The randomised unit (user or session) is the cluster, since its decisions are not independent and their number is
random. A mean reward per decision is therefore a ratio of two sums over units, with the error of a ratio.

For promotion gates one target minus another is compared on the same visits. Both are sums over the same clusters. The
error of the difference is computed from each cluster's influence on the first minus its influence on the second, so
their common noise cancels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, exp, lgamma, log, pi
from statistics import NormalDist
from typing import Any

import numpy as np

from rlrec.arrays import Array, Ids, finite_or_none
from rlrec.errors import InputError
from rlrec.ope.checks import verdicts
from rlrec.ope.checks.reasons import REASONS, in_order, worst_verdict
from rlrec.ope.checks.verdicts import Answer, doubts_of, judge_difference
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import UNKNOWN, Bounds, Minus, Studentised, studentised_bootstrap, value_and_error
from rlrec.ope.intervals.sequences import MIN_CLUSTERS, MIN_EVENTS, LookSequence
from rlrec.ope.intervals.tails import t_below, t_quantile
from rlrec.ope.sums.base import Ratio
from rlrec.ope.sums.moments import ClusterSummary, Moments, moments
from rlrec.ope.sums.unit_visits import HORIZON_DAYS, SAMPLED_FLAGS
from rlrec.ope.units.estimate import EstimatorFold
from rlrec.records import Record
from rlrec.sentences import rounding

ALARM = 1e-3  # p-value below which groups differ, or a split differs from its definition
# Sizes of Dirichlet priors for a wrong split: its shares lie as far from the defined ones as chance puts those of so
# many units.
SPLIT_UNITS = (10.0, 1_200.0)
ROUNDING_ERROR = 1e-12  # a variance this small, relative to the terms whose difference it is, counts as 0
COLUMNS = ("reward", "decisions")
SHARE_BOUNDS: Bounds = (0.0, 1.0)


class Metric(Record):
    """A Metric is the ratio of the sums of two columns over randomised units (users or sessions).

    numerator, denominator: the names of columns of `UnitSums`; reward: the number of the metric's reward definition;
    limits: the smallest and largest possible value of the metric; per_unit: whether the denominator counts units."""

    name: str
    numerator: str
    denominator: str
    reward: int | None = None
    limits: Bounds = UNKNOWN
    per_unit: bool = False

    @property
    def sampled_flag(self) -> str | None:
        """Return the name of the column that tells whether dropped rows of the log can bias this metric, or None if
        they cannot."""
        return None if self.denominator.startswith("mature_decisions") else SAMPLED_FLAGS["visits" in self.denominator]

    def bounds(self, value: MetricValue, level: float) -> Bounds:
        """Return the interval of a value, cut at the limits of the metric. Unknown bounds are infinite."""
        low, high = value.bounds(level)
        return (max(low, self.limits[0]), min(high, self.limits[1])) if value.has_error else UNKNOWN

    def reasons(self, *values: MetricValue, has_bounds: bool) -> tuple[str, ...]:
        """Return the reasons why there is no value or no bound, from the values of the compared groups. The result is
        empty if there are bounds."""
        if not all(value.units for value in values):
            return ("none-at-risk" if self.denominator.startswith("at_risk") else "no-units",)
        is_few = min(value.units for value in values) < 2
        return () if has_bounds else ("few-units" if is_few else "no-variation",)


def metrics(rewards: int, *, per_session: bool = False) -> list[Metric]:
    """Return the metrics of an experiment, in the order of the report.

    rewards: the number of reward definitions; per_session: whether sessions were randomised, not users. A session is
    recognised by its own key."""
    units, numbers = "units" if per_session else "recognised", range(rewards)
    return [
        Metric(name="visits", numerator="visits", denominator="units", per_unit=True),
        Metric(name="active_days", numerator="active_days", denominator="units", per_unit=True),
        Metric(name="retention", numerator="came_again", denominator=units, limits=SHARE_BOUNDS, per_unit=True),
        *(
            Metric(name=f"returned_{n}d", numerator=f"returned_{n}d", denominator=f"at_risk_{n}d", limits=SHARE_BOUNDS)
            for n in HORIZON_DAYS
        ),
        Metric(name="decisions_per_visit", numerator="decisions", denominator="visits_over"),
        Metric(name="minutes_per_visit", numerator="minutes", denominator="visits_over"),
        *(_reward_metric(n, "reward_per_visit", "visits") for n in numbers),
        *(_reward_metric(n, "reward_per_unit", "units") for n in numbers),
    ]


def per_decision(number: int) -> list[Metric]:
    """Return two metrics under a reward definition, given by its number: decisions per user or session, and reward per
    decision. Only decisions whose window is over count."""
    decisions, units = f"mature_decisions_{number}", f"mature_units_{number}"
    return [
        Metric(name="decisions_per_unit", numerator=decisions, denominator=units, reward=number, per_unit=True),
        _reward_metric(number, "reward_per_decision", "decisions"),
    ]


def _reward_metric(number: int, name: str, denominator: str) -> Metric:
    return Metric(
        name=name, numerator=f"reward_{number}", denominator=f"mature_{denominator}_{number}", reward=number,
        per_unit=denominator == "units",
    )  # fmt: skip


class MetricValue(Record):
    """A MetricValue is the value of a metric for one group of randomised units (users or sessions).

    units: the number of units that count; n_rewarded: the number of units whose numerator is not 0; numerator,
    denominator: the sums over units; value, error: the ratio of the two sums and its standard error (NaN for fewer
    than two units); least: a lower limit of the ratio, 0 if no unit has a numerator below 0."""

    units: int = 0
    n_rewarded: int = 0
    numerator: float = 0.0
    denominator: float = 0.0
    value: float = np.nan
    error: float = np.nan
    least: float = -np.inf

    @classmethod
    def from_sums(cls, sums: Moments | ClusterSummary | None) -> MetricValue:
        """Return the ratio of the first two columns, with its error. If the sums of every user or session are known,
        the error is the jackknife's, which keeps false alarms at 5 % even for 20 users with very different numbers of
        decisions. Otherwise it is the delta method's.

        sums: the sums of the columns, or None without users or sessions."""
        if sums is None:
            return cls()
        summary = sums.summary() if isinstance(sums, Moments) else sums
        n_units, total = int(summary.n_clusters[1]), summary.total[:2]
        value, error = (float(figure) for figure in value_and_error(Ratio(), total, summary.moment[:2, :2], n_units))
        if not summary.is_by_block and error > 0:
            error = _jackknife(summary.units[:, :2], value)
        is_positive = summary.absolute_sums[0] <= total[0] * (1 + ROUNDING_ERROR)
        return cls(
            units=n_units, n_rewarded=int(summary.n_clusters[0]), numerator=float(total[0]),
            denominator=float(total[1]), value=value, error=error, least=0.0 if is_positive else -np.inf,
        )  # fmt: skip

    @property
    def per_unit(self) -> float:
        """Return the numerator per user or session, or NaN if there are none."""
        return self.numerator / self.units if self.units else np.nan

    @property
    def has_error(self) -> bool:
        """Tell whether there is a standard error above 0."""
        return self.error > 0 and self.units > 1

    def bounds(self, level: float) -> Bounds:
        """Return the interval of the ratio by Student's t. If users or sessions do not vary, the bounds are infinite,
        since a lack of variation does not prove certainty."""
        half_width = t_quantile((1 + level) / 2, self.units - 1) * self.error if self.has_error else np.inf
        low = max(self.value - half_width, min(self.least, self.value))
        return (low, self.value + half_width) if self.has_error else UNKNOWN


def fold(numerator: Array, unit: Ids, *, spans_batches: bool) -> Moments:
    """Return the sums of one batch of decisions. `fold(a) + fold(b)` are the sums of both batches.

    numerator (n,): the numerator of every decision; unit (n,): the digest of the decision's randomised user or
    session, any 64 bits; spans_batches: whether a user or session may have rows in another batch."""
    return ratio_sums(numerator, np.ones(len(numerator)), unit=unit, spans_batches=spans_batches)


def ratio_sums(*columns: Array, unit: Ids, spans_batches: bool, names: Sequence[str] = COLUMNS) -> Moments:
    """Return the sums of the columns of one batch of n rows.

    columns: arrays (n,), of which the first two are the numerator and the denominator of a ratio; unit (n,): the
    digest of the row's randomised user or session; spans_batches: whether it may have rows in another batch; names:
    the names of the columns."""
    return moments(np.column_stack(columns), unit.astype(np.int64), columns=tuple(names), spans_batches=spans_batches)


def _jackknife(sums: Array, value: float) -> float:
    """Return the jackknife error of the ratio `value`. Without user or session i, the ratio changes by -(reward_i -
    value decisions_i) / (all decisions - decisions_i). Source: own derivation.

    sums (m, 2): the rewards and the decisions of each user or session."""
    reward, decisions = sums.T
    jackknife_change = (reward - value * decisions) / (decisions.sum() - decisions)
    return float(np.sqrt((len(sums) - 1) / len(sums) * (jackknife_change**2).sum()))


# -- the difference of two figures --


class Comparison(Record):
    """A Comparison is the difference between two metrics or targets. A figure that does not exist is None, never NaN.

    base: the value of the second metric or target; p_value: the two-sided p-value of no difference; clusters: the
    number of clusters of the two together; ess: the smaller effective number of clusters of the two, None without
    weights; verdict, reasons: the worse verdict of the two, and the reasons, as in an estimate; theta, narrowed: if
    the past of users is adjusted for, its coefficient, and by how much the adjustment narrows the interval; df:
    the degrees of freedom of std_error; careful_error: the error for bounds that hold at every look; even_units,
    even_rewards: the number of users or sessions, and of those with a reward, in an equally informative experiment
    with two groups of equal size; sequence: the sequence of the bounds, if the bounds hold at every look."""

    value: float | None = None
    base: float | None = None
    std_error: float | None = None
    lower: float | None = None
    upper: float | None = None
    p_value: float | None = None
    clusters: int = 0
    ess: float | None = None
    verdict: str = "ok"
    reasons: tuple[str, ...] = ()
    theta: float | None = None
    narrowed: float | None = None
    df: float = 0.0
    careful_error: float | None = None
    even_units: int = 0
    even_rewards: float = 0.0
    sequence: LookSequence | None = None

    @classmethod
    def from_figures(cls, reasons: Iterable[str] = (), **figures: Any) -> Comparison:
        """Return a comparison with these figures. Figures that are not finite become None."""
        finite_figures: dict[str, Any] = {
            name: finite_or_none(value) if isinstance(value, float) else value for name, value in figures.items()
        }
        return cls(**finite_figures).with_reasons(*reasons)

    def with_reasons(self, *reasons: str) -> Comparison:
        """Return the comparison with further reasons for doubt, and with its verdict lowered accordingly."""
        verdict = worst_verdict((self.verdict, *(REASONS[reason].best_verdict for reason in reasons)))
        return replace(self, reasons=(*self.reasons, *reasons), verdict=verdict)

    def without_group(self, group: str) -> Comparison:
        """Return the comparison without a group of reasons (see `REASONS`) that another comparison already reports."""
        return replace(self, reasons=tuple(name for name in self.reasons if REASONS[name].group != group))

    def at_this_look(self, alpha: float) -> Comparison:
        """Return the comparison with bounds by Student's t that are valid for one planned look. They are wrong with
        probability alpha."""
        if self.std_error is None or not self.df:
            return self
        return self._with_half_width(t_quantile(1 - alpha / 2, self.df) * self.std_error)

    def at_every_look(self, sequence: LookSequence) -> Comparison:
        """Return the comparison with a p-value and bounds that are valid at every look. The bounds are ever wrong with
        the probability alpha of the sequence. Without enough users (or sessions) and rewards, the figures are None."""
        without_bounds = replace(self, lower=None, upper=None, p_value=None, sequence=sequence)
        if self.lower is None or not self.careful_error:
            return without_bounds
        if self.even_units < MIN_CLUSTERS or self.even_rewards < MIN_EVENTS:
            return without_bounds.with_reasons("few-clusters" if self.even_units < MIN_CLUSTERS else "few-rewards")
        variance = self.clusters * self.careful_error**2
        p_value = sequence.p_value(self.value or 0.0, variance, self.clusters)
        return replace(
            without_bounds._with_half_width(float(sequence.half_width(variance, self.clusters))), p_value=float(p_value)
        )

    def _with_half_width(self, half_width: float) -> Comparison:
        """Return the comparison with two bounds at the distance `half_width` from its value."""
        return replace(self, lower=(self.value or 0.0) - half_width, upper=(self.value or 0.0) + half_width)

    @property
    def is_off_zero(self) -> bool:
        """Tell whether 0 lies outside the bounds."""
        return (self.lower or 0.0) > 0 or (self.upper or 0.0) < 0

    @property
    def is_reliable(self) -> bool:
        """Tell whether the bounds are valid, as far as the log shows."""
        return self.verdict != "insufficient" and not doubts_of(self.reasons)

    @property
    def relative(self) -> float | None:
        """Return the difference as a share of the value of the second metric or target."""
        return None if self.value is None or not self.base else finite_or_none(self.value / self.base)

    @property
    def width(self) -> float | None:
        """Return the width of the interval."""
        return None if self.lower is None or self.upper is None else self.upper - self.lower

    @property
    def _shortage(self) -> float:
        """Return the factor by which the number of users or sessions must grow until there are bounds."""
        return max(MIN_CLUSTERS / self.even_units, MIN_EVENTS / self.even_rewards)

    @property
    def shortage(self) -> int | None:
        """Return how many further users or sessions must come until an answer can be given. The result is None if there
        are enough, or if the number is not known."""
        is_short = self.sequence is not None and self.even_rewards and self._shortage > 1
        return ceil(self.clusters * (self._shortage - 1)) if is_short else None

    @property
    def answer(self) -> Answer:
        """Return whether the first metric or target is better than the second, worse, or the same, and how many further
        clusters would decide."""
        base, value, growth, shortages = self.base or 0.0, self.value or 0.0, None, list[float]()
        if self.sequence is not None:
            growth = partial(self.sequence.growth_factor, n=max(1, self.clusters))
            shortages = [self._shortage] if self.even_rewards else []
        return judge_difference(
            self.value, self.lower, self.upper, scale=abs(base), precision=rounding(base, base + value),
            clusters=self.clusters, ess=self.ess, verdict=self.verdict, reasons=self.reasons, growth=growth,
            shortages=shortages,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the figures, the reasons and the answer by name."""
        figures = {name: getattr(self, name) for name in ("value", "relative", "lower", "upper", "p_value")}
        return figures | {"reasons": [*self.reasons], **self.answer._asdict(), "shortage": self.shortage}


def difference(value: MetricValue, baseline: MetricValue, *, level: float, correlation: float = 0.0) -> Comparison:
    """Return `value` minus `baseline` by Welch's t over users or sessions. If one of the two does not vary, it gets the
    variation of the other one. If neither varies, there are no bounds and no p-value.

    correlation: the correlation between the two values, if users or sessions are in both groups; the degrees of
    freedom are then those of the smaller group."""
    sides = value, baseline
    variances, df = np.array([_variance(*sides), _variance(*sides[::-1])]), np.array([s.units - 1 for s in sides])
    variance = variances.sum()
    if correlation:
        reduced_variance = variance - 2 * correlation * np.sqrt(variances.prod())
        variance = reduced_variance if reduced_variance > ROUNDING_ERROR * variance else 0.0
    error, welch_df = float(np.sqrt(variance)), 0.0
    if error > 0 and (df > 0).all():
        # Welch-Satterthwaite degrees of freedom
        share = variances / variances.sum()
        welch_df = float(df.min() if correlation else 1 / (share**2 / df).sum())
    n_units, fewest_units = sum(side.units for side in sides), min(side.units for side in sides)
    return _compare_by_t(
        value.value - baseline.value, error, welch_df, level, base=baseline.value, clusters=n_units,
        careful_error=float(np.sqrt(variance + _missing_variance(sides, variances))) if welch_df else 0.0,
        even_units=2 * fewest_units,
        even_rewards=2 * fewest_units * sum(side.n_rewarded for side in sides) / max(1, n_units),
    )  # fmt: skip


def _missing_variance(sides: Sequence[MetricValue], variances: Array) -> float:
    """Return the variance that the smaller of two groups may lack: the variance that its mean would have if its users
    or sessions varied like those of both groups together, minus its own. A few of them that happen to be similar make a
    mean seem more certain than it is.

    variances (2,): the squared error of each group."""
    units = np.array([side.units for side in sides])
    df, smaller_side = units - 1, int(units[1] <= units[0])
    pooled_variance = (df * units * variances).sum() / df.sum()  # variance of one unit
    return max(0.0, float(pooled_variance / units[smaller_side] - variances[smaller_side]))


def compare_with_zero(mean: MetricValue, *, level: float, base: float) -> Comparison:
    """Return the comparison of a mean of differences with 0, by Student's t. Differences are relative to `base`."""
    df = mean.units - 1 if mean.has_error else 0
    return _compare_by_t(
        mean.value, mean.error, df, level, base=base, clusters=mean.units, careful_error=mean.error,
        even_units=mean.units, even_rewards=float(mean.n_rewarded),
    )  # fmt: skip


def _compare_by_t(value: float, error: float, df: float, level: float, **figures: Any) -> Comparison:
    """Return a comparison with an interval and a p-value by Student's t. With 0 degrees of freedom there is neither.
    `figures` are further fields of the comparison."""
    half_width = t_quantile((1 + level) / 2, df) * error if df else np.inf
    p_value = 2 * t_below(-abs(value) / error, df) if df else np.nan
    return Comparison.from_figures(
        value=value, std_error=error, lower=value - half_width, upper=value + half_width, p_value=p_value,
        df=float(df), **figures,
    )  # fmt: skip


def _variance(side: MetricValue, other: MetricValue) -> float:
    if side.error > 0 or not side.units:
        return side.error**2
    return other.error**2 * other.units / side.units


def holm(p_values: Sequence[float], alpha: float) -> tuple[list[float], list[float]]:
    """Return the adjusted p-values of several tests, and a level for the interval of each. An interval then excludes a
    difference of 0 exactly if its adjusted p-value is at most alpha. Source: Holm 1979."""
    adjusted_p, levels = [1.0] * len(p_values), [alpha] * len(p_values)
    largest, n_tests, is_rejected = 0.0, len(p_values), True
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        n_tests = len(p_values) - rank if is_rejected else n_tests
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        is_rejected = is_rejected and largest <= alpha
        adjusted_p[index], levels[index] = min(1.0, largest), alpha / n_tests
    return adjusted_p, levels


def sample_ratio(phases: Sequence[tuple[Sequence[float], Sequence[Sequence[int]]]]) -> tuple[float, float]:
    """Test whether variants got the shares of users or sessions that their weights define. Return chi-square at the
    last look, and a p-value that holds at every look, the smallest so far. Both are NaN without users or sessions.
    Source: Lindon & Malek 2022, a Dirichlet mixture against the weights.

    phases: for each phase, the weights of the variants, which need not sum to 1, and for each look the users or
    sessions of the phase so far, one number per variant."""
    chi2, ended_factors, largest_factor = np.nan, np.zeros(len(SPLIT_UNITS)), -np.inf
    for weights, looks in phases:
        share = np.asarray(weights, np.float64) / np.sum(weights)
        factors = np.array([[log_bayes_factor(units, share.tolist(), c) for c in SPLIT_UNITS] for units in looks])
        if not factors.size:
            continue
        expected_units = sum(looks[-1]) * share
        chi2 = np.nan_to_num(chi2) + float(((np.asarray(looks[-1]) - expected_units) ** 2 / expected_units).sum())
        largest_factor = max(largest_factor, float(np.logaddexp.reduce(ended_factors + factors, axis=1).max()))
        ended_factors = ended_factors + factors[-1]
    return float(chi2), min(1.0, exp(log(len(SPLIT_UNITS)) - largest_factor)) if np.isfinite(largest_factor) else np.nan


def log_bayes_factor(units: Sequence[int], shares: Sequence[float], c: float) -> float:
    """Return the logarithm of a Bayes factor: the likelihood of the numbers of units under random shares, over that
    under the defined shares. The random shares have a Dirichlet distribution of size c around the defined shares.

    units: the number of users or sessions of each variant; shares: the defined shares."""
    log_odds = lgamma(c) - lgamma(c + sum(units))
    for n, share in zip(units, shares, strict=True):
        log_odds += lgamma(c * share + n) - lgamma(c * share) - n * log(share)
    return log_odds


def is_unlikely(split: tuple[float, float]) -> bool:
    """Tell whether the shares of users or sessions differ from those that an experiment defines. A false alarm occurs
    in 1 of 1,000 experiments, however often the test is looked at.

    split: the result of `sample_ratio`."""
    return split[1] < ALARM


ALPHA = 0.05  # probability that any candidate of a year passes a gate although it is no better
NIGHTS = 365  # of a year
BEST_NIGHTS = 60  # number of looks at which a sequence is tightest
FIRST_LOOK_SHARE = 0.25  # of a pair's alpha, spent on its first look
MAX_DISTANCE = 8.0  # distance of a bound in standard errors where nothing can be said yet

# Replicates beyond a quantile of the bootstrap: with fewer the quantile is mostly noise.
_MIN_TAIL_REPLICATES = 20


def gate_alpha(pair: int) -> float:
    """Return the error probability of all looks at one pair of versions. The probabilities of all pairs sum to ALPHA.

    pair: the number of the pair in its year, from 1."""
    return ALPHA * 6 / (pi**2 * pair**2)


def nightly_alpha(candidate: int) -> float:
    """Return the error probability of the single look at a candidate, if every night brings another candidate. Half of
    ALPHA is spent as in `gate_alpha`, and half evenly over the nights of a year.

    candidate: the number of the candidate in its year, from 1."""
    return gate_alpha(candidate) / 2 + (ALPHA / 2 / NIGHTS if candidate <= NIGHTS else 0.0)


def look_alpha(alpha: float, clusters: int, *, best_n: float, is_first: bool) -> float:
    """Return the level of the test at one look. With these levels, all looks at a growing log together have error
    probability alpha.

    A normal bound at this level is as far from the estimate as the bound of the one-sided sequence that is tightest
    at best_n clusters. The sequence holds from the first cluster on without end; looks every night for a year use up
    three quarters of alpha (`python -m tests.benchmarks -k gates`). The last quarter is for the first look."""
    sequence = LookSequence.tightest(best_n, alpha, n_sides=1)
    half_width = float(sequence.half_width(clusters, clusters)) if clusters >= MIN_CLUSTERS else MAX_DISTANCE
    return max(NormalDist().cdf(-min(half_width, MAX_DISTANCE)), FIRST_LOOK_SHARE * alpha if is_first else 0.0)


def compare(
    target: EstimatorFold, reference: EstimatorFold | None, *, measure: type[Minus] = Minus, alpha: float = 0.025,
    replicates: int = intervals.REPLICATES,
    replicas: Sequence[tuple[EstimatorFold, EstimatorFold | None]] = (), reward: float = 0.0,
) -> Comparison:  # fmt: skip
    """Return the difference between two targets, from the folds of one estimator over the same rows. Both bounds are 0
    if the sums of every cluster are equal. Raises InputError for an alpha out of range, ValueError for folds over
    different rows.

    reference: the fold of the other target, or None for the log, whose rewards need no weights; measure: Minus, or
    Relative for the difference as a share; alpha: the error probability of each bound, in (0, 0.5); replicas: the
    folds of both targets for each of several equal parts of the slates simulated for a target, since differences
    between clusters do not show the error of the simulation; reward: the largest reward, of which a log may have too
    few."""
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha {alpha:g} is not between 0 and 0.5", hint="0.025 is usual")
    folds = [target, *([] if reference is None else [reference])]
    n_rows = target.summary.columns["rows"]
    if any(not np.array_equal(target.summary.units[:, n_rows], fold.summary.units[:, n_rows]) for fold in folds):
        raise ValueError("the two targets were not estimated on the same rows")
    units, contrast = _contrast_columns(target, reference, measure)
    sample, ess = _bootstrap(units, contrast, replicates), min(fold.diagnosis.ess or 0.0 for fold in folds)
    low, high, is_doubtful = 0.0, 0.0, False
    is_equal = reference is not None and all(
        np.array_equal(*sides)
        for sides in ((target.summary.units, reference.summary.units), (target.units, reference.units))
    )
    if not (target.n and is_equal):
        df = max(ess - 1, 1.0)
        low, high = _bootstrap_bounds(sample, alpha, df=df)
        if np.isfinite([low, high]).any():
            # the difference, and m times the influence of each cluster on it: terms with the difference as their mean
            total = units.sum(axis=0)
            terms: Array = contrast.value(total) + len(units) * (units @ contrast.gradient(total))
            loss = reward / target.summary.total[n_rows] / contrast.scale(total)
            tail_options: dict[str, float] = {"loss": len(terms) * float(loss), "radius": -t_quantile(alpha, df)}
            likelihood_bound = lower_bound(terms, **tail_options)
            is_doubtful = likelihood_bound <= 0 < low
            low, high = min(low, likelihood_bound), max(high, -lower_bound(-terms, **tail_options))
    simulated_values = [_bootstrap(*_contrast_columns(*pair, measure), 0).value for pair in replicas]
    error, (low, high) = intervals.stretch_bounds(sample.value, sample.error, (low, high), simulated_values)
    has_bounds = np.isfinite([low, high]).all()
    is_broad = not has_bounds or high - low > abs(sample.value)
    extra_reasons = (
        *(["no-propensity"] if any(fold.weights.left_out for fold in folds) else []),
        *(["wide-interval"] if is_broad else []),
        *(["rare-rewards"] if is_doubtful else []),
        *([] if has_bounds else ["few-rewards"]),
    )
    fold_verdicts = [verdicts.decide_verdict(fold.diagnosis, extra_reasons=extra_reasons) for fold in folds]
    return Comparison.from_figures(
        value=sample.value, base=contrast.base(units.sum(axis=0)), std_error=error, lower=low, upper=high, ess=ess,
        clusters=target.clusters, verdict=worst_verdict(verdict for verdict, _ in fold_verdicts),
        reasons=in_order(reason for _, reasons in fold_verdicts for reason in reasons),
    )  # fmt: skip


def _contrast_columns(
    target: EstimatorFold, reference: EstimatorFold | None, measure: type[Minus]
) -> tuple[Array, Minus]:
    """Return the columns of the two targets side by side, and their difference as a function of these columns. Without
    a `reference`, the logged sums take its place."""
    if reference is None:
        return np.column_stack([target.units, target.logged_sums]), measure(target.estimator, Ratio())
    return np.column_stack([target.units, reference.units]), measure(target.estimator)


def _bootstrap(units: Array, contrast: Minus, number: int) -> Studentised:
    with np.errstate(divide="ignore", invalid="ignore"):
        return studentised_bootstrap(contrast, units, seed=0, n_replicates=number)


def _bootstrap_bounds(sample: Studentised, alpha: float, *, df: float) -> Bounds:
    """Return bounds by bootstrap-t. If there are too few replicates for alpha, a bound is the farther one of two: the
    bootstrap's at the smallest alpha with enough replicates, and Student's t at alpha."""
    if not sample.error > 0 or not len(sample.t):
        return UNKNOWN
    bootstrap_alpha = max(alpha, _MIN_TAIL_REPLICATES / (len(sample.t) + 1))
    if bootstrap_alpha >= 0.5:
        return UNKNOWN
    low, high = sample.bounds(1 - 2 * bootstrap_alpha)
    half_width = 0.0 if bootstrap_alpha == alpha else -t_quantile(alpha, df) * sample.error
    return min(low, sample.value - half_width), max(high, sample.value + half_width)


# -- bounds of a mean by empirical likelihood, for terms skewed by rare, large losses --

_N_STEPS = 60  # of the bisection, which halves the logarithm of the tilt
_MAX_LOG_TILT = 40.0  # logarithm of the largest tilt, relative to the spread of the terms


def lower_bound(terms: Array, *, loss: float, radius: float) -> float:
    """Return a lower bound of a mean by empirical likelihood: the smallest mean of the terms over weights w whose -2
    sum ln((m + 1) w) is at most reach^2. One term that lies `loss` below the mean of the m terms is added to them.

    A normal or studentised bound is too high if losses are rare, since a log that happens to have few losses has a
    high mean and a small error. The additional loss corresponds to the loss that the exact bound of a Poisson count
    adds. Source: Owen 1988 (empirical likelihood); Chen, Variyath & Abraham 2008 (one additional term)."""
    excess_terms = np.append(terms, terms.mean() - loss)
    smallest_term = excess_terms.min()
    excess_terms -= smallest_term
    if not excess_terms.any():
        return float(smallest_term)
    # weights 1 / (s + term - least); a smaller s gives a lower mean
    low, high, scale = -_MAX_LOG_TILT, _MAX_LOG_TILT, excess_terms.mean()
    for _ in range(_N_STEPS):
        middle = (low + high) / 2
        density = np.log(np.exp(middle) * scale + excess_terms)
        distance = 2 * (len(excess_terms) * np.log(np.exp(-density).mean()) + density.sum())
        low, high = (middle, high) if distance > radius**2 else (low, middle)
    weight = 1 / (np.exp(high) * scale + excess_terms)
    return float(smallest_term + weight @ excess_terms / weight.sum())
