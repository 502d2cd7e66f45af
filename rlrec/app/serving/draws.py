"""This module draws the slates of a group of requests. Requests that share a distribution are drawn together, in
arrays."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from math import exp, log
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlrec.app.serving.cache import arm_array
from rlrec.app.serving.requests import PlannedRequest, SharedDistribution, add_teams, candidate_fields, slot_fields
from rlrec.arrays import Ids, Index, Words
from rlrec.policy.gradients.history import N_RECENT, History
from rlrec.policy.slates import slate_draws
from rlrec.store.database.unit import Row


class DrawnCandidates(NamedTuple):
    """This record is the list of candidates of one decision. arms: the ids in order; propensities: the propensity of
    each candidate given the candidates before it; log_propensity: the logarithm of the product of these
    propensities."""

    arms: list[int]
    propensities: list[float]
    log_propensity: float

    @property
    def eligible(self) -> tuple[int, ...]:
        """Return the candidates as the eligible set from which the slate was drawn."""
        return tuple(sorted(self.arms))


class DrawnSlate:
    """A DrawnSlate holds a slate as it is stored and as it is answered. Requests that were shown the same single arm
    can share one DrawnSlate.

    slots: rows of Slot; recent_arms: the last arms, as JSON, for the session state; candidates: the list of
    candidates from which the slate was ranked, None if the policy has one stage; candidate_fields: this list in the
    form of the answer; teams: a letter for each slot that says which of two rankers picked it, None without rankers."""

    __slots__ = (
        "answer", "arms", "candidate_fields", "candidates", "log_propensity", "propensity", "recent_arms", "slots",
        "teams",
    )  # fmt: skip

    def __init__(self, arms: list[int], keys: Mapping[int, str], draws: Sequence[tuple[Any, ...]]) -> None:
        """Make a slate of arms. arms: the ids in order of position; keys: the key of each arm, by id; draws: for
        each position a tuple of propensity, marginal (NaN if it has no closed form), min_propensity, score and
        is_rounded."""
        log_propensity = sum(log(slot[0]) for slot in draws)
        self.arms = arms
        self.log_propensity = (
            0.0 if log_propensity > 0 else log_propensity
        )  # a NaN stays NaN, which no database accepts
        self.propensity = exp(self.log_propensity)
        self.slots: list[Row] = []
        self.answer: list[Any] = []
        for position, (arm, slot) in enumerate(zip(arms, draws, strict=True), 1):
            propensity, marginal, min_propensity, score, is_rounded = slot
            marginal_or_none = marginal if marginal > 0 else None
            self.slots.append((position, arm, propensity, marginal_or_none, min_propensity, score, 0, int(is_rounded)))
            self.answer.append(slot_fields(position, keys[arm], propensity, marginal_or_none, score))
        self.recent_arms = f"[{','.join([json.dumps(keys[arm], ensure_ascii=False) for arm in arms[-N_RECENT:]])}]"
        self.candidates: DrawnCandidates | None = None
        self.candidate_fields: dict[str, Any] = {}
        self.teams: str | None = None


def prepare(distributions: Collection[SharedDistribution]) -> None:
    """Compute the tables from which slates of these distributions are drawn. This is done before locks are taken, so
    that the locks are held for less time."""
    for distribution in distributions:
        if not distribution.is_stateful and not distribution.candidates and distribution.case.rankers is None:
            distribution.case.slate_sampler(distribution.size).prepare()


def draw(
    plans: Mapping[int, PlannedRequest], decision_ids: Sequence[int], seed: int, keys: Mapping[int, str], *,
    histories: History | None = None,
) -> dict[int, DrawnSlate]:  # fmt: skip
    """Draw the slates of requests, and return them by the index of the request. seed: 64 random bits; keys: the key of
    each arm, by id; histories: the history of each request's visit, for kinds whose distribution depends on it."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, plan in enumerate(plans.values()):
        distribution = plan.distribution
        group_key = distribution.version.id, distribution.eligible, distribution.size, id(distribution.case.layout)
        groups[distribution if histories is None else group_key].append(row)
    indices, slates = list(plans), dict[int, DrawnSlate]()
    for rows in groups.values():
        group_indices = [indices[row] for row in rows]
        ids, group_plans = (
            np.array([decision_ids[index] for index in group_indices], np.int64),
            [plans[key] for key in group_indices],
        )
        if histories is None:
            drawn_slates = _draw_shared(group_plans[0].distribution, ids, seed, keys)
        else:
            drawn_slates = _draw_each(group_plans, histories.take(np.array(rows)), ids, seed, keys)
        slates.update(zip(group_indices, drawn_slates, strict=True))
    return slates


