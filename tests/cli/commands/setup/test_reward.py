"""rlrec reward: definitions never change."""

from __future__ import annotations

import csv
import io
from math import log

import pytest

from tests.conftest import Run, begin

PLAIN_BASKET = ["reward", "define", "basket", "click=0.1, purchase=1", "--clip", "0,1", "--json"]
BASKET = [*PLAIN_BASKET, "--window", "1d"]


def test_the_same_definition_again_is_fine_and_another_one_a_conflict(run: Run) -> None:
    first = run(*BASKET).json
    assert first == {
        "reward": "basket", "weights": {"click": 0.1, "purchase": 1.0}, "window_s": 86400.0, "default": 0.0,
        "clip": [0.0, 1.0], "learn": "served", "late": "count", "transforms": {}, "created": True,
    }  # fmt: skip
    again = ["reward", "define", "basket", "purchase=1.0,click=.1", "--window", "24h", "--clip", "0,1", "--json"]
    assert run(*again).json == first | {"created": False}
    for other in (["--learn", "settled"], ["--late", "ignore"], ["--default", "0.5"]):
        result = run(*BASKET, *other)
        assert (result.exit_code, result.error["code"]) == (6, 6)
    for other in (["--window", "2d"], []):
        result = run(*PLAIN_BASKET, *other)
        assert (result.exit_code, result.error["code"]) == (6, 6)
    assert len(run("reward", "list", "--json").json) == 2


def test_a_new_store_has_the_definition_default(run_sqlite: Run) -> None:
    assert run_sqlite("reward", "list", "--json").json == [
        {
            "reward": "default", "weights": {"click": 1.0, "reward": 1.0}, "window_s": 1800.0, "default": 0.0,
            "clip": [0.0, 1.0], "learn": "served", "late": "count", "transforms": {},
        }
    ]  # fmt: skip
    assert run_sqlite("reward", "define", "default", "click=2").exit_code == 6


READING = "click=0.2, log1p(min(dwell_s,600))=0.1, min(purchase, 5)=2, log1p(share)=1"


def test_a_definition_says_what_becomes_of_each_sum(run: Run) -> None:
    answer = run("reward", "define", "reading", READING, "--json").json
    assert answer["weights"] == {"click": 0.2, "dwell_s": 0.1, "purchase": 2.0, "share": 1.0}
    assert answer["transforms"] == {
        "dwell_s": "log1p(min(dwell_s,600))", "purchase": "min(purchase,5)", "share": "log1p(share)",
    }  # fmt: skip
    again = "log1p( share )=1, min(purchase,5.0)=2,click=.2,log1p (min(dwell_s , 6e2))=0.1"
    assert run("reward", "define", "reading", again, "--json").json == answer | {"created": False}
    for other in (READING.replace("600", "601"), READING.replace("log1p(share)", "share")):
        assert run("reward", "define", "reading", other).exit_code == 6
    assert run("reward", "list", "--json").json[1] == {key: answer[key] for key in answer if key != "created"}
    assert "log1p(min(dwell_s,600))=0.1" in run("reward", "list").stdout


def test_a_logarithm_is_learned_audited_and_estimated(run: Run) -> None:
    clock = ["--now", "2026-01-01T12:00:00Z"]
    run(*clock, "arm", "add", "a")
    run(*clock, "reward", "define", "reading", "log1p(min(dwell_s,600))=0.5")
    run(*clock, "policy", "create", "home", "--kind", "ucb", "--reward", "reading")
    run(*clock, "recommend", "--policy", "home", "--session", "s")
    earned = [run(*clock, "feedback", "1", f"dwell_s={value}", "--json").json["reward"] for value in (90, 20, 900)]
    assert earned == pytest.approx([0.5 * log(91), 0.5 * log(111), 0.5 * log(601)])
    assert run("policy", "show", "home", "--json").json["arms"][0]["reward_sum"] == pytest.approx(0.5 * log(601))
    assert run("doctor").exit_code == 0
    [row] = run("evaluate", "home", "--estimator", "ips", "--json").json
    assert row["value"] == pytest.approx(0.5 * log(601))


def test_delays_are_shown_for_a_reward(run_sqlite: Run) -> None:
    run_sqlite("reward", "define", "presses", "click=1")
    begin(run_sqlite, "a", "home", "uniform", "--reward", "presses")
    run_sqlite("--now", "2026-01-01T12:00:00Z", "recommend", "--policy", "home", "--session", "s")
    assert run_sqlite("reward", "delays", "--json").error["error"].startswith("no weighed event")
    run_sqlite("--now", "2026-01-01T12:03:00Z", "feedback", "1", "click")
    rows = ["--now", "2026-01-01T12:45:00Z", "reward", "delays", "default", "--log", "policy=home"]
    assert run_sqlite(*rows, "--json").json[-1] == {
        "window": "30m", "window_s": 1800.0, "share": 1.0, "events": 1, "decisions": 1, "reward_per_decision": 1.0,
        "own": True, "reward": "default",
    }  # fmt: skip
    assert run_sqlite(*rows[:4], "--json").json[-1]["reward"] == "presses"  # what all policies learn
    assert "30m *" in run_sqlite(*rows).stdout
    assert [run_sqlite("reward", "delays", *bad).exit_code for bad in (["nosuch"], ["--log", "x=1"])] == [2, 2]


