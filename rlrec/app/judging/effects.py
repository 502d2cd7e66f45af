"""The effects of arms in a log, from one snapshot of the store."""

from __future__ import annotations

from dataclasses import replace

from rlrec.app.evaluation.passes import arm_effects
from rlrec.app.evaluation.passes.arm_effects import Request, Result
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.imports import log_stores
from rlrec.store import Store

__all__ = ["Request", "Result", "effects"]


def effects(store: Store, request: Request, workers: Workers = IN_PROCESS) -> Result:
    """The effects of every arm in the selected log.

    Raises InputError for unknown names and an empty log, CheckFailed for a log with too few data."""
    with log_stores.reading(store, request.log, workers) as (unit, log, engine):
        return arm_effects.answer(unit, replace(request, log=log), engine)
