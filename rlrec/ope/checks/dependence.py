"""This module tests whether rewards depend on the earlier part of a visit, on the slots above, or on earlier visits.

The first two tests are linear models of rewards within cells, where a cell is an arm at a position. Their errors are
computed over blocks of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlrec.arrays import Array, Flags, Ids, Index, numbers_in_runs, run_starts
from rlrec.ope.intervals.tails import hotelling_above, t_below
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Record, Sums

ALPHA = 1e-3  # probability of a false alarm of a test
MAX_CELLS = 2048  # pairs of arm and position that are compared, at most
N_BLOCKS = 64
_LEAST_BLOCKS = 20  # blocks with rows that a test needs
_SALT = 3
_CONSTANT_SHARE = 1e-9  # share of the variance within cells below which a column counts as constant


class CellSums(Sums):
    """CellSums holds the sums of a linear regression on d columns, of which the last is explained by the others. The
    sums of two batches can be added.

    cells (64, c, d + 1): for each block of clusters and each cell, the sum of each column, and the number of rows;
    moments (64, d, d): for each block, the sums of the products of two columns."""

    cells: Array
    moments: Array


def block_numbers(cluster: Ids) -> Ids:
    """Return the number of each cluster's block, from 0."""
    return (hash_bits(cluster, salt=_SALT) % np.uint64(N_BLOCKS)).astype(np.int64)


def block_sums(columns: Sequence[Array | None], block: Ids, cell: Ids, *, cells: int) -> Array:
    """Return the sum of each of k columns in each block and cell, (k, 64, cells).

    columns: arrays (n,), or None to count the rows; block, cell (n,): the block and the cell of each row; cells: the
    number of cells."""
    index = block * cells + cell
    sums = [np.bincount(index, weights=column, minlength=N_BLOCKS * cells) for column in columns]
    return np.reshape(sums, (len(columns), N_BLOCKS, cells)).astype(np.float64)


def is_rejected(p_value: float | None) -> bool:
    """Tell whether a test rejects its hypothesis. A test without a p-value (None) rejects nothing."""
    return p_value is not None and p_value < ALPHA


class Slopes(NamedTuple):
    """A Slopes object holds the coefficients of the tested columns, without the columns that do not vary.

    estimate (k,): the coefficients; covariance (k, k): their covariance; blocks: the number of blocks with rows."""

    estimate: Array
    covariance: Array
    blocks: int


def cell_sums(columns: Sequence[Array], *, cell: Ids, cells: int, cluster: Ids) -> CellSums:
    """Return the sums of one batch of n rows.

    columns: arrays (n,), of which the last is explained by the others; cell: the number of each row's cell, from 0,
    or a negative number for a row that is not compared; cells: the number of cells."""
    compared_columns, rows = columns, cell >= 0
    if not rows.all():
        compared_columns, cell, cluster = [column[rows] for column in columns], cell[rows], cluster[rows]
    block = block_numbers(cluster)
    sums = block_sums([*compared_columns, None], block, cell, cells=cells)
    # products of two columns per block
    moments = np.empty((N_BLOCKS, len(compared_columns), len(compared_columns)))
    for i in range(len(compared_columns)):
        for j in range(i + 1):
            moments[:, i, j] = np.bincount(block, weights=compared_columns[i] * compared_columns[j], minlength=N_BLOCKS)
            moments[:, j, i] = moments[:, i, j]
    return CellSums(np.stack([*sums], axis=-1), moments)


def slopes(sums: CellSums, *, n_tested: int) -> Slopes | None:
    """Return the coefficients of the first `n_tested` columns. The result is None without enough evidence, that is, if
    no tested column varies or too few clusters have rows."""
    cells, moments = sums.cells.sum(axis=0), sums.moments.sum(axis=0)
    present_blocks = np.flatnonzero(sums.cells[..., -1].sum(axis=1))
    products = _centred_products(cells, moments)
    varying_columns = np.flatnonzero(np.diagonal(products)[:-1] > _CONSTANT_SHARE * np.diagonal(moments)[:-1])
    n_varying = int(np.count_nonzero(varying_columns < n_tested))
    if len(present_blocks) < _LEAST_BLOCKS or not n_varying or not products[-1, -1] > 0:
        return None
    # coefficients, with all blocks and without each block
    jackknife_products = [
        _centred_products(cells - sums.cells[block], moments - sums.moments[block]) for block in present_blocks
    ]
    beta = _coefficients(np.array(jackknife_products), varying_columns)[:, :n_varying]
    estimate = _coefficients(products[None], varying_columns)[0, :n_varying]
    # the jackknife's covariance
    n_blocks, deviations = len(present_blocks), beta - beta.mean(axis=0)
    return Slopes(estimate, (n_blocks - 1) / n_blocks * deviations.T @ deviations, n_blocks)


