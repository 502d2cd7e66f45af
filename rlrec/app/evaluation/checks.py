"""This module has the checks that tell whether estimates from a log can be trusted. All checks run, whatever estimators
were requested. To add a check, write a class here and add the class to CHECKS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

import numpy as np

from rlrec.app.evaluation.rows.log_rows import SLOT_SET, arms_of_sets, decision_digests
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Flags, Ids, Index, Words, distinct, look_up, offsets, piece_rows, run_starts, take
from rlrec.ope.checks import dependence
from rlrec.ope.checks.draws import GROUPS, ClippingSums, Draws, FirstCounts, RepeatSums, context_cells, context_digests
from rlrec.ope.checks.machines import SessionSums
from rlrec.ope.checks.times import N_PERIODS, ArrivalSums, DriftSums
from rlrec.ope.intervals.betting import BET_ALPHA, BetSums, bet_sums, propensities_are_wrong
from rlrec.ope.sums.base import Estimator, hash_bits
from rlrec.records import Record, Reward, Sums
from rlrec.store.log.reader import ABSENT, Batch

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import RewardModel
    from rlrec.app.evaluation.rows.log_rows import ArmTable, ImpressionRows, LoggedBatch
    from rlrec.store.log.selected import LogExtent

SAMPLE_SIZE = 200_000  # decisions that the expensive checks read, about
MAX_CONTEXT_CELLS, MAX_ARMS, MAX_PAIRS = 256, 4_096, 1 << 14  # most contexts, arms within them, and pairs of both
_MAX_SETS = 512  # eligible sets at a time
_PERSONS_SALT, _SAMPLE_SALT, _REPEATS_SALT = 11, 12, 13
MAX_DECISIONS = 200_000  # decisions whose events are read, about


class CheckedLog(Record, eq=False):
    """This record has a batch of the log for the checks, the arms of the store, and the extent of the log."""

    batch: LoggedBatch
    arms: ArmTable
    extent: LogExtent

    @cached_property
    def top_slots(self) -> tuple[Index, Array]:
        """Return the indices of the n slots at position 1 that were drawn among the eligible arms, and the propensities
        of these slots, as two arrays (n,)."""
        slots = self.batch.log.slots
        top = run_starts(slots["decision_id"])
        p = np.where(np.isnan(slots["propensity"]), slots["marginal"], slots["propensity"])[top]
        is_usable = (slots["position"][top] == 1) & (p > 0) & ~slots["subsampled"][top]
        if SLOT_SET in slots:  # these slots do not choose among the eligible arms
            is_usable &= slots[SLOT_SET][top] == 0
        return top[is_usable], p[is_usable]

    @cached_property
    def in_sample(self) -> Flags:
        """Tell for each slot of `top_slots` whether it is in the sample of expensive checks, (n,). The slots of a
        session are sampled together."""
        return self.is_sampled(self.batch.log.slots["session_digest"][self.top_slots[0]])

    def is_sampled(self, digest: Ids) -> Flags:
        """Tell for each row whether it is in a random sample of about SAMPLE_SIZE decisions of the log, (n,).

        digest (n,): the digest of each row. Rows with equal digests are sampled together."""
        return hash_bits(digest, salt=_SAMPLE_SALT) / 2.0**64 < SAMPLE_SIZE / max(self.extent.decisions, 1)


class CheckedRows(CheckedLog, eq=False):
    """This record has a batch for the checks, with the mature, uncensored impressions of the batch and their rewards.

    cluster: what is a cluster, such as `user`; model: a model of rewards that was fitted on other clusters, or None
    if no check needs a model; people: how it is known that each session without a user is another person, with the
    values of `Evaluation.people`."""

    cluster: str
    rows: ImpressionRows
    reward: Reward
    model: RewardModel | None
    people: str | None = None


class Check(ABC):
    """A Check is a test of the log. It first sums up each batch of the log. The total of these sums decides whether the
    log fails. The object itself holds no data.

    reason: the reason for doubt that a failure adds to the affected estimates; needs_model: whether the check needs
    a model of rewards; encodes: whether the check needs the features of contexts."""

    reason: ClassVar[str]
    needs_model: ClassVar[bool] = False
    encodes: ClassVar[bool] = False

    def is_possible(self, extent: LogExtent) -> bool:
        """Tell whether a log with this extent of time and positions can fail the check."""
        return True

    def concerns(self, estimator: Estimator) -> bool:
        """Tell whether a failure of this check casts doubt on estimates by this estimator."""
        return True

    @abstractmethod
    def sums(self, data: CheckedRows) -> Any:
        """Return the sums of a batch, or None where the batch has no data for the check. The sums of several batches
        can be added."""

    def fails(self, sums: Any) -> bool:
        """Tell whether the log fails the check, by the sums of all batches. Of logs without a fault, at most one in a
        hundred fails."""
        return bool(sums.raises_alarm)


# -- draws: arms are drawn as often as their propensities say, and each decision is logged once --


class PropensityBets(Sums, kw_only=True):
    """This record has sums of bets that win if arms are shown more often than their propensities say. arms: a bet on
    each arm; cells: a bet on each arm within each group of contexts."""

    arms: BetSums
    cells: BetSums

    @property
    def raises_alarm(self) -> bool:
        """Tell whether any arm was shown more often than its propensities allow."""
        return any(propensities_are_wrong(bets, alpha=BET_ALPHA / 2) for bets in (self.arms, self.cells))


class WrongPropensities(Check):
    """This check tests whether arms are shown at position 1 as often as their propensities say. It bets against the
    propensities of each arm, in the whole log, within each value of every context field, and within repeated
    contexts."""

    reason = "wrong-propensities"
    encodes = True

    def sums(self, data: CheckedLog) -> PropensityBets:
        top, p = data.top_slots
        slots, arms, contexts = data.batch.log.slots, data.arms, data.batch.contexts
        rank = arms.ranks(slots["arm_id"][top])
        first_rows, set_index = distinct(slots["eligible_id"][top])
        members = [arms.ranks(data.batch.eligible[key]) for key in slots["eligible_id"][top[first_rows]].tolist()]
        eligible = _eligible_in(np.zeros(len(top), np.int64), set_index, members, cells=1, arms=len(arms))
        arm_bets = bet_sums(p, rank, eligible=eligible)
        # a sample of the rows; each row counts in every cell of its context
        n_arms = min(len(arms), MAX_ARMS)
        n_cells = max(2, min(MAX_CONTEXT_CELLS, MAX_PAIRS // max(n_arms, 1)))
        sample_rows = np.flatnonzero(data.in_sample)
        context, cell = context_cells(*contexts.entries, contexts=contexts.size, cells=n_cells)
        start, context_code = offsets(np.bincount(context, minlength=contexts.size)), slots["context"][top[sample_rows]]
        length = np.diff(start)[context_code]
        row, cell = np.repeat(sample_rows, length), cell[piece_rows(start[context_code], length)]
        eligible = _eligible_in(cell, set_index[row], members, cells=n_cells, arms=n_arms)
        has_cell = rank[row] < n_arms
        row, cell = row[has_cell], cell[has_cell]
        return PropensityBets(arms=arm_bets, cells=bet_sums(p[row], cell * n_arms + rank[row], eligible=eligible))


class ClippedPropensities(Check):
    """This check tests whether small propensities were replaced by a larger number (clipped from below)."""

    reason = "clipped-propensities"

    def sums(self, data: CheckedLog) -> ClippingSums:
        top, p = data.top_slots
        slots = data.batch.log.slots
        top, p = top[data.in_sample], p[data.in_sample]
        arms = arms_of_sets(slots["eligible_id"][top], data.batch.eligible)
        # under rules of a page, some eligible arms have probability 0
        has_rules = data.batch.contexts.have_rules[slots["context"][top]]
        return ClippingSums.from_rows(p, arms, least=np.where(has_rules, 0.0, slots["min_propensity"][top]))


class RepeatedRows(Check):
    """This check tests whether decisions are in the log more than once, under different keys."""

    reason = "repeated-rows"
    encodes = True

    def sums(self, data: CheckedLog) -> RepeatSums:
        log, contexts = data.batch.log, data.batch.contexts
        digest = context_digests(*contexts.entries, contexts=contexts.size)
        # sessions are sampled by their first decisions, so that copies of a session are sampled together
        begins = run_starts(log.slots["session_id"])
        start_digest = digest[log.slots["context"][begins]] + log.slots["at"][begins]
        is_sampled = np.repeat(data.is_sampled(start_digest), np.diff(begins, append=len(log)))
        log = log.select_rows(np.flatnonzero(is_sampled))
        data, slots = replace(data, batch=replace(data.batch, log=log)), log.slots
        moment_bits = hash_bits(digest[slots["context"]] + slots["at"], salt=_REPEATS_SALT)
        (top, p), rank = data.top_slots, data.arms.ranks(slots["arm_id"])
        order = hash_bits(decision_digests(slots)[top], salt=_REPEATS_SALT)
        # a digest of all that a session has, without its keys
        row_code = rank * 1_000_003 + slots["position"] * 1_009 + slots["step"]
        row_bits = hash_bits(moment_bits.view(np.int64) + row_code, salt=_REPEATS_SALT)
        first_rows, session = distinct(slots["session_id"])
        session_bits = np.zeros(len(first_rows), np.uint64)
        np.add.at(session_bits, session, row_bits)
        row, event_bits = _events(log)
        np.add.at(
            session_bits, session[row], hash_bits((row_bits[row] + event_bits).view(np.int64), salt=_REPEATS_SALT)
        )
        first_counts = FirstCounts.count_rows(session_bits, GROUPS)
        return RepeatSums(Draws.sample(moment_bits[top], order, rank[top], p), first_counts)


def _eligible_in(cell: Ids, set_index: Ids, members: Sequence[Ids], *, cells: int, arms: int) -> Array:
    """Return the number of rows of each cell in which each of the first `arms` arms was eligible, (cells * arms,).

    cell (n,): the cell of each row; set_index (n,): the eligible set of each row; members: the ranks of the arms of
    each eligible set; cells: the number of cells."""
    n_rows = np.zeros((cells, arms))
    for start in range(0, len(members), _MAX_SETS):
        portion = members[start : start + _MAX_SETS]
        rows = (set_index >= start) & (set_index < start + _MAX_SETS)
        code = cell[rows] * len(portion) + set_index[rows] - start
        counts = np.bincount(code, minlength=cells * len(portion)).reshape(cells, len(portion))
        is_eligible = np.zeros((len(portion), arms))
        ranks = np.concatenate(portion)
        set_number = np.repeat(np.arange(len(portion)), [len(ranks_of_set) for ranks_of_set in portion])
        is_eligible[set_number[ranks < arms], ranks[ranks < arms]] = 1
        n_rows += counts @ is_eligible
    return n_rows.ravel()


def _events(log: Batch) -> tuple[Index, Words]:
    """Return two arrays with a value for each event: the first row of the event's decision, and bits that are a hash of
    the event's kind, age, position and value."""
    first_rows, events = run_starts(log.slots["decision_id"]), log.events
    order = np.argsort(log.slots["decision_id"][first_rows])
    index, has_decision = look_up(log.slots["decision_id"][first_rows][order], events["decision_id"])
    kinds, kind = np.unique(events["kind"][has_decision].astype(str), return_inverse=True)
    codes = np.array([crc32(name.encode()) for name in kinds.tolist()], np.int64)
    event_codes = (
        events["age_us"][has_decision] * 1_009 + events["position"][has_decision] + (codes[kind.ravel()] << 24)
    )
    value_bits = events["value"][has_decision].astype(np.float64).view(np.int64)
    return first_rows[order[index[has_decision]]], hash_bits(event_codes, salt=_REPEATS_SALT) + hash_bits(
        value_bits, salt=_REPEATS_SALT
    )


