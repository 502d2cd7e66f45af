"""Answers: better, worse, the same, or how much more is needed to tell."""

from __future__ import annotations

from typing import Any

import pytest

from rlrec.ope.checks.reasons import HINTS, helpful_hints, hint, in_groups
from rlrec.ope.checks.verdicts import Answer, judge_difference

LIFT: dict[str, Any] = {"scale": 1.0, "precision": 5e-4, "clusters": 1_000}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((0.3, 0.1, 0.5), Answer("better", None)),
        ((-0.3, -0.5, -0.1), Answer("worse", None)),
        ((0.0, 0.0, 0.0), Answer("same", None)),
        ((1e-15, 1e-15, 1e-15), Answer("same", None)),
        ((0.005, -0.01, 0.02), Answer("same", None)),
        # half the width is twice the difference: four times as many clusters are wanted
        ((0.1, -0.1, 0.3), Answer("unknown", 3_000)),
        # a difference of next to nothing is told apart from 2 %, no less
        ((0.0, -0.04, 0.04), Answer("unknown", 3_000)),
        # the bound on the other side of 0 decides, not the long tail
        ((0.1, -0.1, 3.0), Answer("unknown", 3_000)),
        ((-0.1, -3.0, 0.1), Answer("unknown", 3_000)),
        # too small a difference to matter: an interval within 2 % comes first
        ((0.001, -0.039, 0.041), Answer("unknown", 3_430)),
        ((None, None, None), Answer("unknown", None)),
    ],
)
def test_the_interval_decides(figures: tuple[float, float, float], expected: Answer) -> None:
    answer = judge_difference(*figures, **LIFT)
    assert answer.answer == expected.answer
    assert answer.needed == (None if expected.needed is None else pytest.approx(expected.needed, rel=0.02))


def test_a_small_sample_leaves_an_interval_that_counts() -> None:
    assert judge_difference(0.3, 0.1, 0.5, **LIFT, verdict="weak", reasons=["low-ess"]).answer == "better"


def test_one_cluster_does_not_say_that_sides_are_the_same() -> None:
    """Its weighted mean is its own value, whatever its weight."""
    figures = {**LIFT, "verdict": "insufficient"}
    answers = [judge_difference(0.0, 0.0, 0.0, **figures | {"clusters": clusters}).answer for clusters in (1, 2)]
    assert answers == ["unknown", "same"]


@pytest.mark.parametrize("reason", ["mean-weight", "carry-over", "in-sample", "refuted", "drift", "no-users"])
def test_other_doubts_leave_no_answer(reason: str) -> None:
    assert judge_difference(0.3, 0.1, 0.5, **LIFT, verdict="weak", reasons=[reason]) == Answer("unknown", None)


def test_reasons_that_raise_no_doubt_change_nothing() -> None:
    assert judge_difference(0.3, 0.1, 0.5, **LIFT, reasons=["independent-slots", "logging-states"]).answer == "better"


def test_too_few_effective_clusters_are_counted() -> None:
    answer = judge_difference(0.3, 0.1, 0.5, **LIFT, verdict="insufficient", ess=10.0, reasons=["low-ess"])
    assert answer == Answer("unknown", 4_000)


def test_nothing_to_compare_with_has_no_least_difference() -> None:
    assert judge_difference(0.0, -1.0, 1.0, scale=0.0, precision=1e-9, clusters=10) == Answer("unknown", None)


def test_too_few_rewards_are_counted_beside_the_width() -> None:
    answer = judge_difference(
        0.3, 0.1, 0.5, **LIFT, verdict="insufficient", ess=900.0, rewards=3.0, reasons=["few-rewards"]
    )
    assert answer == Answer("unknown", 9_000)
    assert judge_difference(0.3, None, 0.5, **LIFT, verdict="insufficient", rewards=3.0) == Answer("unknown", 9_000)


def test_a_bound_within_the_precision_of_the_log_asks_for_more_than_one() -> None:
    """The bound must pass the precision, .0005: a reach of .0997 is 1.002 times as long as it may be."""
    assert judge_difference(0.1, 0.0003, 0.1997, **LIFT) == Answer("unknown", 5)


def test_too_few_rewards_for_a_bound_are_counted_in_a_weak_estimate_too() -> None:
    few = judge_difference(0.3, None, 0.5, **LIFT, verdict="weak", ess=900.0, rewards=3.0, reasons=["few-rewards"])
    assert few == Answer("unknown", 9_000)


def test_where_nothing_is_known_to_be_missing_no_number_is_named() -> None:
    """The interval excludes 0, and the verdict is insufficient for something that is not counted."""
    assert judge_difference(0.3, 0.1, 0.5, **LIFT, verdict="insufficient", ess=900.0, rewards=90.0) == Answer(
        "unknown", None
    )
    assert judge_difference(0.1, -0.1, 0.3, **LIFT, verdict="weak", reasons=["clipping-bias"]) == Answer(
        "unknown", None
    )


@pytest.mark.parametrize("reasons", [["no-users"], ["in-sample", "drift"], ["low-ess", "few-rewards"]])
def test_the_policy_that_served_is_the_same_whatever_else_is_in_doubt(reasons: list[str]) -> None:
    assert judge_difference(0.0, 0.0, 0.0, **LIFT, verdict="insufficient", reasons=reasons) == Answer("same", None)


@pytest.mark.parametrize("reason", ["wrong-propensities", "estimated-propensity", "mean-weight", "no-variation"])
def test_equal_weights_say_nothing_where_they_are_in_doubt(reason: str) -> None:
    assert judge_difference(0.0, 0.0, 0.0, **LIFT, verdict="weak", reasons=[reason]) == Answer("unknown", None)


def test_more_visits_support_late_steps_where_enough_of_them_are_effective() -> None:
    figures: dict[str, Any] = {**LIFT, "verdict": "insufficient", "reasons": ["short-horizon"]}
    assert judge_difference(0.3, 0.1, 0.5, **figures | {"clusters": 400}, ess=25.0) == Answer("unknown", 400)
    assert judge_difference(0.3, 0.1, 0.5, **figures, ess=25.0) == Answer("unknown", None)


def test_what_makes_an_estimate_worthless_comes_before_what_weakens_it() -> None:
    groups = in_groups(["carry-over", "models-differ", "drift", "wrong-propensities"])
    assert list(groups.items()) == [
        ("log", ["wrong-propensities", "drift"]), ("model", ["models-differ"]), ("state", ["carry-over"]),
    ]  # fmt: skip


def test_only_hints_that_help_are_given() -> None:
    assert helpful_hints(["wrong-propensities", "models-differ", "carry-over"]) == ["wrong-propensities"]
    assert helpful_hints(["no-rows", "low-ess", "no-propensity"]) == ["no-propensity"]
    assert helpful_hints(["low-ess", "no-propensity"]) == ["low-ess"]
    assert helpful_hints(["drift", "young-rewards", "low-ess"]) == ["low-ess", "young-rewards"]
    assert helpful_hints(["drift", "low-ess", "unsupported"], is_explored=True) == ["unsupported", "drift"]
    step = "`rlrec evaluate home --log since={}`, with the newest decisions"
    assert hint("drift", target="home", middle="2026-01-08") == step.format("2026-01-08")
    assert hint("drift", target="home") == step.format("DAY")


@pytest.mark.parametrize("reason", HINTS)
def test_a_hint_holds_one_command(reason: str) -> None:
    assert hint(reason).count("`") == 2
    assert "`rlrec " in hint(reason)
