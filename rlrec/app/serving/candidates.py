"""Lists of candidates of a group, and the slates that the second stage makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rlrec.app.distributions.exact import EligibleDistribution
from rlrec.app.serving.requests import SharedDistribution
from rlrec.arrays import Ids, Words
from rlrec.policy.slate import Draw
from rlrec.policy.two_stage import ranking_seeds
from rlrec.store.candidates import CandidateList
from rlrec.store.unit import Row


class DrawnCandidates(NamedTuple):
    """The list of one decision: ids in order, the propensity of each given those before, and the log of their
    product."""

    arms: list[int]
    propensities: list[float]
    log_propensity: float

    @property
    def eligible(self) -> tuple[int, ...]:
        """The candidates as an eligible set, which the slate was drawn from."""
        return tuple(sorted(self.arms))

    def row(self, decision_id: int, catalogue_id: int) -> Row:
        """A row of `candidates.COLUMNS`."""
        return decision_id, catalogue_id, json.dumps(self.arms), json.dumps(self.propensities), self.log_propensity


class RankedCandidates(NamedTuple):
    """A list and the slate of it: its distribution, and the draw of one slate from that."""

    candidates: DrawnCandidates
    case: EligibleDistribution
    drawn: Draw


def draw(
    shared: SharedDistribution, decision_ids: Ids, seeds: Words, keys: Mapping[int, str]
) -> list[RankedCandidates]:
    """The lists and slates of decisions that share the distribution of their lists."""
    ranker, ranked = shared.ranker, []
    assert ranker is not None
    for row, candidates in enumerate(drawn_lists(shared.case, shared.candidates, decision_ids, seeds)):
        eligible = candidates.eligible
        arms = np.array(eligible, np.int64)
        slates = ranker.case(eligible, arms, shared.context, keys=keys, revision=shared.revision)
        alone = slice(row, row + 1)
        drawn = slates.pages(shared.size).draw(seeds=ranking_seeds(seeds[alone]), decisions=decision_ids[alone])
        ranked.append(RankedCandidates(candidates, slates, drawn))
    return ranked


def drawn_lists(case: EligibleDistribution, size: int, decision_ids: Ids, seeds: Words) -> list[DrawnCandidates]:
    """The lists of decisions whose distribution is the same."""
    drawn = case.pages(size).draw(seeds=seeds, decisions=decision_ids, lists=True)
    return [
        DrawnCandidates(arms, propensities, min(0.0, log_propensity))
        for arms, propensities, log_propensity in zip(
            case.arms[drawn.slates].tolist(), drawn.propensity.tolist(),
            np.log(drawn.propensity).sum(axis=1).tolist(), strict=True,
        )
    ]  # fmt: skip


def to_json(listed: DrawnCandidates | CandidateList, keys: Mapping[int, str]) -> dict[str, Any]:
    """A list as the command contract shows it."""
    pairs = zip(listed.arms, listed.propensities, strict=True)
    return {
        "candidates": [{"arm": keys[arm], "propensity": propensity} for arm, propensity in pairs],
        "candidates_log_propensity": listed.log_propensity,
    }
