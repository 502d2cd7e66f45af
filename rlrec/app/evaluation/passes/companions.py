"""Passes that nobody asked for, over a bounded part of the log: what estimates are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlrec import ope
from rlrec.app.evaluation.checks.rewards import LogDrift
from rlrec.app.evaluation.passes import fold, passes
from rlrec.app.evaluation.passes.impressions import ImpressionUnit
from rlrec.app.evaluation.passes.log_reader import LogReader
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation
from rlrec.store import Unit
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection

MODEL_DECISIONS, PRESENT_DECISIONS = 20_000, 50_000  # that are read, at most
Sums = Mapping[tuple[int, str], Any]


def differing_models(unit: Unit, evaluation: Evaluation, estimators: ope.EstimatorChoice) -> set[int]:
    """The numbers of the targets about which dr and snips say different things, by the newest decisions: where neither
    dr nor sndr was asked for, which say so themselves."""
    has_model = not {"dr", "sndr"}.isdisjoint(kind.name for kind in estimators.impressions.values())
    if has_model or (evaluation.extent.positions > 1 and not estimators.impressions):
        return set()
    newest = evaluation.newest(unit, MODEL_DECISIONS)
    impressions = ImpressionUnit.prepare(unit, newest, ope.parse("dr").impressions, ())
    try:
        sums = passes.sum_log([impressions], LogReader(unit, newest))[impressions]
    except EmptyLog:
        return set()
    finished = fold.estimates(impressions, sums, failures={}, cluster=newest.cluster)
    return {number for (number, _), (row,) in finished.items() if "models-differ" in row.reasons}


def with_present(unit: Unit, evaluation: Evaluation, sums: Sums) -> Sums:
    """The sums of checks, where those of drift go on with the newest decisions of the store, if it has some after the
    last one of the log."""
    numbers = {shared.reward.id: number for number, shared in enumerate(evaluation.shared) if shared.policy_id is None}
    targets = [target for target in evaluation.targets if target.serving is not None]
    if not targets or (unit.folder is None and evaluation.selection == Selection()):
        return sums
    folder, unit.folder = unit.folder, None  # what the store was given after its log was exported
    try:
        present = _present(unit, replace(evaluation, targets=targets))
    finally:
        unit.folder = folder
    joined = dict(sums)
    for (reward_id, reason), newest_sums in present.items():
        key = numbers[reward_id], reason
        if key in joined:
            joined[key] = joined[key].followed_by(newest_sums)
    return joined


def _present(unit: Unit, evaluation: Evaluation) -> Mapping[tuple[int, str], Any]:
    """The sums of drift over the newest decisions after the last one of the log, by id of the reward and the reason."""
    later = Selection(since=evaluation.extent.last_at + 1)
    extent = selected.extent(unit, later)
    if not extent.decisions:
        return {}
    newest = replace(evaluation, selection=later, extent=extent).newest(unit, PRESENT_DECISIONS)
    rows = ImpressionUnit.prepare(unit, newest, {}, [LogDrift()])
    try:
        present = passes.sum_log([rows], LogReader(unit, newest))[rows].checks
    except EmptyLog:
        return {}
    return {(newest.shared[index].reward.id, reason): sums for (index, reason), sums in present.items()}
