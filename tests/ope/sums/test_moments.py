"""The fold: any split of the log gives the same sums, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec import ope
from rlrec.ope.sums.base import LogBatch
from rlrec.ope.sums.moments import N_BLOCKS, moments
from rlrec.ope.units.estimate import FinishOptions
from rlrec.ope.units.fold import ImpressionFold, RowSums
from tests.ope.cases import drawn, parts


def numbers(fold: ImpressionFold, partial: RowSums) -> list[float]:
    estimates = fold.finish(partial, FinishOptions(replicates=200, reward_range=(0.0, 1.0)))
    rows = [(e.value, e.std_error, e.lower, e.upper, e.ess, e.top1_share, e.cluster_share) for e in estimates]
    return [np.nan if figure is None else figure for line in rows for figure in line]


def shuffled(batch: LogBatch, seed: int) -> LogBatch:
    order = np.random.default_rng(seed).permutation(len(batch))
    return batch.take(order)


@pytest.mark.parametrize("sessions", [50, N_BLOCKS - 5, 2 * N_BLOCKS])
def test_clusters_that_span_batches_add_up(sessions: int) -> None:
    fold = ImpressionFold(estimators=ope.parse("impression").impressions, spans_batches=True)
    batch = drawn(1, sessions=sessions)[0]
    pieces = [fold.row_sums(piece) for piece in parts(shuffled(batch, 2), [7, 40, 60])]
    mixed = (pieces[3] + pieces[0]) + (pieces[2] + pieces[1])
    np.testing.assert_allclose(numbers(fold, mixed), numbers(fold, fold.row_sums(batch)), rtol=1e-11)


@pytest.mark.parametrize("sessions", [50, 3 * N_BLOCKS])
def test_clusters_of_a_single_batch_add_up_and_may_then_be_forgotten(sessions: int) -> None:
    batch = drawn(3, sessions=sessions)[0]
    fold, remembering = (
        ImpressionFold(estimators=ope.parse("impression").impressions, spans_batches=spans_batches)
        for spans_batches in (False, True)
    )
    edges = [sessions // 5, sessions // 2]
    which = np.searchsorted(edges, batch.cluster, side="right")
    pieces = [fold.row_sums(batch.take(which == piece)) for piece in range(3)]
    np.testing.assert_allclose(
        numbers(fold, pieces[2] + pieces[0] + pieces[1]), numbers(fold, fold.row_sums(batch)), rtol=1e-11
    )
    np.testing.assert_allclose(
        numbers(fold, fold.row_sums(batch)), numbers(remembering, remembering.row_sums(batch)), rtol=1e-11
    )


def test_an_empty_batch_changes_nothing() -> None:
    fold = ImpressionFold(estimators=ope.parse("impression").impressions, spans_batches=True)
    batch = drawn(4)[0]
    nothing = fold.row_sums(batch.take(np.zeros(len(batch), dtype=bool)))
    assert numbers(fold, nothing + fold.row_sums(batch)) == numbers(fold, fold.row_sums(batch))
    assert {line.verdict for line in fold.finish(nothing)} == {"insufficient"}


def test_five_estimators_need_80_bytes_a_cluster() -> None:
    fold = ImpressionFold(estimators=ope.parse("ips,snips,clipped-ips,dm,dr").impressions, spans_batches=True)
    assert 8 + 8 * len(fold.columns) == 80


def test_memory_is_bounded_where_clusters_end() -> None:
    terms = np.ones((100_000, 3))
    summary = moments(terms, np.arange(100_000), columns=("rows", "b", "c"), spans_batches=False).summary()
    assert summary.units.shape == (N_BLOCKS, 3)
    assert summary.n_clusters.tolist() == [100_000] * 3


@pytest.mark.parametrize("sessions", [50, 3 * N_BLOCKS])
def test_clusters_of_a_partition_are_forgotten_with_it(sessions: int) -> None:
    fold = ImpressionFold(estimators=ope.parse("impression").impressions, spans_batches=True)
    batch = drawn(6, sessions=sessions)[0]
    partition = batch.cluster % 2
    pieces = [fold.row_sums(each) for side in (0, 1) for each in parts(batch.take(partition == side), [30])]
    (first, second), (third, fourth) = pieces[:2], pieces[2:]
    closed = (first + second).close() + (third + fourth).close()
    np.testing.assert_allclose(numbers(fold, closed), numbers(fold, fold.row_sums(batch)), rtol=1e-11)
    assert len(closed.moments.summary().units) == min(N_BLOCKS, len(np.unique(batch.cluster)))
    with pytest.raises(ValueError, match="do not add up"):
        closed + first


def test_sums_of_other_estimators_do_not_add_up() -> None:
    batch = drawn(5)[0]
    of_ips, of_dr = (
        ImpressionFold(estimators=ope.parse(names).impressions, spans_batches=True).row_sums(batch)
        for names in ("ips", "dr")
    )
    with pytest.raises(ValueError, match="do not add up"):
        of_ips + of_dr
