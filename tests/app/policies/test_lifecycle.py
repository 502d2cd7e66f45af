"""Arms come and go: kinds that learn serve whom they may, forget nobody, and try who is new."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import Run, filled, runner

LEARNERS = ("ucb", "thompson", "exp3", "lin-thompson", "softmax")  # counts, sums over marginals, regressions, weights
EARLIER, LATER = "2026-01-01T12:00:00Z", "2026-01-01T12:01:00Z"


@pytest.fixture(params=LEARNERS)
def shop(sqlite_db: str, request: pytest.FixtureRequest) -> Run:
    """Arms a1, a2, a3 and a policy `home` of a kind that has shown all of them often, with few clicks."""
    return filled(sqlite_db, stocked, request.param)


def stocked(db: str, kind: str) -> None:
    run = runner(db)
    run("arm", "import", "-", stdin="".join(f'{{"arm": "a{n}"}}\n' for n in (1, 2, 3)))
    assert run("--now", EARLIER, "policy", "create", "home", "--kind", kind).exit_code == 0
    serve(run, EARLIER, 30, k=3)
    lines = [{"decision_id": n, "position": 1 + n % 3, "events": {"click": 1}} for n in range(1, 31, 5)]
    run("--now", EARLIER, "feedback", "--input", "-", stdin=lines)


def serve(run: Run, now: str, number: int, **options: Any) -> list[list[str]]:
    """The arms of so many pages."""
    line = json.dumps({"policy": "home", "session": "s", **options}) + "\n"
    answers = run("--now", now, "recommend", "--input", "-", "--seed", 1, stdin=line * number).lines
    return [[slot["arm"] for slot in answer["slate"]] for answer in answers]


def definitions(run: Run) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in run("policy", "show", "home", "--json").json["arms"]}


def counted(run: Run, arm: str) -> tuple[float, float]:
    row = definitions(run)[arm]
    return row["pulls"], row["reward_sum"]


def test_arms_restrict_one_request_alone(shop: Run) -> None:
    before = definitions(shop)["a2"]
    assert {arm for page in serve(shop, LATER, 20, arms=["a1", "a3"]) for arm in page} <= {"a1", "a3"}
    assert {*serve(shop, LATER, 1, arms=["a1", "a3"], k=2)[0]} == {"a1", "a3"}
    after = definitions(shop)
    assert (after["a2"]["pulls"], after["a2"]["reward_sum"]) == (before["pulls"], before["reward_sum"])
    assert after["a1"]["pulls"] + after["a3"]["pulls"] == 60 + 22
    assert {*serve(shop, LATER, 1, k=3)[0]} == {"a1", "a2", "a3"}


def test_a_retired_arm_leaves_at_once_and_keeps_what_it_earned(shop: Run) -> None:
    before = counted(shop, "a1")
    shop("--now", LATER, "arm", "retire", "a1")
    assert {arm for page in serve(shop, LATER, 20, k=2) for arm in page} == {"a2", "a3"}
    assert counted(shop, "a1") == before
    assert (definitions(shop)["a1"]["status"], definitions(shop)["a1"]["probability"]) == ("retired", 0)
    options = ["recommend", "--policy", "home", "--session", "s"]
    assert [shop("--now", LATER, *options, *more).exit_code for more in (["-k", 3], ["--arms", "a1"])] == [2, 2]


@pytest.mark.slow
def test_a_late_event_of_a_retired_arm_still_counts_and_restored_it_is_known(shop: Run) -> None:
    page = shop("--now", EARLIER, "recommend", "--policy", "home", "--session", "s", "--arms", "a1", "--json").json
    pulls, earned = counted(shop, "a1")
    shop("--now", LATER, "arm", "retire", "a1")
    shop("--now", LATER, "feedback", page["decision_id"], "click")
    shop("--now", LATER, "arm", "restore", "a1")
    assert counted(shop, "a1") == (pulls, earned + 1)
    assert "a1" in serve(shop, LATER, 1, k=3)[0]


@pytest.mark.slow
def test_an_arm_added_in_mid_flight_is_explored(shop: Run) -> None:
    shop("--now", LATER, "arm", "add", "new")
    assert definitions(shop)["new"]["probability"] > 0
    assert counted(shop, "new") == (0, 0)
    shown = serve(shop, LATER, 200)
    assert ["new"] in shown
    assert counted(shop, "new")[0] == shown.count(["new"])
    assert shop("--now", LATER, "doctor").exit_code == 0