def _centred_products(cells: Array, moments: Array) -> Array:
    """Return the sums of the products of two columns, each minus its mean in the cell, (d, d).

    cells (c, d + 1), moments (d, d): the sums as in `CellSums`, added up over blocks."""
    columns, count = cells[:, :-1], np.maximum(cells[:, -1:], 1.0)
    return moments - (columns / count).T @ columns


def _coefficients(products: Array, varying_columns: Ids) -> Array:
    """Return the regression coefficients of the columns that vary, (b, k), from b matrices of centred products."""
    normal_matrix, normal_vector = (
        products[:, varying_columns[:, None], varying_columns],
        products[:, varying_columns, -1],
    )
    return np.einsum("bij,bj->bi", np.linalg.pinv(normal_matrix, hermitian=True), normal_vector)


# -- a test of carry-over: whether a reward depends on the earlier part of its visit --
#
# Estimates per impression evaluate a target in the states that the logger caused. Where a reward depends on the step of
# the visit, or on how often the visit has seen the arm, the target would cause other states and earn other rewards. The
# test compares rewards of the same arm at the same position, by a linear model of log step and log repeats (earlier
# slates of the visit that showed the arm). Readers who stay long may differ from others from their first step on; the
# log of the visit's length, and its square, control for that.
#
# Source: own derivation; errors by the jackknife over 64 blocks of clusters, a Wald test with the F distribution.

_N_TESTED = 2  # the first columns, step and repeats, are tested; the others are controls


def carry_over_sums(
    reward: Array, *, cell: Ids, cells: int, step: Ids, repeats: Ids, length: Ids, cluster: Ids
) -> CellSums:
    """Return the sums of n impressions, for the test whether rewards depend on the earlier part of a visit.

    cell: the number of the arm and position, from 0, or a negative number for rows that are not compared; cells: the
    number of cells; step: the step of the visit, from 0; repeats: the number of earlier slates of the visit that
    showed the arm; length: the number of decisions of the visit."""
    largest_count = max(int(counts.max(initial=0)) for counts in (step, repeats, length))
    log1p = np.log1p(np.arange(largest_count + 1))  # for every count that may occur
    log_length = log1p[length]
    columns = (log1p[step], log1p[repeats], log_length, log_length**2, reward)
    return cell_sums(columns, cell=cell, cells=cells, cluster=cluster)


def carry_over_p_value(sums: CellSums) -> float | None:
    """Return the p-value of the hypothesis that rewards depend neither on the step of a visit nor on how often it has
    seen the arm. The result is None if no visit has a second step, or if too few clusters have rows."""
    tested_slopes = slopes(sums, n_tested=_N_TESTED)
    if tested_slopes is None:
        return None
    wald = float(tested_slopes.estimate @ np.linalg.pinv(tested_slopes.covariance) @ tested_slopes.estimate)
    return hotelling_above(wald, len(tested_slopes.estimate), tested_slopes.blocks)


# -- two tests of independent slots: whether a slot has a lower reward below arms that attract, or below clicks --
#
# Estimates per slot evaluate an arm at its position, whatever the slate above it. Where readers stop at what they like,
# or want no more of it, a target that fills the top differently earns other rewards below. The tests compare rewards of
# the same arm at the same position, the first by the summed attraction of the arms above, which comes from a model that
# was fitted without the reader, the second by the reward that slots above earned. Both are one-sided: readers differ
# in eagerness, and a logger may fit its slates to the reader, but readers who click more then have more clicks and more
# attractive arms above, not less. The second test sees a slate that readers leave with their first click in a few
# hundred slates, where the first needs many thousands. Where clicks are rare, though, it would see what hardly matters,
# so it also needs an effect: rewards below must lose some part by the clicks above.
#
# Source: own derivation; the error by the jackknife over 64 blocks of clusters.


_LEAST_LOSS = 0.02  # share of the rewards below that clicks above must take away


def slots_above_sums(
    reward: Array, *, attraction: Array, cell: Ids, cells: int, decision: Ids, position: Ids, cluster: Ids
) -> CellSums:
    """Return the sums of n slots, for the tests whether rewards depend on the slots above. Slots are in order of
    decision and position. Slots below a missing slot are not compared.

    attraction: the attraction of each slot's arm; cell: the number of the arm and position, from 0, or a negative
    number for rows that are not compared; cells: the number of cells."""
    starts = run_starts(decision)
    lengths = np.diff(starts, append=len(decision))
    # the sums over the slots above on the same slate
    sums_before = (np.cumsum(column) - column for column in (attraction, reward))
    sums_above = [column - np.repeat(column[starts], lengths) for column in sums_before]
    is_compared = (position > 1) & (numbers_in_runs(starts, len(decision)) == position - 1)
    return cell_sums((*sums_above, reward), cell=np.where(is_compared, cell, -1), cells=cells, cluster=cluster)