def _draw_each(
    plans: Sequence[PlannedRequest], histories: History, decision_ids: Ids, seed: int, keys: Mapping[int, str]
) -> list[DrawnSlate]:
    """Draw the slates of requests whose scores depend on their visits. The requests have the same version, eligible set
    and length."""
    distribution, trained_model = plans[0].distribution, plans[0].distribution.serving.trained_model
    assert trained_model is not None
    n, arms = len(plans), distribution.case.arms
    # the states of the visits, and the scores of all arms in them
    contexts, revisions = [plan.request.context for plan in plans], np.full(n, distribution.revision)
    state = trained_model.states(trained_model.encode_contexts(contexts), histories, revisions)
    score = trained_model.scores_at(state, arms, trained_model.at_requests(contexts, [arms] * n, revisions, keys=keys))
    seeds, layout = np.full(n, seed, np.uint64), distribution.case.layout
    draws = trained_model.draw(score, size=distribution.size, seeds=seeds, decisions=decision_ids, layout=layout)
    return _make_slates(arms, draws, np.take_along_axis(score, draws.slates, axis=1), keys)


def _draw_shared(distribution: SharedDistribution, ids: Ids, seed: int, keys: Mapping[int, str]) -> list[DrawnSlate]:
    case, seeds = distribution.case, np.full(len(ids), seed, np.uint64)
    if distribution.candidates:
        return _draw_ranked(distribution, seeds, ids, keys)
    draws = case.draw(distribution.size, seeds=seeds, decisions=ids)
    scores = case.noiseless_scores(draws.slates)
    if distribution.size > 1 or len(ids) == 1 or case.scores.samples or draws.teams is not None:
        return _make_slates(case.arms, draws, scores, keys)
    _, first_rows, slate_index = np.unique(draws.slates[:, 0], return_index=True, return_inverse=True)
    slates = _make_slates(case.arms, draws, scores, keys, rows=first_rows)
    return [slates[index] for index in slate_index.tolist()]


def _draw_ranked(distribution: SharedDistribution, seeds: Words, ids: Ids, keys: Mapping[int, str]) -> list[DrawnSlate]:
    """Draw the slates of a policy with two stages: first a list of candidates for each decision, then a slate of these
    candidates. distribution: the distribution of the lists; ids: the ids of the decisions."""
    from rlrec.policy.kinds.two_stage import ranking_seeds

    slates: list[DrawnSlate] = []
    lists = distribution.case.slate_sampler(distribution.candidates).draw(
        seeds=seeds, decisions=ids, with_marginals=False
    )
    columns = distribution.case.arms[lists.slates], lists.propensity, np.log(lists.propensity).sum(axis=1)
    for row, (arms, propensities, log_propensity) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        candidates, decision = DrawnCandidates(arms, propensities, min(0.0, log_propensity)), slice(row, row + 1)
        eligible, serving, revision = candidates.eligible, distribution.serving, distribution.revision
        case = serving.case(eligible, arm_array(eligible), distribution.context, keys=keys, revision=revision)
        draws = case.draw(distribution.size, seeds=ranking_seeds(seeds[decision]), decisions=ids[decision])
        slates += _make_slates(case.arms, draws, case.noiseless_scores(draws.slates), keys)
        slates[-1].candidates, slates[-1].candidate_fields = candidates, candidate_fields(*candidates, keys)
    return slates


def _make_slates(
    arms: Ids, draws: slate_draws.Draw, scores: npt.NDArray[Any], keys: Mapping[int, str], *,
    rows: slice | Index = slice(None),
) -> list[DrawnSlate]:  # fmt: skip
    """Return a DrawnSlate for each drawn slate. arms (m,): the ids of all eligible arms; scores: the scores of the
    shown arms, in the shape of the slates; rows: the indices of the needed draws, by default all."""
    columns = (arms[draws.slates], draws.propensity, draws.marginal, draws.minimum, scores, draws.is_rounded)
    lists = (column[rows].tolist() for column in columns)
    slates = [
        DrawnSlate(slate_arms, keys, list(zip(*fields, strict=True)))
        for slate_arms, *fields in zip(*lists, strict=True)
    ]
    if draws.teams is not None:
        from rlrec.store.log.candidates import TEAMS  # few slates have any

        for slate, teams in zip(slates, draws.teams[rows].tolist(), strict=True):
            slate.teams = "".join(TEAMS[team] for team in teams)
            add_teams(slate.answer, slate.teams)
    return slates


@lru_cache(maxsize=10_000)
def to_signed(bits: int) -> int:
    """Return the signed integer, for a BIGINT column, that has the same 64 bits as an unsigned integer."""
    return bits - 2**64 if bits >= 2**63 else bits


def to_unsigned(number: int) -> int:
    """Return the unsigned integer that has the same 64 bits as a signed integer."""
    return number % 2**64
