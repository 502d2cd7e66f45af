"""This module has the kind of rows in which a row is an ended visit. The weight of a visit depends on all its slates.

Training uses the same visits, from `log/ended_visits.py`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, replace
from typing import ClassVar

import numpy as np

from rlrec.app.evaluation.models.reward_models import Decisions, ReturnModel, ReturnSums, TargetSlates
from rlrec.app.evaluation.passes.fold import RowCounts, RowUnit
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation, SharedRows
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.contexts import ContextTable
from rlrec.app.evaluation.rows.log_rows import CLUSTERS, ArmTable, ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.inputs.parameters import ruled_policies
from rlrec.app.log import ended_visits, reward_log
from rlrec.app.log.ended_visits import Cutoff, EndedVisits, PersonPortions, visit_indices
from rlrec.arrays import Array, Flags, Ids, Index, look_up, run_starts, take
from rlrec.errors import InputError, quantity
from rlrec.ope.checks.dependence import MAX_SCORED_ARMS, VisitCarryOverSums, VisitDraws, visit_carry_over_sums
from rlrec.ope.sums.visits import VisitBatch
from rlrec.ope.units.sessions import SessionEstimator, SessionFold
from rlrec.policy.gradients.gradient import DEFAULT_RECENCY, arm_memory
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import contents, settings
from rlrec.store.log.events import RETURN
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.policies import people
from rlrec.times import DAY_US


class SessionUnit(RowUnit[EndedVisits, ReturnModel], eq=False):
    """A SessionUnit is a kind of rows in which a row is an ended visit. cutoffs: for each reward, by its id, which
    visits are old enough; has_returns: whether any person has several visits."""

    fold: SessionFold
    cutoffs: Mapping[int, Cutoff]
    has_returns: bool
    logging_states: ClassVar[bool] = False
    simulates: ClassVar[bool] = False
    noun: ClassVar[str] = "session"

    @classmethod
    def prepare(cls, unit: Unit, evaluation: Evaluation, estimators: Mapping[str, SessionEstimator]) -> SessionUnit:
        """Return visits as rows for these estimators. Raise InputError for a session that is too long, unless targets
        are compared with each other."""
        horizon = evaluation.extent.steps
        if horizon > ended_visits.MAX_VISIT_DECISIONS and not evaluation.is_paired:
            limit, hint = f"{ended_visits.MAX_VISIT_DECISIONS:,}", "estimate per impression, or leave it out by --log"
            raise InputError(
                f"a session of {horizon:,} decisions is longer than the {limit} that can be judged", hint=hint
            )
        horizon = min(max(1, horizon), ended_visits.MAX_VISIT_DECISIONS)
        gamma, spans_batches = evaluation.request.gamma, evaluation.spans_batches
        fold = SessionFold(estimators=estimators, gamma=gamma, horizon=horizon, spans_batches=spans_batches)
        cutoffs = {key: Cutoff.compute(unit, reward) for key, reward in evaluation.rewards.items()}
        return cls(evaluation=evaluation, fold=fold, cutoffs=cutoffs, has_returns=people.any_returned(unit))

    @property
    def fit_reading(self) -> Reading:
        return Reading(columns=ended_visits.VISIT_COLUMNS, visits=True, targets=False)

    @property
    def judge_reading(self) -> Reading:
        columns = (*ended_visits.VISIT_COLUMNS, *self.evaluation.lesson_columns)
        return Reading(columns=columns, visits=True, support=False)

    def usable_rows(self, batch: LoggedBatch, reward: Reward) -> tuple[EndedVisits, RowCounts]:
        visits, unused_counts = ended_visits.usable_visits(batch.log, reward, self.cutoffs[reward.id])
        is_too_long = np.diff(visits.start) > self.fold.horizon
        counts = RowCounts(*astuple(unused_counts)) + RowCounts(left_out=int(is_too_long.sum()))
        return visits.take(~is_too_long), counts

    def model_sums(self, batch: LoggedBatch, rows: EndedVisits) -> ReturnSums:
        decisions = self._decisions(rows, batch.contexts)
        return ReturnSums.from_decisions(decisions, rows.reward, gamma=self.fold.gamma, arms=len(self.evaluation.arms))

    def fit_model(self, sums: ReturnSums, reward: Reward) -> ReturnModel:
        return sums.finish()

    def visit_carry_over(self, reader: LogReader) -> Mapping[int, VisitCarryOverSums]:
        """Return sums for the test whether rewards carry over between visits of a person, by the id of the reward. They
        are read only in the first partitions of the log. In later partitions, or if nobody came back, the mapping is
        empty."""
        evaluation = self.evaluation
        max_partitions = max(1, MAX_DECISIONS * evaluation.partitions // max(1, evaluation.extent.decisions))
        if not self.has_returns or reader.number >= max_partitions:
            return {}
        ruled_ids, batches = ruled_policies(reader.unit), list[Batch]()
        for batch in reader.clone().read(_READING):
            slots = batch.log.slots
            has_rules = batch.contexts.have_rules[slots["context"]] | np.isin(slots["policy_id"], ruled_ids)
            batches.append(replace(batch.log, slots=slots | {"has_rules": has_rules}))
        return (
            _carry_over_sums(reader.unit, Batch.concatenate(batches), evaluation.rewards, evaluation) if batches else {}
        )

    def batch_of(
        self, batch: LoggedBatch, rows: EndedVisits, model: ReturnModel | None
    ) -> Callable[[Scorer], VisitBatch]:
        if log_rows.slot_set_flags(rows.slots) is not None:
            hint = "judge slates, by --estimator sips,iips, or slots, by ips,snips"
            raise InputError("whole visits cannot be judged where slots have sets of arms of their own", hint=hint)
        count = reward_log.sampling_counts(rows.slots)
        decisions, slates = self._decisions(rows, batch.contexts) if model else None, lowest_slots(rows)

        def make_batch(scorer: Scorer) -> VisitBatch:
            """Return the visits as a batch for the estimators of whole visits, weighted for the target of a scorer."""
            predictions = None if model is None or decisions is None else model.predict(decisions)
            log_slate, smallest = np.full(len(rows.reward), -np.inf), rows.lowest
            support_gap, means = np.where(np.isnan(smallest), np.nan, 0.0), None
            if not scorer.target.is_weighed:  # what it showed is a sample of its own distribution
                log_slate, means = rows.per_decision("log_propensity"), predictions
                smallest = support_gap = np.zeros(len(smallest))
            else:
                target_slates = _write_log_slates(scorer.slates(slates, batch, shares=model is not None), log_slate)
                if model is not None and decisions is not None:
                    means = model.predict_mean(decisions, target_slates)
                deque(target_slates, maxlen=0)  # runs the generator to its end
                ratio = scorer.list_ratio(slates.slots, batch)
                if ratio is not None:  # lists of candidates are drawn before their slates
                    log_slate += ratio
                    means = None if means is None else means * np.exp(ratio)
            return VisitBatch(
                start=rows.start, reward=rows.reward, log_ratio=log_slate - rows.per_decision("log_propensity"),
                cluster=rows.per_visit("cluster"), predicted=predictions, expected=means, largest=-smallest,
                unsupported=support_gap, default=rows.default,
                count=None if count is None else count[rows.begins],
            )  # fmt: skip

        return make_batch

    def _decisions(self, rows: EndedVisits, contexts: ContextTable) -> Decisions:
        """Return the decisions in the form that the model of returns uses. It has features of every arm that the visit
        has shown before the decision."""
        arms, histories = self.evaluation.arms, rows.histories()
        row, arm, memory = arm_memory(histories, np.power(DEFAULT_RECENCY, histories.ago - 1.0))
        return Decisions(
            start=rows.start, cluster=rows.per_visit("cluster"), top=arms.ranks(rows.per_decision("arm_id")),
            x=contexts.hashed_features[rows.per_decision("context")], row=row, arm=arms.ranks(arm), memory=memory,
        )  # fmt: skip

    def empty_log(self, shared_rows: SharedRows, counts: RowCounts) -> EmptyLog:
        cutoff = self.cutoffs[shared_rows.reward.id]
        if counts.waiting > counts.left_out:
            idle_minutes, window_minutes = cutoff.timeout_us / 60e6, cutoff.window_us / 60e6
            message = f"of {quantity(counts.waiting, 'session')} selected, none is over, or the reward windows are not"
            end_text = f"one ends by `rlrec session end`, or {idle_minutes:g} minutes after its last decision"
            hint = f"{end_text}; the window of reward {shared_rows.reward.name} is {window_minutes:g} minutes"
            return EmptyLog(message, hint=hint, wait_us=cutoff.timeout_us + cutoff.window_us)
        selected_text = f"of {quantity(counts.left_out, 'session')} selected, none"
        if counts.silent and not counts.other_policy:
            hint = "use decisions of `rlrec recommend`, or an import with the propensity of each slate"
            return EmptyLog(f"{selected_text} has propensities for whole slates", hint=hint)
        if counts.left_out and not counts.other_policy:
            message = f"{selected_text} is whole: --log cuts them, or a slot is censored"
            return EmptyLog(message, hint="widen --log, or --uncensor")
        return super().empty_log(shared_rows, counts)


def lowest_slots(visits: EndedVisits) -> ImpressionRows:
    """Return the lowest slot of each slate, (n,). It stands for the whole slate, since its weight covers all slots down
    to it."""
    last_slots, n = visits.first[1:] - 1, len(visits.reward)
    slots = take(visits.slots, last_slots) | {
        "marginal": np.full(n, np.nan), "size": np.ones(n, np.int64), "start": visits.first[:-1],
        "depth": np.diff(visits.first) - 1, "complete": np.ones(n, np.bool_), "prefix": np.ones(n),
    }  # fmt: skip
    return ImpressionRows(slots=slots, reward=visits.reward, default=visits.default, shown_arms=visits.slots["arm_id"])


def _write_log_slates(slates: Iterator[TargetSlates], log_slate: Array) -> Iterator[TargetSlates]:
    """Yield the given portions unchanged, and write the logarithm of the target's probability of each slate to
    `log_slate`."""
    for portion in slates:
        log_slate[portion.rows] = portion.log_slate
        yield portion


# -- the share of visits followed by a return, as a reward of visits: for guards where no definition weighs returns --

RETURN_DAYS = 7
RETURN_WINDOW_US = RETURN_DAYS * DAY_US
# This reward is not stored: a visit earns 1 at its last decision if its user begins another visit within the window.
RETURN_REWARD = Reward(
    id=0, name=RETURN, weights={RETURN: 1.0}, window_us=RETURN_WINDOW_US, default=0.0, clip_low=0.0, clip_high=1.0,
    learn="served", late="count",
)  # fmt: skip
_NUMBER_BITS = 24  # bits for the number of a visit in its code


def followed_visits(unit: Unit) -> Ids:
    """Return a code for each visit after which the same user began another visit within RETURN_DAYS days, ascending. A
    code packs the id of the session and the number of the visit into 8 bytes."""
    timeout_us, codes = settings.get(unit).session_timeout_us, [np.empty(0, np.int64)]
    for columns in (table for tables in PersonPortions.read(unit).visits(unit) for table in tables.values()):
        visits = log_rows.person_visits(columns, timeout_us=timeout_us, now=unit.now)
        returns_in_time = (visits.next_start - visits.ended_at <= RETURN_WINDOW_US) & (columns["user_id"] != ABSENT)
        codes.append(_visit_code(columns["session_id"], columns["number"])[returns_in_time])
    return np.sort(np.concatenate(codes))


def _visit_code(session: Ids, number: Ids) -> Ids:
    return (session << _NUMBER_BITS) + number


class ReturnUnit(SessionUnit, eq=False):
    """A ReturnUnit is a kind of rows in which a row is an ended visit. The reward of a visit is 1 if the user came back
    within RETURN_DAYS days, else 0. followed_visits: the codes of the visits after which the user came back."""

    followed_visits: Ids

    def usable_rows(self, batch: LoggedBatch, reward: Reward) -> tuple[EndedVisits, RowCounts]:
        visits, counts = super().usable_rows(batch, reward)
        codes = _visit_code(visits.per_visit("session_id"), visits.per_visit("visit"))
        has_return: Flags = np.isin(codes, self.followed_visits)
        gains = np.zeros(len(visits.reward))
        gains[visits.start[1:] - 1] = has_return
        return replace(visits, reward=gains, default=gains == 0), counts


# -- carry-over between visits, from the log: the slates of a visit, and the reward of the person's next visit --

MAX_DECISIONS = 1_000_000  # decisions that are read, about: in a longer log those of some partitions
MAX_CELLS = 4_000_000  # pairs of eligible set and arm in memory at a time; decisions with further sets are left out
MAX_KINDS = 16  # most kinds of events whose means by arm are read, of a portion
_READING = Reading(
    columns=(
        *reward_log.MATURITY_COLUMNS, *CLUSTERS["user"], "decision_id", "session_id", "visit", "position", "size",
        "arm_id", "eligible_id", "propensity", "min_propensity", "policy_id", "context_id",
    ),
    visits=True,
    targets=False,
)  # fmt: skip


def _carry_over_sums(
    unit: Unit, batch: Batch, rewards: Mapping[int, Reward], evaluation: Evaluation
) -> dict[int, VisitCarryOverSums]:
    """Return sums for the test whether rewards carry over between visits of a person, by the id of the reward. They are
    over the selected decisions of one partition."""
    slots, visits, arms = batch.slots, batch.visits, evaluation.arms
    assert visits is not None
    session_row, has_session = look_up(slots["session_id"], visits["session_id"])
    visits, session_row = take(visits, has_session), session_row[has_session]
    visits = visits | {name: slots[name][session_row] for name in CLUSTERS["user"]}
    first_slots = run_starts(slots["decision_id"])
    visit = visit_indices(visits, slots["session_id"], slots["visit"])
    person = log_rows.cluster_digests(visits, "user")
    next_visit, rank = _next_visits(visits, person, visit), arms.ranks(slots["arm_id"])
    draws = _visit_draws(unit, slots, first_slots, visit, rank, arms)
    is_served = np.bincount(visit, minlength=len(person)) > 0
    sums_by_reward, by_kind = dict[int, VisitCarryOverSums](), reward_log.event_sums(batch, max_kinds=MAX_KINDS)
    for key, definition in rewards.items():
        rows = reward_log.with_rewards(batch, definition)
        is_counted = reward_log.is_mature(slots, definition, now=evaluation.now) & ~slots["censored"]
        # the return of every visit, over its mature decisions
        pages = reward_log.with_page_rewards(batch, rows, definition)
        gains = pages.reward * (is_counted[first_slots] & ~pages.slots["censored"])
        sums_by_reward[key] = visit_carry_over_sums(
            draws, person=person, is_counted=is_served, next_visit=next_visit,
            returns=np.bincount(visit[first_slots], weights=gains, minlength=len(person)).astype(np.float64),
            visit=visit[is_counted], arm=rank[is_counted], reward=rows.reward[is_counted],
            events={kind: values[is_counted] for kind, values in by_kind.items() if kind != RETURN},
        )  # fmt: skip
    return sums_by_reward


def _next_visits(visits: Columns, person: Ids, visit: Ids) -> Ids:
    """Return, for each of s visits, the index of the next visit of the same person that has decisions, (s,), or -1 if
    there is none.

    person (s,): the digest of each visit's person; visit: the index of the visit of each slot."""
    rows = np.unique(visit)
    order = rows[
        np.lexsort([visits["number"][rows], visits["session_digest"][rows], visits["started_at"][rows], person[rows]])
    ]
    next_visit = np.full(len(person), -1, np.int64)
    is_same_person = person[order[1:]] == person[order[:-1]]
    next_visit[order[:-1][is_same_person]] = order[1:][is_same_person]
    return next_visit


