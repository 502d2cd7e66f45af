"""The answer to one question: is this better than that, and can anybody act on it?"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, inf
from typing import NamedTuple

from rlrec.directions import direction
from rlrec.ope.checks.reasons import LEAST_ESS, REASONS

ANSWERS = ("better", "worse", "same", "unknown")
SAME_WITHIN = 0.02  # a difference below this share of what is compared with makes no difference
_ANSWERS = {"more": "better", "less": "worse", "equal": "same", "unsure": "unknown"}


class Answer(NamedTuple):
    """The answer of a comparison. answer: one of ANSWERS; needed: clusters more that would tell, about, if the
    difference is what it seems to be; None where the answer is known, or where more of this log cannot tell."""

    answer: str
    needed: int | None


def judge(
    value: float | None, lower: float | None, upper: float | None, *, scale: float, precision: float, clusters: int,
    verdict: str = "ok", ess: float | None = None, reasons: Iterable[str] = (),
) -> Answer:  # fmt: skip
    """The answer of a difference with its interval.

    scale: what a difference is a share of (1 for a lift), 0 where nothing is known to compare with. precision: a
    difference that is none. ess: effective clusters, None where none are weighed. `better` and `worse` need an interval
    without 0, and no reason for doubt but the size of the sample, which intervals take into account."""
    if any(map(_raises_doubt, reasons)):
        return Answer("unknown", None)
    if verdict != "insufficient":
        answer = _ANSWERS[direction(lower, upper, tolerance=precision)]
        if answer != "unknown":
            return Answer(answer, None)
        if lower is not None and upper is not None and max(-lower, upper) <= SAME_WITHIN * scale:
            return Answer("same", None)
    return Answer("unknown", _needed(value, lower, upper, SAME_WITHIN * scale, clusters, ess))


def _raises_doubt(name: str) -> bool:
    """Whether a reason is one that no interval takes into account."""
    reason = REASONS[name]
    return reason.group == "support" or (reason.group != "sample" and reason.best != "ok")


def _needed(
    value: float | None, lower: float | None, upper: float | None, least: float, clusters: int, ess: float | None
) -> int | None:
    """How many clusters more would make the interval half as wide as the difference, or as the least one that counts,
    and effective enough."""
    ratios = [LEAST_ESS / ess] if ess else []
    if value is not None and lower is not None and upper is not None:
        wanted = max(abs(value), least)
        ratios.append(((upper - lower) / 2 / wanted) ** 2 if wanted else inf)
    if not ratios or not clusters or inf in ratios:
        return None
    return max(1, ceil(clusters * (max(ratios) - 1)))
