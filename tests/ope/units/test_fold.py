"""The base of folds: every unit has one that satisfies it."""

from __future__ import annotations

from typing import Any

from rlrec import ope
from rlrec.ope.units.estimate import FinishOptions
from rlrec.ope.units.fold import Fold, ImpressionFold
from rlrec.ope.units.sessions import SessionFold
from tests.ope import cases, visiting


def labels(fold: Fold, batches: list[Any]) -> list[str]:
    """Labels of the estimates of a log, by the base alone."""
    first, second = map(fold.partial, batches)
    return [estimate.estimator for estimate in fold.finish(first + second, FinishOptions(interval="normal"))]


def test_impressions_and_sessions_are_folds() -> None:
    choice = ope.parse("ips,wdr")
    impressions = ImpressionFold(estimators=choice.impressions, spans_batches=True)
    sessions = SessionFold(estimators=choice.sessions, spans_batches=True, gamma=0.9, horizon=7)
    assert labels(impressions, [cases.HAND] * 2) == ["ips"]
    assert labels(sessions, [visiting.ragged(1)] * 2) == ["wdr"]
