"""The verdict of an estimate, its reasons, and words for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlrec.errors import quantity

# Thresholds of the effective sample size, the worst first; those below 1 are shares of the clusters.
LEAST_ESS, _ESS_SHARE = 50, 0.05
_ESS = {
    f"below {LEAST_ESS} (insufficient)": LEAST_ESS,
    "below 1,000 (weak)": 1_000,
    "below 5 % of the clusters (weak)": _ESS_SHARE,
}
LEAST_REWARDS = 5  # that are weighed and not 0
_REWARDS = 30  # ESS x weighted share of rewards that are not the default

# Every reason a verdict can give, worst first. `insufficient` and `weak` say which verdict the reason can lead to.
REASONS = {
    "no-rows": "no row could be used (insufficient)",
    "wrong-propensities": "some arm was shown more often than its logged propensities allow (insufficient): "
    "all weights are wrong; `rlrec doctor` names the arms of policies that served",
    "sampled-rows": "the log dropped rows at known rates, and some of those that it has were left out (insufficient): "
    "visits of several decisions, or without a state; what is left stands for no log",
    "low-ess": f"effective sample size {'; '.join(_ESS)}",
    "short-horizon": "the log does not support the steps that carry 90 % of the return (insufficient)",
    "few-rewards": f"fewer than {LEAST_REWARDS} non-zero weighted rewards (insufficient); ESS x weighted share of "
    f"rewards that are not the default below {_REWARDS} (weak); too few rewards for a bound (it is null)",
    "heavy-tail": "no largest weight is known and k-hat of their tail is above 0.7 (insufficient)",
    "unsupported": "the target has more than 1 % on arms the logger gave 0 (insufficient)",
    "no-variation": "all rewards are the same so far, which is no certainty: no bound is known (weak)",
    "one-cluster": "one cluster carries more than 20 % of the estimate (weak)",
    "mean-weight": "the mean weight is more than 3 standard errors from 1 (weak), or so far below 0.99 (insufficient): "
    "propensities are wrong, or what would carry the most weight is so rare that it did not occur",
    "wide-interval": "half the interval is wider than half the difference (weak)",
    "rare-rewards": "large rewards are so rare that losing half of one more would undo "
    "the gain (weak): wait for more visits",
    "clipping-bias": "the bias that changed weights may cause exceeds the standard error; no interval shows it (weak)",
    "in-sample": "the target learned from rows of this log (weak)",
    "estimated-propensity": "propensities were not logged, but computed when the log was imported (weak): no interval "
    "shows their error",
    "no-interval": "no valid interval exists: the error of dm's model is not in any (weak)",
    "few-replicates": "the level is too high for 2,000 bootstrap replicates: a bound is null",
    "no-reward-range": "the reward has no clip, which this interval needs: a bound is null",
    "no-propensity": "rows or visits without a propensity, or cut, were left out; `left_out` counts them: import the "
    "log with the propensities of its slates, or into a new store with --propensity uniform or fitted",
    "no-marginal": "pages were left out whose logger, or whose target without --target-samples, has no probability of "
    "an arm at a position; `left_out` counts them: log `marginal` with each slot (`rlrec help own-logs`), or judge by "
    "rips or sips, which need propensities alone",
    "no-pairs": "nothing is estimated: pi cannot weigh some pages, whose logger was not uniform and has too many "
    "slates to list, or whose probabilities of arms at positions are not known",
    "mixed-cpus": "workers have processors of several kinds: figures agree to 1e-12, not to the last bit",
    "no-state": "rows or visits without a recorded session state were left out; `left_out` counts them",
    "refuted": "the estimate is more than 3 standard errors of the difference from that of rips, cascade-dr or sips, "
    "which assume less (weak): the reward of a slot depends on what other slots show",
    "independent-slots": "right where the reward of a slot does not depend on what other slots show: ask for rips, "
    "too, and `refuted` tells where the log says otherwise",
    "position-model": "the estimate is right where its position curve is, and blind to that curve's errors",
    "no-candidates": "rows or visits were left out on which the target, which ranks candidates, cannot be judged "
    "(--target-samples is 0, or fewer arms or more positions than it has candidates); `left_out` counts them",
    "logging-candidates": "the target would draw from the catalogue, and was judged as a ranker of candidates that the "
    "logger drew (weak)",
    "carry-over": "the reward of an arm depends on the step of the visit, or on how often the visit has seen the arm "
    "(weak): the target would bring about other states than the logger did; judge whole visits, by --estimator wdr",
    "dependent-slots": "a slot earns less below arms that attract (weak): the target would show other arms above; "
    "judge pages, by --estimator rips or cascade-dr, or whole visits, by wdr",
    "logging-states": "the target reads session state, and was judged in states that the logger caused",
}
_BETWEEN_VISITS = (
    "what a visit shows changes the person's later visits (weak): the target would bring about other visits than the "
    "logger did, and only an experiment per user can tell"
)
# Reasons from the caller that leave nothing to judge by.
_LEFT_NOTHING = frozenset({"wrong-propensities", "sampled-rows"})
# Reasons from the caller or from the interval that allow no verdict better than weak.
_DOUBTFUL = frozenset({
    "in-sample", "estimated-propensity", "no-interval", "clipping-bias", "wide-interval", "rare-rewards",
    "logging-candidates", "carry-over", "dependent-slots", "no-variation",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The figures of a verdict; None where a figure has no meaning (the weights of dm) or does not exist.

    weighted: whether the estimator weighs at all
    n, clusters, ess: rows used, clusters they are in, effective sample size over clusters
    nonzero: non-zero weighted rewards
    reward_share: weighted share of rows whose reward is not the default
    k_hat: shape of the tail of the weights, where no largest weight is provable
    unsupported: mean probability of the target on arms the logger gave 0
    cluster_share: largest share of the estimate that one cluster carries
    mean_weight_z: distance of the mean weight from 1 in standard errors
    mean_weight_upper: the mean weight plus 3 standard errors
    short_horizon: the effective sample size is too small at a step that carries the return"""

    weighted: bool
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
    short_horizon: bool = False


