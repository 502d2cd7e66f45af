"""`exploration`: the cost of exploring against closed forms, and what it brought."""

from __future__ import annotations

from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest

from tests.conftest import ON_BOTH, Run, begin, click_events, runner, store_after


def stocked(db: str) -> None:
    run = runner(db)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in "abcd"])
    create = ["policy", "create", "home", "--kind", "epsilon-greedy", "--param", "epsilon=0.2"]
    with NamedTemporaryFile("w") as prior:
        prior.write("arm,alpha,beta\na,9,1\n")
        prior.flush()
        assert run(*create, "--prior", prior.name).exit_code == 0
    assert run("policy", "freeze", "home").exit_code == 0
    requests = [{"policy": "home@2", "session": f"s{n}", "user": f"u{n % 80}"} for n in range(400)]
    answers = run("recommend", "--input", "-", "--seed", 5, stdin=requests).lines
    rng = np.random.default_rng(2)
    rates = {"a": 0.4, "b": 0.6, "c": 0.1, "d": 0.1}
    events = click_events(answers, lambda slot: rng.random() < rates[slot["arm"]])
    assert run("feedback", "--input", "-", stdin=events).exit_code == 0


# A frozen epsilon-greedy version that prefers `a`, on 400 decisions of 80 users; `b` is better than it thinks.
shop = store_after(stocked)


def exploration(run: Run, *options: str) -> Any:
    return run("--now", "2099-01-01", "exploration", *options, "--json").done().json


def test_the_cost_is_the_mean_of_the_greedy_arm_less_that_of_all(shop: Run) -> None:
    """Of one frozen belief the weights are equal on the rows of its best arm and 0 elsewhere."""
    log = [line for line in shop("export-log", "-").lines if line["version"] == 2]
    shown = np.array([line["slate"][0]["arm"] for line in log])
    reward = np.array([line["reward"] for line in log], float)
    figures = exploration(shop, "--log", "version=2")
    assert figures["rows"] == len(log) == 400
    assert figures["cost"] == pytest.approx(reward[shown == "a"].mean() - reward.mean(), abs=1e-12)
    assert figures["mean"] == pytest.approx(reward.mean(), abs=1e-12)
    assert figures["total"] == pytest.approx(400 * figures["cost"], abs=1e-9)
    assert figures["lower"] < figures["cost"] < figures["upper"]
    assert sum(day["rows"] for day in figures["by_day"]) == 400


def test_a_cost_has_no_bounds_before_exploration_could_earn_a_few_rewards(shop: Run) -> None:
    """12 of 400 slots earn something, so that 2 rewards are to be expected of the 60 that exploration added. None of
    these earned any: the bootstrap, which sees no such reward, would call the cost certain."""
    shop("reward", "define", "sale", "purchase=1")
    best = [line["decision_id"] for line in shop("export-log", "-").lines if line["slate"][0]["arm"] == "a"][:12]
    shop("feedback", "--input", "-", stdin=[{"decision_id": key, "events": {"purchase": 1}} for key in best]).done()
    figures = exploration(shop, "--log", "version=2", "--reward", "sale")
    assert figures["cost"] > 0
    assert (figures["lower"], figures["upper"], figures["answer"]) == (None, None, "unknown")
    assert (figures["verdict"], figures["reasons"]) == ("insufficient", ["few-rewards"])
    # nothing that exploration added was shown
    shop("recommend", "--input", "-", "--seed", 4, stdin=[{"policy": "home", "session": f"t{n}"} for n in range(3)])
    newest = exploration(shop, "--policy", "home", "--log", "version=1")
    assert newest["lower"] is None
    assert "few-rewards" in newest["reasons"]


@ON_BOTH
def test_the_ess_that_exploration_bought(shop: Run) -> None:
    """For `uniform` weights are .25 / .85 and .25 / .05; without exploration three arms are never shown."""
    shown = np.array([line["slate"][0]["arm"] for line in shop("export-log", "-").lines if line["version"] == 2])
    weight = 0.25 / np.where(shown == "a", 0.85, 0.05)
    (row,) = exploration(shop, "--log", "version=2")["ess"]
    assert row["target"] == "uniform"
    assert row["ess"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-9)
    assert row["without_floor"] == 0.0


def test_a_policy_without_exploration_gives_nothing_away(shop: Run) -> None:
    shop("policy", "create", "flat", "--kind", "uniform")
    shop("recommend", "--policy", "flat", "--session", "y")
    figures = exploration(shop, "--policy", "flat")
    assert exploration(shop, "--log", "policy=flat") == figures
    assert figures["cost"] == 0.0


