"""Figures depend on rows and digests of clusters, never on the order of rows, of batches, or on how they were split."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Ids
from rlrec.ope.comparisons.comparison import MetricValue
from rlrec.ope.comparisons.comparison import fold as fold_metric
from rlrec.ope.estimators.direct import Ridge
from rlrec.ope.sums.base import LogBatch, hash_bits
from rlrec.ope.sums.moments import N_BLOCKS
from rlrec.ope.sums.visits import VisitBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import ImpressionFold, RowSums
from rlrec.ope.units.sessions import SessionFold
from tests.ope.cases import drawn
from tests.ope.visiting import difference, walks

# Clusters: each has sums of its own, or only their blocks have.
SIZES = [60, pytest.param(N_BLOCKS + 500, marks=pytest.mark.slow)]


def assert_equal(first: Any, second: Any) -> None:
    """Equal figure by figure, numbers to 1e-12 relative."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        if isinstance(a, (tuple, list)):
            assert_equal(a, b)
        else:
            assert a == (pytest.approx(b, rel=1e-12, abs=1e-15) if isinstance(b, float) else b)


def figures(estimates: list[Estimate]) -> list[tuple[Any, ...]]:
    return [astuple(estimate) for estimate in estimates]


def impressions(seed: int, clusters: int) -> LogBatch:
    batch, _ = drawn(seed, sessions=clusters)
    noise = np.random.default_rng(seed).normal(1, 0.1, len(batch))
    assert batch.predicted is not None
    return replace(batch, cluster=hash_bits(batch.cluster, salt=7), predicted=batch.predicted * noise)


def pieces(cluster: Ids, seed: int, *, spans_batches: bool) -> list[Ids]:
    """The rows in another order, in three batches; without `spans_batches` a cluster lies in one of them."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(cluster))
    which = (
        generator.integers(0, 3, len(order)) if spans_batches else hash_bits(cluster[order], salt=seed) % np.uint64(3)
    )
    return [order[which == piece] for piece in (2, 0, 1)]


@pytest.mark.parametrize("spans_batches", [True, False])
@pytest.mark.parametrize("interval", ["bootstrap-t", "normal", "cressie-read"])
@pytest.mark.parametrize("clusters", SIZES)
def test_estimates_per_impression(clusters: int, interval: str, spans_batches: bool) -> None:
    batch = impressions(clusters, clusters)
    chosen = ope.parse("ips,snips" if interval == "cressie-read" else "impression,switch-dr:1,dros:2").impressions
    fold = ImpressionFold(estimators=chosen, spans_batches=spans_batches)
    first, *others = (fold.row_sums(batch.take(rows)) for rows in pieces(batch.cluster, 1, spans_batches=spans_batches))
    options = FinishOptions(interval=interval, reward_range=(0.0, 1.0), replicates=499)
    assert_equal(
        figures(fold.finish(sum(others, start=first), options)), figures(fold.finish(fold.row_sums(batch), options))
    )


def sessions(seed: int, clusters: int) -> list[VisitBatch]:
    batches, _ = walks(seed, [[0.6, 0.2, 0.2], [0.2, 0.3, 0.5]], visits=2 * clusters, users=clusters)
    return [replace(batch, cluster=hash_bits(batch.cluster, salt=7)) for batch in batches]


def added(fold: SessionFold, batch: VisitBatch, *, spans_batches: bool) -> RowSums:
    first, *others = (fold.row_sums(batch.take(rows)) for rows in pieces(batch.cluster, 2, spans_batches=spans_batches))
    return sum(others, start=first)


@pytest.mark.parametrize("spans_batches", [True, False])
@pytest.mark.parametrize("interval", ["bootstrap-t", "normal"])
@pytest.mark.parametrize("clusters", SIZES)
def test_estimates_and_differences_per_session(clusters: int, interval: str, spans_batches: bool) -> None:
    batch, other = sessions(clusters, clusters)
    fold = SessionFold(estimators=ope.parse("session").sessions, gamma=0.9, horizon=6, spans_batches=spans_batches)
    in_order = [fold.row_sums(side) for side in (batch, other)]
    mixed = [added(fold, side, spans_batches=spans_batches) for side in (batch, other)]
    options = FinishOptions(interval=interval, replicates=199)
    assert_equal(figures(fold.finish(mixed[0], options)), figures(fold.finish(in_order[0], options)))
    gains = [difference(fold, *sides, replicates=199) for sides in (mixed, in_order)]
    assert_equal(*map(astuple, gains))


@pytest.mark.parametrize("clusters", SIZES)
def test_reward_models(clusters: int) -> None:
    batch = impressions(clusters, clusters)
    generator = np.random.default_rng(clusters)
    arm, position = generator.integers(0, 5, len(batch)), generator.integers(1, 3, len(batch))
    context = generator.normal(size=(len(batch), 3))
    ridge = Ridge(arms=5, positions=2, features=3)
    models = []
    for parts in ([np.arange(len(batch))], pieces(batch.cluster, 3, spans_batches=True)):
        first, *others = (
            ridge.sums(
                batch.reward[rows],
                arm[rows],
                position=position[rows],
                cluster=batch.cluster[rows],
                context=context[rows],
            )
            for rows in parts
        )
        models.append(ridge.finish(sum(others, start=first)))
    for name in ("effects", "coefficients"):
        np.testing.assert_allclose(getattr(models[1], name), getattr(models[0], name), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("clusters", SIZES)
def test_means_of_variants(clusters: int) -> None:
    batch = impressions(clusters, clusters)
    first, *others = (
        fold_metric(batch.reward[rows], batch.cluster[rows], spans_batches=True)
        for rows in pieces(batch.cluster, 4, spans_batches=True)
    )
    means = [
        MetricValue.from_sums(partial)
        for partial in (sum(others, start=first), fold_metric(batch.reward, batch.cluster, spans_batches=True))
    ]
    assert_equal(*map(astuple, means))


def test_digests_without_sign_are_those_with_it() -> None:
    batch = impressions(5, 60)
    signed = replace(batch, cluster=batch.cluster.view(np.int64))
    fold = ImpressionFold(estimators=ope.parse("impression").impressions, spans_batches=True)
    assert figures(fold.finish(fold.row_sums(signed))) == figures(fold.finish(fold.row_sums(batch)))
