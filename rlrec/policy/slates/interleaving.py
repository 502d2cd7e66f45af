"""This module fills one slate from the rankings of two policies, which take turns (team draft).

For every two positions a coin decides which policy picks first. With the probability of its floor, a policy picks
uniformly among the arms left; otherwise it picks the best arm left in its own ranking, which is drawn once for the
whole slate. Given the coins, what one team took says nothing about the other's ranking: for either team, an arm that
the other took is gone as if by a uniform pick. Given the coins and the positions above, every propensity is
therefore the exact conditional of one team. Source: Radlinski, Kurup and Joachims 2008, section 4.2 (team draft);
the propensities are an own derivation."""

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
    """A Ranker is one of the two policies, given by its scores of m arms and its floor."""

    scores: Scores
    floor: Floor


class TeamDraftSampler(Record, kw_only=False, eq=False):
    """A TeamDraftSampler draws the slates of two rankers of the same arms, both with exact scores."""

    rankers: tuple[Ranker, Ranker]
    size: int

    def draw(self, *, seeds: Words, decisions: Ids) -> Draw:
        """Draw the slates of n decisions with their teams.

        Propensity and minimum are given the coins and the positions above; no marginal has a closed form.

        Word p of a decision is the pick for position p from 0, word size + i the coin of pair i of positions."""
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
        """Return the probability of each arm of slates (n, k), given the coins as teams (n, k), and the arms above, (n,
        k)."""
        propensity = np.empty(slates.shape)
        for position in range(slates.shape[1]):
            probability = self.next_arms(slates[:, :position], teams[:, : position + 1])
            propensity[:, position] = probability[np.arange(len(slates)), slates[:, position]]
        return propensity

    def next_arms(self, prefixes: Index, teams: Index) -> Array:
        """Return the probability of each arm at the position after prefixes (n, p), (n, m).

        The team of that position is the last of teams (n, p + 1)."""
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
    """Return the team of every position, (n, size).

    coins (n, pairs): whether ranker 1 picks first in each pair."""
    pairs = np.stack([coins, ~coins], axis=2).astype(np.intp)
    return pairs.reshape(len(coins), -1)[:, :size]
