"""The direction of a difference: one rule for all sentences and gates that say more, less or equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROUNDING = 1e-9  # of the size of the figures that are compared
# A lift this near to 0 is within the precision of a log: propensities of four digits, or of float32, are that far off.
LOG_PRECISION = 5e-4
ALARM = 0.001  # p-value of a check below which something is wrong with a split or a log


def direction(lower: float | None, upper: float | None, *, tolerance: float) -> str:
    """`more` or `less` where the bounds of a difference agree on it, `equal` where both are within rounding, else
    `unsure`. tolerance: a difference that is none; None stands for a bound that is not known."""
    if lower is not None and lower > tolerance:
        return "more"
    if upper is not None and upper < -tolerance:
        return "less"
    return "unsure" if lower is None or upper is None or max(-lower, upper) > tolerance else "equal"


def rounding(*figures: float | None) -> float:
    """The difference of these figures that is rounding."""
    return ROUNDING * max((abs(figure) for figure in figures if figure is not None), default=0.0)


def difference_direction(row: Mapping[str, Any]) -> str:
    """The direction of a difference between two groups, as `outcomes` and `experiment show` report it."""
    base = row["value"] / row["relative"] if row.get("relative") else None
    return direction(row["lower"], row["upper"], tolerance=rounding(base))


def gate_direction(gate: Mapping[str, Any]) -> str:
    """The direction of the gain that a gate looked at."""
    return direction(gate["lower"], gate["upper"], tolerance=rounding(gate["value"], gate["live_value"]))


def gate_against(gate: Mapping[str, Any]) -> str:
    """The side that a gate compared a candidate with: a reference, or the number of a version."""
    side = gate["against"]
    return side if isinstance(side, str) else "the logged average" if side is None else f"version {side}"
