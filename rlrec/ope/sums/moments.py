"""This module sums columns over clusters. Batches can be summed apart and the sums added; values, errors and intervals
are computed from the sums.

A cluster is identified by a digest of the key of its user or session, 64 bits in an int64. Digests determine the
order of sums and the blocks, so figures do not depend on the order of the log, on how it was split, or on the ids of
a store.

If a cluster can have rows in a later batch (users), every cluster has a row of sums until its partition of the log has
been read. A row takes 8 bytes of digest and 8 per column, which is 80 bytes for the nine columns that ips, snips,
clipped-ips, dm and dr need together. If a cluster lies in one batch (sessions, rows, users of other partitions), at
most 4,096 clusters have a row. More clusters are reduced to second moments and 4,096 blocks, defined by a hash of the
digest, so that memory is bounded. Sums at every step (`Steps`) are wide: with more than 4,096 clusters only blocks are
kept, and errors are computed from the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Self

import numpy as np

from rlrec.arrays import Array, Ids, look_up, numbers_in_runs, run_starts
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Record, Sums

N_BLOCKS = 4096
BET_COLUMN = "weighted_reward"  # the column of the bets (`betting.mean_bound`)
BET_SHARES: Array = 0.5 ** np.arange(12.0)
UNKNOWN_GROWTH: Array = np.full(len(BET_SHARES), np.nan)
_SALT = 1


class BlockSums(Sums, kw_only=True):
    """A BlockSums object holds sums of c columns over clusters.

    n_clusters (c,): the number of clusters in which a column is not 0; moment (c, c): the sum over clusters of the
    outer product of a cluster's sums; largest_sums (c,), absolute_sums (c,): over clusters, the largest absolute value
    and the sum of absolute values; growth (s,): the sum over clusters of ln(1 + stake x), where x is the column
    BET_COLUMN, for each of BET_SHARES; NaN without this column, if the column is negative, or if clusters were
    multiplied by a factor; units (m, c): the sums of each cluster, or of each of 4,096 blocks of clusters."""

    n_clusters: Ids
    moment: Array
    largest_sums: Array
    absolute_sums: Array
    growth: Array = field(default_factory=lambda: UNKNOWN_GROWTH)
    units: Array

    def __add__(self, other: Self) -> Self:
        return replace(super().__add__(other), largest_sums=np.maximum(self.largest_sums, other.largest_sums))

    def scale(self, factor: Array) -> BlockSums:
        """Return the sums with each column multiplied by a positive factor, (c,)."""
        return BlockSums(
            n_clusters=self.n_clusters, moment=self.moment * np.outer(factor, factor),
            largest_sums=self.largest_sums * factor, absolute_sums=self.absolute_sums * factor,
            growth=UNKNOWN_GROWTH, units=self.units * factor,
        )  # fmt: skip


class ClusterSummary(BlockSums, kw_only=True):
    """A ClusterSummary holds sums over all clusters at the end of a fold. A bootstrap draws from its `units`, which are
    clusters or blocks of clusters.

    columns: the index of each column by its name; total (c,): the sums over all clusters; is_by_block: whether units
    are blocks; a bootstrap then draws from all blocks, as the number of clusters in each block is random."""

    columns: Mapping[str, int]
    total: Array
    is_by_block: bool

    def with_prefix(self, prefix: str) -> ClusterSummary:
        """Return the summary of the columns whose names begin with the prefix, and remove the prefix from the names."""
        numbers = {
            name.removeprefix(prefix): number for name, number in self.columns.items() if name.startswith(prefix)
        }
        index = list(numbers.values())
        return replace(
            self, columns={name: number for number, name in enumerate(numbers)}, n_clusters=self.n_clusters[index],
            total=self.total[index], moment=self.moment[np.ix_(index, index)], largest_sums=self.largest_sums[index],
            absolute_sums=self.absolute_sums[index], units=self.units[:, index],
        )  # fmt: skip


class _Clusters(Record, kw_only=False, eq=False):
    """This record holds the sums of each cluster, (m, c), and the digests of the clusters in ascending order, (m,).

    bet_index: the index of the column BET_COLUMN, or None without this column."""

    digests: Ids
    sums: Array
    bet_index: int | None = None

    def __add__(self, other: _Clusters) -> _Clusters:
        base, addend = (self, other) if len(self.digests) >= len(other.digests) else (other, self)
        index, is_shared = look_up(base.digests, addend.digests)
        # add the sums of clusters on both sides
        sums = base.sums.copy()
        sums[index[is_shared]] += addend.sums[is_shared]
        if is_shared.all():
            return _Clusters(base.digests, sums, self.bet_index)
        # insert the others where their digests belong
        insert_at = np.searchsorted(base.digests, addend.digests[~is_shared])
        digests = np.insert(base.digests, insert_at, addend.digests[~is_shared])
        return _Clusters(digests, np.insert(sums, insert_at, addend.sums[~is_shared], axis=0), self.bet_index)

    def scale(self, factor: Array) -> _Clusters:
        return _Clusters(self.digests, self.sums * factor)

    def collapse(self) -> BlockSums:
        """Return the second moments and the sums of blocks, without the sums of each cluster."""
        block = cluster_blocks(self.digests)
        absolute_sums = np.abs(self.sums)
        # The square of a weight may overflow, since propensities go down to 1e-300; the error is then unknown, no
        # warning.
        with np.errstate(over="ignore", invalid="ignore"):
            moment = self.sums.T @ self.sums
        units = [np.bincount(block, weights=column, minlength=N_BLOCKS) for column in self.sums.T]
        growth = UNKNOWN_GROWTH
        if self.bet_index is not None and not self.sums[:, self.bet_index].min(initial=0.0) < 0:
            growth = np.array([np.log1p(share * self.sums[:, self.bet_index]).sum() for share in BET_SHARES])
        return BlockSums(
            n_clusters=np.count_nonzero(self.sums, axis=0).astype(np.int64), moment=moment,
            largest_sums=absolute_sums.max(axis=0, initial=0.0), absolute_sums=absolute_sums.sum(axis=0), growth=growth,
            units=np.column_stack(units),
        )  # fmt: skip


class Moments(Sums):
    """A Moments object holds sums of c columns over clusters. `moments(batch_1) + moments(batch_2)` are the moments of
    the two batches together.

    columns: the names of the columns; spans_batches: whether a cluster may have rows in another batch."""

    columns: tuple[str, ...]
    spans_batches: bool
    _clusters: _Clusters | BlockSums

    def __add__(self, other: Moments) -> Moments:
        if (self.columns, self.spans_batches) != (other.columns, other.spans_batches):
            raise ValueError("moments of different estimators or clusters do not add up")
        self_clusters, other_clusters = self._clusters, other._clusters
        if isinstance(self_clusters, _Clusters) and isinstance(other_clusters, _Clusters):
            return Moments(
                self.columns, self.spans_batches, _limit_clusters(self_clusters + other_clusters, self.spans_batches)
            )
        return Moments(
            self.columns, self.spans_batches, _collapse_blocks(self_clusters) + _collapse_blocks(other_clusters)
        )

    def scale(self, factor: Array) -> Moments:
        """Return the sums with each column multiplied by a positive factor, (c,)."""
        return Moments(self.columns, self.spans_batches, self._clusters.scale(factor))

    def close(self) -> Moments:
        """Return these sums in the form for clusters that have no rows in later batches, which bounds the memory."""
        return Moments(self.columns, False, _limit_clusters(self._clusters, spans_batches=False))

    def summary(self) -> ClusterSummary:
        """Return the sums, the second moments, and the clusters or blocks that a bootstrap draws from."""
        clusters, blocks = self._clusters, _collapse_blocks(self._clusters)
        columns = {name: number for number, name in enumerate(self.columns)}
        summary = ClusterSummary(**vars(blocks), columns=columns, total=blocks.units.sum(axis=0), is_by_block=True)
        if isinstance(clusters, _Clusters) and len(clusters.digests) <= N_BLOCKS:
            return replace(summary, units=clusters.sums, is_by_block=False)
        return summary


def align_summaries(groups: Sequence[Moments]) -> list[ClusterSummary]:
    """Return a summary of each group of rows. The `units` of all summaries are the same clusters or blocks, in the same
    order, so that a bootstrap draws the same for all groups. A cluster without rows in a group has sums of 0."""
    group_sums, units = [group._clusters for group in groups], list[Array]()
    clusters = [sums for sums in group_sums if isinstance(sums, _Clusters)]
    digests = np.unique(np.concatenate([sums.digests for sums in clusters])) if clusters else np.empty(0, np.int64)
    if len(clusters) == len(group_sums) and len(digests) <= N_BLOCKS:
        for sums in clusters:
            rows = np.zeros((len(digests), sums.sums.shape[1]))
            rows[np.searchsorted(digests, sums.digests)] = sums.sums
            units.append(rows)
    else:
        units = [_collapse_blocks(sums).units for sums in group_sums]
    return [replace(group.summary(), units=rows, is_by_block=True) for group, rows in zip(groups, units, strict=True)]


class Steps(Record, kw_only=False, eq=False):
    """A Steps object holds the sums of columns at every step of visits. The sums are by cluster, or by block if there
    are more than 4,096 clusters, in the order of `ClusterSummary.units`. The sums of two batches can be added.

    columns: the names of the first c columns; the last column keeps its value after a visit's end; digests (m,): the
    digests of clusters in ascending order, or the numbers of blocks; sums (m, c + 1, h): the sums at each of h
    steps; is_by_block: whether the sums are by block."""

    columns: tuple[str, ...]
    digests: Ids
    sums: Array
    is_by_block: bool

    def __add__(self, other: Steps) -> Steps:
        if (self.columns, self.sums.shape[1:]) != (other.columns, other.sums.shape[1:]):
            raise ValueError("sums of different estimators or horizons do not add up")
        self_steps, other_steps = (
            (self, other) if self.is_by_block == other.is_by_block else (self._by_block(), other._by_block())
        )
        clusters = _Clusters(self_steps.digests, self_steps.sums) + _Clusters(other_steps.digests, other_steps.sums)
        steps = Steps(self.columns, clusters.digests, clusters.sums, self_steps.is_by_block)
        return steps if steps.is_by_block or len(steps.digests) <= N_BLOCKS else steps._by_block()

    def scale(self, factor: float) -> Steps:
        """Return the sums multiplied by a factor."""
        return replace(self, sums=self.sums * factor)

    def _by_block(self) -> Steps:
        if self.is_by_block:
            return self
        sums = np.zeros((N_BLOCKS, *self.sums.shape[1:]))
        np.add.at(sums, cluster_blocks(self.digests), self.sums)
        return Steps(self.columns, np.arange(N_BLOCKS), sums, is_by_block=True)


def sum_steps(columns: Mapping[str, Array], held_column: Array, *, cluster: Ids, length: Ids, horizon: int) -> Steps:
    """Return the sums of one batch of visits at every step. Decisions are sorted by visit and step.

    columns: by name, the value of each decision, (n,), which is 0 after a visit's end; held_column (n,): a column
    that keeps its last value after the end; cluster (s,): the cluster of each visit; length (s,): the number of
    decisions of each visit, at most `horizon`."""
    # the units that are summed over: clusters, or blocks of them
    digests, unit = np.unique(cluster, return_inverse=True)
    is_by_block = len(digests) > N_BLOCKS
    if is_by_block:
        digests, unit = np.arange(N_BLOCKS), cluster_blocks(cluster)
    # the cell (unit, step) of every decision
    last_decision = np.cumsum(length) - 1
    step = numbers_in_runs(last_decision - length + 1, len(held_column))
    cell, shape = np.repeat(unit, length) * horizon + step, (len(digests), horizon)
    # the sums of every column
    sums = np.empty((len(digests), len(columns) + 1, horizon))
    for number, column in enumerate([*columns.values(), held_column]):
        sums[:, number] = _sum_cells(cell, column, shape)
    # add the held values of visits that have ended
    sums[:, -1, 1:] += np.cumsum(_sum_cells(cell[last_decision], held_column[last_decision], shape), axis=1)[:, :-1]
    return Steps(tuple(columns), digests, sums, is_by_block)


def _sum_cells(cell: Ids, values: Array, shape: tuple[int, int]) -> Array:
    return np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)


def cluster_blocks(digests: Ids) -> Ids:
    """Return the number of the block that each cluster is in, 0 to 4,095."""
    return (hash_bits(digests, salt=_SALT) % np.uint64(N_BLOCKS)).astype(np.int64)


def moments(terms: Array, cluster: Ids, *, columns: tuple[str, ...], spans_batches: bool) -> Moments:
    """Return the moments of one batch of n rows.

    terms (n, c): the columns of every row; cluster (n,): the digest of each row's cluster; columns: the names of the
    columns; spans_batches: whether a cluster may have rows in another batch."""
    # rows of a cluster mostly lie together: adding them up first leaves less to sort
    cluster, terms = _add_runs(cluster, terms)
    if (cluster[1:] < cluster[:-1]).any():
        order = np.argsort(cluster)
        cluster, terms = _add_runs(cluster[order], terms[order])
    clusters = _Clusters(cluster, terms, columns.index(BET_COLUMN) if BET_COLUMN in columns else None)
    return Moments(columns, spans_batches, _limit_clusters(clusters, spans_batches))


def _add_runs(cluster: Ids, terms: Array) -> tuple[Ids, Array]:
    """Add up adjacent rows of the same cluster. Return the clusters and the sums of their terms."""
    start = run_starts(cluster)
    return (cluster, terms) if len(start) == len(cluster) else (cluster[start], np.add.reduceat(terms, start, axis=0))


def _limit_clusters(clusters: _Clusters | BlockSums, spans_batches: bool) -> _Clusters | BlockSums:
    if isinstance(clusters, BlockSums) or spans_batches or len(clusters.digests) <= N_BLOCKS:
        return clusters
    return clusters.collapse()


def _collapse_blocks(clusters: _Clusters | BlockSums) -> BlockSums:
    return clusters if isinstance(clusters, BlockSums) else clusters.collapse()
