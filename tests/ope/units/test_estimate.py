"""Reports of estimates: the keys of the command contract, and no NaN anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from rlrec.ope.sums.base import LogBatch
from rlrec.ope.units.estimate import Estimate
from tests.ope.cases import HAND, drawn, judged

CONTRACT = """estimator estimand unit value std_error lower upper level interval cluster clusters n ess max_weight
mean_weight top1_share unsupported verdict reasons"""


def test_fields_are_the_keys_of_the_contract_in_order() -> None:
    assert [field.name for field in fields(Estimate)][:19] == CONTRACT.split()


def test_a_sound_log_is_called_ok() -> None:
    batch, truth = drawn(0, sessions=2000)
    for estimate in judged(batch, "ips,snips,clipped-ips,dr", reward_range=(0.0, 1.0)):
        assert (estimate.verdict, estimate.reasons) == ("ok", ())
        assert (estimate.lower or 1) < truth < (estimate.upper or 0)


def test_an_estimand_says_what_is_estimated() -> None:
    for greedy, manner in ((False, "as served"), (True, "greedy")):
        (estimate,) = judged(HAND, "ips", greedy=greedy)
        assert estimate.estimand == f"mean reward per impression, {manner}, logging states"


def test_a_lift_has_the_doubt_in_both_of_its_sides() -> None:
    """The delta method for V / S - 1 by hand: the clusters' sums of rows, weights, weighted rewards and rewards."""
    batch, _ = drawn(3, sessions=50)
    columns = np.ones(len(batch)), batch.weight, batch.weight * batch.reward, batch.reward
    rows, weight, weighted, reward = (np.bincount(batch.cluster, weights=column) for column in columns)
    for estimate, denominator in zip(judged(batch, "ips,snips", interval="normal"), (rows, weight), strict=True):
        value, served = weighted.sum() / denominator.sum(), reward.sum() / rows.sum()
        of_value = (weighted - value * denominator) / denominator.sum()
        influence = of_value / served - value / served**2 * (reward - served * rows) / rows.sum()
        error = np.sqrt(50 / 49 * (influence**2).sum())
        assert estimate.lift == pytest.approx(value / served - 1)
        assert estimate.lift_std_error == pytest.approx(error, rel=1e-9)
        bounds = (value / served - 1 - 1.959964 * error, value / served - 1 + 1.959964 * error)
        assert (estimate.lift_lower, estimate.lift_upper) == pytest.approx(bounds, rel=1e-6)


def test_what_served_is_as_good_as_itself() -> None:
    batch, _ = drawn(4)
    for estimate in judged(replace(batch, target=batch.propensity), "ips,snips"):
        assert (estimate.lift, estimate.lift_lower, estimate.lift_upper) == (0.0, 0.0, 0.0)


def test_a_share_of_what_may_be_nothing_has_no_bounds() -> None:
    batch, _ = drawn(5)
    once = replace(batch, reward=(np.arange(len(batch)) == 7).astype(np.float64))
    for estimate in judged(once, "ips,snips"):
        assert (estimate.lift_lower, estimate.lift_upper) == (None, None)


def awkward() -> dict[str, LogBatch]:
    row = HAND.take(np.array([0]))
    tiny = replace(HAND, propensity=np.array([1e-300, 5e-324, 0.5, 0.5]))
    return {
        "hand": HAND,
        "one row": row,
        "no row": HAND.take(np.zeros(4, dtype=bool)),
        "no propensity": replace(HAND, propensity=np.full(4, np.nan)),
        "no weight": replace(HAND, target=np.zeros(4)),
        "no reward": replace(HAND, reward=np.zeros(4)),
        "rounded propensity": tiny,
        "one cluster": replace(HAND, cluster=np.zeros(4, dtype=np.int64)),
    }


@pytest.mark.parametrize("interval", ["bootstrap-t", "normal", "cressie-read"])
@pytest.mark.parametrize("name", awkward())
def test_no_log_is_awkward_enough_for_a_nan_or_a_warning(name: str, interval: str) -> None:
    names = "ips,snips" if interval == "cressie-read" else "impression"
    for estimate in judged(awkward()[name], names, interval=interval, reward_range=(0.0, 3.0)):
        json.dumps(asdict(estimate), allow_nan=False)
        assert estimate.verdict == "insufficient"
        assert estimate.reasons
        assert estimate.value is not None or (estimate.lower, estimate.upper) == (None, None)


def test_rows_without_propensity_still_serve_the_direct_method() -> None:
    ips, dm = judged(awkward()["no propensity"], "ips,dm")
    assert (ips.value, ips.n, ips.left_out) == (None, 0, 4)
    assert {"no-rows", "no-propensity"} <= set(ips.reasons)
    assert (dm.value, dm.n) == (0.6875, 4)
    assert "no-propensity" not in dm.reasons
