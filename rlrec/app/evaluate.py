"""Off-policy evaluation: what policies would have earned, from a log of what others served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlrec.app.evaluation import estimates
from rlrec.app.evaluation.request import EmptyLog, Request
from rlrec.app.inputs import filters
from rlrec.ope import diagnostics
from rlrec.store import Store, bulk

__all__ = ["EmptyLog", "Request", "evaluate", "explained"]


def evaluate(store: Store, request: Request) -> list[dict[str, Any]]:
    """An estimate for every target, group and estimator, from one snapshot of the log.

    Raises InputError for unknown names, an interval that an estimator does not have, and an empty log."""
    estimators = estimates.estimators(request)
    with store.read() as unit, bulk.alongside(unit):
        return estimates.answer(unit, request, estimators, filters.selection(unit, request.log))


def explained(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reasons of these estimates mean, and from which step on the log does not support a target."""
    early: dict[str, int] = {}
    for one in found:
        if one["horizon"] is not None:
            name = one["target"] if one["version"] is None else f"{one['target']}@{one['version']}"
            early[name] = min(one["horizon"], early.get(name, one["horizon"]))
    return diagnostics.explanations(found) + [
        f"horizon: from step {step} on the effective sample size for {name} is below 5 % of the sessions"
        for name, step in early.items()
    ]
