"""Routes under many processes: whatever happens to a ramp, no caller fails, and beliefs are what slots add up to."""

from collections.abc import Callable
from typing import Any

import pytest

from rlrec.app.experiments import route
from rlrec.app.upkeep.doctor import Request, doctor
from rlrec.store import Store
from rlrec.store.policies import routes
from tests.app.shop import stocked
from tests.app.workers import calls_route, names_route, ramps_route, together

CALLERS, RAMPS = 4, 3  # each way to end a ramp; was run with 16 and 4


def either(store: Store, item: tuple[Callable[..., Any], Any]) -> Any:
    work, argument = item
    return work(store, argument)


@pytest.mark.slow
def test_no_caller_fails_while_ramps_come_and_go(store: Store, db: str) -> None:
    stocked(store, home="thompson", other="uniform")
    route.create(store, route.Request(name="front", to="home"))
    callers = [(calls_route, (number, RAMPS)) for number in range(CALLERS)]
    *called, _ = together(either, db, [*callers, (ramps_route, RAMPS)])
    answers = [answer for of_caller in called for answer in of_caller]
    assert {answer["route"] for answer in answers} == {"front"}
    assert {answer["variant"] for answer in answers} == {None, "current", "candidate"}
    with store.read() as unit:
        assert len(routes.by_decision(unit, [answer["decision_id"] for answer in answers])) == len(answers)
    assert doctor(store, Request()).findings == []


@pytest.mark.slow
def test_a_name_goes_to_a_policy_or_to_a_route(store: Store, db: str) -> None:
    stocked(store, home="uniform")
    won = together(names_route, db, [(number, 5) for number in range(4)])
    assert sorted(name for of_process in won for name in of_process) == [f"name{number // 2}" for number in range(10)]