def slots_above_p_value(sums: CellSums) -> float | None:
    """Return the p-value of the hypothesis that slots do not have lower rewards below more attractive arms, nor below
    slots with rewards: twice the smaller p-value of the two one-sided tests. The result is None without enough
    evidence."""
    _, reward_above, reward, _ = np.abs(sums.cells.sum(axis=(0, 1)))
    p_values = []
    for column in (0, 1):
        cells, moments = sums.cells[..., [column, 2, 3]], sums.moments[:, [[column], [2]], [column, 2]]
        tested_slopes = slopes(CellSums(cells, moments), n_tested=1)
        if tested_slopes is None or not tested_slopes.covariance[0, 0] > 0:
            continue
        slope, is_small = float(tested_slopes.estimate[0]), False
        if column == 1:
            is_small = -slope * reward_above < _LEAST_LOSS * reward
        t = slope / float(np.sqrt(tested_slopes.covariance[0, 0]))
        p_values.append(1.0 if is_small else t_below(t, tested_slopes.blocks - 1))
    return min(1.0, 2 * min(p_values)) if p_values else None


# -- a test of carry-over between visits: whether what a visit shows changes the person's later visits --
#
# Estimates per session evaluate a target on visits that begin as the logger's did. Where a visit that shows many liked
# arms leads to a poorer next visit, or to none, the target would lead to other visits and earn other rewards.
#
# Differences between persons must not raise the alarm, since a person's rewards always predict the later ones. So the
# test uses what a visit showed, which the logger drew. At every slot, m (s(a) / p(a) - sum of s over the arms that
# could be drawn) has mean 0, whatever the person and the past are: p is the propensity of the arm a that was shown, s a
# score of arms, and m is known before the draw. The sums of this over a visit are multiplied by whether there is a next
# visit, and by its return. The scores are mean rewards of arms, and means of their most frequent events (clicks without
# purchases may drive people away), from the other half of the persons.
#
# Source: own derivation; Hotelling's T^2 over 64 blocks of persons.

MAX_SCORED_ARMS = 2_048  # arms with a score, at most
_PRIOR_IMPRESSIONS = 10.0  # impressions by which the scores of arms are shrunk to the mean reward
_VISIT_SALT = 4
_N_KINDS = 3  # the most frequent kinds of events, whose means are scores
_DEPENDENT_SHARE = (
    1e-6  # share of the variance of standardised statistics below which one depends linearly on the others
)


class VisitCarryOverSums(Sums, kw_only=True):
    """VisitCarryOverSums holds sums over visits, for the test whether a visit changes the person's later visits. A
    visit has three outcomes: the return of the person's next visit (0 without a next visit), whether there is a next
    visit, and the constant 1, whose sum counts the visits.

    products (3, 64, a): for each outcome, block of persons and arm, the sum of the outcome times (m / p if the arm
    was shown - m if the arm was eligible), where p is the propensity of the arm and m is a factor that is known
    before the draw; visits (3, 64): the sum of each outcome in each block; impressions (64, a): the impressions of
    each arm; rewards (64, a): the sum of the rewards of each arm; events: for each kind of event (2, 64, a), the
    number of impressions of each arm that had such an event, and the sum of the values."""

    products: Array
    visits: Array
    impressions: Array
    rewards: Array
    events: Mapping[str, Array]

    def p_value(self) -> float | None:
        """Return the p-value of the hypothesis that next visits do not depend on what a visit showed. The result is
        None if too few persons have several visits, or if the logger drew nothing at random."""
        next_return, next_visits, visits = self.visits.sum(axis=1)
        is_present = self.visits[2] > 0
        n_blocks = int(is_present.sum())
        if n_blocks < _LEAST_BLOCKS or not next_visits:
            return None
        # outcomes around their means: the return of a next visit, and whether there is one
        z_return, z_next, z_visit = self.products
        centred_products = np.stack(
            [z_return - next_return / next_visits * z_next, z_next - next_visits / visits * z_visit], axis=1
        )
        # scores of each half of the blocks, from the other half
        frequent_kinds = sorted(self.events, key=lambda kind: (-self.events[kind][0].sum(), kind))[:_N_KINDS]
        reward_sums = [self.rewards, *(self.events[kind][1] for kind in frequent_kinds)]
        score_by_half = np.stack(
            [[_scores(self.impressions[half::2], rewards[half::2]) for rewards in reward_sums] for half in (1, 0)]
        )
        statistic = np.einsum("bka,bsa->bks", centred_products, score_by_half[np.arange(N_BLOCKS) % 2])[
            is_present
        ].reshape(n_blocks, -1)
        # principal components that vary, since a score may depend linearly on the others
        spread = statistic.std(axis=0, ddof=1)
        statistic = statistic[:, spread > 0] / spread[spread > 0]
        if not statistic.size:
            return None
        variance, axes = np.linalg.eigh(np.atleast_2d(np.cov(statistic.T)))
        is_varying = variance > _DEPENDENT_SHARE * len(variance)
        # Hotelling's T^2: without carry-over, the mean over blocks is 0
        mean, n_components = statistic.mean(axis=0) @ axes[:, is_varying], int(is_varying.sum())
        t_squared = n_blocks * float((mean**2 / variance[is_varying]).sum())
        return hotelling_above(t_squared, n_components, n_blocks)


