"""rlrec experiment plan."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.experiments import plan as app_plan
from tests.conftest import Run, begin, click, runner, store_after


def serve(run: Run, target: str, day: str, first_decision: int, *, every: int) -> None:
    """20 users an hour for 20 hours, of whom one in so many clicks at once."""
    for hour in range(20):
        users = range(20 * hour, 20 * hour + 20)
        lines = "".join(f'{{{target}, "session": "{target[1]}{n}", "user": "{target[1]}{n}"}}\n' for n in users)
        now = "--now", f"{day}T{hour:02}:00:00Z", "--allow-future"
        run(*now, "recommend", "--input", "-", stdin=lines)
        click(run, (first_decision + n for n in users if n % every == 0), *now)


def prepared(db: str) -> None:
    """The same 400 users on two days; every fifth clicks each time."""
    run = runner(db)
    begin(run, "x", "home", "uniform")
    run("policy", "create", "other", "--kind", "uniform")
    for first_decision, day in ((1, "2030-01-01"), (401, "2030-01-11")):
        serve(run, '"policy": "home"', day, first_decision, every=5)


ready = store_after(prepared)


def plan(run: Run, *words: Any) -> Any:
    return run("--now", "2030-02-01", "--allow-future", "experiment", "plan", *words, "--json")


def test_the_published_values_need_no_log(ready: Any) -> None:
    fields = ({"--rate": 0.05}, {"--rate": "1%", "--lift": "5%"}, {"--rate": "5%", "--comparisons": 3})
    answers = [plan(ready, *(word for pair in options.items() for word in pair)).json for options in fields]
    assert [answer["per_variant"] for answer in answers] == [31_231, 637_007, 41_657]
    assert [answer["total"] for answer in answers] == [62_462, 1_274_014, 83_314]
    assert {*answers[0]} >= {"days", "days_sequential", "adjusted_days", "assumed"}


def test_a_rate_needs_no_store(ready: Any, tmp_path: Path) -> None:
    nowhere = runner(str(tmp_path / "nowhere.db"))
    answer = nowhere("experiment", "plan", "--rate", "5%", "--json")
    stored = plan(ready, "--rate", "5%").json
    assert (answer.exit_code, answer.json["total"], answer.json["days"]) == (0, stored["total"], None)
    assert answer.json["assumed"] == stored["assumed"] | {"traffic_days": None, "traffic_units": None}
    assert "days are not known: " in answer.stderr
    assert nowhere("experiment", "plan", "--rate", "5%", "--log", "policy=home").exit_code == 3
    assert nowhere("experiment", "plan").exit_code == 3
    assert not (tmp_path / "nowhere.db").exists()


def test_a_store_without_traffic_says_why_it_knows_no_days(run_sqlite: Run) -> None:
    assert (
        "days are not known: this traffic brings no new users"
        in run_sqlite("experiment", "plan", "--rate", "5%").stdout
    )


def test_times_of_minutes_are_told_in_minutes(run_sqlite: Run) -> None:
    begin(run_sqlite, "x", "home", "uniform")
    run_sqlite("--now", "2030-01-01", "--allow-future", "recommend", "--policy", "home", "--session", "s")
    refused = run_sqlite("--now", "2030-01-01", "--allow-future", "experiment", "plan").stderr
    assert "window of reward default (30 minutes) is longer than the newest traffic (1 minute)" in refused


def test_days_have_time_for_the_last_units_to_come_again(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = partial(ready, "--now", "2030-02-01", "--allow-future")
    run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other")
    serve(ready, '"experiment": "ab"', "2030-02-01", 801, every=4)
    again = "".join(f'{{"experiment": "ab", "session": "t{n}", "user": "e{n}"}}\n' for n in range(0, 400, 2))
    ready("--now", "2030-02-02", "--allow-future", "recommend", "--input", "-", stdin=again)

    def planned(metric: str) -> tuple[float, float]:
        answer = ready(
            "--now", "2030-03-01", "--allow-future", "experiment", "plan", "ab", "--metric", metric, "--json"
        )
        return answer.json["days"], answer.json["assumed"]["return_days"]

    answers = {metric: planned(metric) for metric in ("visits", "returned_1d", "reward_per_visit")}
    monkeypatch.setattr(app_plan, "RETURN_DAYS", {})
    waits = {metric: (days - planned(metric)[0], wait) for metric, (days, wait) in answers.items()}
    assert waits == {"visits": (pytest.approx(7), 7), "returned_1d": (pytest.approx(1), 1), "reward_per_visit": (0, 0)}


def test_days_are_those_of_the_newest_traffic(ready: Any) -> None:
    """The second ten days bring 400 units in 19 hours, a fifth of whom click, as they all have before."""
    answer = plan(ready, "--lift", "75%").json
    assumed = answer["assumed"]
    assert (assumed["traffic_units"], assumed["value"]) == (400, pytest.approx(0.2))
    assert assumed["variance"] == pytest.approx(0.16, rel=0.01)
    # where the plan of so large a lift is remeasured on a day
    assert answer["days"] == pytest.approx(answer["total"] / 400 * 19 / 24, rel=0.1)
    assert assumed["narrowed"] == pytest.approx(1, abs=1e-6)
    assert answer["adjusted_days"] < answer["days"] / 100


def test_more_units_than_there_are_never_come(ready: Any) -> None:
    """All 400 have come before: whoever comes more often than once in the newest days makes them no more."""
    answer = plan(ready, "--lift", "50%").json
    assert (answer["total"] > 400, answer["days"]) == (True, None)


def test_more_units_than_came_take_as_long_as_the_pace_says() -> None:
    """100 came within ten days, five a day in the second half, of whom one is new; 150 are known."""
    counts = np.r_[np.linspace(0, 75, 51)[1:], np.linspace(75, 100, 51)[1:]]
    arrivals = app_plan.NewUnits(counts=counts, days=10.0, population=150.0, newcomers=1.0)
    days = [arrivals.days_until(units) for units in (75, 120, 150, 160)]
    assert days == pytest.approx([5, 14, 20, 30])
    closed = replace(arrivals, newcomers=0.0)
    rows: list[Any] = [{"needed": 40, "shortage": None}, {"needed": None, "shortage": 61}, {"needed": 0, "shortage": 0}]
    closed.add_days(rows)
    assert [row.get("needed_days") for row in rows] == [8, None, None]
    assert ["needed_days" in row for row in rows] == [True, True, False]


def test_an_experiment_waits_for_no_more_users_than_the_store_has(ready: Run) -> None:
    """All 400 have come before; 200 of them come to the experiment on its first day, as fast as on any other."""
    variants = ("--variant", "a=home", "--variant", "b=other")
    ready("--now", "2030-02-01", "--allow-future", "experiment", "create", "ab", *variants).done()
    for hour in range(10):
        lines = [{"experiment": "ab", "session": f"e{n}", "user": f"p{n}"} for n in range(20 * hour, 20 * hour + 20)]
        now = ("--now", f"2030-02-01T{hour:02}:00:00Z", "--allow-future")
        answers = ready(*now, "recommend", "--input", "-", stdin=lines).lines
        click(ready, [answer["decision_id"] for answer in answers if answer["decision_id"] % 4 == 0], *now)
    shown = ready("--now", "2030-02-02", "--allow-future", "experiment", "show", "ab")
    assert "this traffic does not tell it in reasonable time" in shown.stdout
    answer = ready("--now", "2030-02-02", "--allow-future", "experiment", "show", "ab", "--json").json["plan"]
    assert (answer["total"] > 400, answer["days"], answer["days_left"]) == (True, None, None)


def test_a_running_experiment_has_days_left(ready: Any) -> None:
    """Also where its first variant, as a holdout, has too few units to tell how they vary."""
    run = partial(ready, "--now", "2030-02-01", "--allow-future")
    run("experiment", "create", "ab", "--variant", "a=home:1", "--variant", "b=other:15")
    serve(ready, '"experiment": "ab"', "2030-02-01", 801, every=4)
    answer = ready("--now", "2030-03-01", "--allow-future", "experiment", "plan", "ab", "--lift", "20%", "--json").json
    assert answer["days_left"] == pytest.approx(answer["days_sequential"] - 20 / 24, abs=0.01)
    shown = ready("--now", "2030-03-01", "--allow-future", "experiment", "show", "ab", "--json").json["plan"]
    assert shown["assumed"]["lift"] == 0.1
    assert shown["days_left"] > answer["days_left"]
    ready("--now", "2030-03-01", "--allow-future", "experiment", "stop", "ab").done()
    ended = ready("--now", "2030-03-01", "--allow-future", "experiment", "plan", "ab", "--json").json
    assert ended["days_left"] is None


def test_an_experiment_is_planned_by_what_it_declares(ready: Any) -> None:
    run = partial(ready, "--now", "2030-02-01", "--allow-future")
    declared = "--metric", "reward_per_visit", "--metric", "visits", "--best-n", "100000"
    run("experiment", "create", "ab", "--variant", "a=home", "--variant", "b=other", *declared)
    serve(ready, '"experiment": "ab"', "2030-02-01", 801, every=4)
    later = partial(ready, "--now", "2030-03-01", "--allow-future", "experiment", "plan", "ab", "--lift", "20%")
    answer, other = later("--json").json, later("--metric", "reward_per_unit", "--json").json
    assert [row["assumed"]["metric"] for row in (answer, other)] == ["reward_per_visit", "reward_per_unit"]
    assert [row["assumed"]["comparisons"] for row in (answer, other)] == [2, 1]
    # so long before the sequence is tightest, any number of looks takes far more units than one look
    assert answer["total_sequential"] > 2 * answer["total"]


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["--lift", "0"], "the lift is 0 %"),
        (["--lift", "-100%"], "the lift is -100 %"),
        (["--lift", "10"], "the lift is 10, which is 1000 %"),
        (["--lift", "-1"], "write -1%"),
        (["--power", "1"], "below 100 %"),
        (["--power", "1%"], "50 % or more"),
        (["--level", "1"], "level"),
        (["--metric", "reward"], "did you mean reward_per_"),
        (["--metric", "visits:default"], "visits has no reward"),
        (["--metric", "reward_per_unit:no"], "unknown reward 'no'"),
        (["--rate", "95%"], "the rate is 95 %"),
        (["--weights", "1"], "no weights of variants"),
        (["--weights", "1,0"], "no weights of variants"),
        (["--log", "policy=no"], "unknown policy 'no'"),
        (["--log", "policy=other"], "does not tell how reward_per_unit varies"),
        (["no"], "unknown experiment 'no'"),
        (["ab", "--rate", "5%"], "the traffic is that of experiment ab"),
    ],
)
def test_what_no_plan_can_answer_is_refused(ready: Any, words: list[str], result: str) -> None:
    assert result in plan(ready, *words).failed(2)


def test_a_window_that_is_longer_than_the_traffic_is_why_there_is_no_plan(ready: Any) -> None:
    ready("reward", "define", "slow", "click=1", "--window", "20d")
    refused = ready(
        "--now", "2030-01-15", "--allow-future", "experiment", "plan", "--metric", "reward_per_unit:slow"
    ).failed(2)
    assert "window of reward slow (20 days) is longer than the newest traffic (5 days)" in refused
