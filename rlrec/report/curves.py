"""Figures of curves: the examination of positions, and the training of versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlrec.errors import quantity
from rlrec.report.figures import Figure
from rlrec.report.svg import PlotPoint, Series, chart, interval
from rlrec.sentences import gate_claim

if TYPE_CHECKING:
    from rlrec.app.judging.positions import CurveAnswer


def examination(answers: Sequence[CurveAnswer]) -> Figure:
    """The probability that positions are examined, by up to three curves."""
    series = [
        Series(f"{answer['curve']}@{answer['number']}", _points(answer["positions"], "position", "examination"))
        for answer in answers
    ]
    lowest = answers[0]["positions"][-1]
    times = interval(lowest["examination"], lowest["lower"], lowest["upper"])
    headers = ["position", "examination", "lower", "upper", "rewards", "slots"]
    return Figure(
        title=f"Position {lowest['position']} is looked at {times} times as often as position 1 ({series[0].name})",
        drawing=chart(series, x_name="position from the top", y_name="examination, against position 1", level=1.0),
        description="A line with its interval of 95 % for each curve.",
        headers=["curve", *headers],
        rows=[
            [curve.name, *(row[header] for header in headers)]
            for curve, answer in zip(series, answers, strict=True)
            for row in answer["positions"]
        ],
    )


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[PlotPoint]:
    """A point for each row: the value of column x, with the value and the bounds of column y."""
    return [PlotPoint(row[x], row[y], row["lower"], row["upper"], str(row[x])) for row in rows]


def training(policy: str, version: int, training: Mapping[str, Any] | None, *, live: bool) -> Figure | None:
    """The learning curve of a version; None if it was not trained, or no epoch was stored."""
    if training is None or not training["curve"]:
        return None
    curve, best, gate = training["curve"], training["best"], training["gate"]
    points = _points(curve, "epoch", "gain")
    marked_index = next((count for count, row in enumerate(curve) if row["epoch"] == best), None)
    headers, name = ["epoch", "gain", "lower", "upper", "ess", "entropy", "kl"], f"{policy}@{version}"
    sentence = f"{name}: not judged, since the tuning visits show no gain or do not support one"
    if gate["candidate"] is not None:
        sentence = gate_claim(gate, name).sentence
    return Figure(
        title=f"{sentence}; {'live' if live else 'not live'}",
        drawing=chart(
            [Series("gain", points, marked_index)], x_name="epoch; the ring: the one that was taken",
            y_name="gain over the start, per visit or slot (tuning visits)", level=0.0,
        ),
        description=f"A line over {quantity(len(points), 'epoch')} with its interval of 95 %, "
        "on visits that did not teach.",
        headers=["epoch", "gain", "lower", "upper", "effective sample size", "entropy", "KL"],
        rows=[[row.get(header) for header in headers] for row in curve],
    )  # fmt: skip
