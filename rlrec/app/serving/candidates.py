"""Lists of candidates of a group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rlrec.app.distributions.exact import EligibleDistribution
from rlrec.arrays import Ids, Words
from rlrec.store.database.unit import Row
from rlrec.store.log.candidates import CandidateList


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
