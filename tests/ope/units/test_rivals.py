"""Several targets that are judged on one log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Array
from rlrec.ope.sums.base import LogBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import ImpressionFold, compare_targets

ARMS = 10


def judged(
    targets: Array, rates: Array, seed: int, *, n: int = 400, names: str = "snips", interval: str = "bootstrap-t"
) -> list[list[Estimate]]:
    """The estimates of targets (t, a) on a log of n rows of a uniform logger."""
    rng = np.random.default_rng(seed)
    arm, cluster = rng.integers(0, ARMS, n), rng.integers(0, 2**62, n)
    reward = 1.0 * (rng.random(n) < rates[arm])
    fold = ImpressionFold(estimators=ope.parse(names).impressions, spans_batches=False)
    options = FinishOptions(reward_range=(0.0, 1.0), interval=interval, replicates=499)
    shared: dict[str, Any] = {
        "propensity": np.full(n, 1 / ARMS), "reward": reward, "cluster": cluster, "predicted": rates[arm],
    }  # fmt: skip
    partials = [
        fold.row_sums(LogBatch(target=target[arm], expected=np.full(n, target @ rates), **shared)) for target in targets
    ]
    estimates = [fold.finish(partial, options) for partial in partials]
    return compare_targets(estimates, [fold.estimator_folds(partial) for partial in partials], options)


def column(rows: Sequence[Sequence[Estimate]], name: str) -> Array:
    return np.array([np.nan if (figure := getattr(row[0], name)) is None else figure for row in rows], np.float64)


def alarms(logs: int) -> dict[str, int]:
    """In how many logs some of 60 equal targets is called better or worse, by bounds that hold together and one by one,
    and in how many one of them, which is the best as all are, is left out."""
    targets, rates = np.random.default_rng(3).dirichlet(np.full(ARMS, 2.0), 60), np.full(ARMS, 0.3)
    counts = {"together": 0, "single": 0, "left out": 0}
    for seed in range(logs):
        rows = judged(targets, rates, seed)
        for name, bounds in (("together", "simultaneous"), ("single", "lift")):
            counts[name] += bool(((column(rows, f"{bounds}_lower") > 0) | (column(rows, f"{bounds}_upper") < 0)).any())
        counts["left out"] += rows[0][0].may_be_best is False
    return counts


@pytest.mark.simulation
def test_of_60_equal_targets_hardly_ever_one_is_called_better_or_worse() -> None:
    """20 logs at 95 %: more than 5 alarms come in 1 of 3,000 series at 5 %. One by one, some target differs in most
    logs."""
    counts = alarms(20)
    assert counts["together"] <= 5
    assert counts["left out"] <= 5
    assert counts["single"] > 7


def test_the_best_target_is_told_from_the_worst() -> None:
    """The last two targets show different arms that are equally good."""
    rates = np.where(np.arange(ARMS) < 5, 0.1, 0.4)
    targets = np.array([[1.0] * 10, [2.0] * 5 + [0.0] * 5, [0.0] * 5 + [2.0] * 5, [0.0] * 7 + [3.0, 3.0, 4.0]]) / 10
    rows = judged(targets, rates, 1, n=4_000, names="snips,dr")
    for number in range(2):
        assert [row[number].may_be_best for row in rows] == [False, False, True, True]
        alone = [(row[number].lift_lower, row[number].lift_upper) for row in rows]
        joint = [(row[number].simultaneous_lower, row[number].simultaneous_upper) for row in rows]
        assert number or joint[0] == alone[0] == (0.0, 0.0)
        for (low, high), (joint_low, joint_high) in zip(alone[1:], joint[1:], strict=True):
            assert joint_low < low < high < joint_high


def test_bounds_of_all_targets_reach_equally_many_errors() -> None:
    """By the largest t of all: those of a single target differ from draw to draw, and widen no others."""
    targets = np.random.default_rng(7).dirichlet(np.full(ARMS, 2.0), 20)
    rows = judged(targets, np.full(ARMS, 0.3), 5)
    lift, error = column(rows, "lift"), column(rows, "lift_std_error")
    below, above = (np.abs(column(rows, f"simultaneous_{side}") - lift) / error for side in ("lower", "upper"))
    assert np.allclose([below, above], [below[:1], above[:1]], rtol=1e-9, atol=0.0)
    assert min(below[0], above[0]) > 2.5


def test_a_single_target_has_no_rivals() -> None:
    ((row,),) = judged(np.full((1, ARMS), 0.1), np.full(ARMS, 0.3), 2)
    assert (row.simultaneous_lower, row.simultaneous_upper, row.may_be_best) == (None, None, None)
    assert row.lift_bounds == (row.lift_lower, row.lift_upper)


def test_equal_targets_may_both_be_the_best() -> None:
    target = np.random.default_rng(4).dirichlet(np.ones(ARMS))
    rows = judged(np.stack([target, target]), np.linspace(0.1, 0.4, ARMS), 3, n=2_000)
    assert [row[0].may_be_best for row in rows] == [True, True]
    assert rows[0][0].simultaneous_lower == pytest.approx(rows[0][0].lift_lower, rel=1e-9)


def test_other_intervals_hold_together_at_the_level_of_bonferroni() -> None:
    targets = np.random.default_rng(5).dirichlet(np.full(ARMS, 5.0), 3)
    for (row,) in judged(targets, np.linspace(0.1, 0.4, ARMS), 3, n=2_000, interval="normal"):
        assert row.lift is not None
        assert row.lift_lower is not None
        assert row.simultaneous_lower is not None
        ratio = (row.lift - row.simultaneous_lower) / (row.lift - row.lift_lower)
        assert ratio == pytest.approx(2.394 / 1.960, abs=1e-3)
        assert row.may_be_best is None


def test_what_is_insufficient_is_no_rival() -> None:
    """A target of one arm has 40 effective rows of 400: it neither widens the bounds of others nor may be the best."""
    targets = np.vstack([np.random.default_rng(6).dirichlet(np.full(ARMS, 5.0), 2), np.eye(ARMS)[:1]])
    rows = judged(targets, np.full(ARMS, 0.3), 4)
    assert [row[0].verdict == "insufficient" for row in rows] == [False, False, True]
    pair = judged(targets[:2], np.full(ARMS, 0.3), 4)
    assert [row[0].simultaneous_upper for row in rows[:2]] == [row[0].simultaneous_upper for row in pair]
    assert rows[2][0].may_be_best is None
