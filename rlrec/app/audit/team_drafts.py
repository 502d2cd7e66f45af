"""Slates of interleaved experiments, derived and drawn again from the two rankers and the coins."""

from __future__ import annotations

import numpy as np

from rlrec.app.audit.stored_slates import Derived, Stored
from rlrec.app.distributions.exact import EligibleDistribution
from rlrec.arrays import Flags, Index
from rlrec.policy.interleaving import TeamDraftSampler
from rlrec.store import Unit, team_drafts
from rlrec.store.team_drafts import TEAMS


def stored_teams(unit: Unit, stored: Stored, size: int) -> tuple[Index, Flags]:
    """The teams of slates, (n, size), and which of these are readable, (n,); those of others are 0."""
    by_decision = team_drafts.find(unit, stored.ids.tolist())
    texts = [by_decision.get(key, "") for key in stored.ids.tolist()]
    readable = np.array([len(text) == size and set(text) <= set(TEAMS) for text in texts], np.bool_)
    teams = np.zeros((len(texts), size), np.intp)
    for row in np.flatnonzero(readable).tolist():
        teams[row] = [TEAMS.index(letter) for letter in texts[row]]
    return teams, readable


def derive(case: EligibleDistribution, stored: Stored, size: int, teams: Index) -> Derived:
    """Slates and teams drawn again, and the propensities of the stored ones given their teams."""
    assert case.rankers is not None
    sampler, places = TeamDraftSampler(case.rankers, size), np.searchsorted(case.arms, stored.arms)
    drawn = sampler.draw(seeds=stored.seeds, decisions=stored.ids)
    redrawn = (drawn.slates != places).any(axis=1) | (drawn.teams != teams).any(axis=1)
    minimum = np.where(redrawn[:, None], stored.min_propensity, drawn.minimum)
    score = case.noiseless(places).astype(np.float64)
    return Derived(redrawn, sampler.conditionals(places, teams), drawn.marginal, minimum, score)
