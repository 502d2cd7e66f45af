"""Regressions of what came later on exposures: what was shown less what was expected before the draw.

The exposure of an arm on a page is the sum over positions of shown x examination. Its expectation before the draw is
known, so that the difference is noise that the draw alone caused: uncorrelated with whoever the visitor is, however the
logger adapts. In the regression of any later outcome on it (Robinson 1988, with the nuisance known) the coefficient of
an arm is the effect of one more full look at it, in place of what would have been shown.

Source: own derivation, after Robinson 1988, Root-N-consistent semiparametric regression."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlrec.arrays import Array, Flags, Ids, run_starts
from rlrec.ope.sums.base import hash_bits
from rlrec.records import Sums

MOST_JOINT = 128  # arms that are regressed on together: each block holds a number for each pair of them
BASELINE_COLUMNS = 3  # columns that were known before the draw
BLOCKS = 512  # of clusters, of which errors are made
SMALLEST = 1e-10  # eigenvalue, as a share of the largest, of exposures that did not vary
_MOSTLY = 0.4  # of an exposure that varies: of two arms that take turns, each has a half
_SALT = 2


def block_numbers(cluster: Ids) -> Ids:
    """The block of each row, (n,), by the digest of its cluster."""
    return (hash_bits(cluster, salt=_SALT) % np.uint64(BLOCKS)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ExposureRegression(Sums):
    """Sums over rows by block of clusters: b blocks, d columns (3 that were known before the draw, and the exposures of
    k arms), o outcomes.

    square (b, d, d): of products of two columns; of more than 128 arms (b, d, 4), of products with what was known
    before, and of their squares: then each arm is regressed on by itself. crossed (b, d, o): of columns x outcomes."""

    square: Array
    crossed: Array

    @classmethod
    def from_rows(cls, baseline: Array, exposure: Array, outcomes: Array, *, block: Ids) -> ExposureRegression:
        """The sums of rows: baseline (n, 3), exposure (n, k), outcomes (n, o), block (n,)."""
        columns, is_joint = np.hstack([baseline, exposure]), exposure.shape[1] <= MOST_JOINT
        d = columns.shape[1]
        square = np.zeros((BLOCKS, d, d if is_joint else BASELINE_COLUMNS + 1))
        crossed = np.zeros((BLOCKS, d, outcomes.shape[1]))
        order = np.argsort(block, kind="stable")
        for rows in np.split(order, run_starts(block[order])[1:]) if len(order) else ():
            x, number = columns[rows], block[rows[0]]
            crossed[number] = x.T @ outcomes[rows]
            if is_joint:
                square[number] = x.T @ x
            else:
                square[number] = np.column_stack([x.T @ baseline[rows], np.square(x).sum(axis=0)])
        return cls(square, crossed)

    @cached_property
    def effects(self) -> Array:
        """The effect of each arm, (k, o); 0 where its exposure never varied."""
        return self._slopes(self.square.sum(axis=0), self.crossed.sum(axis=0))[BASELINE_COLUMNS:]

    @cached_property
    def influences(self) -> Array:
        """The part of the effects that each block adds, (b, k, o)."""
        slopes = self._slopes(self.square.sum(axis=0), self.crossed.sum(axis=0))
        if self._is_joint:
            residual = self.crossed - self.square @ slopes
            return np.asarray(self._inverse @ residual)[:, BASELINE_COLUMNS:]
        residual = (
            self.crossed
            - self.square[..., :BASELINE_COLUMNS] @ slopes[:BASELINE_COLUMNS]
            - self.square[..., BASELINE_COLUMNS:] * slopes
        )
        return self._each(residual[:, BASELINE_COLUMNS:])

    @cached_property
    def vary(self) -> Flags:
        """Whether the exposure of each arm varied, apart from what those of all arms add up to, (k,)."""
        square = self.square.sum(axis=0)
        if self._is_joint:
            return np.einsum("ij,ji->i", self._inverse, square)[BASELINE_COLUMNS:] > _MOSTLY
        return np.asarray(square[BASELINE_COLUMNS:, -1] > SMALLEST * square[BASELINE_COLUMNS:, -1].max(initial=0.0))

    @property
    def n_regressed(self) -> int:
        """How many columns are regressed on together."""
        return self.square.shape[2]

    @property
    def n_blocks(self) -> int:
        """How many blocks have rows."""
        return int(self.square.any(axis=(1, 2)).sum())

    @property
    def _is_joint(self) -> bool:
        return self.square.shape[1] == self.square.shape[2]

    @cached_property
    def _inverse(self) -> Array:
        return np.linalg.pinv(self.square.sum(axis=0), rcond=SMALLEST, hermitian=True)

    def _slopes(self, square: Array, crossed: Array) -> Array:
        """The coefficient of each column, (d, o)."""
        if self._is_joint:
            return np.asarray(self._inverse @ crossed)
        slopes = (
            np.linalg.pinv(square[:BASELINE_COLUMNS, :BASELINE_COLUMNS], hermitian=True) @ crossed[:BASELINE_COLUMNS]
        )
        return np.vstack(
            [slopes, self._each(crossed[BASELINE_COLUMNS:] - square[BASELINE_COLUMNS:, :BASELINE_COLUMNS] @ slopes)]
        )

    def _each(self, crossed: Array) -> Array:
        """Slopes of the exposures (..., k, o), each by itself."""
        square = self.square.sum(axis=0)[BASELINE_COLUMNS:, -1:]
        return np.divide(crossed, square, out=np.zeros_like(crossed), where=self.vary[:, None])


def std_errors(influences: Array, *, columns: int) -> Array:
    """Standard errors of sums over blocks, (...), from what each of them adds, (b, ...); NaN where blocks are fewer
    than twice the columns that are regressed on together."""
    present = int((influences != 0).reshape(len(influences), -1).any(axis=1).sum())
    factor = present / (present - columns) if present >= 2 * columns else np.nan
    return np.asarray(np.sqrt(np.square(influences).sum(axis=0) * factor))
