"""`reward suggest`: arms whose clicks keep people away and whose likes bring them back, and logs that cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import Run, begin, click, runner, store_after

BAITS, ARMS = 8, 24
CLICK = np.r_[np.linspace(0.5, 0.9, BAITS), np.linspace(0.2, 0.6, ARMS - BAITS)]
LIKE = np.r_[np.zeros(BAITS), np.linspace(0.7, 0.3, ARMS - BAITS)]
NAMES = [f"a{number:02}" for number in range(ARMS)]
AFTERWARDS = ("--now", "2026-02-20")


def serve(run: Run) -> None:
    """Pages of 2 arms on four days. Baits are clicked and never liked; who saw one seldom comes again."""
    rng, here = np.random.default_rng(1), [f"u{number}" for number in range(500)]
    for day in range(1, 5):
        time = ("--now", f"2026-02-0{day}T12:00:00Z")
        lines = [{"policy": "draw", "session": f"{user}.{day}", "user": user, "k": 2} for user in here]
        answers = run("recommend", "--input", "-", "--seed", 10 + day, *time, stdin=lines).lines
        shown = [[NAMES.index(slot["arm"]) for slot in answer["slate"]] for answer in answers]
        events = [
            {"decision_id": answer["decision_id"], "position": position, "events": {kind: 1}}
            for answer, arms in zip(answers, shown, strict=True)
            for position, arm in enumerate(arms, 1)
            for kind, rate in (("click", CLICK[arm]), ("like", LIKE[arm]))
            if rng.random() < rate
        ]
        assert run("feedback", "--input", "-", *time, stdin=events).exit_code == 0
        baits = [sum(arm < BAITS for arm in arms) for arms in shown]
        here = [user for user, number in zip(here, baits, strict=True) if rng.random() < 0.95 - 0.45 * number]


def served(db: str) -> None:
    run = runner(db)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in NAMES])
    run("reward", "define", "clicks", "click=1, return=1", "--window", "2d")
    run("policy", "create", "draw", "--kind", "uniform")
    serve(run)


visits = store_after(served)


def suggestion(run: Run, *options: str) -> dict[str, Any]:
    return dict(run("reward", "suggest", "--reward", "clicks", *AFTERWARDS, *options, "--json").json)


def test_what_keeps_people_away_has_a_weight_below_0(visits: Run) -> None:
    answer = suggestion(visits)
    click, like = answer["events"]
    assert (click["event"], like["event"]) == ("click", "like")
    assert (click["now"], like["now"]) == (1, 0)
    assert like["answer"] == "adds"
    assert click["rank"]["upper"] < 0 < like["rank"]["lower"]
    for event in (click, like):
        assert event["weight"] == event["now"] + event["later"]["value"]
        assert event["later"]["lower"] < event["later"]["value"] < event["later"]["upper"]
    assert answer["weights"] == {
        event["event"]: pytest.approx(event["weight"], rel=0.005) for event in answer["events"]
    }
    assert 0 < answer["explained"]["lower"] < answer["explained"]["upper"] <= 1
    assert suggestion(visits) == answer


def test_the_definition_can_be_pasted(visits: Run) -> None:
    text = visits("reward", "suggest", "--reward", "clicks", *AFTERWARDS).stdout
    assert text.startswith("after the page, across 24 arms, one more ")
    assert "click ranks arms against their long run: rank correlation -" in text
    command = text.splitlines()[-1]
    assert command.startswith("rlrec reward define clicks2 'click=")
    assert command.endswith("' --window 2d")
    weights = command.split("'")[1]
    assert visits("reward", "define", "clicks2", weights, "--window", "2d").exit_code == 0
    assert suggestion(visits)["name"] == "clicks3"


def test_a_log_that_shows_too_little_gives_no_definition(visits: Run) -> None:
    """Of the first day alone nobody has come back; later visits are too few."""
    answer = suggestion(visits, "--log", "since=2026-02-03")
    assert answer["weights"] is None
    assert all(event["answer"] == "unknown" for event in answer["events"])
    text = visits("reward", "suggest", "--reward", "clicks", "--log", "since=2026-02-03", *AFTERWARDS).stdout
    assert text.startswith("cannot tell which events carry the long run")
    assert "reward define" not in text


def test_few_arms_tell_no_weights(db: str) -> None:
    run = runner(db)
    run("reward", "define", "presses", "click=1")
    begin(run, NAMES[:5], "draw", "uniform", "--reward", "presses")
    lines = [{"policy": "draw", "session": f"s{number // 2}"} for number in range(200)]
    answers = run("recommend", "--input", "-", "--now", "2026-02-01", stdin=lines).lines
    click(run, [answer["decision_id"] for answer in answers[::3]], "--now", "2026-02-01")
    result = run("reward", "suggest", "--now", "2026-02-02")
    assert result.stdout.startswith("cannot tell: no kind of event differs enough between the 5 arms of this log")
    answer = run("reward", "suggest", "--now", "2026-02-02", "--json").json
    assert answer["reward"] == "presses"  # what all policies learn
    assert (answer["events"], answer["weights"], answer["explained"], answer["rank"]) == ([], None, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--horizon", "0s"], "the horizon is 0"),
        (["--level", "0"], "level is 0"),
        (["--reward", "none"], "unknown reward 'none'"),
        (["--reward", "read"], "reward 'read' transforms 'dwell_s'"),
        (["--log", "policy=none"], "unknown policy 'none'"),
        (["--log", "since=2027-01-01"], "empty log"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(visits: Run, options: list[str], message: str) -> None:
    visits("reward", "define", "read", "log1p(dwell_s)=1")
    result = visits("reward", "suggest", *AFTERWARDS, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr


def test_pages_after_which_nothing_came_tell_nothing(db: str) -> None:
    run = runner(db)
    begin(run, NAMES, "draw", "uniform")
    lines = [{"policy": "draw", "session": f"s{number}"} for number in range(200)]
    run("recommend", "--input", "-", "--now", "2026-02-01", stdin=lines)
    result = run("reward", "suggest", "--now", "2026-02-02")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "nothing came after the pages of this log" in result.stderr
