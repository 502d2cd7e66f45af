"""This module decides the verdict of an estimate, explains its reasons, and answers which of two targets is better."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from typing import Any, NamedTuple

from rlrec.errors import quantity
from rlrec.ope.checks.reasons import (
    EFFECTIVE_REWARDS,
    ESS_LIMITS,
    ESS_SHARE,
    FEWEST_EFFECTIVE_REWARDS,
    LEAST_ESS,
    LEAST_REWARDS,
    REASONS,
    in_order,
    worst_verdict,
)
from rlrec.records import Record
from rlrec.sentences import direction

LEAST_MEAN_WEIGHT = 0.99  # a mean weight that is surely smaller is a reason
_BETWEEN_VISITS_TEXT = (
    "what a visit shows changes the person's later visits (weak): the target would bring about other visits than the "
    "logger did, and only an experiment per user can tell"
)


class Diagnosis(Record):
    """A Diagnosis holds the figures from which a verdict follows. A figure that has no meaning (the weights of dm) or
    does not exist is None.

    uses_weights: whether the estimator uses weights; n, clusters, ess: the rows used, their clusters, and the
    effective sample size over clusters; nonzero: the number of nonzero weighted rewards; reward_share: the weighted
    share of rows whose reward is not the default; k_hat: the shape of the tail of the weights, if no largest weight
    is provable; unsupported: the mean probability of the target on arms that had probability 0 under the logger;
    cluster_share: the largest share of the estimate that comes from one cluster; mean_weight_z: the distance of the
    mean weight from 1 in standard errors; mean_weight_upper: the mean weight plus 3 standard errors; has_short_horizon:
    whether the effective sample size is too small at a step that contributes to the return."""

    uses_weights: bool
    n: int
    clusters: int
    ess: float | None
    nonzero: int
    reward_share: float | None
    k_hat: float | None
    unsupported: float | None
    cluster_share: float | None
    mean_weight_z: float | None
    mean_weight_upper: float | None = None
    has_short_horizon: bool = False

    @property
    def is_supported(self) -> bool:
        """Tell whether the loggers could make nearly all choices of the target, as far as weights show."""
        return self.reaches_mean_weight(LEAST_MEAN_WEIGHT)

    def reaches_mean_weight(self, share: float) -> bool:
        """Tell whether the loggers could make at least this share of the target's choices. The result is False if the
        target shows arms that the loggers surely never show."""
        is_reached = self.mean_weight_upper is None or self.mean_weight_upper >= share
        return is_reached and not _INSUFFICIENT_LIMITS["unsupported"](self)


# For each reason, whether the figures of a diagnosis give it.
_INSUFFICIENT_LIMITS: dict[str, Callable[[Diagnosis], bool]] = {
    "no-rows": lambda facts: not facts.n,
    "low-ess": lambda facts: facts.uses_weights and (facts.ess or 0.0) < LEAST_ESS,
    "short-horizon": lambda facts: facts.has_short_horizon,
    "few-rewards": lambda facts: (
        facts.nonzero < LEAST_REWARDS
        or (facts.uses_weights and _n_rewards(facts.ess, facts.reward_share) < FEWEST_EFFECTIVE_REWARDS)
    ),
    "heavy-tail": lambda facts: (facts.k_hat or 0.0) > 0.7,
    "unsupported": lambda facts: (facts.unsupported or 0.0) > 0.01,
    "mean-weight": lambda facts: facts.mean_weight_upper is not None and facts.mean_weight_upper < LEAST_MEAN_WEIGHT,
}
_WEAK_LIMITS: dict[str, Callable[[Diagnosis], bool]] = {
    "low-ess": lambda facts: facts.uses_weights and _ess_cause(facts.ess, facts.clusters) is not None,
    "few-rewards": lambda facts: facts.uses_weights and _n_rewards(facts.ess, facts.reward_share) < EFFECTIVE_REWARDS,
    "one-cluster": lambda facts: (facts.cluster_share or 0.0) > 0.2,
    "mean-weight": lambda facts: abs(facts.mean_weight_z or 0.0) > 3,
}


def decide_verdict(diagnosis: Diagnosis, *, extra_reasons: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """Return the verdict (`ok`, `weak` or `insufficient`) and all reasons, worst first.

    extra_reasons: names of REASONS that do not follow from the diagnosis; each limits the verdict to the best
    verdict that it allows."""
    insufficient_reasons, weak_reasons = (
        {reason for reason, exceeds in limits.items() if exceeds(diagnosis)}
        for limits in (_INSUFFICIENT_LIMITS, _WEAK_LIMITS)
    )
    if "no-rows" in insufficient_reasons:  # which is the cause of whatever else is missing
        insufficient_reasons, weak_reasons, extra_reasons = (
            {"no-rows"},
            set(),
            tuple(name for name in extra_reasons if name != "few-rewards"),
        )
    best_verdict = "insufficient" if insufficient_reasons else "weak" if weak_reasons else "ok"
    return lower_verdict(best_verdict, (*insufficient_reasons, *weak_reasons, *extra_reasons))


def lower_verdict(verdict: str, reasons: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Return the verdict, lowered to the worst verdict that a reason demands, and the reasons, worst first."""
    ordered_reasons = in_order(reasons)
    return worst_verdict([verdict, *(REASONS[reason].best_verdict for reason in ordered_reasons)]), ordered_reasons


