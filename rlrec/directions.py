"""The direction of a difference, and sentences on it: one rule for all that say more, less or equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROUNDING = 1e-9  # of the size of the figures that are compared
# A lift this near to 0 is within the precision of a log: propensities of four digits, or of float32, are that far off.
LOG_PRECISION = 5e-4
ALARM = 0.001  # p-value of a check below which something is wrong with a split or a log
WORDS = {  # for an answer, per unit
    "better": "surely more per {} than", "worse": "surely less per {} than", "same": "as much per {} as",
    "unknown": "not surely more or less per {} than",
}  # fmt: skip


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


def difference_sentence(row: Mapping[str, Any], unit: str, *, by_reward: bool = False) -> str:
    """A difference in reward per unit, in plain words, with what is needed to tell."""
    name, first, low, high = row.get("group", row.get("variant")), row["against"], row["lower"], row["upper"]
    by, reasons = f" by {row['reward']}" if by_reward else "", ", ".join(row["reasons"])
    if low is None or high is None:
        return f"{name} and {first} cannot be compared yet{by}{f' ({reasons})' if reasons else ''}"
    relative = "" if row["relative"] is None else f"{100 * row['relative']:+.1f} %, "
    figures = f"{relative}{low:.4g} to {high:.4g}{f', {reasons}' if reasons else ''}"
    needed = f"; about {row['needed']:,} {unit}s more would tell" if row["needed"] else ""
    return f"{name} earns {WORDS[row['answer']].format(unit)} {first}{by} ({figures}){needed}"


def experiment_sentence(answer: Mapping[str, Any]) -> str:
    """The conclusion from each reward per unit, or from the credit of teams. answer: as of `experiment show`."""
    p_value = answer["sample_ratio"]["p_value"]
    if p_value is not None and p_value < ALARM:
        return f"The split of {answer['experiment']} is not as defined: do not trust its differences."
    rows = [row for row in answer["unit_differences"] if row["metric"] == "reward_per_unit"]
    by_reward, unit = len({row["reward"] for row in rows}) > 1, answer["unit"] if rows else "decision"
    texts = [difference_sentence(row, unit, by_reward=by_reward) for row in rows or answer["differences"]]
    gains, losses = ({row["group"] for row in rows if row["answer"] == sign} for sign in ("better", "worse"))
    texts += ["the rewards disagree: decide by the one that you want"] if gains & losses else []
    return "; ".join(texts) or "There is nothing to compare."
