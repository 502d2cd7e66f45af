"""This module fills one slate from the rankings of two policies, which take turns (team draft).

For every two positions a coin decides which policy picks first. With the probability of its floor, a policy picks
uniformly among the arms left. Otherwise the policy picks the best arm left in its own ranking, which is drawn once
for the whole slate. Given the coins, the arms that one team took carry no information about the ranking of the other
team. To the other team, these arms are removed as if by uniform picks. Given the coins and the arms at the positions
above, every propensity is therefore the exact conditional probability under the team that picks. Source: Radlinski,
Kurup and Joachims 2008, section 4.2 (team draft); the propensities are an own derivation."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index, Words, distinct_rows
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.sampler import uniforms
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import slate
from rlrec.policy.slates.slate_draws import Draw, logged_draw
from rlrec.records import Record


class Ranker(NamedTuple):
    """A Ranker holds the scores of m arms by one of the two policies, and the floor of this policy."""

    scores: Scores
    floor: Floor


class TeamDraftSampler(Record, kw_only=False, eq=False):
    """A TeamDraftSampler draws the slates of two rankers of the same arms. Both rankers have exact scores.

    rankers: the two rankers; size: the number of positions."""

    rankers: tuple[Ranker, Ranker]
    size: int

    def draw(self, *, seeds: Words, decisions: Ids) -> Draw:
        """Draw the slates of n decisions, and the team that picks at each position.

        The propensity and the minimum are probabilities given the coins and the arms above; marginals have no closed
        form and are NaN. Of the uniforms of a decision (`sampler.uniforms`), number p draws the arm of position p,
        from 0, and number size + i is the coin of pair i of positions. seeds (n,), decisions (n,): the seed and the
        id of each decision."""
        words = uniforms(seeds, decisions, words=self.size + (self.size + 1) // 2)
        teams = teams_of(words[:, self.size :] < 0.5, self.size)
        slates = np.empty((len(words), self.size), np.intp)
        propensity, minimum = np.empty(slates.shape), np.empty(slates.shape)
        for position in range(self.size):
            probability = self.next_arms(slates[:, :position], teams[:, : position + 1])
            slates[:, position] = slate.invert_rows(probability, words[:, position])
            propensity[:, position] = probability[np.arange(len(words)), slates[:, position]]
            np.put_along_axis(probability, slates[:, :position], 1.0, axis=1)
            minimum[:, position] = probability.min(axis=1)
        return replace(logged_draw(slates, propensity, np.full(slates.shape, np.nan), minimum), teams=teams)

    def conditionals(self, slates: Index, teams: Index) -> Array:
        """Return the probability of each arm of n slates, given the teams and the arms above, (n, k).

        slates (n, k): the arms; teams (n, k): the team that picked at each position, 0 or 1."""
        propensity = np.empty(slates.shape)
        for position in range(slates.shape[1]):
            probability = self.next_arms(slates[:, :position], teams[:, : position + 1])
            propensity[:, position] = probability[np.arange(len(slates)), slates[:, position]]
        return propensity

    def next_arms(self, prefixes: Index, teams: Index) -> Array:
        """Return the probability of each arm at the position after each prefix, (n, m).

        prefixes (n, p): the arms at the positions above; teams (n, p + 1): the team of each of these positions,
        followed by the team of the next position."""
        probability = np.empty((len(teams), len(self.rankers[0].scores)))
        # slates with equal coins and arms so far have the same distribution
        cases, case = distinct_rows(np.column_stack([teams, prefixes]).astype(np.float64))
        n_above = prefixes.shape[1]
        patterns, pattern = distinct_rows(cases[:, : n_above + 1])
        case_probability = np.empty((len(cases), probability.shape[1]))
        for number, team_pattern in enumerate(patterns.astype(np.intp)):
            ranker = self.rankers[team_pattern[-1]]
            # arms that the other team took are gone as if by a uniform pick
            floors = np.where(team_pattern == team_pattern[-1], at_positions(ranker.floor, n_above + 1), 1.0)
            rows = np.flatnonzero(pattern == number)
            case_prefixes = cases[rows, n_above + 1 :].astype(np.intp)
            case_probability[rows] = slate.remaining_each(ranker.scores, case_prefixes, floor=tuple(floors.tolist()))
        return case_probability[case]


def teams_of(coins: Flags, size: int) -> Index:
    """Return the team that picks at every position, 0 or 1, (n, size).

    coins (n, pairs): whether team 1 picks first in each pair of positions."""
    pairs = np.stack([coins, ~coins], axis=2).astype(np.intp)
    return pairs.reshape(len(coins), -1)[:, :size]
