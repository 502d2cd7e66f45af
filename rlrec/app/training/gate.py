"""When a candidate may go live: the gain that a gate wants, and how it spends its probability of error."""

from __future__ import annotations

from math import pi

from rlrec.ope.paired import PairedDifference

ALPHA = 0.05  # probability that any candidate of a year is promoted though it is no better


def alpha(candidate: int) -> float:
    """The probability of error at one look, candidates of a year numbered from 1: over all of them it sums to ALPHA."""
    return ALPHA * 6 / (pi**2 * candidate**2)


def is_gain(gain: PairedDifference) -> bool:
    """Whether the gain over the live version is above 0, as far as the log can tell."""
    return gain.lower is not None and gain.lower > 0 and gain.verdict != "insufficient"
