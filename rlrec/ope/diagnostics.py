"""How far an estimate can be believed: effective sample size, overlap, largest weights, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.arrays import Array, Flags
from rlrec.ope.base import LogBatch

# How many of the largest weights and weighted rewards are remembered: the top 1 % of ten million rows, and the tail
# that k-hat is fitted on for a billion.
KEPT = 100_000

# What an effective sample size can be below, the worst first, and the least that will do (of the clusters: a share).
_ESS = {"below 50 (insufficient)": 50, "below 1,000 (weak)": 1_000, "below 5 % of the clusters (weak)": 0.05}
_NONZERO = 5  # weighted rewards
_REWARDS = 30  # ESS x weighted share of rewards that are not the default

# Every reason a verdict can give, worst first. `insufficient` and `weak` say which verdict the reason can lead to.
REASONS = {
    "no-rows": "no row could be used (insufficient)",
    "low-ess": f"effective sample size {'; '.join(_ESS)}",
    "few-rewards": f"fewer than {_NONZERO} non-zero weighted rewards (insufficient); ESS x weighted share of rewards "
    f"that are not the default below {_REWARDS} (weak); too few rewards for a bound (it is null)",
    "heavy-tail": "no largest weight is known and k-hat of their tail is above 0.7 (insufficient)",
    "unsupported": "the target has more than 1 % on arms the logger gave 0 (insufficient)",
    "one-cluster": "one cluster carries more than 20 % of the estimate (weak)",
    "mean-weight": "the mean weight is more than 3 standard errors from 1: wrong propensities, say (weak)",
    "wide-interval": "half the interval is wider than half the difference (weak)",
    "clipping-bias": "the bias that changed weights may cause exceeds the standard error; no interval shows it (weak)",
    "in-sample": "the target learned from rows of this log (weak)",
    "no-interval": "no valid interval exists: the error of dm's model is not in any (weak)",
    "few-replicates": "the level is too high for 2,000 bootstrap replicates: a bound is null",
    "no-reward-range": "the reward has no clip, which this interval needs: a bound is null",
    "no-propensity": "rows or visits without a propensity, or cut, were left out; `left_out` counts them",
    "no-state": "rows or visits whose session state is not known were left out; `left_out` counts them",
    "logging-states": "the target reads session state, and was judged on states the logger brought about",
}
# Reasons that come from outside or from the interval, and hold a verdict down to weak.
_WEAK = frozenset({"in-sample", "no-interval", "clipping-bias", "wide-interval"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A fold over rows that adds up: `weights(batch_1) + weights(batch_2)`.

    rows, left_out: rows that can be weighed, and others
    rewards, weighted_rewards: rows whose reward, and whose weight x reward, is not 0
    weight, not_default: sum of weights, and of those whose reward is not the default
    largest, bound: largest weight, and largest provable one (inf where some row has none)
    unsupported, known: sum of the unsupported mass, and the number of rows where it is known
    reward_size: sum of |weight x reward|
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
    known: int
    reward_size: float
    top_weights: Array
    top_rewards: Array

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            rows=self.rows + other.rows,
            left_out=self.left_out + other.left_out,
            rewards=self.rewards + other.rewards,
            weighted_rewards=self.weighted_rewards + other.weighted_rewards,
            weight=self.weight + other.weight,
            not_default=self.not_default + other.not_default,
            largest=max(self.largest, other.largest),
            bound=max(self.bound, other.bound),
            unsupported=self.unsupported + other.unsupported,
            known=self.known + other.known,
            reward_size=self.reward_size + other.reward_size,
            top_weights=_top(np.concatenate([self.top_weights, other.top_weights])),
            top_rewards=_top(np.concatenate([self.top_rewards, other.top_rewards])),
        )

    @property
    def unsupported_share(self) -> float | None:
        """Mean unsupported mass over the rows where it is known; None where it is known of none."""
        return self.unsupported / self.known if self.known else None

    @property
    def not_default_share(self) -> float | None:
        """Weighted share of rows whose reward is not the default."""
        return self.not_default / self.weight if self.weight else None

    @cached_property
    def top1_share(self) -> float | None:
        """Share of the top 1 % of rows in the sum of |weight x reward|; beyond ten million rows of the top
        100,000."""
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
    not_default = ~batch.default if batch.default is not None else batch.reward != 0
    found = weighed(
        batch.weight[used],
        moved=(batch.weight * batch.reward)[used],
        not_default=not_default[used],
        largest=float(batch.weight.max(initial=0.0)),
        bound=_bound(batch),
        unsupported=batch.unsupported,
        left_out=int((~used).sum()),
    )
    return replace(found, rewards=int(np.count_nonzero(batch.reward)))


def weighed(
    weight: Array,
    *,
    moved: Array,
    not_default: Flags,
    largest: float,
    bound: float,
    unsupported: Array | None,
    left_out: int,
) -> Weights:
    """Diagnostics of rows that can be weighed, (n,) each. moved: weight x reward; unsupported: of any rows."""
    size = np.abs(moved)
    mass = unsupported if unsupported is not None else np.empty(0)
    return Weights(
        rows=len(weight),
        left_out=left_out,
        rewards=int(np.count_nonzero(moved)),
        weighted_rewards=int(np.count_nonzero(moved)),
        weight=float(weight.sum()),
        not_default=float(weight[not_default].sum()),
        largest=largest,
        bound=bound,
        unsupported=float(np.nansum(mass)),
        known=int((~np.isnan(mass)).sum()),
        reward_size=float(size.sum()),
        top_weights=_top(weight),
        top_rewards=_top(size[size > 0]),
    )


def _bound(batch: LogBatch) -> float:
    if not batch.usable.any():
        return 0.0
    if batch.largest is None:
        return np.inf
    return float(np.nan_to_num(batch.largest[batch.usable], nan=np.inf, posinf=np.inf).max())


def _top(values: Array) -> Array:
    return values if len(values) <= KEPT else np.partition(values, len(values) - KEPT)[-KEPT:]


def k_hat(top: Array, rows: int) -> float | None:
    """Shape of the generalised Pareto tail of `rows` weights, of which `top` are the largest.

    Fitted on the top min(rows / 5, 3 sqrt(rows)), and drawn to 1/2 by ten observations. None if the tail has fewer
    than 50 distinct values. Above 0.7 a mean of such weights cannot be trusted.
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
    points = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + (1 - np.sqrt(points / (np.arange(points) + 0.5))) / (3 * quartile)
    shape = np.array([np.log1p(-b * excess).mean() for b in grid])
    likelihood = n * (np.log(-grid / shape) - shape - 1)
    share = np.exp(likelihood - likelihood.max())
    fitted = float(np.log1p(-(grid @ share / share.sum()) * excess).mean())
    return (n * fitted + 10 * 0.5) / (n + 10)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a verdict is made from; None where a figure has no meaning (the weights of dm) or cannot be had.

    weighted: whether the estimator weighs at all
    n, clusters, ess: rows used, clusters they are in, effective sample size over clusters
    nonzero: non-zero weighted rewards
    reward_share: weighted share of rows whose reward is not the default
    k_hat: shape of the tail of the weights, where no largest one is provable
    unsupported: mean probability of the target on arms the logger gave 0
    cluster_share: largest share of the estimate that one cluster carries
    mean_weight_z: distance of the mean weight from 1 in standard errors"""

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


def verdict(found: Diagnosis, *, extra: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """`ok`, `weak` or `insufficient`, and all reasons there are, worst first.

    extra: words of REASONS that only the caller or the interval knows; those of _WEAK allow no more than `weak`."""
    insufficient, weak = _insufficient(found), _weak(found)
    given = {*insufficient, *weak, *extra}
    reasons = tuple(sorted(given, key=list(REASONS).index))
    if insufficient:
        return "insufficient", reasons
    return ("weak" if weak or _WEAK & given else "ok"), reasons


def _insufficient(found: Diagnosis) -> list[str]:
    return [
        *(["no-rows"] if not found.n else []),
        *(["low-ess"] if found.weighted and _short(found.ess, found.clusters) == next(iter(_ESS)) else []),
        *(["few-rewards"] if found.nonzero < _NONZERO else []),
        *(["heavy-tail"] if (found.k_hat or 0) > 0.7 else []),
        *(["unsupported"] if (found.unsupported or 0) > 0.01 else []),
    ]


def _weak(found: Diagnosis) -> list[str]:
    return [
        *(["low-ess"] if found.weighted and _short(found.ess, found.clusters) else []),
        *(["few-rewards"] if found.weighted and _rewards(found.ess, found.reward_share) < _REWARDS else []),
        *(["one-cluster"] if (found.cluster_share or 0) > 0.2 else []),
        *(["mean-weight"] if abs(found.mean_weight_z or 0) > 3 else []),
    ]


def _short(ess: float | None, clusters: int) -> str | None:
    """What an effective sample size is below; None where it will do."""
    least = {cause: number if number >= 1 else number * clusters for cause, number in _ESS.items()}
    return next((cause for cause, number in least.items() if ess is None or ess < number), None)


def _rewards(ess: float | None, share: float | None) -> float:
    """How many rewards that are not the default the estimate rests on."""
    return (ess or 0) * (share or 0)


def explained(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reasons of these estimates (`Estimate` as a mapping) mean, and which of their causes occurred."""
    given = {reason for one in found for reason in one["reasons"]}
    causes = {"low-ess": _low_ess, "few-rewards": _few_rewards}
    lines = []
    for reason in (word for word in REASONS if word in given):
        mine = [one for one in found if reason in one["reasons"]]
        lines.append(f"{reason}: {'; '.join(causes[reason](mine)) if reason in causes else REASONS[reason]}")
    return lines


