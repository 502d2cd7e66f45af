"""This module estimates, to first order, the reward of slates with other arms. The estimate is computed from effects of
arms in slates whose distribution is known.

The exposure of an arm on a page (a slate) is the sum over positions of shown x examination. The expectation of the
exposure before the draw is known. The difference of the two is uncorrelated with all that was fixed before the draw,
whoever the visitor is and however the logger adapts. Regress the rewards of a page and the rest of its visit on this
difference: the coefficient of an arm is the effect of one more look at the arm. Only differences between arms are
identified."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from rlrec.arrays import Array, Flags, run_starts
from rlrec.ope.checks.diagnostics import weight_diagnostics
from rlrec.ope.sums.base import CORE_COLUMNS, Estimator, RewardColumns
from rlrec.ope.sums.exposures import MIN_EIGENVALUE_SHARE, block_numbers, has_looks, unfitted_residuals
from rlrec.ope.sums.moments import ClusterSummary, moments
from rlrec.ope.units.estimate import ANY_REWARD, EstimatorFold
from rlrec.ope.units.fold import Fold, RowSums

MAX_ARMS = 300  # of a catalogue; every block stores sums over pairs of arms
_MAX_CELLS, _MIN_BLOCKS, _MAX_BLOCKS = 2**21, 64, 256  # for blocks of clusters, from which errors are computed


class Effects(Estimator):
    """Add to the logged mean sum_a b_a x (expected exposure of arm a under the target - under the logger). b is the
    regression of what a page and the rest of its visit earn (page events and `return` included) on exposure shown minus
    expected. The result is right to first order, if effects of arms add up; positions are examined as clicks in the log
    say. It needs no weights of pages, so it can judge targets that differ much from the logger.

    Source: own derivation, after Robinson 1988 with the nuisance known."""

    unit: ClassVar[str] = "slate"
    columns: ClassVar[tuple[str, ...]] = ("weighted_reward", "rows")
    lack_reason: ClassVar[str] = "no-marginal"
    sees_visits: ClassVar[bool] = True
    needs_joint: ClassVar[bool] = False
    has_independent_slots: ClassVar[bool] = True


class EffectBatch(RewardColumns, eq=False):
    """An EffectBatch holds s pages (slates) of the log, with the exposures of k arms that one target expects. The
    exposures of a page are NaN if its distributions are not known.

    reward (s,): the reward of the page and its events; remaining (s,): the same reward including later pages of the
    visit; exposure (s, k): the shown minus the expected exposure; expectation (s, k): the expected exposure; change
    (s, k): the exposure expected under the target minus that expected under the logger; looks (s,): the sum of the
    examinations of the page's positions."""

    remaining: Array
    exposure: Array
    expectation: Array
    change: Array
    looks: Array

    @cached_property
    def is_usable(self) -> Flags:
        """Return (s,) flags, which are true for pages whose distributions are known."""
        return ~np.isnan(self.exposure.sum(axis=1) + self.change.sum(axis=1))


