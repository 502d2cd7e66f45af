"""Estimates of returns: those of plain loops, the same however the visits are cut, and honest about their doubt."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from rlrec import ope
from rlrec.errors import InputError
from rlrec.ope.checks.verdicts import explain_reasons
from rlrec.ope.sums.moments import N_BLOCKS
from rlrec.ope.sums.visits import VisitBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.sessions import SessionFold
from tests.ope.sums.test_visits import HAND
from tests.ope.visiting import by_loops, complete, folded, held, judged, ragged, walks


def figures(estimates: list[Estimate]) -> list[float]:
    rows = [(e.value, e.std_error, e.lower, e.upper, e.ess, e.top1_share, e.cluster_share) for e in estimates]
    return [np.nan if figure is None else figure for line in rows for figure in line]


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_estimates_are_those_of_plain_loops(seed: int, gamma: float) -> None:
    batch = ragged(seed)
    expected = by_loops(batch, gamma)
    for estimate in judged(batch, gamma=gamma, interval="normal"):
        assert estimate.value == pytest.approx(expected[estimate.estimator], rel=1e-12, abs=1e-12)


def test_estimates_by_hand() -> None:
    estimates = {estimate.estimator: estimate.value for estimate in judged(HAND, gamma=0.5, interval="normal")}
    assert estimates["tis"] == pytest.approx((4.5 + 1) / 2)
    assert estimates["wis"] == pytest.approx((4.5 + 1) / 3.25)
    assert estimates["pdis"] == pytest.approx((3.5 + 1) / 2)
    assert estimates["wpdis"] == pytest.approx((2 + 1) / 2.25 + 0 + 1.5 / 3.25)
    assert estimates["dr-rl"] == pytest.approx((5.5 + 2.5) / 2)
    assert estimates["wdr"] == pytest.approx(2.5 + (2 + 0.5) / 2.25 - 0.25 / 1.25 + 0.75 / 3.25)


@pytest.mark.parametrize("users", [30, 3 * N_BLOCKS])
def test_users_that_span_batches_add_up(users: int) -> None:
    batch = ragged(1, visits=4 * N_BLOCKS, users=users)
    fold, partial = folded(batch)
    pieces = [fold.row_sums(batch.take(np.arange(len(batch)) % 4 == piece)) for piece in range(4)]
    mixed = (pieces[3] + pieces[0]) + (pieces[2] + pieces[1])
    direct, added = (fold.finish(sums, FinishOptions(replicates=99)) for sums in (partial, mixed))
    np.testing.assert_allclose(figures(added), figures(direct), rtol=1e-10)


@pytest.mark.parametrize("users", [40, 2 * N_BLOCKS])
def test_clusters_of_a_single_batch_may_be_forgotten(users: int) -> None:
    batch = ragged(2, visits=3 * N_BLOCKS, users=users)
    batch = batch.take(np.argsort(batch.cluster, kind="stable"))
    edge = batch.cluster[len(batch) // 3]
    remembering, fold = (folded(batch, spans_batches=spans_batches)[0] for spans_batches in (True, False))
    pieces = [fold.row_sums(batch.take(piece)) for piece in (batch.cluster < edge, batch.cluster >= edge)]
    added, direct = (
        fold.finish(pieces[1] + pieces[0], FinishOptions(replicates=99)),
        remembering.finish(remembering.row_sums(batch), FinishOptions(replicates=99)),
    )
    np.testing.assert_allclose(figures(added), figures(direct), rtol=1e-10)


@pytest.mark.slow
def test_errors_of_blocks_are_those_of_clusters() -> None:
    """Within 4 % for 16,384 clusters: the error of an error from 4,096 blocks is 1 / sqrt(2 x 4,096), one percent."""
    (batch,), _ = walks(3, [[0.5, 0.25, 0.25]], visits=4 * N_BLOCKS, users=4 * N_BLOCKS)
    for label, kind in ope.parse("wpdis,wdr").sessions.items():
        (estimate,) = judged(batch, label, interval="normal")
        table = _influences(batch, label)
        assert np.sqrt(len(table) / (len(table) - 1)) * np.linalg.norm(table) == pytest.approx(
            estimate.std_error, rel=0.04
        )
        assert estimate.clusters == 4 * N_BLOCKS
        assert kind.step_column is not None


def _influences(batch: VisitBatch, label: str) -> np.ndarray:
    """How far the estimate moves with each visit's weight, by the delta method, with a table of visits and steps."""
    w, gamma = held(batch), 0.9
    n, longest = w.shape
    row = batch.start[:-1, None] + np.arange(longest)
    alive = np.arange(longest) < batch.length[:, None]
    r, q, v = (np.where(alive, column[np.minimum(row, len(column) - 1)], 0.0) for column in _columns(batch))
    after = np.column_stack([v[:, 1:], np.zeros(n)])
    term = r if label == "wpdis" else r + gamma * after - q
    total = w.sum(axis=0)
    ratio = (w * term).sum(axis=0) / total
    moved = ((w * term - ratio * w) / total) @ gamma ** np.arange(longest)
    return moved if label == "wpdis" else moved + (v[:, 0] - v[:, 0].mean()) / n


