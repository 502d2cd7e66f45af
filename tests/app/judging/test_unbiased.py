"""Policies judged on logs of others that learned meanwhile; at full size: python -m tests.benchmarks -k unbiased."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks import unbiased
from tests.benchmarks.unbiased import ALL, EASY, FLOOR, HARD, LOW_FLOOR, Logs, Params, judged, logs, policy_of


def log(kind: str, params: Params, *, runs: int, decisions: int, seed: int = 1) -> Logs:
    policy = policy_of(kind, params, arms=len(EASY), floor=FLOOR)
    return logs(policy, EASY, runs=runs, decisions=decisions, seed=seed)


@pytest.mark.simulation
@pytest.mark.parametrize(("kind", "params"), ALL)
def test_what_a_kind_logs_judges_uniform_fairly(kind: str, params: Params) -> None:
    """False alarms of a kind below 1e-4: Student's t beyond 5; 16 of 100 intervals miss, or 7 of 20."""
    few = "samples" in params  # they are slow
    rows = judged(log(kind, params, runs=20 if few else 100, decisions=300 if few else 500))
    assert abs(unbiased.error(rows, EASY)) < 5
    assert unbiased.covered(rows, EASY) > (0.65 if few else 0.84)


def test_propensities_a_tenth_too_high_are_found() -> None:
    """About nine standard errors off: missed once in 10,000."""
    true = log("ucb", {}, runs=100, decisions=500)
    assert unbiased.error(judged(replace(true, propensity=true.propensity * 1.1)), EASY) < -5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uniform", "ucb", "thompson"])
def test_an_estimate_from_ten_clicks_is_called_weak(kind: str) -> None:
    """Thirty clicks would do, which 2,000 decisions at .005 have once in ten million runs."""
    policy = policy_of(kind, {}, arms=len(HARD), floor=LOW_FLOOR)
    assert unbiased.doubted(judged(logs(policy, HARD, runs=10, seed=2))) == 1


def test_an_estimate_from_hundreds_of_clicks_is_not() -> None:
    assert unbiased.doubted(judged(log("uniform", {}, runs=10, decisions=2_000))) == 0
