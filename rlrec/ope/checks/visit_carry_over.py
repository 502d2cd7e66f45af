"""A test of carry-over between visits: whether what a visit shows changes the person's later visits.

Estimates per session judge a target on visits that begin as the logger's did. Where a visit that shows much of what is
liked now leaves a poorer visit behind, or none, the target would bring about other visits and earn something else.

Persons who differ must not raise the alarm: their rewards always predict their later rewards. So the test looks at what
a visit showed, which the logger drew. At every slot, m (s(a) / p(a) - sum of s over the arms that could be drawn) has
mean 0, whatever the person and the past are: p is the propensity of the arm a that was shown, s a score of arms, and m
is known before the draw. The sums of this over a visit are multiplied by whether there is a next visit, and by its
return. The scores are mean rewards of arms, and means of the events that they get most often (what is clicked and not
bought may drive people away), from the other half of the persons.

Source: own derivation; Hotelling's T^2 over 64 blocks of persons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index
from rlrec.ope.checks.within_cells import BLOCKS, block_sums
from rlrec.ope.intervals.tails import hotelling_above
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums

ARMS = 2_048  # arms that have a score, at most
_LEAST = 20  # blocks with visits, for a test
_PRIOR = 10.0  # impressions by which the scores of arms shrink to the mean reward
_SALT = 4
_KINDS = 3  # of events whose means are scores: the most frequent ones
_DEPENDENT = 1e-6  # share of the variance of standardised statistics, below which one follows from the others


@dataclass(frozen=True, kw_only=True, eq=False)
class VisitCarryOverSums(Sums):
    """Sums over visits. Outcomes of a visit: the return of the person's next visit (0 without one), whether there is
    one, and 1.

    products (3, 64, a): per block of persons, of each outcome x (m / p of the arm shown - m of each eligible arm)
    visits (3, 64): of the outcomes; impressions (64, a): of each arm; rewards (64, a): their reward
    events: of each kind of event (2, 64, a), how many impressions of each arm had one, and the sum of the values"""

    products: Array
    visits: Array
    impressions: Array
    rewards: Array
    events: Mapping[str, Array]

    def p_value(self) -> float | None:
        """The p-value of the hypothesis that next visits do not depend on what a visit showed; None where there is not
        enough evidence: too few persons have several visits, or the logger drew nothing at random."""
        next_return, next_visits, visits = self.visits.sum(axis=1)
        present = self.visits[2] > 0
        blocks = int(present.sum())
        if blocks < _LEAST or not next_visits:
            return None
        # outcomes about their means: the return of a next visit, and whether there is one
        z_return, z_next, z_visit = self.products
        centred = np.stack(
            [z_return - next_return / next_visits * z_next, z_next - next_visits / visits * z_visit], axis=1
        )
        # scores of each half of the blocks, from the other half
        frequent = sorted(self.events, key=lambda kind: (-self.events[kind][0].sum(), kind))[:_KINDS]
        worth = [self.rewards, *(self.events[kind][1] for kind in frequent)]
        halves = np.stack(
            [[_scores(self.impressions[half::2], rewards[half::2]) for rewards in worth] for half in (1, 0)]
        )
        statistic = np.einsum("bka,bsa->bks", centred, halves[np.arange(BLOCKS) % 2])[present].reshape(blocks, -1)
        # principal components of those that vary: a score may follow from the others
        spread = statistic.std(axis=0, ddof=1)
        statistic = statistic[:, spread > 0] / spread[spread > 0]
        if not statistic.size:
            return None
        variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(statistic.T)))
        varying = variance > _DEPENDENT * len(variance)
        # Hotelling's T^2: the mean over blocks is 0 where nothing carries over
        mean, tested = statistic.mean(axis=0) @ axes[:, varying], int(varying.sum())
        t2 = blocks * float((mean**2 / variance[varying]).sum())
        return hotelling_above(t2, tested, blocks)


@dataclass(frozen=True, kw_only=True, eq=False)
class VisitDraws:
    """Draws of the logger in some visits.

    visit, arm, shown: of every arm shown the row of its visit, its rank below 2,048, and m / p, plus m of every slot
    below, where it could not be drawn again
    decided, eligible, m_total: of every decision the row of its visit, the row of its eligible set in `members`, and
    the sum of m over its slots
    members (sets, a): 1 for the arms of each eligible set"""

    visit: Ids
    arm: Ids
    shown: Array
    decided: Ids
    eligible: Ids
    m_total: Array
    members: Array

    def products(self, outcome: Array, block: Index) -> Array:
        """Sums per block and arm of outcomes of visits times coefficients of scores, (64, a)."""
        sets, width = self.members.shape
        weights, totals = outcome[self.visit] * self.shown, outcome[self.decided] * self.m_total
        (shown,) = block_sums([weights], block[self.visit], self.arm, cells=width)
        (eligible,) = block_sums([totals], block[self.decided], self.eligible, cells=sets)
        return shown - eligible @ self.members


def visit_carry_over_sums(
    draws: VisitDraws, *, person: Ids, served: Flags, following: Ids, returns: Array, visit: Ids, arm: Ids,
    reward: Array, events: Mapping[str, Array],
) -> VisitCarryOverSums:  # fmt: skip
    """Sums of some persons. Of visits, (s,): the person's digest; whether it counts; the row of the person's next
    visit, -1 without one; its return. Of impressions, (n,): row of the visit, rank of the arm, reward, and the sum of
    the values of each kind of event."""
    block, width = (hash_bits(person, salt=_SALT) % np.uint64(BLOCKS)).astype(np.intp), draws.members.shape[1]
    has_next = following >= 0
    outcomes = served * np.stack([has_next * returns[following], has_next, np.ones(len(person))])
    scored = arm < width
    columns = [np.ones(len(arm)), reward, *(column for values in events.values() for column in (values != 0, values))]
    impressions, rewards, *counts = block_sums(
        [column[scored] for column in columns], block[visit[scored]], arm[scored], cells=width
    )
    return VisitCarryOverSums(
        products=np.stack([draws.products(outcome, block) for outcome in outcomes]),
        visits=np.stack([np.bincount(block, weights=outcome, minlength=BLOCKS) for outcome in outcomes]),
        impressions=impressions,
        rewards=rewards,
        events={kind: np.stack(counts[2 * number : 2 * number + 2]) for number, kind in enumerate(events)},
    )


def _scores(impressions: Array, rewards: Array) -> Array:
    """The mean reward of each arm less that of all arms, shrunk to 0, (a,). impressions, rewards: (b, a)."""
    count, total = impressions.sum(axis=0), rewards.sum(axis=0)
    mean = total.sum() / max(count.sum(), 1.0)
    return (total - mean * count) / (count + _PRIOR)
