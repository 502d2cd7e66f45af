"""Estimates per session: every visit that is over is a row, weighed by all that was shown in it.

Which visits are usable is the same for training: `log/ended_visits.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import ClassVar

import numpy as np

from rlrec.app.evaluation.models.visit_values import Decisions, ReturnModel, ReturnSums, TargetSlates
from rlrec.app.evaluation.passes import visit_carry_over
from rlrec.app.evaluation.passes.fold import RowCounts, RowUnit
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation, SharedRows
from rlrec.app.evaluation.rows import slot_sets
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.log import ended_visits, reward_log
from rlrec.app.log.ended_visits import Cutoff, EndedVisits
from rlrec.arrays import Array, take
from rlrec.errors import InputError, quantity
from rlrec.ope.checks.visit_carry_over import VisitCarryOverSums
from rlrec.ope.estimators.sequential import SessionEstimator
from rlrec.ope.sums.visits import VisitBatch
from rlrec.ope.units.sessions import SessionFold
from rlrec.policy.gradients.gradient import RECENCY, memory_of
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.policies import people


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionUnit(RowUnit[EndedVisits, ReturnModel]):
    """Ended visits as rows. cutoffs: which visits are old enough, by the id of a reward. returned:
    whether persons have several visits."""

    fold: SessionFold
    cutoffs: Mapping[int, Cutoff]
    returned: bool
    logging_states: ClassVar[bool] = False
    simulates: ClassVar[bool] = False

    @classmethod
    def prepare(cls, unit: Unit, evaluation: Evaluation, estimators: Mapping[str, SessionEstimator]) -> SessionUnit:
        """Raises InputError for a session that is too long, where no targets are compared."""
        horizon = evaluation.extent.steps
        if horizon > ended_visits.LONGEST and not evaluation.paired:
            limit, hint = f"{ended_visits.LONGEST:,}", "estimate per impression, or leave it out by --log"
            raise InputError(
                f"a session of {horizon:,} decisions is longer than the {limit} that can be judged", hint=hint
            )
        horizon = min(max(1, horizon), ended_visits.LONGEST)
        gamma, spanning = evaluation.request.gamma, evaluation.spanning
        fold = SessionFold(estimators=estimators, gamma=gamma, horizon=horizon, spanning=spanning)
        rewards = {shared.reward.id: shared.reward for shared in evaluation.shared}
        cutoffs = {key: Cutoff.of(unit, reward) for key, reward in rewards.items()}
        return cls(evaluation=evaluation, fold=fold, cutoffs=cutoffs, returned=people.any_returned(unit))

    @property
    def fitted_on(self) -> Reading:
        return Reading(columns=ended_visits.READ, visits=True)

    @property
    def judged_on(self) -> Reading:
        return Reading(columns=(*ended_visits.READ, *self.evaluation.lesson_columns), visits=True)

    def usable(self, logged: LoggedBatch, reward: Reward) -> tuple[EndedVisits, RowCounts]:
        visits, unused = ended_visits.usable(logged.log, reward, self.cutoffs[reward.id])
        endless = np.diff(visits.start) > self.fold.horizon
        counts = RowCounts(*astuple(unused)) + RowCounts(left_out=int(endless.sum()))
        return visits.take(~endless), counts

    def model_sums(self, logged: LoggedBatch, rows: EndedVisits) -> ReturnSums:
        decisions = self._decisions(rows, logged.contexts)
        return ReturnSums.from_decisions(decisions, rows.reward, gamma=self.fold.gamma, arms=len(self.evaluation.arms))

    def fitted(self, sums: ReturnSums, reward: Reward) -> ReturnModel:
        return sums.finish()

    def visit_carry_over(self, reader: LogReader) -> Mapping[int, VisitCarryOverSums]:
        rewards = {shared.reward.id: shared.reward for shared in self.evaluation.shared}
        return visit_carry_over.collect(reader, rewards) if self.returned else {}

    def batch_of(
        self, logged: LoggedBatch, rows: EndedVisits, model: ReturnModel | None
    ) -> Callable[[Scorer], VisitBatch]:
        if slot_sets.flags(rows.slots) is not None:
            hint = "judge slates, by --estimator sips,iips, or slots, by ips,snips"
            raise InputError("whole visits cannot be judged where slots have sets of arms of their own", hint=hint)
        count = reward_log.counts_of(rows.slots)
        decisions, slates = self._decisions(rows, logged.contexts) if model else None, lowest(rows)

        def batch(scorer: Scorer) -> VisitBatch:
            """The visits as one batch for the estimators per session."""
            predicted = None if model is None or decisions is None else model.predicted(decisions)
            log_slate, smallest = np.full(len(rows.reward), -np.inf), rows.lowest
            unsupported, expected = np.where(np.isnan(smallest), np.nan, 0.0), None
            if scorer.target.serving is None:  # what it showed is a sample of itself
                log_slate, expected = rows.per_decision("log_propensity"), predicted
                smallest = unsupported = np.zeros(len(smallest))
            else:
                target_slates = _filled(scorer.slates(slates, logged, shares=model is not None), log_slate)
                if model is not None and decisions is not None:
                    expected = model.expected(decisions, target_slates)
                deque(target_slates, maxlen=0)  # to its end
                ratio = scorer.list_ratio(slates.slots, logged)
                if ratio is not None:  # lists of candidates are drawn before their slates
                    log_slate += ratio
                    expected = None if expected is None else expected * np.exp(ratio)
            return VisitBatch(
                start=rows.start, reward=rows.reward, log_ratio=log_slate - rows.per_decision("log_propensity"),
                cluster=rows.per_visit("cluster"), predicted=predicted, expected=expected, largest=-smallest,
                unsupported=unsupported, default=rows.default,
                count=None if count is None else count[rows.begins],
            )  # fmt: skip

        return batch

    def _decisions(self, rows: EndedVisits, contexts: ContextTable) -> Decisions:
        """Decisions as the model of returns sees them: an arm is known by what the visit has seen of it."""
        arms, histories = self.evaluation.arms, rows.histories()
        row, arm, memory = memory_of(histories, np.power(RECENCY, histories.ago - 1.0))
        return Decisions(
            start=rows.start, cluster=rows.per_visit("cluster"), top=arms.rank[arms.index(rows.per_decision("arm_id"))],
            x=contexts.encoded[rows.per_decision("context")], row=row, arm=arms.rank[arms.index(arm)], memory=memory,
        )  # fmt: skip

    def empty(self, shared: SharedRows, counts: RowCounts) -> EmptyLog:
        cutoff = self.cutoffs[shared.reward.id]
        if counts.waiting:
            idle, window = cutoff.timeout_us / 60e6, cutoff.window_us / 60e6
            message = f"of {quantity(counts.waiting, 'session')} selected, none is over, or the reward windows are not"
            end = f"one ends by `rlrec session end`, or {idle:g} minutes after its last decision"
            hint = f"{end}; the window of reward {shared.reward.name} is {window:g} minutes"
            return EmptyLog(message, hint=hint, wait_us=cutoff.timeout_us + cutoff.window_us)
        if counts.other_policy:
            name = shared.members[0][1].target.name
            return EmptyLog(f"no whole session of policy {name!r} is selected", hint="widen --log")
        selected = f"of {quantity(counts.left_out, 'session')} selected, none"
        if counts.silent:
            hint = "judge by what `rlrec recommend` served, or by an import that says how likely each slate was"
            return EmptyLog(f"{selected} has propensities for whole slates", hint=hint)
        if counts.left_out:
            message = f"{selected} is whole: --log cuts them, or a slot is censored"
            return EmptyLog(message, hint="widen --log, or --uncensor")
        return self.evaluation.nothing_selected("session")


def lowest(visits: EndedVisits) -> ImpressionRows:
    """The lowest slot of each slate, (n,), as the row that stands for the slate: a weight is that of the slate down to
    it, and nothing is asked of other positions."""
    last, n = visits.first[1:] - 1, len(visits.reward)
    slots = take(visits.slots, last) | {
        "marginal": np.full(n, np.nan), "size": np.ones(n, np.int64), "start": visits.first[:-1],
        "depth": np.diff(visits.first) - 1, "complete": np.zeros(n, np.bool_), "prefix": np.ones(n),
    }  # fmt: skip
    return ImpressionRows(slots=slots, reward=visits.reward, default=visits.default, shown=visits.slots["arm_id"])


def _filled(slates: Iterator[TargetSlates], log_slate: Array) -> Iterator[TargetSlates]:
    """The slates, passed on; the log of the probability of each is written to `log_slate` on the way."""
    for portion in slates:
        log_slate[portion.rows] = portion.log_slate
        yield portion