def _columns(batch: VisitBatch) -> tuple[np.ndarray, ...]:
    assert batch.predicted is not None
    assert batch.expected is not None
    return batch.reward, batch.predicted, batch.expected


def test_effective_sample_size_by_step_by_hand() -> None:
    (estimate,) = judged(HAND, "tis", interval="normal")
    w = np.array([[2, 1, 3], [0.25, 0.25, 0.25]])
    assert estimate.ess_by_step == pytest.approx(w.sum(axis=0) ** 2 / (w**2).sum(axis=0))
    assert estimate.horizon is None
    assert estimate.ess == pytest.approx(3.25**2 / (9 + 0.0625))
    assert (estimate.n, estimate.clusters, estimate.unit, estimate.max_weight) == (2, 2, "session", pytest.approx(3))


def test_the_horizon_is_where_the_log_stops_supporting_the_target() -> None:
    """The target would make one of 100 visits of 3 steps to its end: 1 is below 5 %."""
    logs = np.zeros((100, 3))
    logs[1:, 2] = -np.inf
    batch = VisitBatch(start=np.arange(0, 301, 3), reward=np.ones(300), log_ratio=logs.ravel(), cluster=np.arange(100))
    (estimate,) = judged(batch, "wpdis", interval="normal")
    assert estimate.ess_by_step == pytest.approx((100, 100, 1))
    assert estimate.horizon == 2
    assert (estimate.verdict, estimate.return_steps, estimate.ess) == ("insufficient", 3, pytest.approx(1))
    assert "short-horizon" in estimate.reasons


@pytest.mark.parametrize(("supported", "reasons"), [(0.05, {"short-horizon"}), (0.0, set())])
def test_the_share_of_effective_visits_that_is_wanted_can_be_waived(supported: float, reasons: set[str]) -> None:
    """60 of 2,000 visits are effective: more than 50, and less than 5 %."""
    logs = np.full(2000, -np.inf)
    logs[:60] = 0
    batch = VisitBatch(start=np.arange(2001), reward=np.ones(2000), log_ratio=logs, cluster=np.arange(2000))
    fold = SessionFold(
        estimators=ope.parse("wpdis").sessions, gamma=1.0, horizon=1, spans_batches=False, least_support=supported
    )
    (estimate,) = fold.finish(fold.row_sums(batch), FinishOptions(interval="normal"))
    assert {"short-horizon"} & set(estimate.reasons) == reasons


def test_weights_that_collapse_do_not_look_supported() -> None:
    """Late weights of nearly all visits are 0: the mean weight along a visit is as even as at its start, and the late
    steps, which carry the return, are known from 3 visits of 1,000."""
    logs = np.zeros((1000, 6))
    logs[3:, 4] = -np.inf
    reward = np.tile([0.1, 0, 0, 0, 1, 1], (1000, 1))
    batch = VisitBatch(
        start=np.arange(0, 6001, 6), reward=reward.ravel(), log_ratio=logs.ravel(), cluster=np.arange(1000)
    )
    (estimate,) = judged(batch, "pdis", interval="normal")
    assert (estimate.ess, estimate.verdict, estimate.horizon) == (pytest.approx(3), "insufficient", 4)
    assert explain_reasons([vars(estimate)])[1] == (
        "short-horizon: the first 6 steps carry 90 % of the return of the target, and of 1,000 sessions 3 are "
        "effective at step 4 (insufficient); ask for --gamma 0.3 or a target nearer to what served"
    )
    # with a small discount the first reward is 90 % of the return
    assert estimate.supported_gamma == 0.3
    (discounted,) = judged(batch, "pdis", interval="normal", gamma=0.3)
    assert (discounted.ess, discounted.supported_gamma) == (pytest.approx(1000), None)
    assert "short-horizon" not in discounted.reasons


