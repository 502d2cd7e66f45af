"""Estimates per slate from the effects of arms: pages as they were drawn, against their expectation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rlrec.app.evaluation.passes.log_reader import Reading
from rlrec.app.evaluation.passes.request import Evaluation
from rlrec.app.evaluation.passes.slates import CompletePages, PageUnit
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.log_rows import LoggedBatch
from rlrec.app.evaluation.targets import slate_probabilities
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.log import reward_log
from rlrec.arrays import Array, run_starts
from rlrec.ope.checks.positions import OverlapSums, PositionRows, chained, overlap
from rlrec.ope.units.effects import EffectBatch, EffectFold, Effects
from rlrec.ope.units.fold import PositionCurve
from rlrec.records import Reward

_LOCATED = (*log_rows.FITTED, "size", "version_id", "belief_seq", "belief_ordinal", "eligible_id", "catalogue_revision",
            "propensity", "marginal")  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class EffectUnit(PageUnit[PositionCurve]):
    """Pages whose exposures are compared with their expectation. The model is the curve by which the clicks of the log
    examine positions; positions: of the longest page."""

    fold: EffectFold
    positions: int
    simulates: ClassVar[bool] = False

    @classmethod
    def prepare(cls, evaluation: Evaluation, estimators: Mapping[str, Effects]) -> EffectUnit:
        arms, positions = len(evaluation.arms), max(1, evaluation.extent.positions)
        fold = EffectFold(estimators=estimators, spans_batches=evaluation.spans_batches, arms=arms)
        return cls(evaluation=evaluation, fold=fold, positions=positions)

    @property
    def needs_model(self) -> bool:
        return self.positions > 1

    @property
    def fitted_on(self) -> Reading:
        return Reading(columns=_LOCATED, marginals=self.positions)

    @property
    def judged_on(self) -> Reading:
        return Reading(columns=self.evaluation.judged_columns, marginals=0, shares=self.positions)

    def model_sums(self, logged: LoggedBatch, rows: CompletePages) -> OverlapSums:
        slots, impressions = rows.slots, rows.impressions
        located = PositionRows(
            page=slots["decision_id"], arm=slots["arm_id"], position=slots["position"], cluster=slots["cluster"],
            reward=(~impressions.default).astype(np.float64), count=1 / slots["keep_probability"],
            marginals=slots[log_rows.MARGINALS],
        )  # fmt: skip
        return overlap(located, spans_batches=False)  # of which no error is asked

    def fitted(self, sums: OverlapSums, reward: Reward) -> PositionCurve:
        return PositionCurve(examination=tuple(row.examination for row in chained(sums).positions))

    def batch_of(
        self, logged: LoggedBatch, rows: CompletePages, model: PositionCurve | None
    ) -> Callable[[Scorer], EffectBatch]:
        slots, arms, begins = rows.slots, self.evaluation.arms, rows.begins
        examination = extended(model, self.positions)
        # how often each arm was looked at, less how often that was expected before the draw
        assert logged.shares is not None
        expected = np.einsum("ska,k->sa", logged.shares[slots[log_rows.DECISION_NUMBER][begins]], examination)
        page, looks = np.repeat(np.arange(len(rows)), np.diff(rows.start)), examination[slots["position"] - 1]
        cell = page * len(arms) + arms.rank[arms.index(slots["arm_id"])]
        shown = np.bincount(cell, weights=looks, minlength=expected.size).reshape(expected.shape)
        reward, count = rows.left[begins], reward_log.sampling_counts(slots)
        shared: dict[str, Any] = {
            "reward": reward, "remaining": remaining(rows, reward), "exposure": shown - expected,
            "looks": np.add.reduceat(looks, begins), "cluster": slots["cluster"][begins],
            "count": None if count is None else count[begins],
        }  # fmt: skip
        first_slots = rows.impressions.at(begins)

        def batch(scorer: Scorer) -> EffectBatch:
            """The pages as one batch for the regression."""
            if scorer.target.serving is None:  # what it showed is a sample of itself
                return EffectBatch(**shared, change=np.zeros(expected.shape))
            wanted = slate_probabilities.exposures(scorer, first_slots, logged, examination=examination)
            return EffectBatch(**shared, change=wanted - expected)

        return batch


def extended(curve: PositionCurve | None, positions: int) -> Array:
    """The examination of so many positions, (k,): below the end of the curve as at its end."""
    examination = (1.0,) if curve is None or not curve.examination else curve.examination
    return np.array([*examination, *[examination[-1]] * positions][:positions])


def remaining(rows: CompletePages, reward: Array) -> Array:
    """The reward of each page and of the later ones of its visit, (s,)."""
    session, visit, step = (rows.slots[name][rows.begins] for name in ("session_id", "visit", "step"))
    order = np.lexsort((-step, visit, session))  # the last page of a visit first
    starts, sums = run_starts(session[order], visit[order]), np.cumsum(reward[order])
    earlier_visits = np.r_[0.0, sums][starts]
    earned = np.empty(len(reward))
    earned[order] = sums - np.repeat(earlier_visits, np.diff(np.r_[starts, len(sums)]))
    return earned
