from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Run, runner

STUDY = ["simulate", "bernoulli", "--ephemeral", "--runs", "3", "--steps", "20"]


def test_a_study_needs_no_store_and_makes_none(tmp_path: Path) -> None:
    run = runner(str(tmp_path / "none.db"))
    answer = run(*STUDY, "--kind", "thompson", "--env", "rates=0.9,0.8", "--seed", "1", "--json").json
    assert (answer["environment"], answer["policy"], answer["runs"], answer["decisions"]) == (
        "bernoulli",
        "thompson",
        3,
        20,
    )
    assert answer["optimum_per_session"] == pytest.approx(18)
    assert answer["regret_std_error"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_study_takes_a_policy_of_the_store_with_its_parameters(run_sqlite: Run) -> None:
    run_sqlite("policy", "create", "home", "--kind", "epsilon-greedy", "--param", "epsilon=1")
    seeded = ["--env", "rates=1,0", "--seed", "1", "--json"]
    named = run_sqlite(*STUDY, "--policy", "home", *seeded).json
    kind = run_sqlite(*STUDY, "--kind", "epsilon-greedy", "--param", "epsilon=1", *seeded).json
    assert named == kind | {"policy": "home"}


def test_a_study_of_a_contextual_kind_sees_the_context(run_sqlite: Run) -> None:
    words = ["simulate", "contextual", "--ephemeral", "--runs", "9", "--steps", "300", "--seed", "1", "--json"]
    seeing, blind = (run_sqlite(*words, "--kind", kind).json for kind in ("linucb", "uniform"))
    assert seeing["regret"] < blind["regret"] / 2


def test_a_single_run_has_no_standard_error(run_sqlite: Run) -> None:
    answer = run_sqlite("simulate", "drift", "--ephemeral", "--kind", "ucb", "--steps", "9", "--json").json
    assert (answer["runs"], answer["regret_std_error"], answer["reward_std_error"]) == (1, None, None)


@pytest.mark.parametrize("words", [["barista"], ["choc-kale"], ["shop"], ["corridor"]])
def test_what_visitors_with_memory_are_worth_stands_beside_reward(run_sqlite: Run, words: list[str]) -> None:
    run_sqlite("policy", "create", "home", "--kind", "uniform")
    params = ["simulate", *words, "--policy", "home", "--sessions", "30", "--seed", "1", "--json"]
    served, studied = run_sqlite(*params, "--group", "10").json, run_sqlite(*params, "--ephemeral").json
    for answer in (served, studied):
        assert answer["session_length"] == answer["decisions"] / 30
        assert answer["visits_per_visitor"] == pytest.approx(30 / answer["visitors"])
        assert (answer["retention"] is None) == (words not in (["choc-kale"], ["shop"]))
    for word in ("optimum_per_session", "context_free_per_session", "optimum_per_visitor"):
        assert served[word] == studied[word]


def test_an_audience_with_arms_of_its_own_says_what_the_catalogue_lacks(run_sqlite: Run) -> None:
    run_sqlite("policy", "create", "home", "--kind", "uniform")
    run_sqlite("arm", "add", "left")
    result = run_sqlite("simulate", "corridor", "--policy", "home", "--sessions", "3")
    assert (result.exit_code, result.stderr.count("`rlrec arm add right`")) == (2, 1)


def test_rates_of_a_file_name_the_arms(run_sqlite: Run, tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("arm,rate\ntea,1\ncocoa,0\n", encoding="utf-8")
    run_sqlite("policy", "create", "home", "--kind", "uniform")
    words = ["--policy", "home", "--sessions", "9", "--env", f"rates={rates}", "--json"]
    answer = run_sqlite("simulate", "bernoulli", *words).json
    shown = {slot["arm"]: slot["reward_sum"] for slot in run_sqlite("policy", "show", "home", "--json").json["arms"]}
    assert shown == {"cocoa": 0, "tea": answer["reward"]}


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["bernouli", "--kind", "ucb"], "did you mean bernoulli?"),
        (["bernoulli", "--kind", "ucbb"], "unknown kind 'ucbb'"),
        (["bernoulli"], "--policy or --kind"),
        (["bernoulli", "--kind", "ucb", "--policy", "home"], "--policy or --kind"),
        (["bernoulli", "--policy", "home"], "home"),
        (["bernoulli", "--kind", "logged"], "imported log"),
        (["bernoulli", "--kind", "ucb", "--param", "c=-1"], "c is -1"),
        (["bernoulli", "--kind", "ucb", "--env", "rate=0.5,0.4"], "did you mean rates?"),
        (["bernoulli", "--kind", "ucb", "--env", "rates=0.5,x"], "a rate is 'x'"),
        (["bernoulli", "--kind", "ucb", "--env", f"rates={'0.5,' * 80}x"], "a rate is 'x'"),
        (["bernoulli", "--kind", "ucb", "--env", "rates=rates.csv"], "a rate is 'rates.csv'"),
        (["bernoulli", "--kind", "ucb", "--env", "rates=0.5,1.5"], "rate 1.5 is outside of [0, 1]"),
        (["bernoulli", "--kind", "ucb", "--env", "rates=0.5,nan"], "rate nan is outside of [0, 1]"),
        (["bernoulli", "--kind", "ucb", "--env", "rates=0.5"], "fewer than two arms"),
        (["bernoulli", "--kind", "ucb", "--env", "rates=0,1", "--env", "rates=1,0"], "given twice"),
        (["drift", "--kind", "ucb", "--env", "jumps=2:0.9"], "a jump is '2:0.9'"),
        (["drift", "--kind", "ucb", "--env", "jumps=2:0.9:a:7"], "a time is 'a'"),
        (["drift", "--kind", "ucb", "--env", "swing=much"], "swing is 'much'"),
        (["contextual", "--kind", "ucb", "--env", "arms=2.5"], "arms is '2.5'"),
        (["delayed", "--kind", "ucb", "--env", "shape=normal"], "exponential or fixed"),
        (["bernoulli", "--kind", "ucb", "--group", "2"], "leave out --ephemeral"),
        (["bernoulli", "--policy", "home", "--param", "c=1"], "--param goes with --kind"),
        (["barista", "--kind", "ucb", "--steps", "5"], "visits of barista end by themselves"),
        (["corridor", "--kind", "thompson"], "reward 'corridor' may leave [0, 1]"),
        (["choc-kale", "--kind", "ucb", "--env", "levels=1"], "levels is 1"),
        (["shop", "--kind", "ucb", "--env", "bait=50"], "bait is 50"),
        (["shop", "--kind", "ucb", "--env", "arms=12"], "bait is 10. it is from 5 to 7 with arms=12 and categories=5"),
        (
            ["bernoulli", "--kind", "ucb", "--param", "pin=1=a1", "--param", "block=a2"],
            "ucb has block=a2, pin=1=a1: a study in memory keeps no such rules. leave out --ephemeral",
        ),
    ],
)
def test_what_cannot_be_studied_is_said_in_one_line(run_sqlite: Run, words: list[str], result: str) -> None:
    answer = run_sqlite("simulate", *words, "--ephemeral")
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert result in answer.stderr.replace("\n", " ")
    assert answer.stderr.count("Error") == 1


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["--policy", "home"], "Missing option '--sessions'"),
        (["--sessions", "9"], "Missing option '--policy' or '--experiment'"),
        (["--policy", "home", "--experiment", "ab", "--sessions", "9"], "not both"),
        (["--experiment", "ab", "--sessions", "9"], "unknown experiment 'ab'"),
        (["--experiment", "ab", "--ephemeral"], "leave out --ephemeral"),
        (["--policy", "hom", "--sessions", "9"], "unknown policy 'hom'"),
        (["--policy", "home", "--sessions", "9", "--kind", "ucb"], "go with --ephemeral"),
        (["--policy", "home", "--sessions", "9", "-k", "11"], "k is 11"),
        (["--policy", "home", "--sessions", "0"], "--sessions"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(run_sqlite: Run, words: list[str], result: str) -> None:
    run_sqlite("policy", "create", "home", "--kind", "uniform")
    answer = run_sqlite("simulate", "bernoulli", *words)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert result in answer.stderr
