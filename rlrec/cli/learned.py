"""Report of a trained version: its learning curve, and the figures of the gate."""

from __future__ import annotations

from typing import Any

from rlrec.cli.tables import cell, lines

CURVE = {"variance_without_baseline": "without_baseline"}  # headers that differ from the key
COLUMNS = (
    "epoch", "value", "gain", "lower", "upper", "ess", "entropy", "kl", "clipped", "variance",
    "variance_without_baseline",
)  # fmt: skip


def report(training: dict[str, Any] | None) -> list[str]:
    """Lines about the training of a version; none where it was not trained."""
    if training is None:
        return []
    best = f"the best is epoch {training['best']}" if training["best"] else "none is better than the start"
    rows = [[point.get(name) for name in COLUMNS] for point in training["curve"]]
    curve = lines([CURVE.get(name, name) for name in COLUMNS], rows) if rows else []
    return [f"learning curve, estimated on the tuning split of the log: {best}", *curve, _gate(training["gate"]), ""]


def _gate(gate: dict[str, Any]) -> str:
    if gate["candidate"] is None:
        return "gate: not used for this version"
    shown = {name: cell(value) for name, value in gate.items()}
    reasons = f": {shown['reasons']}" if gate["reasons"] else ""
    return (
        f"gate: {'passed' if gate['passed'] else 'not passed'}, gain over version {shown['against']} "
        f"{shown['estimate']} in [{shown['lower']}, {shown['upper']}] (value {shown['value']} against "
        f"{shown['live_value']}) by {shown['estimator']} on {shown['sessions']} sessions, ess {shown['ess']}, "
        f"candidate {shown['candidate']} at alpha {shown['alpha']}, {shown['verdict']}{reasons}"
    )
