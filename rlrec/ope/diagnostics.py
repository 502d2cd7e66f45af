"""The reliability of an estimate: effective sample size, overlap, largest weights, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags
from rlrec.errors import quantity
from rlrec.ope.base import LogBatch

# Number of the largest weights and weighted rewards that a partial has: the top 1 % of ten million rows, and the tail
# of k-hat for a billion.
N_LARGEST = 100_000

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
    "rare-rewards": "the gain would not stand one reward more than the log holds, the largest one, lost (weak): with "
    "more visits rare rewards tell",
    "clipping-bias": "the bias that changed weights may cause exceeds the standard error; no interval shows it (weak)",
    "in-sample": "the target learned from rows of this log (weak)",
    "estimated-propensity": "propensities were not logged, but computed when the log was imported (weak): no interval "
    "shows their error",
    "no-interval": "no valid interval exists: the error of dm's model is not in any (weak)",
    "few-replicates": "the level is too high for 2,000 bootstrap replicates: a bound is null",
    "no-reward-range": "the reward has no clip, which this interval needs: a bound is null",
    "no-propensity": "rows or visits without a propensity, or cut, were left out; `left_out` counts them",
    "no-marginal": "pages were left out whose logger, or whose target without --target-samples, has no probability of "
    "an arm at a position; `left_out` counts them",
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
_INSUFFICIENT = frozenset({"wrong-propensities"})
# Reasons from the caller or from the interval that allow no verdict better than weak.
_WEAK = frozenset({
    "in-sample", "estimated-propensity", "no-interval", "clipping-bias", "wide-interval", "rare-rewards",
    "logging-candidates", "carry-over", "dependent-slots", "no-variation",
})  # fmt: skip

_SUMS = (
    "rows", "left_out", "rewards", "weighted_rewards", "weight", "not_default", "unsupported", "n_unsupported",
    "reward_size", "earned", "counted",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A fold over rows that adds up: `weights(batch_1) + weights(batch_2)`.

    rows, left_out: number of rows that can be weighed, and of others
    rewards, weighted_rewards: number of rows whose reward, and whose weight x reward, is not 0
    weight, not_default: sum of weights, and of those of rewards that are not the default
    largest, bound: largest weight, and largest provable weight (inf where some row has none)
    unsupported, n_unsupported: sum of the unsupported mass, and of the rows where it is known
    reward_size: sum of |weight x reward|
    earned, counted: sum of the rewards that were logged, and of the rows, as often as each counts
    top_weights, top_rewards: the largest 100,000 weights and |weight x reward|"""

    rows: int
    left_out: int
    rewards: int
    weighted_rewards: int
    weight: float
    not_default: float
    largest: float
    bound: float
    unsupported: float
    n_unsupported: float
    reward_size: float
    earned: float
    counted: float
    top_weights: Array
    top_rewards: Array

    def __add__(self, other: Weights) -> Weights:
        added = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        return Weights(
            **added,
            largest=max(self.largest, other.largest),
            bound=max(self.bound, other.bound),
            top_weights=_top(np.concatenate([self.top_weights, other.top_weights])),
            top_rewards=_top(np.concatenate([self.top_rewards, other.top_rewards])),
        )

    def scaled(self, factor: float) -> Weights:
        """The diagnostics of rows that count `factor` times each; numbers of rows do not change."""
        names = (
            "weight",
            "not_default",
            "largest",
            "bound",
            "unsupported",
            "n_unsupported",
            "reward_size",
            "earned",
            "counted",
        )
        changed = {name: getattr(self, name) * factor for name in (*names, "top_weights", "top_rewards")}
        return replace(self, **changed)

    @property
    def served(self) -> float | None:
        """Mean of the rewards that were logged; None without rows."""
        return self.earned / self.counted if self.counted else None

    @property
    def unsupported_share(self) -> float | None:
        """Mean unsupported mass over the rows where it is known; None where there are none."""
        return self.unsupported / self.n_unsupported if self.n_unsupported else None

    @property
    def not_default_share(self) -> float | None:
        """Weighted share of rows whose reward is not the default."""
        return self.not_default / self.weight if self.weight else None

    @cached_property
    def top1_share(self) -> float | None:
        """Share of the top 1 % of rows in the sum of |weight x reward|; beyond ten million rows of the top 100,000."""
        if not self.reward_size:
            return None
        count = -(-self.rows // 100)
        return min(1.0, float(np.sort(self.top_rewards)[::-1][:count].sum()) / self.reward_size)

    @cached_property
    def k_hat(self) -> float | None:
        """Shape of the tail of the weights; None where a largest weight is provable or the tail is too short."""
        return None if np.isfinite(self.bound) else k_hat(self.top_weights, self.rows)


def weights(batch: LogBatch) -> Weights:
    """Diagnostics of one batch."""
    used = batch.usable
    bounds = np.full(len(batch), np.inf) if batch.largest is None else batch.largest
    of_weights = weight_diagnostics(
        batch.weight[used],
        weighted_reward=(batch.weight * batch.reward)[used],
        reward=batch.reward[used],
        not_default=batch.not_default[used],
        largest=float(batch.weight.max(initial=0.0)),
        bound=float(np.nan_to_num(bounds[used], nan=np.inf, posinf=np.inf).max(initial=0.0)),
        unsupported=batch.unsupported,
        left_out=int((~used).sum()),
        count=None if batch.count is None else batch.count[used],
    )
    return replace(of_weights, rewards=int(np.count_nonzero(batch.reward)))


def weight_diagnostics(
    weight: Array, *, weighted_reward: Array, reward: Array, not_default: Flags, largest: float, bound: float,
    unsupported: Array | None, left_out: int, count: Array | None = None,
) -> Weights:  # fmt: skip
    """Diagnostics of rows that can be weighed, (n,) each; unsupported: of any rows; count: how often each counts."""
    if count is not None:
        weight, weighted_reward, reward = weight * count, weighted_reward * count, reward * count
    size, nonzero = np.abs(weighted_reward), int(np.count_nonzero(weighted_reward))
    mass = unsupported if unsupported is not None else np.empty(0)
    return Weights(
        rows=len(weight), left_out=left_out, rewards=nonzero, weighted_rewards=nonzero, weight=float(weight.sum()),
        not_default=float(weight[not_default].sum()), largest=largest, bound=bound,
        unsupported=float(np.nansum(mass)), n_unsupported=int((~np.isnan(mass)).sum()), reward_size=float(size.sum()),
        earned=float(reward.sum()),
        counted=float(len(weight) if count is None else count.sum()),
        top_weights=_top(weight), top_rewards=_top(size[size > 0]),
    )  # fmt: skip


def _top(values: Array) -> Array:
    return values if len(values) <= N_LARGEST else np.partition(values, len(values) - N_LARGEST)[-N_LARGEST:]


def k_hat(top: Array, rows: int) -> float | None:
    """Shape of the generalised Pareto tail of `rows` weights whose largest are `top`.
    Fitted on the top min(rows / 5, 3 sqrt(rows)), with a prior of ten observations at 1/2. None if the tail has fewer
    than 50 distinct values. Above 0.7 the mean of such weights is unreliable.
    Source: stan-dev/loo, R/gpdfit.R (after Zhang & Stephens 2009), 30 + sqrt(n) points on the grid."""
    length = min(int(np.ceil(min(0.2 * rows, 3 * np.sqrt(rows)))), len(top) - 1)
    if length < 50:
        return None
    tail = np.sort(top)[-length - 1 :]
    excess = tail[1:] - tail[0]
    excess = excess[excess > 0]
    if len(np.unique(excess)) < 50:
        return None
    return _pareto_shape(excess / excess[-1])


def _pareto_shape(excess: Array) -> float:
    """Posterior mean of the shape; excess (n,) ascending and above 0. The scale does not matter."""
    n = len(excess)
    # grid of b = -shape / scale
    points = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + (1 - np.sqrt(points / (np.arange(points) + 0.5))) / (3 * quartile)
    # profile likelihood of each b
    shape = np.array([np.log1p(-b * excess).mean() for b in grid])
    likelihood = n * (np.log(-grid / shape) - shape - 1)
    share = np.exp(likelihood - likelihood.max())
    # the shape at the posterior mean of b, and its prior
    fitted = float(np.log1p(-(grid @ share / share.sum()) * excess).mean())
    return (n * fitted + 10 * 0.5) / (n + 10)


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


def verdict(diagnosis: Diagnosis, *, extra: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """`ok`, `weak` or `insufficient`, and all reasons, worst first.
    extra: words of REASONS that only the caller or the interval knows; those of _WEAK allow no more than `weak`."""
    insufficient, weak = _insufficient(diagnosis), _weak(diagnosis)
    present = {*insufficient, *weak, *extra}
    reasons = tuple(sorted(present, key=list(REASONS).index))
    if insufficient or _INSUFFICIENT & present:
        return "insufficient", reasons
    return ("weak" if weak or _WEAK & present else "ok"), reasons


def _insufficient(diagnosis: Diagnosis) -> list[str]:
    short = diagnosis.weighted and _ess_cause(diagnosis.ess, diagnosis.clusters) == next(iter(_ESS))
    return [
        *(["no-rows"] if not diagnosis.n else []),
        *(["low-ess"] if short else []),
        *(["short-horizon"] if diagnosis.short_horizon else []),
        *(["few-rewards"] if diagnosis.nonzero < LEAST_REWARDS else []),
        *(["heavy-tail"] if (diagnosis.k_hat or 0) > 0.7 else []),
        *(["unsupported"] if (diagnosis.unsupported or 0) > 0.01 else []),
        *(["mean-weight"] if diagnosis.mean_weight_upper is not None and diagnosis.mean_weight_upper < 0.99 else []),
    ]


def _weak(diagnosis: Diagnosis) -> list[str]:
    few = diagnosis.weighted and _effective_rewards(diagnosis.ess, diagnosis.reward_share) < _REWARDS
    return [
        *(["low-ess"] if diagnosis.weighted and _ess_cause(diagnosis.ess, diagnosis.clusters) else []),
        *(["few-rewards"] if few else []),
        *(["one-cluster"] if (diagnosis.cluster_share or 0) > 0.2 else []),
        *(["mean-weight"] if abs(diagnosis.mean_weight_z or 0) > 3 else []),
    ]


def _ess_cause(ess: float | None, clusters: int) -> str | None:
    """The worst threshold that an effective sample size is below; None if it is below none."""
    least = {cause: number if number >= 1 else number * clusters for cause, number in _ESS.items()}
    return next((cause for cause, number in least.items() if ess is None or ess < number), None)


def _effective_rewards(ess: float | None, share: float | None) -> float:
    return (ess or 0) * (share or 0)


def explanations(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every reason of these estimates (`Estimate` as a mapping), with those of its causes that occurred."""
    causes = {
        "low-ess": _low_ess, "few-rewards": _few_rewards, "mean-weight": _mean_weight,
        "position-model": _position_model, "short-horizon": _short_horizon, "carry-over": _carry_over,
    }  # fmt: skip
    lines = []
    for reason in REASONS:
        concerned = [estimate for estimate in estimates if reason in estimate["reasons"]]
        if concerned:
            lines.append(f"{reason}: {'; '.join(causes[reason](concerned)) if reason in causes else REASONS[reason]}")
    return lines


def _low_ess(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    by_cause: dict[str | None, list[float | None]] = {cause: [] for cause in [*_ESS, None]}
    for estimate in estimates:
        by_cause[_ess_cause(estimate["ess"], estimate["clusters"])].append(estimate["ess"])
    return [f"effective sample size {_span(by_cause[cause])}, {cause}" for cause in _ESS if by_cause[cause]]


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
        lines.append(
            f"the first {steps} steps carry 90 % of the return of {estimate.get('target', 'the target')}, and of {n:,} "
            f"sessions {ess[step]:,.3g} are effective at step {step} (insufficient); ask for {' or '.join(ways)}"
        )
    return [*dict.fromkeys(lines)]


def _carry_over(estimates: Sequence[Mapping[str, Any]]) -> list[str]:
    units = {estimate["unit"] for estimate in estimates}
    return [
        *([REASONS["carry-over"]] if units != {"session"} else []),
        *([_BETWEEN_VISITS] if "session" in units else []),
    ]


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
    nonzero = [estimate["nonzero"] for estimate in estimates]
    too_few = [number for number in nonzero if number < LEAST_REWARDS]
    enough = [number for number in nonzero if number >= LEAST_REWARDS]
    effective = [
        _effective_rewards(estimate["ess"], estimate["reward_share"])
        for estimate in estimates
        if estimate["reward_share"] is not None
    ]
    short = [number for number in effective if number < _REWARDS]
    other = {"no-interval", "few-replicates", "no-reward-range", "no-variation"}  # they explain a null bound
    open_ended = any(
        None in (estimate["lower"], estimate["upper"]) and not other & {*estimate["reasons"]} for estimate in estimates
    )
    product = "ESS x weighted share of rewards that are not the default"
    return [
        *(
            [f"{quantity(_span(too_few), 'non-zero weighted reward')}, fewer than {LEAST_REWARDS} (insufficient)"]
            if too_few
            else []
        ),
        *([quantity(_span(enough), "non-zero weighted reward")] if enough else []),
        *([f"{product} is {_span(short)}, below {_REWARDS} (weak)"] if short else []),
        *(["too few rewards for a bound (it is null)"] if open_ended else []),
    ]


def _span(values: Sequence[float | None]) -> str:
    """The least and the greatest of some figures."""
    low, high = (f"{pick(value or 0 for value in values):,.4g}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"