def _low_ess(found: Sequence[Mapping[str, Any]]) -> list[str]:
    causes: dict[str | None, list[float | None]] = {cause: [] for cause in [*_ESS, None]}
    for one in found:
        causes[_short(one["ess"], one["clusters"])].append(one["ess"])
    return [f"effective sample size {_span(causes[cause])}, {cause}" for cause in _ESS if causes[cause]]


def _few_rewards(found: Sequence[Mapping[str, Any]]) -> list[str]:
    none = [one["nonzero"] for one in found if one["nonzero"] < _NONZERO]
    some = [one["nonzero"] for one in found if one["nonzero"] >= _NONZERO]
    shares = [_rewards(one["ess"], one["reward_share"]) for one in found if one["reward_share"] is not None]
    few = [share for share in shares if share < _REWARDS]
    other = {"no-interval", "few-replicates", "no-reward-range"}  # tell of a null bound themselves
    open_ended = any(None in (one["lower"], one["upper"]) and not other & {*one["reasons"]} for one in found)
    what = "ESS x weighted share of rewards that are not the default"
    return [
        *([f"{_span(none)} non-zero weighted rewards, fewer than {_NONZERO} (insufficient)"] if none else []),
        *([f"{_span(some)} non-zero weighted rewards"] if some else []),
        *([f"{what} is {_span(few)}, below {_REWARDS} (weak)"] if few else []),
        *(["too few rewards for a bound (it is null)"] if open_ended else []),
    ]


def _span(values: Sequence[float | None]) -> str:
    """The least and the greatest of some figures."""
    low, high = (f"{pick(value or 0 for value in values):,.4g}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"
