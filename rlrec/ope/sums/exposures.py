"""This module regresses later outcomes on exposures. The exposure of an arm is how much it was looked at, minus how
much that was expected before the draw.

The looks at an arm on a page are the sum over positions of shown x examination. The expected looks are known, so the
difference is noise from the draw alone: it is uncorrelated with the visitor, however the logger adapts. In a
regression of any later outcome on the difference (Robinson 1988, with the nuisance known), the coefficient of an arm
is the effect of one more full look at the arm, in place of what would have been shown. Source: own derivation, after
Robinson 1988, Root-N-consistent semiparametric regression."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import numpy as np

from rlrec.arrays import Array, Flags, Ids, run_starts
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Record, Sums

MAX_JOINT_ARMS = 128  # arms in one joint regression; each block stores a number for every pair of them
N_BASELINE = 3  # columns known before the draw
N_BLOCKS, N_BLOCKS_OF_MANY = 512, 128  # of clusters, for errors: up to MAX_JOINT_ARMS arms, and for more arms
N_TABLE_ROWS = 2_048  # rows of exposures in one table, about
MIN_EIGENVALUE_SHARE = 1e-10  # smallest eigenvalue, as a share of the largest, of exposures that varied
_MAX_BLOCK_SHARE = 0.5  # share of an exposure's squares from which on one block alone carries an arm
_FEWEST_LOOKS, _LEAST_SHOWN_SHARE = 3.0, 0.25  # fewest looks at an arm, also as a share of the expected ones
_LEAST_VARYING_SHARE = 0.4  # share of an exposure that must vary; where two arms take turns, each has a half
_SALT, _MIX_SALT = 2, 3


def block_numbers(cluster: Ids, *, blocks: int = N_BLOCKS) -> Ids:
    """Return the block of each row, (n,), computed from the digest of its cluster. `blocks` is the number of blocks."""
    return (hash_bits(cluster, salt=_SALT) % np.uint64(blocks)).astype(np.int64)


def count_blocks(arms: int) -> int:
    """Return the number of blocks of clusters in a regression with this many arms."""
    return N_BLOCKS if arms <= MAX_JOINT_ARMS else N_BLOCKS_OF_MANY


def has_looks(looks: Array, expected_looks: Array) -> Flags:
    """Tell whether each arm was looked at often enough to be judged, (k,). Where an arm was hardly shown, its exposures
    are little but the logger's expectations. These follow the context, so the effect of the arm cannot be told.

    looks, expected_looks: the sum of looks at each arm, and the sum that was expected before the draws."""
    return np.asarray(looks >= np.maximum(_FEWEST_LOOKS, _LEAST_SHOWN_SHARE * expected_looks))


def unfitted_residuals(residual: Array, share: Array) -> Array:
    """Return the residuals of blocks, enlarged to the size that they would have if effects were fitted without the
    block.

    share: the part of all squared exposures that lies in the block. Source, for the square root: Bell and McCaffrey
    2002, Bias Reduction in Standard Errors for Linear Regression with Multi-Stage Samples."""
    return np.asarray(residual / np.sqrt(1 - np.clip(share, 0, _MAX_BLOCK_SHARE)))


class Exposures(Record, kw_only=False, eq=False):
    """An Exposures object says how much k arms were looked at in n rows (pages or visits), and how much that was
    expected.

    row, arm, look (m,): the row, the arm and the examination of each slot; expected_looks (u, k): the expected looks
    at each arm in each of u draws (distributions of slates); draw (n,): the index of each row's draw, negative if it
    is not known."""

    row: Ids
    arm: Ids
    look: Array
    expected_looks: Array
    draw: Ids

    def __len__(self) -> int:
        return len(self.draw)

    @property
    def arms(self) -> int:
        """Return the number of arms."""
        return self.expected_looks.shape[1]

    @property
    def expected_by_row(self) -> Array:
        """Return the expected looks at each arm in each row, (n, k), NaN if the draw of the row is not known."""
        by_row = np.full((len(self), self.arms), np.nan)
        by_row[self.draw >= 0] = self.expected_looks[self.draw[self.draw >= 0]]
        return by_row

    @property
    def dense_looks(self) -> Array:
        """Return the looks at each arm in each row, minus the expected looks, (n, k). The difference is NaN if the draw
        of the row is not known."""
        cell = self.row * self.arms + self.arm
        looks = np.bincount(cell, weights=self.look, minlength=len(self) * self.arms)
        return looks.astype(np.float64, copy=False).reshape(-1, self.arms) - self.expected_by_row

    def take(self, rows: Ids) -> Exposures:
        """Return the exposures of the given rows."""
        number = np.full(len(self), -1, np.int64)
        number[rows] = np.arange(len(rows))
        row = number[self.row]
        return Exposures(row[row >= 0], self.arm[row >= 0], self.look[row >= 0], self.expected_looks, self.draw[rows])

    def totals(self, count: Array) -> tuple[Array, Array]:
        """Return the sum of the looks at each arm, (k,), and the sum of the expected looks, (k,).

        count (n,): the weight of each row."""
        looks = np.bincount(self.arm, weights=self.look * count[self.row], minlength=self.arms)
        expected_looks = np.bincount(self.draw, weights=count, minlength=len(self.expected_looks)) @ self.expected_looks
        return looks.astype(np.float64), expected_looks

    def merge_rows(self, group: Ids) -> Exposures:
        """Merge each group of rows into one row, and return the exposures of the merged rows.

        group (n,): the number of each row's group, ascending from 0."""
        starts = run_starts(group)
        if not len(starts):
            return self
        # groups with the same draws have the same expectation
        draws_hash = np.add.reduceat(hash_bits(self.draw, salt=_MIX_SALT), starts)
        _, first_group, draw = np.unique(draws_hash, return_index=True, return_inverse=True)
        begin, end = starts[first_group], np.r_[starts[1:], len(group)][first_group]
        expected_looks = np.zeros((len(first_group), self.arms))
        for offset in range(int((end - begin).max())):
            groups_this_long = np.flatnonzero(begin + offset < end)
            expected_looks[groups_this_long] += self.expected_looks[self.draw[begin[groups_this_long] + offset]]
        return Exposures(group[self.row], self.arm, self.look, expected_looks, draw.reshape(-1))


