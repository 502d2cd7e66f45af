"""Carry-over between visits, read from the log: what a visit showed, and what the person's next visit earned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import Evaluation
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.log_rows import CLUSTERS, ArmTable
from rlrec.app.log import reward_log
from rlrec.app.log.ended_visits import visit_indices
from rlrec.arrays import Ids, Index, look_up, run_starts, take
from rlrec.ope.checks.visit_carry_over import ARMS, VisitCarryOverSums, VisitDraws, visit_carry_over_sums
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import contents
from rlrec.store.log.events import RETURN
from rlrec.store.log.reader import Batch

MAX_DECISIONS = 1_000_000  # decisions that are looked at, about: of a longer log those of some partitions
CELLS = 4_000_000  # pairs of eligible set and arm that are held at a time; decisions with further sets are left out
KINDS = 16  # of events whose means by arm are looked at, of a portion
_READING = Reading(
    columns=(
        *reward_log.MATURITY, *CLUSTERS["user"], "decision_id", "session_id", "visit", "position", "size", "arm_id",
        "eligible_id", "propensity", "min_propensity",
    ),
    visits=True,
)  # fmt: skip


def collect(reader: LogReader, rewards: Mapping[int, Reward]) -> Mapping[int, VisitCarryOverSums]:
    """The sums of the test for each reward, by its id, over a partition of the log: nothing beyond the first ones."""
    evaluation = reader.evaluation
    max_partitions = max(1, MAX_DECISIONS * evaluation.partitions // max(1, evaluation.extent.decisions))
    batches = list(reader.clone().batches(_READING)) if reader.number < max_partitions else []
    return _sums(reader.unit, Batch.concatenate(batches), rewards, evaluation) if batches else {}


def _sums(
    unit: Unit, batch: Batch, rewards: Mapping[int, Reward], evaluation: Evaluation
) -> dict[int, VisitCarryOverSums]:
    """The sums of the persons of a partition, by their selected decisions."""
    slots, visits, arms = batch.slots, batch.visits, evaluation.arms
    assert visits is not None
    session_row, selected = look_up(slots["session_id"], visits["session_id"])
    visits, session_row = take(visits, selected), session_row[selected]
    visits = visits | {name: slots[name][session_row] for name in CLUSTERS["user"]}
    first = run_starts(slots["decision_id"])
    visit = visit_indices(visits, slots["session_id"], slots["visit"])
    person = log_rows.clusters(visits, "user")
    following, rank = _following(visits, person, visit), arms.rank[arms.index(slots["arm_id"])]
    draws = _draws(unit, slots, first, visit, rank, arms)
    served = np.bincount(visit, minlength=len(person)) > 0
    sums_by_reward, by_kind = dict[int, VisitCarryOverSums](), reward_log.event_sums(batch, most=KINDS)
    for key, definition in rewards.items():
        rewarded = reward_log.with_rewards(batch, definition)
        counted = reward_log.mature(slots, definition, now=evaluation.now) & ~slots["censored"]
        # return of every visit, over its mature decisions
        pages = reward_log.with_page_rewards(batch, rewarded, definition)
        earned = pages.reward * (counted[first] & ~pages.slots["censored"])
        sums_by_reward[key] = visit_carry_over_sums(
            draws, person=person, served=served, following=following,
            returns=np.bincount(visit[first], weights=earned, minlength=len(person)).astype(np.float64),
            visit=visit[counted], arm=rank[counted], reward=rewarded.reward[counted],
            events={kind: values[counted] for kind, values in by_kind.items() if kind != RETURN},
        )  # fmt: skip
    return sums_by_reward


def _following(visits: Columns, person: Ids, visit: Ids) -> Ids:
    """The next visit of the same person among those with decisions, (s,); -1 without one. visit: of each slot."""
    rows = np.unique(visit)
    order = rows[
        np.lexsort([visits["number"][rows], visits["session_digest"][rows], visits["started_at"][rows], person[rows]])
    ]
    following = np.full(len(person), -1, np.int64)
    same_person = person[order[1:]] == person[order[:-1]]
    following[order[:-1][same_person]] = order[1:][same_person]
    return following


def _draws(unit: Unit, slots: Columns, first: Index, visit: Ids, rank: Ids, arms: ArmTable) -> VisitDraws:
    """The draws of a portion. At a lower slot of a slate the arms above it could not be drawn again."""
    n, size, width = len(rank), np.diff(np.r_[first, len(rank)]), min(len(arms), ARMS)
    sets, eligible = np.unique(slots["eligible_id"][first], return_inverse=True)
    members = np.zeros((min(len(sets), max(1, CELLS // width)), width))
    choices = np.zeros(len(sets), np.int64)
    for row, ids in contents.eligible_arms(unit, set(sets[: len(members)].tolist())).items():
        index, ranks = np.searchsorted(sets, row), arms.rank[arms.index(np.array(ids, np.int64))]
        members[index, ranks[ranks < width]], choices[index] = 1.0, len(ids)
    # m: the smallest propensity at the slot (where it was not logged, that of a uniform draw), the less the lower it is
    n_eligible = choices[eligible]
    p, least = slots["propensity"], slots["min_propensity"]
    m = np.where(np.isnan(least), 1 / np.maximum(np.repeat(n_eligible, size), 1), least)
    has_draw = np.logical_and.reduceat((p > 0) & (slots["size"] == np.repeat(size, size)), first) & (n_eligible > 0)
    m = np.where(np.repeat(has_draw, size), m / slots["position"], 0.0)
    total = np.add.reduceat(m, first)
    # an arm shown: m / p, and m of each slot below, where it could not be drawn
    m_before = (np.cumsum(m) - m)[first]
    m_below = np.repeat(total + m_before, size) - np.cumsum(m)
    shown = np.divide(m, p, out=np.zeros(n), where=m > 0) + m_below
    counted = rank < width
    return VisitDraws(
        visit=visit[counted], arm=rank[counted], shown=shown[counted], decided=visit[first][has_draw],
        eligible=eligible[has_draw], m_total=total[has_draw], members=members,
    )  # fmt: skip