@pytest.mark.slow
def test_an_arm_that_exploration_brought_up_has_risen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst arm becomes the best one half-way: only the floor still shows it by then."""
    run("policy", "create", "ts", "--kind", "thompson", "--param", "floor=0.2", "--param", "discount=0.95")
    audience = ["simulate", "drift", "--policy", "ts", "--sessions", 1200, "--seed", 1, "--group", 20]
    assert run(*audience, "--env", "rates=0.6,0.1", "--env", "jumps=1:0.95:600:1200").exit_code == 0
    risen = exploration(run)["risen"]
    assert [row["arm"] for row in risen] == ["arm1"]
    assert risen[0]["probability_then"] < 0.2 < 0.5 < risen[0]["probability_now"]
    monkeypatch.setattr("rlrec.cli.commands.judging.exploration.MAX_RISEN_ARMS", 0)  # of the thousands of a shop, say
    assert "risen: 1 more arm, which --json has" in run("--now", "2099-01-01", "exploration").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "hom"], "home"),
        (["--log", "since=2098-01-01"], "empty log"),
        (["--level", "2"], "level 2"),
        (["--reward", "clicks"], "unknown reward"),
    ],
)
def test_what_cannot_be_compared_is_refused(shop: Run, options: list[str], words: str) -> None:
    assert words in shop("--now", "2099-01-01", "exploration", *options).failed(2)


def test_what_is_not_mature_must_wait(shop: Run) -> None:
    refused = shop("exploration").failed(2)
    assert "of 400 impressions of home selected, none is mature" in refused
    assert "30 minutes" in refused


def test_several_policies_must_be_told_apart(shop: Run) -> None:
    shop("policy", "create", "flat", "--kind", "uniform")
    shop("recommend", "--policy", "flat", "--session", "y")
    assert "--policy flat" in shop("exploration").failed(2)


def test_a_store_that_served_nothing_has_nothing_to_compare(run: Run) -> None:
    assert "no policy has served" in run("exploration").failed(2)


def test_the_table_says_it_in_a_sentence(shop: Run) -> None:
    shown = shop("--now", "2099-01-01", "exploration", "--log", "version=2").stdout
    assert "400 slots: exploration may cost nothing: " in shown
    figures = exploration(shop, "--log", "version=2")
    ess = figures["ess"][0]["ess"]
    assert f"effective sample size for judging uniform: {ess:.0f} of 400 slots; without" in shown


def test_exploration_that_finds_what_the_belief_does_not_know_earns(shop: Run) -> None:
    """Only arms that the belief thinks little of earn a wink: no cost with a minus is left to the reader."""
    shop("reward", "define", "wink", "wink=1").done()
    shown = [(line["decision_id"], line["slate"][0]["arm"]) for line in shop("export-log", "-").lines]
    winks = [{"decision_id": key, "events": {"wink": 1}} for key, arm in shown if arm != "a"]
    shop("feedback", "--input", "-", stdin=winks).done()
    words = "--log", "version=2", "--reward", "wink"
    figures = exploration(shop, *words)
    assert figures["upper"] < 0
    bounds = ", ".join(f"{-figures[name]:.4g}" for name in ("upper", "lower"))
    text = shop("--now", "2099-01-01", "exploration", *words).stdout
    assert f"exploration earns {-figures['cost']:.4g} a slot [{bounds}], {len(winks)} in total" in text


def test_a_policy_that_is_its_own_greedy_form_pays_nothing(run: Run) -> None:
    begin(run, "ab", "home", "ucb")
    for n in range(4):
        run("recommend", "--policy", "home", "--session", f"s{n}")
    assert "4 slots: exploration costs nothing; a slot earned 0" in run("--now", "2099-01-01", "exploration").stdout


def test_a_policy_without_a_belief_has_no_known_cost_and_a_next_step(run_sqlite: Run) -> None:
    run_sqlite("policy", "create", "flat", "--kind", "uniform").done()
    audience = "--sessions", 40, "--group", 2, "--env", "rates=0.6,0.2"
    run_sqlite("simulate", "pbm", "--policy", "flat", *audience, "--seed", 1).done()
    text = run_sqlite("--now", "2099-01-01", "exploration").stdout
    assert "40 slots: exploration has no known cost, since each page is drawn at random" in text
    assert "costs nothing" not in text
    assert "without exploration it would be" not in text
    command = text.partition("`rlrec ")[2].partition("`")[0]
    run_sqlite("--now", "2099-01-01", *command.split()).done()
    assert exploration(run_sqlite)["reasons"][-1] == "no-belief"


def test_what_has_no_probability_is_counted_with_its_reason(run: Run) -> None:
    """Below the first position under a cap nobody knows how likely an arm stands there."""
    lines = [{"arm": arm, "features": {"brand": brand}} for arm, brand in zip("abcd", "xxyz", strict=True)]
    assert run("arm", "import", "-", stdin=lines).exit_code == 0
    create = ["policy", "create", "home", "--kind", "thompson", "--param", "most=brand=1"]
    assert run(*create).exit_code == 0
    requests = [{"policy": "home", "session": f"s{n}", "k": 3} for n in range(20)]
    assert run("recommend", "--input", "-", stdin=requests).exit_code == 0
    figures, exposed = exploration(run), run("exposure", "--json").json
    assert (figures["rows"], figures["left_out"]) == (20, 40)
    assert (exposed["underived"], {row["expected"] for row in exposed["arms"]}) == (20, {None})
    for reason in (figures["left_out_reason"], exposed["underived_reason"]):
        assert "under rules of the page such as a cap" in reason
    assert "left out: 40 mature slots" in run("--now", "2099-01-01", "exploration").stdout
    assert "20 decisions without probabilities" in run("exposure").stdout


def test_where_nothing_was_earned_the_cost_is_not_known(run: Run) -> None:
    """A policy that explores, on a log without a reward: what it would have earned without is not 0 for sure."""
    begin(run, "ab", "curious", "epsilon-greedy", "--param", "epsilon=0.5")
    for n in range(12):
        run("recommend", "--policy", "curious", "--session", f"s{n}")
        run("feedback", "1", "--position", "1", "click")
    run("reward", "define", "wink", "wink=1")
    words = ("--now", "2099-01-01", "exploration", "--reward", "wink")
    answer = run(*words, "--json").json
    assert (answer["answer"], answer["lower"], answer["upper"]) == ("unknown", None, None)
    assert "exploration costs what this log cannot tell, as all slots earned the same so far" in run(*words).stdout
