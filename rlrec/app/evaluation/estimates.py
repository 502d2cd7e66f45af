"""Estimates of what policies would have earned, as rows of the command contract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rlrec import ope
from rlrec.app.evaluation.impressions import Impressions
from rlrec.app.evaluation.log_rows import CLUSTERS
from rlrec.app.evaluation.request import Asked, Request
from rlrec.app.evaluation.sessions import Sessions
from rlrec.app.evaluation.targets import Target
from rlrec.errors import InputError, suggest
from rlrec.ope import intervals
from rlrec.ope.estimate import Estimate
from rlrec.store import Unit
from rlrec.store.reader import Selection

ONCE_A_SLOT = ("position", "arm")  # of the fields that rows are grouped by
CHOSEN = "snips"  # what may be asked of rows that are picked by the arm the logger chose


def judged(unit: Unit, request: Request, selection: Selection) -> list[dict[str, Any]]:
    """An estimate for every target, group and estimator, from one snapshot of these decisions. Raises EmptyLog where
    none of them can be used."""
    return answer(unit, request, estimators(request), selection)


def estimators(request: Request) -> ope.EstimatorChoice:
    usual = CHOSEN if request.by == "arm" else ope.DEFAULT
    asked = ope.parse(request.estimators or usual)
    _check(request, asked)
    if asked.sessions:
        _check_sessions(request, asked)
    return asked


def _check(request: Request, asked: ope.EstimatorChoice) -> None:
    intervals.check(request.interval, request.level, estimators={**asked.impressions, **asked.sessions})
    if not 0 <= request.gamma <= 1:
        raise InputError(f"gamma is {request.gamma:g}", hint="it lies between 0 and 1; 1 discounts nothing")
    if request.cluster is not None and request.cluster not in CLUSTERS:
        hint = suggest(request.cluster, list(CLUSTERS)) or f"one of {', '.join(CLUSTERS)}"
        raise InputError(f"unknown cluster {request.cluster!r}", hint=hint)
    if request.by == "arm" and not asked.sessions:
        _check_chosen(request.interval, asked)
    if request.reward_model is not None and not _modelled(asked):
        raise InputError("--reward-model is given, and no estimator uses one", hint="add dr or dm to --estimator")
    if request.reward_model_by is not None and request.reward_model is None:
        raise InputError("--reward-model-by names a field for --reward-model", hint="give --reward-model FILE too")


def _check_sessions(request: Request, asked: ope.EstimatorChoice) -> None:
    """A session has no position, no arm, and no row of its own."""
    name = next(iter(asked.sessions))
    if request.by in ONCE_A_SLOT:
        hint = "by policy, version, variant, day or a field of the context, as they are where it begins"
        raise InputError(f"{name} judges sessions, which have no one {request.by}", hint=hint)
    if request.cluster == "row":
        raise InputError(f"{name} judges sessions: --cluster row is no unit of theirs", hint="use session or user")


def _check_chosen(interval: str, asked: ope.EstimatorChoice) -> None:
    """Rows picked by what was chosen have a mean weight other than 1: only self-normalised estimates mean something."""
    unfit = next((name for name, kind in asked.impressions.items() if not kind.self_normalised), None)
    if unfit is not None:
        raise InputError(f"{unfit} means nothing by arm, which the logger chose", hint=f"use --estimator {CHOSEN}")
    if interval == "cressie-read":  # it takes the mean weight to be 1
        raise InputError("interval cressie-read does not exist by arm", hint="use --interval bootstrap-t")


def _modelled(asked: ope.EstimatorChoice) -> bool:
    return any(kind.modelled for kind in asked.impressions.values())


def answer(unit: Unit, request: Request, estimators: ope.EstimatorChoice, selection: Selection) -> list[dict[str, Any]]:
    """One run over one snapshot."""
    returns = any(kind.modelled for kind in estimators.sessions.values())
    encode = returns or (_modelled(estimators) and request.reward_model is None)
    asked = Asked(unit, request, selection, encode=encode)
    parts: list[Impressions | Sessions] = []
    if estimators.impressions:
        parts.append(Impressions(asked, estimators.impressions))
    if estimators.sessions:
        parts.append(Sessions(asked, estimators.sessions))
    for part in parts:
        part.run()
    asked.grouping.check(asked.library.names)
    return [
        row
        for target in asked.targets
        for group in asked.grouping.ordered()
        for row in _rows(asked, target, group, _ordered(parts, estimators, target, group))
    ]


def _ordered(
    parts: list[Impressions | Sessions], estimators: ope.EstimatorChoice, target: Target, group: Any
) -> list[Estimate]:
    """The estimates of all parts, in the order asked."""
    found = {one.estimator: one for part in parts for one in part.estimates(target, group)}
    return [found[label] for label in estimators.labels if label in found]


def _rows(asked: Asked, target: Target, group: Any, estimates: list[Estimate]) -> Iterator[dict[str, Any]]:
    for estimate in estimates:
        found = {"target": target.name, "version": target.number, **asdict(estimate)}
        found["reasons"] = list(estimate.reasons)
        found["reward"] = target.reward.name
        if asked.request.by is not None:
            found |= {"by": asked.request.by, "group": asked.grouping.labels[group]}
        yield found
