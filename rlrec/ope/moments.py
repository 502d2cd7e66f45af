"""Sums over clusters that add up: the part of the fold that values, errors and intervals are made from.

Two kinds of cluster need two ways to remember them. Where a cluster can come back in a later batch (users), every
cluster keeps its row of sums: 8 bytes of id and 8 per column, which is 64 bytes for the seven columns that all five
estimators per impression need together. Where a cluster ends with its session (sessions, rows), at most 4,096 are
kept; beyond that they collapse into second moments and 4,096 blocks, cut by a hash of the id. So the memory is
bounded, and the answer depends neither on the order of the log nor on how it was split.

Sums at every step (`Steps`) are too wide for either: beyond 4,096 clusters only the blocks are left of them, whether
clusters come back or not, and errors are those of the blocks, which are as many and as independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlrec.arrays import Array, Ids
from rlrec.ope.base import hashed

BLOCKS = 4096
_SALT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ClusterSummary:
    """What is left of the clusters when the fold is over; c columns.

    present (c,): clusters in which a column is not 0
    total (c,): sums over all clusters
    moment (c, c): sum over clusters of the outer product of their sums
    most (c,), absolute (c,): largest absolute value, and sum of absolute values, over clusters
    units (m, c): sums of the clusters, or of the 4,096 blocks of them (`blocks`): what a bootstrap draws from"""

    columns: tuple[str, ...]
    present: Ids
    total: Array
    moment: Array
    most: Array
    absolute: Array
    units: Array
    blocks: bool

    def index(self, columns: tuple[str, ...]) -> list[int]:
        """Where these columns stand."""
        return [self.columns.index(name) for name in columns]


@dataclass(frozen=True, eq=False)
class _Clusters:
    """ids (m,) ascending; sums (m, c)."""

    ids: Ids
    sums: Array

    def __add__(self, other: _Clusters) -> _Clusters:
        large, small = (self, other) if len(self.ids) >= len(other.ids) else (other, self)
        at = np.searchsorted(large.ids, small.ids)
        known = np.zeros(len(at), dtype=bool)
        inside = at < len(large.ids)
        known[inside] = large.ids[at[inside]] == small.ids[inside]
        sums = large.sums.copy()
        sums[at[known]] += small.sums[known]
        if known.all():
            return _Clusters(large.ids, sums)
        new = at[~known]
        return _Clusters(np.insert(large.ids, new, small.ids[~known]), np.insert(sums, new, small.sums[~known], axis=0))

    def collapsed(self) -> _Blocks:
        block = block_of(self.ids)
        size = np.abs(self.sums)
        units = [np.bincount(block, weights=column, minlength=BLOCKS) for column in self.sums.T]
        return _Blocks(
            present=np.count_nonzero(self.sums, axis=0).astype(np.int64),
            moment=_moment(self.sums),
            most=size.max(axis=0, initial=0.0),
            absolute=size.sum(axis=0),
            units=np.column_stack(units),
        )


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Clusters that are not remembered one by one: their second moments, and sums per block."""

    present: Ids
    moment: Array
    most: Array
    absolute: Array
    units: Array

    def __add__(self, other: _Blocks) -> _Blocks:
        return _Blocks(
            present=self.present + other.present,
            moment=self.moment + other.moment,
            most=np.maximum(self.most, other.most),
            absolute=self.absolute + other.absolute,
            units=self.units + other.units,
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """The fold: `moments(batch_1) + moments(batch_2)` is the moments of both.

    columns: names of the c columns.   spanning: a cluster may come back in another batch."""

    columns: tuple[str, ...]
    spanning: bool
    _kept: _Clusters | _Blocks

    def __add__(self, other: Moments) -> Moments:
        if (self.columns, self.spanning) != (other.columns, other.spanning):
            raise ValueError("moments of different estimators or clusters do not add up")
        if isinstance(self._kept, _Clusters) and isinstance(other._kept, _Clusters):
            return Moments(self.columns, self.spanning, _bounded(self._kept + other._kept, self.spanning))
        return Moments(self.columns, self.spanning, _blocks(self._kept) + _blocks(other._kept))

    def summary(self) -> ClusterSummary:
        """Sums, second moments and the units to draw from."""
        kept, blocks = self._kept, _blocks(self._kept)
        few = kept.sums if isinstance(kept, _Clusters) and len(kept.ids) <= BLOCKS else None
        return ClusterSummary(
            columns=self.columns,
            present=blocks.present,
            total=blocks.units.sum(axis=0),
            moment=blocks.moment,
            most=blocks.most,
            absolute=blocks.absolute,
            units=blocks.units if few is None else few,
            blocks=few is None,
        )


@dataclass(frozen=True, eq=False)
class Steps:
    """Sums at every step, of up to 4,096 clusters or of the 4,096 blocks of more: they add up, in the order of
    `ClusterSummary.units`.

    columns: names of the c columns, and of the one that is held after a visit's end
    ids (m,): ascending, of clusters or (`blocks`) of blocks; sums (m, c + 1, h): at each of h steps"""

    columns: tuple[str, ...]
    ids: Ids
    sums: Array
    blocks: bool

    def __add__(self, other: Steps) -> Steps:
        if (self.columns, self.sums.shape[1:]) != (other.columns, other.sums.shape[1:]):
            raise ValueError("sums of different estimators or horizons do not add up")
        first, second = (self, other) if self.blocks == other.blocks else (self._cut(), other._cut())
        both = _Clusters(first.ids, first.sums) + _Clusters(second.ids, second.sums)
        added = Steps(self.columns, both.ids, both.sums, first.blocks)
        return added if added.blocks or len(added.ids) <= BLOCKS else added._cut()

    def _cut(self) -> Steps:
        """The same in blocks."""
        if self.blocks:
            return self
        sums = np.zeros((BLOCKS, *self.sums.shape[1:]))
        np.add.at(sums, block_of(self.ids), self.sums)
        return Steps(self.columns, np.arange(BLOCKS), sums, blocks=True)


def steps(columns: Mapping[str, Array], held: Array, *, cluster: Ids, length: Ids, horizon: int) -> Steps:
    """Sums of one batch of visits at every step.

    columns: by name, (n,) of every decision, 0 after a visit's end; held (n,): keeps its value after it. Decisions lie
    visit by visit, in the order of their steps; cluster, length (s,): of every visit, at most `horizon`."""
    ids, unit = np.unique(cluster, return_inverse=True)
    blocks = len(ids) > BLOCKS
    if blocks:
        ids, unit = np.arange(BLOCKS), block_of(cluster)
    end = np.cumsum(length) - 1
    step = np.arange(len(held)) - np.repeat(end - length + 1, length)
    place, shape = np.repeat(unit, length) * horizon + step, (len(ids), horizon)
    sums = np.empty((len(ids), len(columns) + 1, horizon))
    for number, column in enumerate([*columns.values(), held]):
        sums[:, number] = _at(place, column, shape)
    sums[:, -1, 1:] += np.cumsum(_at(place[end], held[end], shape), axis=1)[:, :-1]
    return Steps(tuple(columns), ids, sums, blocks)


def _at(place: Ids, values: Array, shape: tuple[int, int]) -> Array:
    return np.bincount(place, weights=values, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)


def block_of(ids: Ids) -> Ids:
    """Which of the 4,096 blocks each cluster is in."""
    return (hashed(ids, salt=_SALT) % np.uint64(BLOCKS)).astype(np.int64)


def moments(terms: Array, cluster: Ids, *, columns: tuple[str, ...], spanning: bool) -> Moments:
    """Moments of one batch. terms (n, c): columns of every row; cluster (n,): which cluster a row belongs to."""
    return Moments(columns, spanning, _bounded(_by_cluster(terms, cluster), spanning))


def _by_cluster(terms: Array, cluster: Ids) -> _Clusters:
    if not len(cluster):
        return _Clusters(cluster, terms)
    if (cluster[1:] < cluster[:-1]).any():
        order = np.argsort(cluster, kind="stable")
        cluster, terms = cluster[order], terms[order]
    start = np.flatnonzero(np.r_[True, cluster[1:] != cluster[:-1]])
    if len(start) == len(cluster):
        return _Clusters(cluster, terms)
    return _Clusters(cluster[start], np.add.reduceat(terms, start, axis=0))


def _bounded(clusters: _Clusters, spanning: bool) -> _Clusters | _Blocks:
    return clusters if spanning or len(clusters.ids) <= BLOCKS else clusters.collapsed()


def _blocks(kept: _Clusters | _Blocks) -> _Blocks:
    return kept if isinstance(kept, _Blocks) else kept.collapsed()


def _moment(sums: Array) -> Array:
    # A propensity stored as 1e-300 makes a weight whose square is infinite: the error is then unknown, not a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(sums.T @ sums)
