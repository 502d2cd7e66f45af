"""Budgets as they are typed, and the slices of time in which spend is counted."""

from __future__ import annotations

import pytest

from rlrec.errors import InputError
from rlrec.policy.beliefs.budget import N_SLICES, US_BY_PERIOD, Budget
from rlrec.times import parse


def test_a_budget_is_an_event_with_an_amount_for_a_period() -> None:
    assert Budget.parse("cost_usd:25/day") == Budget("cost_usd", 25.0, "day")
    assert Budget.parse("tokens.out:2.5e6/hour") == Budget("tokens.out", 2.5e6, "hour")


def test_another_text_is_refused_with_the_form() -> None:
    with pytest.raises(InputError, match=r"budget is 'cost=25/day'") as refused:
        Budget.parse("cost=25/day")
    assert "cost_usd:25/day" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("period", "begins"),
    [("hour", "2026-03-04T05:00:00Z"), ("day", "2026-03-04T00:00:00Z"), ("week", "2026-03-02T00:00:00Z")],
)
def test_a_period_has_so_many_slices_and_weeks_begin_on_monday(period: str, begins: str) -> None:
    budget, begin = Budget("cost", 1.0, period), parse(begins)
    assert budget.slices(begin) % N_SLICES == 0
    assert budget.bucket(begin + US_BY_PERIOD[period]) == budget.bucket(begin) - N_SLICES
    assert budget.bucket(begin - 1) == budget.bucket(begin) + 1
    assert budget.bucket(begin) == -1 - int(budget.slices(begin)) < 0
