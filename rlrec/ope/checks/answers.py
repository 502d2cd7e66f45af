"""The answer to one question: is this better than that, and can anybody act on it?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import ceil, inf
from typing import NamedTuple

from rlrec.ope.checks.reasons import EFFECTIVE_REWARDS, ESS_SHARE, LEAST_ESS, REASONS
from rlrec.sentences import direction

ANSWERS = ("better", "worse", "same", "unknown")
SAME_WITHIN = 0.02  # a difference below this share of what is compared with makes no difference
# Reasons for which weights that look like those of the log say nothing.
WEIGHT_DOUBTS = {
    "wrong-propensities", "estimated-propensity", "clipped-propensities", "mean-weight", "no-variation", "unnarrowed",
}  # fmt: skip
SAMPLE_DOUBTS = {"no-variation", "other-metric"}
_ANSWERS = {"more": "better", "less": "worse", "equal": "same", "unsure": "unknown"}


class Answer(NamedTuple):
    """The answer of a comparison. answer: one of ANSWERS; needed: clusters more after which the odds of an answer are
    about even, if the difference is what it seems to be; None where the answer is known, or where more of this log
    cannot tell."""

    answer: str
    needed: int | None


def judge(
    value: float | None, lower: float | None, upper: float | None, *, scale: float, precision: float, clusters: int,
    verdict: str = "ok", ess: float | None = None, rewards: float | None = None, reasons: Collection[str] = (),
    growth: Callable[[float], float] | None = None, shortages: Sequence[float] = (),
) -> Answer:  # fmt: skip
    """The answer of a difference with its interval.

    scale: what a difference is a share of (1 for a lift), 0 where nothing is known to compare with. precision: a
    difference that is none. ess: effective clusters, None where none are weighed; rewards: effective rewards that are
    not the default. growth: how many times as many clusters make the interval narrower by a ratio [default: its
    square]; shortages: how many times as many would be enough for bounds. `better` and `worse` need an interval without
    0, and no reason for doubt but the size of the sample, which intervals take into account. Sides whose difference is
    rounding are the same, however few rows there are, unless their weights are in doubt."""
    doubts = doubts_of(reasons)
    answer = _ANSWERS[direction(lower, upper, tolerance=precision)]
    if answer == "same" and doubts.isdisjoint(WEIGHT_DOUBTS):
        return Answer(answer, None)
    if ess is not None and ess >= ESS_SHARE * clusters:
        doubts -= {"short-horizon"}  # more of this log would support these steps
    if doubts:
        return Answer("unknown", None)
    if verdict != "insufficient":
        if answer != "unknown":
            return Answer(answer, None)
        if lower is not None and upper is not None and max(-lower, upper) <= SAME_WITHIN * scale:
            return Answer("same", None)
    if "clipping-bias" in reasons:
        return Answer("unknown", None)  # which does not shrink as the log grows
    has_bounds = lower is not None and upper is not None
    widths = _width(value, lower, upper, SAME_WITHIN * scale, precision)
    ratios = [ratio**2 if growth is None else growth(ratio) for ratio in widths]
    if verdict == "insufficient" or not has_bounds:
        # how many times as many clusters would be effective enough, and bring enough rewards
        ratios += [least / number for least, number in ((LEAST_ESS, ess), (EFFECTIVE_REWARDS, rewards)) if number]
        ratios += shortages
    missing = clusters * (max(ratios, default=1.0) - 1)
    return Answer("unknown", ceil(missing) if 0 < missing < inf else None)


def doubts_of(reasons: Collection[str]) -> set[str]:
    """The reasons that no interval takes into account: an estimate that has one answers nothing."""
    large_enough = {name for name in reasons if REASONS[name].group == "sample" and name not in SAMPLE_DOUBTS}
    others = ((name, REASONS[name]) for name in {*reasons} - large_enough)
    return {name for name, reason in others if reason.group == "support" or reason.best != "ok"}


def _width(
    value: float | None, lower: float | None, upper: float | None, least: float, precision: float
) -> list[float]:  # fmt: skip
    """How much narrower the interval has to be to exclude what is no difference, with an even chance if the difference
    is what it seems to be, or to lie within the least difference that counts, whichever comes first."""
    if value is None or lower is None or upper is None:
        return []
    low_reach, high_reach, size = value - lower, upper - value, abs(value)
    near, far = (low_reach, high_reach) if value > 0 else (high_reach, low_reach)
    shares = [
        near / (size - precision) if size > precision else inf,
        max(near / (least + size), far / (least - size)) if size < least else inf,
    ]
    return [min(shares)]
