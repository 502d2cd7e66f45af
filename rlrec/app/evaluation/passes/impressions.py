"""Estimates per impression: every slot that was shown is a row, weighed by itself. Checks look at these rows, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rlrec.app.evaluation.checks import Check, CheckedRows
from rlrec.app.evaluation.passes.fold import RowCounts, RowUnit
from rlrec.app.evaluation.passes.log_reader import Reading
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation, SharedRows
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.log_rows import ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.log import reward_log
from rlrec.arrays import run_starts
from rlrec.errors import quantity
from rlrec.ope.sums.base import ImpressionEstimator, LogBatch
from rlrec.ope.units.fold import ImpressionFold
from rlrec.records import Reward
from rlrec.store import Unit

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import RewardModel, RewardModelFit, RewardModelSums


@dataclass(frozen=True, kw_only=True, eq=False)
class ImpressionUnit(RowUnit[ImpressionRows, "RewardModel"]):
    """Impressions as rows."""

    fold: ImpressionFold

    @classmethod
    def prepare(
        cls, unit: Unit, evaluation: Evaluation, estimators: Mapping[str, ImpressionEstimator], checks: Sequence[Check]
    ) -> Self:
        """Raises InputError for a table of rewards that does not fit the catalogue, and an unknown curve."""
        request, curve, table = evaluation.request, None, None
        if request.position is not None:
            from rlrec.app.evaluation.models.reward_models import position_curve

            curve = position_curve(unit, request.position)
        if (source := request.reward_model) is not None:
            from rlrec.app.evaluation.models.reward_models import read_table

            examination = () if curve is None else curve.examination
            table = read_table(source, by=request.reward_model_by, arms=evaluation.arms, examination=examination)
        fold = ImpressionFold(estimators=estimators, spans_batches=evaluation.spans_batches, curve=curve)
        models = {} if table is None else dict.fromkeys(evaluation.rewards, table)
        return cls(evaluation=evaluation, fold=fold, models=models, checks=checks)

    @cached_property
    def fit(self) -> RewardModelFit:
        """The fit of reward models on the log."""
        from rlrec.app.evaluation.models.reward_models import RewardModelFit

        evaluation, curve = self.evaluation, self.fold.curve
        return RewardModelFit(
            arms=evaluation.arms, positions=evaluation.extent.positions,
            examination=() if curve is None else curve.examination, columns=evaluation.request.reward_model_hash,
        )  # fmt: skip

    @property
    def fitted_on(self) -> Reading:
        return Reading(columns=log_rows.FITTED, targets=False)

    @property
    def judged_on(self) -> Reading:
        return Reading(columns=self.evaluation.judged_columns)

    def usable_rows(self, logged: LoggedBatch, reward: Reward) -> tuple[ImpressionRows, RowCounts]:
        rows, n_immature = log_rows.usable_rows(logged.log, reward, now=self.evaluation.now)
        counts = RowCounts(selected=len(logged.log), waiting=n_immature)
        events = logged.log.events
        if not len(rows) or reward.weights.keys().isdisjoint(events["kind"][events["position"] == 0].tolist()):
            return rows, counts
        first = run_starts(rows.slots["decision_id"])
        page = reward_log.page_events(logged.log, reward, rows.slots["decision_id"][first])
        keep = rows.slots["keep_probability"]
        unseen = float(np.abs(page / keep[first]).sum())
        return rows, replace(counts, size=float(np.abs(rows.reward / keep).sum()) + unseen, unseen=unseen)

    def model_sums(self, logged: LoggedBatch, rows: ImpressionRows) -> RewardModelSums:
        return self.fit.sums(rows, logged.contexts)

    def fitted(self, sums: RewardModelSums, reward: Reward) -> RewardModel:
        return self.fit.finish(sums, reward)

    @property
    def needs_model(self) -> bool:
        """Whether a model is needed: by an estimator, or by a check."""
        return any(check.needs_model for check in self.checks) or super().needs_model

    def check_sums(
        self, logged: LoggedBatch, rows: ImpressionRows, reward: Reward, model: RewardModel | None
    ) -> Mapping[str, Any]:
        evaluation = self.evaluation
        checked = CheckedRows(
            logged=logged, arms=evaluation.arms, extent=evaluation.extent, cluster=evaluation.cluster,
            now=evaluation.now, rows=rows, reward=reward, model=model, people=evaluation.people,
        )  # fmt: skip
        sums = ((check.reason, check.sums(checked)) for check in self.checks)
        return {reason: check_sums for reason, check_sums in sums if check_sums is not None}

    def batch_of(
        self, logged: LoggedBatch, rows: ImpressionRows, model: RewardModel | None
    ) -> Callable[[Scorer], LogBatch]:
        values = model.rows(rows, logged.contexts) if model is not None and super().needs_model else None
        return lambda scorer: scorer.log_batch(rows=rows, logged=logged, values=values)

    def empty_log(self, shared: SharedRows, counts: RowCounts) -> EmptyLog:
        if counts.waiting:
            return shared.immature_log(quantity(counts.waiting, "impression"))
        if shared.policy_id is not None:
            name = shared.members[0][1].target.name
            return EmptyLog(f"no impression of policy {name!r} is selected", hint="widen --log")
        if counts.selected:
            return EmptyLog("every impression selected is censored", hint="widen --log, or --uncensor")
        return self.evaluation.nothing_selected("impression")