def test_every_format_lists_the_same_rewards(run_sqlite: Run) -> None:
    run_sqlite(*BASKET)
    rows = run_sqlite("reward", "list", "--json").json
    assert run_sqlite("reward", "list", "--format", "ndjson").lines == rows
    read = csv.DictReader(io.StringIO(run_sqlite("reward", "list", "--format", "csv").stdout))
    assert [row["reward"] for row in read] == ["default", "basket"]
    assert "click=0.1, purchase=1" in run_sqlite("reward", "list").stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["click"], "'click' is not a weight"),
        (["click=x"], "the weight of 'click' is 'x'"),
        (["click=nan"], "the weight of 'click' is 'nan'"),
        (["click=1e999"], "not a finite number"),
        (["click=1_0"], "the weight of 'click' is '1_0'"),
        (["click=1,click=2"], "has two weights"),
        (["click=1,log1p(click)=2"], "'click' has two weights"),
        (["sqrt(click)=1"], "unknown function 'sqrt' in 'sqrt(click)'"),
        (["log1p(sqrt(click))=1"], "unknown function 'sqrt' in 'sqrt(click)'"),
        (["min(click,many)=1"], "the cap of 'click' is 'many'"),
        (["min(click)=1"], "the cap of 'click' is ''"),
        (["min(click,0)=1"], "the cap of 'click' is '0'"),
        (["min(click,1e999)=1"], "the cap of 'click' is '1e999'"),
        (["min(log1p(click),5)=1"], "'min(log1p(click),5)=1' is not a weight"),
        (["log1p(log1p(click))=1"], "is not a weight"),
        (["log1p(click,5)=1"], "is not a weight"),
        (["log1p()=1"], "is not a weight"),
        (["log1p(click=1"], "is not a weight"),
        (["1click=1"], "is not a weight"),
        (["!censor=1"], "is not a weight"),
        (["  "], "at least one kind"),
        (["click=1", "--window", "-1h"], "not a duration"),
        (["click=1", "--window", "soon"], "not a duration"),
        (["click=1", "--clip", "1,0"], "is empty"),
        (["click=1", "--clip", "1"], "is not a range"),
        (["click=1", "--default", "nan"], "not a number"),
        (["click=1", "--learn", "later"], "'later' is not one of"),
    ],
)
def test_what_is_no_definition_is_refused(run_sqlite: Run, words: list[str], what: str) -> None:
    result = run_sqlite("reward", "define", "bad", *words, "--json")
    assert (result.exit_code, result.error["code"]) == (2, 2)
    assert what in result.error["error"]
    assert len(run_sqlite("reward", "list", "--json").json) == 1


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a" * 65])
def test_what_is_no_name_is_refused(run_sqlite: Run, name: str) -> None:
    assert run_sqlite("reward", "define", "--", name, "click=1").exit_code == 2


def test_a_clip_that_hides_what_an_event_takes_away_is_named(run_sqlite: Run) -> None:
    """Nobody is sent into it, either: a kind that needs [0, 1] is not offered --clip 0,1 for a reward with costs."""
    weights = "open=1, unsubscribe=-2"
    assert "hides unsubscribe" in run_sqlite("reward", "define", "a", weights, "--clip", "0,1").stderr
    for name, *options in (["b", "--clip", "0,1", "--default", "0.5"], ["d", "--clip=-2,1"], ["c"]):
        assert run_sqlite("reward", "define", name, weights, *options).done().stderr == ""
    refused = run_sqlite("policy", "create", "p", "--kind", "thompson", "--reward", "c").failed(2)
    assert "would hide what unsubscribe takes away" in refused
    assert "epsilon-greedy" in refused


def test_a_kind_that_looks_mistyped_is_named(run_sqlite: Run) -> None:
    begin(run_sqlite, "ab", "home", "thompson")
    run_sqlite("recommend", "--policy", "home", "--session", "s1").done()
    run_sqlite("feedback", "1", "purchase").done()
    lasting = run_sqlite("reward", "define", "lasting", "click=0.3, retrun=1, purchse=1, purchase=1").done().stderr
    assert "no recent event is of kind 'retrun': did you mean return?" in lasting
    assert "no recent event is of kind 'purchse': did you mean purchase?" in lasting
    assert "'click'" not in lasting
    assert "'purchase'" not in lasting
    assert run_sqlite("reward", "define", "new", "like=1, return=1").done().stderr == ""