def _visit_draws(unit: Unit, slots: Columns, first_slots: Index, visit: Ids, rank: Ids, arms: ArmTable) -> VisitDraws:
    """Return the draws of arms in a partition, for the test whether rewards carry over between visits. Slates with
    rules are left out, since rules exclude further arms. At the lower slots of a slate, the arms above cannot be drawn
    again.

    first_slots: the index of the first slot of each decision; visit: the visit of each slot; rank: the rank of the
    arm of each slot, in order of key."""
    n, size, width = len(rank), np.diff(np.r_[first_slots, len(rank)]), min(len(arms), MAX_SCORED_ARMS)
    sets, eligible = np.unique(slots["eligible_id"][first_slots], return_inverse=True)
    members = np.zeros((min(len(sets), max(1, MAX_CELLS // width)), width))
    n_choices = np.zeros(len(sets), np.int64)
    for row, ids in contents.eligible_arms(unit, set(sets[: len(members)].tolist())).items():
        index, ranks = np.searchsorted(sets, row), arms.ranks(np.array(ids, np.int64))
        members[index, ranks[ranks < width]], n_choices[index] = 1.0, len(ids)
    # m: the smallest propensity at the slot (that of a uniform draw where it was not logged), smaller for lower slots
    n_eligible = n_choices[eligible]
    propensity, smallest = slots["propensity"], slots["min_propensity"]
    minimum = np.where(np.isnan(smallest), 1 / np.maximum(np.repeat(n_eligible, size), 1), smallest)
    has_draw = np.logical_and.reduceat((propensity > 0) & (slots["size"] == np.repeat(size, size)), first_slots)
    has_draw &= (n_eligible > 0) & ~slots["has_rules"][first_slots]
    minimum = np.where(np.repeat(has_draw, size), minimum / slots["position"], 0.0)
    total = np.add.reduceat(minimum, first_slots)
    # contribution of an arm shown: m / p; of each slot below, where it cannot be drawn: m
    m_before = (np.cumsum(minimum) - minimum)[first_slots]
    m_below = np.repeat(total + m_before, size) - np.cumsum(minimum)
    weights = np.divide(minimum, propensity, out=np.zeros(n), where=minimum > 0) + m_below
    has_column = rank < width
    return VisitDraws(
        visit=visit[has_column], arm=rank[has_column], weight=weights[has_column],
        draw_visit=visit[first_slots][has_draw], eligible=eligible[has_draw], m_total=total[has_draw], members=members,
    )  # fmt: skip