# Whether the figures of a diagnosis give a reason, by reason.
_INSUFFICIENT: dict[str, Callable[[Diagnosis], bool]] = {
    "no-rows": lambda figures: not figures.n,
    "low-ess": lambda figures: figures.weighted and (figures.ess or 0.0) < LEAST_ESS,
    "short-horizon": lambda figures: figures.short_horizon,
    "few-rewards": lambda figures: figures.nonzero < LEAST_REWARDS,
    "heavy-tail": lambda figures: (figures.k_hat or 0.0) > 0.7,
    "unsupported": lambda figures: (figures.unsupported or 0.0) > 0.01,
    "mean-weight": lambda figures: figures.mean_weight_upper is not None and figures.mean_weight_upper < 0.99,
}
_WEAK: dict[str, Callable[[Diagnosis], bool]] = {
    "low-ess": lambda figures: figures.weighted and _ess_cause(figures.ess, figures.clusters) is not None,
    "few-rewards": lambda figures: figures.weighted and _rewards(figures.ess, figures.reward_share) < _REWARDS,
    "one-cluster": lambda figures: (figures.cluster_share or 0.0) > 0.2,
    "mean-weight": lambda figures: abs(figures.mean_weight_z or 0.0) > 3,
}


def verdict(diagnosis: Diagnosis, *, extra: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """`ok`, `weak` or `insufficient`, and all reasons, worst first.
    extra: words of REASONS that only the caller or the interval knows; those of _DOUBTFUL allow no more than `weak`."""
    insufficient, weak = (
        {reason for reason, exceeds in limits.items() if exceeds(diagnosis)} for limits in (_INSUFFICIENT, _WEAK)
    )
    present = {*insufficient, *weak, *extra}
    reasons = tuple(sorted(present, key=list(REASONS).index))
    if insufficient or _LEFT_NOTHING & present:
        return "insufficient", reasons
    return ("weak" if weak or _DOUBTFUL & present else "ok"), reasons


def _ess_cause(ess: float | None, clusters: int) -> str | None:
    """The worst threshold that an effective sample size is below; None if it is below none."""
    least = {cause: number if number >= 1 else number * clusters for cause, number in _ESS.items()}
    return next((cause for cause, number in least.items() if ess is None or ess < number), None)


def _rewards(ess: float | None, share: float | None) -> float:
    return (ess or 0) * (share or 0)


def explanations(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every reason of these estimates (`Estimate` as a mapping), with those of its causes that occurred."""
    causes = {
        "low-ess": _low_ess, "few-rewards": _few_rewards, "mean-weight": _mean_weight,
        "position-model": _position_model, "short-horizon": _short_horizon, "carry-over": _carry_over,
    }  # fmt: skip
    by_reason = {reason: [row for row in estimates if reason in row["reasons"]] for reason in REASONS}
    return [
        f"{reason}: {'; '.join(causes[reason](concerned)) if reason in causes else REASONS[reason]}"
        for reason, concerned in by_reason.items() if concerned
    ]  # fmt: skip


def _low_ess(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    pairs = [(_ess_cause(row["ess"], row["clusters"]), row["ess"]) for row in estimates]
    by_cause = {cause: [ess for its_cause, ess in pairs if its_cause == cause] for cause in _ESS}
    return [f"effective sample size {_span(values)}, {cause}" for cause, values in by_cause.items() if values]


def _short_horizon(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for estimate in estimates:
        ess, n, steps = estimate["ess_by_step"], estimate["n"], estimate["return_steps"]
        step, gamma = min(range(steps), key=ess.__getitem__), estimate["supported_gamma"]
        ways = [
            *([f"{n * LEAST_ESS / ess[step] - n:,.0f} more sessions"] if ess[step] >= n * _ESS_SHARE else []),
            *([f"--gamma {gamma:g}"] if gamma is not None else []),
            "a target nearer to what served",
        ]
        first = f"the first {steps} steps carry" if steps > 1 else "the first step carries"
        lines.append(
            f"{first} 90 % of the return of {estimate.get('target', 'the target')}, and of {n:,} "
            f"sessions {ess[step]:,.3g} are effective at step {step} (insufficient); ask for {' or '.join(ways)}"
        )
    return [*dict.fromkeys(lines)]


def _carry_over(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    per_session = sorted({estimate["unit"] == "session" for estimate in estimates})
    return [_BETWEEN_VISITS if is_session else REASONS["carry-over"] for is_session in per_session]


def _mean_weight(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{_span([estimate['mean_weight'] for estimate in estimates])}; {REASONS['mean-weight']}"]


def _position_model(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    named = {estimate["curve"]: estimate["curve_age_days"] for estimate in estimates if estimate["curve"] is not None}
    assumed = any(estimate["curve"] is None for estimate in estimates)
    return [
        *(f"right where position curve {curve} is, {age:.3g} days old" for curve, age in named.items()),
        *(["right where positions within the window are examined alike"] if assumed else []),
    ]


def _few_rewards(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    nonzero, noun = [row["nonzero"] for row in estimates], "non-zero weighted reward"
    low_counts, other_counts = [n for n in nonzero if n < LEAST_REWARDS], [n for n in nonzero if n >= LEAST_REWARDS]
    effective = [_rewards(row["ess"], row["reward_share"]) for row in estimates if row["reward_share"] is not None]
    short = [number for number in effective if number < _REWARDS]
    explained = {"no-interval", "few-replicates", "no-reward-range", "no-variation"}  # a null bound
    unknown = [estimate for estimate in estimates if None in (estimate["lower"], estimate["upper"])]
    product = "ESS x weighted share of rewards that are not the default"
    return [
        *([f"{quantity(_span(low_counts), noun)}, fewer than {LEAST_REWARDS} (insufficient)"] if low_counts else []),
        *([quantity(_span(other_counts), noun)] if other_counts else []),
        *([f"{product} is {_span(short)}, below {_REWARDS} (weak)"] if short else []),
        *(["too few rewards for a bound (it is null)"] if any(not explained & {*row["reasons"]} for row in unknown)
          else []),
    ]  # fmt: skip


def _span(values: Sequence[float | None]) -> str:
    """The least and the greatest of some figures."""
    low, high = (f"{pick(value or 0 for value in values):,.4g}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"
