"""When a candidate may go live: what the gate asks of its gain, and how it spends the chance to err."""

from __future__ import annotations

from math import pi

from rlrec.ope.paired import PairedDifference

ALPHA = 0.05  # the chance that any candidate of a year is promoted though it is no better


def alpha(candidate: int) -> float:
    """What the look at a candidate may err, those of a year numbered from 1: all of them together err with ALPHA."""
    return ALPHA * 6 / (pi**2 * candidate**2)


def passed(gain: PairedDifference) -> bool:
    """Whether the gain over the live version is surely one, as far as the log can tell."""
    return gain.lower is not None and gain.lower > 0 and gain.verdict != "insufficient"