class VisitDraws(Record, eq=False):
    """VisitDraws holds what the logger drew in a batch of visits. p is a propensity, and m a factor of a slot that is
    known before the draw.

    visit, arm (n,): for every arm shown, the row of its visit, and its rank below 2,048; weight (n,): m / p of its
    slot, plus m of every slot below, if the arm could not be drawn again there; draw_visit, eligible, m_total: for
    every decision, the row of its visit, the row of its eligible set in `members`, and the sum of m over its slots;
    members (sets, a): 1 for the arms of each eligible set."""

    visit: Ids
    arm: Ids
    weight: Array
    draw_visit: Ids
    eligible: Ids
    m_total: Array
    members: Array

    def products(self, outcome: Array, block: Index) -> Array:
        """Return, for each block and arm, the sum over visits of the outcome times (m / p if the arm was shown - m if
        the arm was eligible), (64, a).

        outcome: the outcome of each visit; block: the block of each visit."""
        n_sets, n_arms = self.members.shape
        weights, totals = outcome[self.visit] * self.weight, outcome[self.draw_visit] * self.m_total
        (shown_sums,) = block_sums([weights], block[self.visit], self.arm, cells=n_arms)
        (set_sums,) = block_sums([totals], block[self.draw_visit], self.eligible, cells=n_sets)
        return shown_sums - set_sums @ self.members


def visit_carry_over_sums(
    draws: VisitDraws, *, person: Ids, is_counted: Flags, next_visit: Ids, returns: Array, visit: Ids, arm: Ids,
    reward: Array, events: Mapping[str, Array],
) -> VisitCarryOverSums:  # fmt: skip
    """Return the sums over a batch of persons, for the test whether a visit changes the person's later visits.

    draws: what the logger drew in the visits. For each of s visits, person: the digest of the person; is_counted:
    whether the visit counts; next_visit: the row of the person's next visit, or -1 if there is none; returns: the
    return of the visit. For each of n impressions, visit: the row of its visit; arm: the rank of the arm; reward:
    the reward; events: for each kind, the sum of the values of the events."""
    block, n_scored_arms = (
        (hash_bits(person, salt=_VISIT_SALT) % np.uint64(N_BLOCKS)).astype(np.intp),
        draws.members.shape[1],
    )
    has_next = next_visit >= 0
    outcomes = is_counted * np.stack([has_next * returns[next_visit], has_next, np.ones(len(person))])
    is_scored = arm < n_scored_arms
    columns = [np.ones(len(arm)), reward, *(column for values in events.values() for column in (values != 0, values))]
    impressions, rewards, *counts = block_sums(
        [column[is_scored] for column in columns], block[visit[is_scored]], arm[is_scored], cells=n_scored_arms
    )
    return VisitCarryOverSums(
        products=np.stack([draws.products(outcome, block) for outcome in outcomes]),
        visits=np.stack([np.bincount(block, weights=outcome, minlength=N_BLOCKS) for outcome in outcomes]),
        impressions=impressions,
        rewards=rewards,
        events={kind: np.stack(counts[2 * number : 2 * number + 2]) for number, kind in enumerate(events)},
    )


def _scores(impressions: Array, rewards: Array) -> Array:
    """Return a score for each arm, (a,): its mean reward minus the mean reward of all arms, shrunk to 0.

    impressions, rewards (b, a): the sums of each block and arm."""
    count, total = impressions.sum(axis=0), rewards.sum(axis=0)
    mean = total.sum() / max(count.sum(), 1.0)
    return (total - mean * count) / (count + _PRIOR_IMPRESSIONS)