class EffectFold(Fold):
    """An EffectFold sums the columns from which the estimator `effects` is computed.

    arms: the number of arms, at most 300, since a block of clusters stores 8 bytes for each pair of arms. The
    figures of its sums, for each of b blocks of clusters, are by_block (b, 4): rows, rewards, remaining rewards,
    looks; by_arm (b, 4, k): exposures, exposures x remaining reward, changes, expected exposures; square (b, k, k):
    products of exposures."""

    arms: int

    @property
    def n_blocks(self) -> int:
        """Return the number of blocks of clusters."""
        return min(max(_MAX_CELLS // max(1, self.arms) ** 2, _MIN_BLOCKS), _MAX_BLOCKS)

    @property
    def max_loggers(self) -> int:
        """Return 0: loggers need no weights, since the regression weighs rows by the variation of their exposures."""
        return 0

    def row_sums(self, batch: EffectBatch, /) -> RowSums:
        weights = weight_diagnostics(
            batch, np.ones(len(batch)), weighted_reward=batch.reward, reward=batch.reward, rows=batch.is_usable,
            not_default=batch.not_default, bound=np.full(len(batch), np.inf),
        )  # fmt: skip
        batch = batch.take(batch.is_usable)
        count = np.ones(len(batch)) if batch.count is None else batch.count
        block = block_numbers(batch.cluster, blocks=self.n_blocks)
        columns = np.column_stack([np.ones(len(batch)), batch.reward, batch.remaining, batch.looks]) * count[:, None]
        by_block, by_arm = np.zeros((self.n_blocks, 4)), np.zeros((self.n_blocks, 4, self.arms))
        square = np.zeros((self.n_blocks, self.arms, self.arms))
        order = np.argsort(block, kind="stable")
        for rows in np.split(order, run_starts(block[order])[1:]) if len(order) else ():
            block_number = block[rows[0]]
            page_exposures, page_counts = batch.exposure[rows], count[rows]
            by_block[block_number] = columns[rows].sum(axis=0)
            cross, change = (page_counts * batch.remaining[rows]) @ page_exposures, page_counts @ batch.change[rows]
            by_arm[block_number] = page_counts @ page_exposures, cross, change, page_counts @ batch.expectation[rows]
            square[block_number] = (page_exposures.T * page_counts) @ page_exposures
        sums = moments(columns[:, :2], batch.cluster, columns=("rows", "reward"), spans_batches=self.spans_batches)
        figures = {"by_block": by_block, "by_arm": by_arm, "square": square}
        return RowSums(moments=sums, weights={"weight": weights}, figures=figures)

    def estimator_fold(
        self, row_sums: RowSums, label: str, estimator: Effects, summary: ClusterSummary, /
    ) -> EstimatorFold:
        """Return the estimator at the end of the fold. The estimate is a sum over blocks of clusters, and its error
        follows from the influence of each block."""
        by_block, by_arm, squares = row_sums.figures["by_block"], row_sums.figures["by_arm"], row_sums.figures["square"]
        rows, reward, remaining, looks = by_block.T
        # an arm that was hardly shown has no effect that can be told
        expected_looks = by_arm[:, 3].sum(axis=0)
        has_enough_looks = has_looks(by_arm[:, 0].sum(axis=0) + expected_looks, expected_looks)
        exposure, cross_sums = by_arm[:, 0] * has_enough_looks, by_arm[:, 1] * has_enough_looks
        changes, squares = by_arm[:, 2], squares * np.outer(has_enough_looks, has_enough_looks)
        n, square, change = max(rows.sum(), 1.0), squares.sum(axis=0), changes.sum(axis=0)
        mean = remaining.sum() / n
        # the effect of one more look at each arm, and how much a page counts: 1 + exposure x direction
        inverse = np.linalg.pinv(square, rcond=MIN_EIGENVALUE_SHARE, hermitian=True)
        coefficient, direction = inverse @ (cross_sums - mean * exposure).sum(axis=0), inverse @ change
        # influences: of the rewards, of the change, and of the residuals of the coefficients
        residual = cross_sums - mean * exposure - squares @ coefficient
        # a block that the effects fit by itself varies more than its residuals
        change_by_block = squares @ direction
        spread, fitted_spread = (
            change_by_block @ direction,
            np.einsum("bi,ij,bj->b", change_by_block, inverse, change_by_block),
        )
        share = np.divide(fitted_spread, spread, out=np.zeros(len(spread)), where=spread > 0)
        noise = unfitted_residuals(residual @ direction, share)
        influence = reward + changes @ coefficient + noise - noise.sum() * rows / n
        units = np.column_stack([rows, reward, rows + exposure @ direction, influence])
        clusters = summary.n_clusters[0]
        summary = ClusterSummary(
            columns=dict(zip(CORE_COLUMNS, range(len(CORE_COLUMNS)), strict=True)), total=units.sum(axis=0),
            is_by_block=True, units=units, n_clusters=np.full(len(CORE_COLUMNS), clusters),
            moment=units.T @ units, largest_sums=np.abs(units).max(axis=0),
            absolute_sums=np.abs(units).sum(axis=0),
        )  # fmt: skip
        # the share of the change that goes to exposures that never varied
        unreached_change = np.abs(change - square @ direction).sum() / 2 / max(looks.sum(), 1e-300)
        figures = {
            "largest": np.inf,
            "reward_size": 0.0,
            "unsupported_mass": float(unreached_change * n),
            "n_unsupported": n,
        }
        weights = replace(row_sums.weights["weight"], **figures)
        # as ess the number of pages of the target, or looks at the arms that it shows more, that would be as precise
        change_variance = max(float(change @ direction), 1e-300)
        effective_looks = max(n / (1 + change_variance / n), (np.abs(change).sum() / 2) ** 2 / change_variance)
        return EstimatorFold(
            label=label, estimator=estimator, summary=summary, weights=weights,
            ess=min(float(clusters), effective_looks),
            reward_range=ANY_REWARD, reasons=("first-order",), basis="to first order",
        )  # fmt: skip