def test_weights_of_each_kind_are_diagnosed() -> None:
    estimates = {estimate.estimator: estimate for estimate in judged(HAND, gamma=0.5, interval="normal")}
    at_step_0 = 2.25**2 / (4 + 0.25**2)  # the smallest of the steps that carry 90 % of the return
    assert estimates["pdis"].ess == estimates["wdr"].ess == pytest.approx(at_step_0)
    assert [estimate.mean_weight for estimate in estimates.values()] == pytest.approx([1.625] * 6)
    assert estimates["pdis"].max_weight == pytest.approx(3)
    assert estimates["tis"].top1_share == pytest.approx(4.5 / 5.5)
    assert estimates["pdis"].cluster_share == pytest.approx(3.5 / 4.5)
    assert {estimate.k_hat for estimate in estimates.values()} == {None}


def test_a_reward_that_is_not_the_default_makes_a_visit_count() -> None:
    content = replace(HAND, default=np.array([True, True, True, False]))
    tis, pdis = judged(content, "tis,pdis", gamma=0.5, interval="normal")
    assert tis.reward_share == pytest.approx(0.25 / 3.25)
    assert pdis.reward_share == pytest.approx(0.25 / (0.25 + 3.25 / 1.75))


def test_visits_left_out_are_counted_and_named() -> None:
    batch = replace(complete(), left_out=3)
    fold, partial = folded(batch)
    for estimate in fold.finish(partial + fold.row_sums(batch), FinishOptions(interval="normal")):
        assert estimate.left_out == 6
        assert estimate.n == 2 * len(batch)
        assert "no-propensity" in estimate.reasons


@pytest.mark.slow
def test_a_sound_log_is_called_ok() -> None:
    (batch,), (truth,) = walks(0, [[0.4, 0.3, 0.3]])
    for estimate in judged(batch, gamma=1.0):
        assert (estimate.verdict, estimate.reasons) == ("ok", ())
        assert (estimate.lower or 9) < truth < (estimate.upper or 0)
        assert estimate.estimand == "mean return per session, as served, gamma 1"
    assert judged(batch, "tis", gamma=0.9, greedy=True)[0].estimand == "mean return per session, greedy, gamma 0.9"


def test_wrong_propensities_show_in_the_mean_weight() -> None:
    (batch,), _ = walks(0, [[0.4, 0.3, 0.3]])
    wrong = replace(batch, log_ratio=batch.log_ratio + 0.1)
    assert all("mean-weight" in estimate.reasons for estimate in judged(wrong, interval="normal"))


def awkward() -> dict[str, VisitBatch]:
    return {
        "hand": HAND,
        "one visit": HAND.take(np.array([0])),
        "no visit": HAND.take(np.zeros(2, dtype=bool)),
        "no weight": replace(HAND, log_ratio=np.full(4, -np.inf)),
        "no reward": replace(HAND, reward=np.zeros(4)),
        "rounded propensity": replace(HAND, log_ratio=np.array([690.0, 690.0, 0.0, 0.0]), largest=None),
        "one cluster": replace(HAND, cluster=np.zeros(2, dtype=np.int64)),
    }


@pytest.mark.parametrize("interval", ["bootstrap-t", "normal"])
@pytest.mark.parametrize("name", awkward())
def test_no_log_is_awkward_enough_for_a_nan_or_a_warning(name: str, interval: str) -> None:
    for estimate in judged(awkward()[name], interval=interval):
        json.dumps(asdict(estimate), allow_nan=False)
        assert estimate.verdict == "insufficient"
        assert estimate.reasons


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(InputError, match="cressie-read does not exist for wis"):
        judged(HAND, "wis", interval="cressie-read")
    estimators = ope.parse("tis").sessions
    for wrong in ({"gamma": 1.5}, {"gamma": np.nan}, {"horizon": 0}):
        with pytest.raises(InputError):
            SessionFold(**{"estimators": estimators, "gamma": 0.9, "horizon": 3, "spans_batches": True} | wrong)
    with pytest.raises(InputError, match="3 steps, more than the horizon of 2"):
        SessionFold(estimators=estimators, gamma=0.9, horizon=2, spans_batches=True).row_sums(HAND)


def test_sums_of_other_estimators_do_not_add_up() -> None:
    for names in ("tis,wdr", "wpdis,wdr"):
        first, second = (folded(HAND, name)[1] for name in names.split(","))
        with pytest.raises(ValueError, match="do not add up"):
            first + second


def test_another_estimator_changes_none() -> None:
    batch = ragged(6)
    together = {estimate.estimator: estimate for estimate in judged(batch, replicates=299)}
    for name in ope.GROUPS["session"]:
        (alone,) = judged(batch, name, replicates=299)
        assert figures([alone]) == pytest.approx(figures([together[name]]), rel=1e-10)