def _ess_cause(ess: float | None, clusters: int) -> str | None:
    """Return the name of the worst limit that an effective sample size falls below, or None if it is above all
    limits."""
    least_by_cause = {cause: number if number >= 1 else number * clusters for cause, number in ESS_LIMITS.items()}
    return next((cause for cause, number in least_by_cause.items() if ess is None or ess < number), None)


def _n_rewards(ess: float | None, share: float | None) -> float:
    return (ess or 0) * (share or 0)


def explain_reasons(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line for each reason why an estimate is not to be trusted. For some reasons, the line also gives the
    figures of the estimates that caused it. The estimates are `Estimate` records as mappings."""
    explainers: dict[str, Callable[[Sequence[Mapping[str, Any]]], list[str]]] = {
        "low-ess": _explain_low_ess, "few-rewards": _explain_few_rewards, "mean-weight": _explain_mean_weight,
        "position-model": _explain_position_model, "short-horizon": _explain_short_horizon,
        "carry-over": _explain_carry_over,
        "no-scores": partial(_explain_left_out, "no-scores"), "page-rules": partial(_explain_left_out, "page-rules"),
    }  # fmt: skip
    by_reason = {reason: [row for row in estimates if reason in row["reasons"]] for reason in REASONS}
    return [
        f"{reason}: {'; '.join(explainers[reason](rows)) if reason in explainers else REASONS[reason].text}"
        for reason, rows in by_reason.items() if rows
    ]  # fmt: skip


def _explain_low_ess(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    pairs = [(_ess_cause(row["ess"], row["clusters"]), row["ess"]) for row in estimates]
    by_cause = {cause: [ess for its_cause, ess in pairs if its_cause == cause] for cause in ESS_LIMITS}
    return [f"effective sample size {_span(values)}, {cause}" for cause, values in by_cause.items() if values]


def _explain_short_horizon(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for estimate in estimates:
        ess, n, steps = estimate["ess_by_step"], estimate["n"], estimate["return_steps"]
        step, gamma = min(range(steps), key=ess.__getitem__), estimate["supported_gamma"]
        remedies = [
            *([f"{n * LEAST_ESS / ess[step] - n:,.0f} more sessions"] if ess[step] >= n * ESS_SHARE else []),
            *([f"--gamma {gamma:g}"] if gamma is not None else []),
            "a target nearer to what served",
        ]
        first_steps_text = f"the first {steps} steps carry" if steps > 1 else "the first step carries"
        lines.append(
            f"{first_steps_text} 90 % of the return of {estimate.get('target', 'the target')}, and of {n:,} "
            f"sessions {ess[step]:,.3g} are effective at step {step} (insufficient); ask for {' or '.join(remedies)}"
        )
    return [*dict.fromkeys(lines)]


def _explain_left_out(reason: str, estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line, which says the reason, how many rows were left out, and of how many."""
    counts = dict.fromkeys((row["left_out"], row["left_out"] + row["n"]) for row in estimates)
    shares = " or ".join(f"{left_out:,} of {total:,}" for left_out, total in counts)
    return [f"{REASONS[reason].text}; {shares} were left out, for this or another reason"]


def _explain_carry_over(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    units_are_sessions = sorted({estimate["unit"] == "session" for estimate in estimates})
    return [_BETWEEN_VISITS_TEXT if is_session else REASONS["carry-over"].text for is_session in units_are_sessions]


def _explain_mean_weight(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{_span([estimate['mean_weight'] for estimate in estimates])}; {REASONS['mean-weight'].text}"]


def _explain_position_model(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    age_by_curve = {
        estimate["curve"]: estimate["curve_age_days"] for estimate in estimates if estimate["curve"] is not None
    }
    is_curve_assumed = any(estimate["curve"] is None for estimate in estimates)
    return [
        *(f"right where position curve {curve} is, {age:.3g} days old" for curve, age in age_by_curve.items()),
        *(["right where positions within the window are examined alike"] if is_curve_assumed else []),
    ]


def _explain_few_rewards(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    nonzero, noun = [row["nonzero"] for row in estimates], "non-zero weighted reward"
    low_counts, other_counts = [n for n in nonzero if n < LEAST_REWARDS], [n for n in nonzero if n >= LEAST_REWARDS]
    effective_rewards = [
        _n_rewards(row["ess"], row["reward_share"]) for row in estimates if row["reward_share"] is not None
    ]
    insufficient_numbers = [number for number in effective_rewards if number < FEWEST_EFFECTIVE_REWARDS]
    weak_numbers = [number for number in effective_rewards if FEWEST_EFFECTIVE_REWARDS <= number < EFFECTIVE_REWARDS]
    explained_reasons = {"no-interval", "few-replicates", "no-reward-range", "no-variation"}  # reasons for a null bound
    unbounded_estimates = [estimate for estimate in estimates if None in (estimate["lower"], estimate["upper"])]
    product = "ESS x weighted share of rewards that are not the default"
    limit_text = f"below {FEWEST_EFFECTIVE_REWARDS} (insufficient)"
    has_unexplained = any(not explained_reasons & {*row["reasons"]} for row in unbounded_estimates)
    return [
        *([f"{quantity(_span(low_counts), noun)}, fewer than {LEAST_REWARDS} (insufficient)"] if low_counts else []),
        *([quantity(_span(other_counts), noun)] if other_counts else []),
        *([f"{product} is {_span(insufficient_numbers)}, {limit_text}"] if insufficient_numbers else []),
        *([f"{product} is {_span(weak_numbers)}, below {EFFECTIVE_REWARDS} (weak)"] if weak_numbers else []),
        *(["too few rewards for a bound (it is null)"] if has_unexplained else []),
    ]


def _span(values: Sequence[float | None]) -> str:
    """Return the smallest and the largest value as text, such as `3 to 5`."""
    low, high = (f"{pick(value or 0 for value in values):,.4g}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"


# -- the answer to one question: is this better than that, and can anybody act on it? --


MAX_SAME_SHARE = 0.02  # as a share of the reference value; smaller differences count as none
# Reasons for which weights close to those of the log prove nothing.
WEIGHT_DOUBTS = {
    "wrong-propensities", "estimated-propensity", "clipped-propensities", "mean-weight", "no-variation", "unnarrowed",
}  # fmt: skip
SAMPLE_DOUBTS = {"no-variation", "other-metric"}
_ANSWERS = {"more": "better", "less": "worse", "equal": "same", "unsure": "unknown"}


class Answer(NamedTuple):
    """An Answer says which of two targets or metrics is better.

    answer: better, worse, same or unknown; needed: how many further clusters give an answer with even odds, if the
    true difference is the estimated difference; None if the answer is known, or if more of this log cannot give an
    answer."""

    answer: str
    needed: int | None


def judge_difference(
    value: float | None, lower: float | None, upper: float | None, *, scale: float, precision: float, clusters: int,
    verdict: str = "ok", ess: float | None = None, rewards: float | None = None, reasons: Collection[str] = (),
    growth: Callable[[float], float] | None = None, shortages: Sequence[float] = (),
) -> Answer:  # fmt: skip
    """Return whether a difference with its interval means better, worse or the same, or is not known.

    `better` and `worse` need an interval without 0, and no reason for doubt except the size of the sample, which
    intervals account for. If the two sides differ only by rounding, the answer is `same`, however few rows there
    are. There are two exceptions: the weights are in doubt, or there is a single cluster, whose weighted mean does
    not depend on its weight.

    scale: the value that a difference is relative to (1 for a lift), 0 if the value is not known; precision: the size
    up to which a difference counts as 0; ess: the effective number of clusters, None without weights; rewards: the
    effective number of rewards that are not the default; growth: a function that returns the factor by which clusters
    must grow to make the interval narrower by a ratio [default: the square of the ratio]; shortages: factors by which
    clusters must grow until there are bounds."""
    doubts = doubts_of(reasons)
    answer = _ANSWERS[direction(lower, upper, tolerance=precision)]
    if answer == "same" and clusters > 1 and doubts.isdisjoint(WEIGHT_DOUBTS):
        return Answer(answer, None)
    if ess is not None and ess >= ESS_SHARE * clusters:
        doubts -= {"short-horizon"}  # more of this log would support these steps
    if doubts:
        return Answer("unknown", None)
    if verdict != "insufficient":
        if answer != "unknown":
            return Answer(answer, None)
        if lower is not None and upper is not None and max(-lower, upper) <= MAX_SAME_SHARE * scale:
            return Answer("same", None)
    if "clipping-bias" in reasons:
        return Answer("unknown", None)  # this bias does not shrink as the log grows
    has_bounds = lower is not None and upper is not None
    widths = _width_ratios(value, lower, upper, MAX_SAME_SHARE * scale, precision)
    ratios = [ratio**2 if growth is None else growth(ratio) for ratio in widths]
    if verdict == "insufficient" or not has_bounds:
        # factors for enough effective clusters, and for enough rewards
        ratios += [least / number for least, number in ((LEAST_ESS, ess), (EFFECTIVE_REWARDS, rewards)) if number]
        ratios += shortages
    missing_clusters = clusters * (max(ratios, default=1.0) - 1)
    return Answer("unknown", ceil(missing_clusters) if 0 < missing_clusters < inf else None)


def doubts_of(reasons: Collection[str]) -> set[str]:
    """Return the reasons that intervals do not account for. With such a reason, nobody can say what is better."""
    size_reasons = {name for name in reasons if REASONS[name].group == "sample" and name not in SAMPLE_DOUBTS}
    other_reasons = ((name, REASONS[name]) for name in {*reasons} - size_reasons)
    return {name for name, reason in other_reasons if reason.group == "support" or reason.best_verdict != "ok"}


def _width_ratios(
    value: float | None, lower: float | None, upper: float | None, least: float, precision: float
) -> list[float]:  # fmt: skip
    """Return a list with one number: the ratio by which the interval must become narrower to give an answer with even
    odds, if the true difference is `value`. Either it must exclude differences up to `precision`, or lie within
    `least`; the smaller ratio is returned. The list is empty without an interval."""
    if value is None or lower is None or upper is None:
        return []
    low_distance, high_distance, size = value - lower, upper - value, abs(value)
    near_distance, far_distance = (low_distance, high_distance) if value > 0 else (high_distance, low_distance)
    shares = [
        near_distance / (size - precision) if size > precision else inf,
        max(near_distance / (least + size), far_distance / (least - size)) if size < least else inf,
    ]
    return [min(shares)]