class ExposureRegression(Sums):
    """An ExposureRegression holds the sums that a regression of outcomes on exposures needs, for each of b blocks of
    clusters. The regression has o outcomes and d columns: 3 that are known before the draw, and the exposures of k
    arms.

    square (b, d, d): sums of products of two columns. With more than 128 arms, square has the shape (b, d, 4):
    products with the first 3 columns, and squares of exposures; the outcomes are then regressed on each arm
    separately. cross (b, d, o): sums of products of columns and outcomes. looks (2, k): the looks at each arm, and
    the expected looks."""

    square: Array
    cross: Array
    looks: Array

    @classmethod
    def zeros(cls, arms: int, *, outcomes: int) -> ExposureRegression:
        """Return sums over no rows. `outcomes` is the number of outcomes."""
        n_blocks, d = count_blocks(arms), N_BASELINE + arms
        width = d if arms <= MAX_JOINT_ARMS else N_BASELINE + 1
        return cls(np.zeros((n_blocks, d, width)), np.zeros((n_blocks, d, outcomes)), np.zeros((2, arms)))

    def add_rows(self, baseline: Array, exposures: Exposures, outcomes: Array, *, factor: Array, cluster: Ids) -> None:
        """Add n rows to these sums in place.

        baseline (n, 3): the columns that are known before the draw; outcomes (n, o): the outcomes; factor (n,): the
        number by which the exposures of each row are multiplied; cluster (n,): the digest of each row's cluster."""
        block, columns = block_numbers(cluster, blocks=len(self.square)), np.hstack([baseline, outcomes])
        self.looks[...] += exposures.totals(np.square(factor))
        if not self._is_joint:
            self._add_rows_by_arm(columns, exposures, factor, block)
            return
        order, d = np.argsort(block, kind="stable"), self.square.shape[1]
        starts = run_starts(block[order])
        edges = np.append(starts[run_starts(starts // N_TABLE_ROWS)], len(order)).tolist()
        for first, last in pairwise(edges):  # a table of some blocks
            rows = order[first:last]
            scaled_exposures, block_of_row = exposures.take(rows).dense_looks * factor[rows, None], block[rows]
            table = np.hstack([baseline[rows], scaled_exposures, outcomes[rows]])
            for start, end in pairwise([*run_starts(block_of_row).tolist(), len(table)]):
                products = table[start:end, :d].T @ table[start:end]
                self.square[block_of_row[start]] += products[:, :d]
                self.cross[block_of_row[start]] += products[:, d:]

    def _add_rows_by_arm(self, columns: Array, exposures: Exposures, factor: Array, block: Ids) -> None:
        """Add rows to the sums of regressions on each arm separately. The exposure of an arm is summed as the looks of
        the slots that showed the arm, minus the expected looks of the draws.

        columns (n, 3 + o): the columns known before the draw, and the outcomes; factor (n,): the number by which the
        exposures of each row are multiplied; block (n,): the block of each row's cluster."""
        n_blocks, k, expected_looks, cross = len(self.square), exposures.arms, exposures.expected_looks, self.cross

        def sum_by_block(number: Ids, weight: Array, width: int) -> Array:
            sums = np.bincount(number, weights=weight, minlength=n_blocks * width)
            return sums.astype(np.float64).reshape(n_blocks, width)

        slot_cell, draw_cell = block[exposures.row] * k + exposures.arm, block * len(expected_looks) + exposures.draw
        for number, column in enumerate(columns.T):
            weight = column * factor
            look_sums = sum_by_block(slot_cell, exposures.look * weight[exposures.row], k)
            products = look_sums - sum_by_block(draw_cell, weight, len(expected_looks)) @ expected_looks
            with_baseline = np.stack([np.bincount(block, x * column, n_blocks) for x in columns.T[:N_BASELINE]], axis=1)
            sums = self.square[:, :, number] if number < N_BASELINE else cross[:, :, number - N_BASELINE]
            sums[:, :N_BASELINE] += with_baseline
            sums[:, N_BASELINE:] += products
        # squares of looks at an arm in a row minus the expected looks
        cell, entry = np.unique(exposures.row * k + exposures.arm, return_inverse=True)
        row, arm, look = cell // k, cell % k, np.bincount(entry.reshape(-1), weights=exposures.look)
        square_change = np.square(factor)[row] * look * (look - 2 * expected_looks[exposures.draw[row], arm])
        squares = sum_by_block(draw_cell, np.square(factor), len(expected_looks)) @ np.square(expected_looks)
        self.square[:, N_BASELINE:, -1] += sum_by_block(block[row] * k + arm, square_change, k) + squares

    @cached_property
    def effects(self) -> Array:
        """Return the effect of each arm on each outcome, (k, o). The effect is 0 if the exposure of the arm never
        varied."""
        return self._slopes(self.square.sum(axis=0), self.cross.sum(axis=0))[N_BASELINE:]

    @cached_property
    def influences(self) -> Array:
        """Return the contribution of each block to the effects, (b, k, o), enlarged as in `unfitted_residuals`."""
        slopes = self._slopes(self.square.sum(axis=0), self.cross.sum(axis=0))
        if self._is_joint:
            influence = np.asarray(self._inverse @ (self.cross - self.square @ slopes))[:, N_BASELINE:]
            share = np.einsum("ij,bji->bi", self._inverse, self.square)[:, N_BASELINE:]
        else:
            residual = (
                self.cross
                - self.square[..., :N_BASELINE] @ slopes[:N_BASELINE]
                - self.square[..., N_BASELINE:] * slopes
            )
            influence = self._separate_slopes(residual[:, N_BASELINE:])
            squares = self.square[:, N_BASELINE:, -1]
            share = squares / np.maximum(squares.sum(axis=0), 1e-300)
        return unfitted_residuals(influence, share[..., None])

    @cached_property
    def is_varying(self) -> Flags:
        """Return (k,) flags, true for arms whose exposure varied in more than one block of clusters (a block may be one
        person), and beyond what the other columns explain. Such an arm must also have enough looks."""
        square = self.square.sum(axis=0)
        sum_by_block = np.einsum("bii->bi", self.square) if self._is_joint else self.square[..., -1]
        is_carried_alone = (sum_by_block.max(axis=0) > _MAX_BLOCK_SHARE * sum_by_block.sum(axis=0))[N_BASELINE:]
        if self._is_joint:
            return (
                np.einsum("ij,ji->i", self._inverse, square)[N_BASELINE:] > _LEAST_VARYING_SHARE
            ) & ~is_carried_alone
        squares = square[N_BASELINE:, -1]
        return np.asarray(
            (squares > MIN_EIGENVALUE_SHARE * squares.max(initial=0.0)) & ~is_carried_alone & has_looks(*self.looks)
        )

    @property
    def variances(self) -> Array:
        """Return the variance of the effect of each arm, (k,), if outcomes are noise of variance 1 per row."""
        if self._is_joint:
            return np.diag(self._inverse)[N_BASELINE:]
        square = self.square.sum(axis=0)[N_BASELINE:, -1]
        return np.divide(1.0, square, out=np.zeros(len(square)), where=square > 0)

    @property
    def n_regressed(self) -> int:
        """Return the number of columns in one regression."""
        return self.square.shape[2]

    @property
    def _is_joint(self) -> bool:
        return self.square.shape[1] == self.square.shape[2]

    @cached_property
    def _inverse(self) -> Array:
        is_used = np.r_[np.ones(N_BASELINE, np.bool_), has_looks(*self.looks)]
        return np.linalg.pinv(
            self.square.sum(axis=0) * np.outer(is_used, is_used), rcond=MIN_EIGENVALUE_SHARE, hermitian=True
        )

    def _slopes(self, square: Array, cross_sums: Array) -> Array:
        """Return the coefficient of each column for each outcome, (d, o), from the sums of products of two columns
        (`square`) and of columns and outcomes."""
        if self._is_joint:
            return np.asarray(self._inverse @ cross_sums)
        slopes = np.linalg.pinv(square[:N_BASELINE, :N_BASELINE], hermitian=True) @ cross_sums[:N_BASELINE]
        return np.vstack(
            [
                slopes,
                self._separate_slopes(cross_sums[N_BASELINE:] - square[N_BASELINE:, :N_BASELINE] @ slopes),
            ]
        )

    def _separate_slopes(self, cross_sums: Array) -> Array:
        """Return the slopes of the exposures, (..., k, o), from a regression on each exposure alone. The slope is 0 for
        an exposure that does not vary. `cross_sums` are the sums of products of exposures and outcomes."""
        square = self.square.sum(axis=0)[N_BASELINE:, -1:]
        return np.divide(cross_sums, square, out=np.zeros_like(cross_sums), where=self.is_varying[:, None])


def std_errors(influences: Array, *, columns: int) -> Array:
    """Return standard errors, (...), from the contributions of b blocks, (b, ...). The errors are NaN if there are
    fewer blocks than twice the number of regressed columns."""
    n_present = int((influences != 0).reshape(len(influences), -1).any(axis=1).sum())
    factor = n_present / (n_present - columns) if n_present >= 2 * columns else np.nan
    return np.asarray(np.sqrt(np.square(influences).sum(axis=0) * factor))