# -- rewards: their users, changes over time, delays, and dependence on earlier slots --


class LogDrift(Check):
    """This check tests whether the rewards of arms changed over time. It uses position 1 of the first slate of each
    visit."""

    reason = "drift"

    def is_possible(self, extent: LogExtent) -> bool:
        return extent.last_at > extent.first_at

    def sums(self, data: CheckedRows) -> DriftSums | None:
        slots, extent = data.rows.slots, data.extent
        propensity = np.where(np.isnan(slots["propensity"]), slots["marginal"], slots["propensity"])
        is_first = (slots["position"] == 1) & (slots["step"] == 0) & ~slots["subsampled"] & (propensity > 0)
        at, keep_probability, arm, cluster = (
            slots[name][is_first] for name in ("at", "keep_probability", "arm_id", "cluster")
        )
        length = extent.last_at - extent.first_at + 1
        return DriftSums.from_rows(
            data.rows.reward[is_first], propensity=propensity[is_first] * keep_probability,
            arm=data.arms.ranks(arm),
            arms=len(data.arms), cluster=cluster,
            period=np.clip((at - extent.first_at) * N_PERIODS // length, 0, N_PERIODS - 1),
        )  # fmt: skip


class YoungRewards(Check):
    """This check tests whether rewards of imported decisions were still arriving when the log ended. Their rewards are
    then too low, since estimates use imported decisions of any age."""

    reason = "young-rewards"

    def sums(self, data: CheckedRows) -> ArrivalSums | None:
        slots, log, definition = data.rows.slots, data.batch.log, data.reward
        if not slots["imported"].any():
            return None
        decisions, first_rows = np.unique(slots["decision_id"], return_index=True)
        # of a long log, a sample of persons
        share = np.uint64(max(1, -(-data.extent.decisions // MAX_DECISIONS)))
        is_used = hash_bits(slots["cluster"][first_rows], salt=_PERSONS_SALT) % share == 0
        decisions, first_rows = decisions[is_used], first_rows[is_used]
        events = take(log.events, look_up(decisions, log.events["decision_id"])[1])
        events, reward = reward_log.event_rewards(replace(log, events=events), definition)
        windows_left = np.maximum(data.extent.last_at - slots["at"][first_rows], 0) / max(1, definition.window_us)
        distance = np.where(slots["imported"][first_rows], windows_left, np.inf)
        return ArrivalSums.from_rows(
            distance, cluster=slots["cluster"][first_rows], decision=np.searchsorted(decisions, events["decision_id"]),
            age=events["age_us"] / max(1, definition.window_us), reward=reward,
        )  # fmt: skip


class NoUsers(Check):
    """This check fails if no user is known and nobody stated that each session is another person. People who come back
    under other keys then make intervals too narrow, and the log cannot show such people."""

    reason = "no-users"

    def sums(self, data: CheckedRows) -> Ids | None:
        """Return two numbers, (2,): how many slots have a user, and how many have no user and may belong to people who
        come back. Return None if the request or an experiment stated that each session is another person."""
        if data.people == "stated":
            return None
        slots = data.rows.slots
        has_user = slots["user_id"] != ABSENT if data.cluster == "user" else np.zeros(len(data.rows), np.bool_)
        is_unclear = ~has_user & (slots["imported"] | (data.people is None))
        return np.array([has_user.sum(), is_unclear.sum()])

    def fails(self, sums: Ids) -> bool:
        n_users, n_unclear = sums
        return bool(n_users == 0 and n_unclear > 0)


class MachineSessions(Check):
    """This check tests whether more sessions click nearly everything than people would."""

    reason = "machine-sessions"

    def sums(self, data: CheckedRows) -> SessionSums:
        # sessions of one user are not independent, so they count as one
        _, person = distinct(data.rows.slots["cluster" if data.cluster == "user" else "session_id"])
        slots, clicks = (np.bincount(person, weights=weights) for weights in (None, ~data.rows.default))
        return SessionSums.from_sessions(slots.astype(np.int64), clicks.astype(np.int64))


class CarryOver(Check):
    """This check tests whether the reward of an arm depends on what the visit has shown before: on the number of
    earlier slates, or of earlier slates with the same arm."""

    reason = "carry-over"

    def concerns(self, estimator: Estimator) -> bool:
        return not estimator.sees_visits

    def sums(self, data: CheckedRows) -> dependence.CellSums | None:
        rows, slots = data.rows, data.rows.slots
        if not slots["step"].any() or slots["subsampled"].any():
            return None
        cell, n_cells = _cells(data)
        return dependence.carry_over_sums(
            rows.reward, cell=cell, cells=n_cells, step=slots["step"], repeats=slots["repeats"], length=slots["length"],
            cluster=slots["cluster"],
        )  # fmt: skip

    def fails(self, sums: dependence.CellSums) -> bool:
        return dependence.is_rejected(dependence.carry_over_p_value(sums))


class DependentSlots(Check):
    """This check tests whether a slot earns less if the arms above it attract clicks, or if slots above it earned."""

    reason = "dependent-slots"
    needs_model = True

    def is_possible(self, extent: LogExtent) -> bool:
        return extent.positions > 1

    def concerns(self, estimator: Estimator) -> bool:
        return estimator.has_independent_slots

    def sums(self, data: CheckedRows) -> dependence.CellSums | None:
        if data.model is None:
            return None
        rows, slots = data.rows, data.rows.slots
        cell, n_cells = _cells(data)
        # only slots that have a marginal, whatever the slate above them, which no request had laid out
        has_rules = data.batch.contexts.have_rules[slots["context"]]
        cell = np.where(np.isnan(slots["marginal"]) | slots["subsampled"] | has_rules, -1, cell)
        return dependence.slots_above_sums(
            rows.reward, attraction=data.model.attraction(rows), cell=cell, cells=n_cells,
            decision=slots["decision_id"], position=slots["position"], cluster=slots["cluster"],
        )  # fmt: skip

    def fails(self, sums: dependence.CellSums) -> bool:
        return dependence.is_rejected(dependence.slots_above_p_value(sums))


def _cells(data: CheckedRows) -> tuple[Ids, int]:
    """Return the number of each slot's cell, (n,), and the number of cells. A cell is a pair of an arm and a position.
    If there are too many arms, only the first arms, in order of key, have cells. Other slots have the number -1."""
    slots, arms, n_positions = data.rows.slots, data.arms, data.extent.positions
    rank = arms.ranks(slots["arm_id"])
    n_arms = min(len(arms), max(1, dependence.MAX_CELLS // n_positions))
    has_cell = (rank < n_arms) & (slots["position"] <= n_positions)
    return np.where(has_cell, rank * n_positions + slots["position"] - 1, -1), n_arms * n_positions


# Every check, in the order of `ope.checks.reasons`.
CHECKS: tuple[Check, ...] = (
    WrongPropensities(), LogDrift(), YoungRewards(), NoUsers(), RepeatedRows(), MachineSessions(),
    ClippedPropensities(), CarryOver(), DependentSlots(),
)  # fmt: skip
Failures = Mapping[int, Sequence[Check]]


def find_failures(sums: Mapping[tuple[int, str], Any]) -> dict[int, list[Check]]:
    """Return the failed checks, by the number of the group of targets that share rows (the index in
    `Evaluation.shared_rows`).

    sums: the summed data of each check, by the number of the group and the reason of the check."""
    failures: dict[int, list[Check]] = {}
    for check in CHECKS:
        for (number, reason), check_sums in sums.items():
            if reason == check.reason and check.fails(check_sums):
                failures.setdefault(number, []).append(check)
    return failures
