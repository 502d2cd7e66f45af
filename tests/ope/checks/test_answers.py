"""Answers: better, worse, the same, or how much more is needed to tell."""

from __future__ import annotations

from typing import Any

import pytest

from rlrec.ope.checks.answers import Answer, judge

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
        ((None, None, None), Answer("unknown", None)),
    ],
)
def test_the_interval_decides(figures: tuple[float, float, float], expected: Answer) -> None:
    answer = judge(*figures, **LIFT)
    assert answer.answer == expected.answer
    assert answer.needed == (None if expected.needed is None else pytest.approx(expected.needed, abs=1))


def test_a_small_sample_leaves_an_interval_that_counts() -> None:
    assert judge(0.3, 0.1, 0.5, **LIFT, verdict="weak", reasons=["low-ess"]).answer == "better"


@pytest.mark.parametrize("reason", ["mean-weight", "carry-over", "in-sample", "refuted", "drift", "no-users"])
def test_other_doubts_leave_no_answer(reason: str) -> None:
    assert judge(0.3, 0.1, 0.5, **LIFT, verdict="weak", reasons=[reason]) == Answer("unknown", None)


def test_reasons_that_raise_no_doubt_change_nothing() -> None:
    assert judge(0.3, 0.1, 0.5, **LIFT, reasons=["independent-slots", "logging-states"]).answer == "better"


def test_too_few_effective_clusters_are_counted() -> None:
    answer = judge(0.3, 0.1, 0.5, **LIFT, verdict="insufficient", ess=10.0, reasons=["low-ess"])
    assert answer == Answer("unknown", 4_000)


def test_nothing_to_compare_with_has_no_least_difference() -> None:
    assert judge(0.0, -1.0, 1.0, scale=0.0, precision=1e-9, clusters=10) == Answer("unknown", None)
