"""rlrec route set --require if-better: what the gate lets pass, and what it says where it does not."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.evaluation.passes import sessions
from rlrec.app.log import ended_visits
from rlrec.ope.comparisons.comparison import gate_alpha
from rlrec.store import Store
from rlrec.times import parse
from tests.app import visitors
from tests.app.shop import MINUTE, START, fixed
from tests.conftest import ON_BOTH, Run, filled, runner, store_after

LATER = "2099-01-01T00:00:00Z"
FIXED = {"good": (0.8, 0.1, 0.1), "worse": (0.1, 0.45, 0.45), "alike": (0.2, 0.6, 0.2)}


def prepared(db: str, visits: int = 1_500) -> None:
    """A log of a uniform policy `u`, arm a being better than b and c; fixed policies; the route `home`."""
    run = runner(db)
    run("--now", "2025-12-01T00:00:00Z", "arm", "import", "-", stdin=[{"arm": arm} for arm in "abc"])
    run("policy", "create", "u", "--kind", "uniform")
    for name, probabilities in FIXED.items():
        fixed(run, name, dict(zip("abc", probabilities, strict=True)))
    run("policy", "create", "ts", "--kind", "thompson", "--param", "floor=0.1")
    run("reward", "define", "taps", "click=1, reward=1")
    audience = ("bernoulli", "--env", "rates=0.6,0.3,0.3", "--policy", "u", "--sessions", visits, "--group", 100)
    run("simulate", *audience, "--seed", 1)
    run("route", "create", "home", "--to", "u")


ready = store_after(prepared)


def gated(run: Run, to: str, *words: Any) -> Any:
    return run(
        "--allow-future", "--now", LATER, "route", "set", "home", "--to", to, "--require", "if-better", *words, "--json"
    )


def show(run: Run) -> Any:
    return run("--allow-future", "--now", LATER, "route", "show", "home", "--json").json


@ON_BOTH
def test_a_better_candidate_passes_and_its_figures_stay_in_the_history(ready: Run) -> None:
    done = gated(ready, "good").done()
    figures = done.json
    assert (figures["set"], figures["reference"], figures["estimator"], figures["guards"]) == (True, "good", "dr", [])
    assert 0 < figures["lower"] < figures["estimate"] == pytest.approx(0.3 * (0.8 - 1 / 3), abs=0.05)
    newest = show(ready)["history"][0]
    assert newest["by"] == "route set home --to good --require if-better"
    assert newest["gate"] == figures["gate"]
    assert "gate: it is better than u: +4" in ready("--allow-future", "--now", LATER, "route", "show", "home").stdout


def test_status_says_what_the_newest_look_found_of_each_policy(ready: Run) -> None:
    """Nothing reads the log for it: what no gate has seen has no answer."""
    gated(ready, "worse")
    answers = {row["policy"]: row["answer"] for row in ready("--now", LATER, "status", "--json").json["policies"]}
    assert answers["u"] is None
    assert re.fullmatch(r"worse@1 is worse than u: -\d+ % \[-\d+, -\d+\] per slot", answers["worse"])
    assert answers["worse"] in ready("--now", LATER, "status").stdout.splitlines()


def test_a_candidate_that_learns_another_reward_is_judged_by_that_of_the_route_and_the_line_says_so(ready: Run) -> None:
    ready("policy", "create", "tapped", "--kind", "uniform", "--reward", "taps")
    notice = "judged by reward default, which u learns; --reward taps judges by what tapped learns"
    assert notice in gated(ready, "tapped").stderr
    assert "judged by" not in gated(ready, "tapped", "--reward", "taps").stderr + gated(ready, "worse").stderr


def test_a_candidate_that_is_no_better_is_refused_with_the_numbers(ready: Run) -> None:
    done = gated(ready, "worse")
    assert (done.exit_code, done.json["set"], done.json["changed"], done.error["code"]) == (3, False, False, 3)
    assert done.json["estimate"] < 0
    assert re.search(r"it is worse than u: -\d+ % \[-\d+, -\d+\] per slot$", done.error["error"])
    assert (show(ready)["reference"], len(show(ready)["history"])) == ("u", 1)


def test_every_look_of_a_year_spends_some_of_the_error(ready: Run) -> None:
    others = (("worse",), ("alike",), ("worse", "--reward", "taps"))
    looks = [gated(ready, *words).json["gate"] for words in others]
    assert [look["candidate"] for look in looks] == [1, 2, 3]
    assert [look["alpha"] for look in looks] == [gate_alpha(number) for number in (1, 2, 3)]
    later = (
        "--allow-future",
        "--now",
        "2100-06-01T00:00:00Z",
        "route",
        "set",
        "home",
        "--to",
        "good",
        "--require",
        "if-better",
        "--json",
    )
    assert ready(*later).json["gate"]["candidate"] == 1


def served(run: Run, seed: int, visits: int = 300) -> None:
    """More visits of the same audience."""
    audience = ("bernoulli", "--env", "rates=0.6,0.3,0.3", "--policy", "u", "--sessions", visits, "--group", 100)
    run("simulate", *audience, "--seed", seed)


def test_looks_at_one_pair_of_versions_share_their_error_while_the_log_grows(ready: Run) -> None:
    looks = [gated(ready, "alike", "--guard", "taps:-90%").json["gate"]]
    for seed in (11, 12):
        served(ready, seed)
        looks.append(gated(ready, "alike", *(["--guard", "taps:-90%"] if seed == 11 else [])).json["gate"])
    pairs = [look["pair"] for look in looks]
    assert [(pair["number"], pair["looks"]) for pair in pairs] == [(1, 1), (1, 2), (1, 3)]
    assert {pair["best_n"] for pair in pairs} == {60 * looks[0]["n"]}  # all of the log is of a day
    assert pairs[0]["compared"].startswith("alike@1 less u@1: default by dr, gamma 1, cluster session, log all from 20")
    assert [look["candidate"] for look in looks] == [1, 2, 3]
    assert {look["alpha"] for look in looks} == {gate_alpha(1)}
    # later looks are as strict as the sequence: wider than the first in their standard errors
    widths = [(look["estimate"] - look["lower"]) / look["std_error"] for look in looks]
    assert 2 < widths[0] < 3.5 < widths[1]


def test_what_is_judged_otherwise_or_on_other_rows_is_another_pair(ready: Run) -> None:
    first = gated(ready, "alike").json["gate"]
    served(ready, 13)
    words: list[tuple[str, ...]] = [("--reward", "taps"), ("--log", "policy=u"), ("--log", "policy=u,version=1")]
    looks = [first, *(gated(ready, "alike", *options).json["gate"] for options in words)]
    assert [look["pair"]["number"] for look in looks] == [1, 2, 3, 3]  # the last one counts the same rows as before
    # rows that the first look counted are gone
    pruned = ("db", "prune", "--before", "2026-01-01T00:05:00Z", "--yes", "--json")
    assert ready("--allow-future", "--now", LATER, *pruned).json["decisions"] > 0
    assert gated(ready, "alike").json["gate"]["pair"]["number"] == 4


def test_the_same_look_again_spends_no_error(ready: Run) -> None:
    first, other, again = (
        gated(ready, *words).json for words in (("alike",), ("alike", "--guard", "taps:-9%"), ("alike",))
    )
    assert (first["gate"], first["repeated"]) == (again["gate"], False)
    assert (other["gate"]["candidate"], other["repeated"], again["repeated"]) == (2, False, True)
    passed = gated(ready, "good").json["gate"]
    ready("--allow-future", "--now", LATER, "route", "rollback", "home")
    once_more = gated(ready, "good").json
    assert (once_more["gate"], once_more["changed"]) == (passed, True)
    assert show(ready)["history"][0]["gate"] == passed
    ready("simulate", "bernoulli", "--env", "rates=0.6,0.3,0.3", "--policy", "u", "--sessions", 50, "--seed", 5)
    ready("--allow-future", "--now", LATER, "route", "rollback", "home")
    assert gated(ready, "good").json["gate"]["candidate"] == 4


def test_a_candidate_that_learned_from_the_log_is_refused(ready: Run) -> None:
    ready("--allow-future", "--now", LATER, "policy", "create", "late", "--kind", "thompson", "--from-log", "policy=u")
    done = gated(ready, "late")
    assert (done.exit_code, "in-sample" in done.json["gate"]["reasons"]) == (3, True)
    assert "has learned from visits" in done.error["error"]
    assert "a copy by `rlrec policy freeze` learns no more: visits after that can judge it" in done.error["error"]


def test_visits_after_those_that_taught_a_candidate_can_judge_it(ready: Run) -> None:
    at = ("--now", "2026-01-02T00:00:00Z", "policy")
    ready(*at, "create", "taught", "--kind", "thompson", "--param", "floor=0.1", "--from-log", "policy=u")
    ready(*at, "freeze", "taught")
    early = gated(ready, "taught@2")
    assert (early.exit_code, "visits from now on can judge it" in early.error["hint"]) == (3, True)
    ready("simulate", "bernoulli", "--env", "rates=0.6,0.3,0.3", "--policy", "u", "--sessions", 600, "--group", 50)
    later = gated(ready, "taught@2").json["gate"]
    assert (later["since_decision"], "in-sample" in later["reasons"], later["n"] < 300) == (1501, False, True)


def test_what_serves_may_have_learned_from_its_log(ready: Run) -> None:
    ready("simulate", "bernoulli", "--env", "rates=0.6,0.3,0.3", "--policy", "ts", "--sessions", 300, "--group", 10)
    ready("--allow-future", "--now", LATER, "route", "set", "home", "--to", "ts")
    done = gated(ready, "good")
    assert "in-sample" not in done.json["gate"]["reasons"]
    assert done.json["gate"]["against"] == "ts"


def test_a_candidate_that_the_log_cannot_judge_is_refused(sqlite_db: str) -> None:
    run = filled(sqlite_db, prepared, 60)
    done = gated(run, "good")
    assert (done.exit_code, done.json["gate"]["verdict"]) == (3, "insufficient")
    text = done.error["error"]
    assert "cannot tell yet whether it is better or worse than u, per slot; about a 50 % chance of " in text


def test_rows_without_propensities_are_refused(ready: Run, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [f'{{"session": "i{n}", "slate": [{{"arm": "a"}}], "eligible": ["a", "b", "c"]}}' for n in range(30)]
    log.write_text("\n".join(lines))
    assert ready("import-log", log, "--layout", "jsonl").exit_code == 0
    done = gated(ready, "good")
    assert (done.exit_code, done.json["gate"]["reasons"]) == (3, ["no-propensity"])
    assert gated(ready, "good", "--log", "policy=u").exit_code == 0


def test_a_gate_without_a_visit_to_judge_by_says_no_in_one_line(ready: Run) -> None:
    early = ready("route", "set", "home", "--to", "good", "--require", "if-better", "--log", "policy=ts")
    assert (early.exit_code, early.stderr.count("\n")) == (3, 1)
    assert "nothing to judge by" in early.stderr
    other = gated(ready, "good", "--log", "split=train")
    assert (other.exit_code, "split" in other.error["error"]) == (2, True)


def test_the_gate_may_open_a_ramp(ready: Run) -> None:
    assert gated(ready, "good", "--share", "10%").json["experiment"] == "home-ramp-1"
    assert show(ready)["history"][0]["gate"]["passed"]


# -- guards --


def test_a_guard_that_holds_lets_pass(ready: Run) -> None:
    guards = gated(ready, "good", "--guard", "taps:-5%").json["guards"]
    assert [(guard["guard"], guard["least"], guard["passed"]) for guard in guards] == [("taps", -0.05, True)]
    assert guards[0]["lower"] < guards[0]["value"] == pytest.approx(0.35, abs=0.15)


def test_a_guard_that_breaks_stops_a_better_candidate(ready: Run) -> None:
    ready("reward", "define", "silence", "click=-1, reward=-1", "--default", "1")
    done = gated(ready, "good", "--guard", "silence:-1%", "--guard", "taps:-1%")
    assert (done.exit_code, [guard["passed"] for guard in done.json["guards"]]) == (3, [False, True])
    assert done.json["lower"] > 0
    assert "guard silence changes by -" in done.error["error"]
    assert show(ready)["reference"] == "u"


@pytest.mark.parametrize("guard", ["tops:-2%", "taps", "taps:x", "taps:-200%", ":-2%"])
def test_a_guard_nobody_defined_is_refused(ready: Run, guard: str) -> None:
    done = ready("route", "set", "home", "--to", "good", "--require", "if-better", "--guard", guard)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_options_of_the_gate_need_the_gate(ready: Run) -> None:
    assert "--require if-better" in ready("route", "set", "home", "--to", "good", "--guard", "taps:-2%").failed(2)
    assert "`rlrec route ramp`" in ready("route", "set", "home", "--to", "good", "--guard", "visits>=-2%").failed(2)


def test_what_serves_already_has_nothing_to_be_compared_with(ready: Run) -> None:
    assert gated(ready, "u").exit_code == 2


@pytest.mark.slow
def test_policies_that_read_the_visit_are_compared_by_visits(sqlite_db: str) -> None:
    run = runner(sqlite_db)
    run("policy", "create", "pg", "--kind", "gradient", "--param", "floor=0.05")
    run("simulate", "barista", "--policy", "pg", "--sessions", "1000", "--group", "100", "--seed", "2")
    assert run("--allow-future", "--now", LATER, "train-pg", "pg", "--seed", "1", "--epochs", "8").exit_code == 0
    run("--allow-future", "--now", LATER, "route", "create", "home", "--to", "pg@1")
    done = gated(run, "pg@2")
    trained = run("policy", "show", "pg@2", "--json").json["training"]["gate"]
    assert (done.exit_code, done.json["estimator"], done.json["gate"]["n"]) == (0, "wdr", trained["sessions"])
    assert done.json["estimate"] == pytest.approx(trained["estimate"], abs=2 * trained["std_error"])


def test_two_loggers_judge_both_sides_with_the_same_weights(ready: Run) -> None:
    """The rows of a logger near the candidate make its gain surer. Rows weigh alike for both sides, so that the gain is
    what their values differ by; `evaluate` weighs loggers for each side alone."""
    audience = ("bernoulli", "--env", "rates=0.6,0.3,0.3", "--policy", "worse", "--sessions", 1_500, "--group", 100)
    ready("simulate", *audience, "--seed", 3)
    gate = gated(ready, "good").json["gate"]
    ready("--allow-future", "--now", LATER, "route", "rollback", "home")
    alone = gated(ready, "good", "--log", "policy=u").json["gate"]
    words = ("evaluate", "good", "u", "--estimator", "dr", "--log", "split=gate", "--json")
    sides = ready("--allow-future", "--now", LATER, *words).json
    assert [side["loggers"] for side in sides] == [2, 2]
    assert gate["value"] - gate["live_value"] == pytest.approx(gate["estimate"], rel=1e-12)
    assert [gate["value"], gate["live_value"]] == pytest.approx([side["value"] for side in sides], abs=0.02)
    assert gate["n"] == sides[0]["n"] > 1.8 * alone["n"]
    assert gate["std_error"] < alone["std_error"]
    assert abs(gate["estimate"] - 0.3 * (0.8 - 1 / 3)) < 3 * gate["std_error"]
    assert "in-sample" not in gate["reasons"]


def compared(db: str, change: str | None = None, *, short: int = 0) -> Any:
    """The gate's figures for a candidate that reads visits and serves as the uniform policy does that logged them: 400
    of three decisions, and some short ones."""
    with closing(Store(db, notice=visitors.ignored)) as store:
        visitors.serve(visitors.opened(store), visits=400)
        visitors.serve(store, visits=short, steps=2, start=START + MINUTE, prefix="short")
        if change is not None:
            store.write(lambda unit: unit.tell(change))
    run, now = runner(db), ("--now", "2027-01-16T08:00:00Z")
    assert run(*now, "route", "create", "home", "--to", "base").exit_code == 0
    return run(*now, "route", "set", "home", "--to", "visits@1", "--require", "if-better", "--json").json["gate"]


def test_both_sides_are_judged_by_the_visits_that_each_can_be_asked_about(db: str) -> None:
    gate = compared(db, "UPDATE decision SET history = NULL WHERE mod(session_id, 4) = 0")
    with closing(Store(db)) as store, store.read() as unit:
        (number,) = unit.ask("SELECT count(*) FROM session WHERE split = 2 AND mod(id, 4) > 0")[0]
    assert (gate["n"], gate["verdict"], "no-state" in gate["reasons"]) == (number, "weak", True)
    assert gate["estimate"] == pytest.approx(0, abs=1e-12)


def test_a_visit_without_an_end_does_not_stop_a_gate(sqlite_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_visits, "MAX_VISIT_DECISIONS", 2)
    gate = compared(sqlite_db, short=300)
    with closing(Store(sqlite_db)) as store, store.read() as unit:
        (number,) = unit.ask("SELECT count(*) FROM session WHERE split = 2 AND id > 400")[0]
    assert gate["n"] == number


@pytest.mark.slow
def test_a_guard_of_returns_needs_no_definition(sqlite_db: str) -> None:
    """An audience whose users come back where chocolate is rare: what earns more clicks may lose returns."""
    run = runner(sqlite_db)
    run("policy", "create", "u", "--kind", "uniform")
    run("simulate", "choc-kale", "--policy", "u", "--sessions", "400", "--group", "100", "--seed", "2")
    for name, chocolate in (("sweet", 0.8), ("mixed", 0.45)):
        fixed(run, name, {"arm0": chocolate, "arm1": 1 - chocolate})
    run("--allow-future", "--now", LATER, "route", "create", "home", "--to", "u")
    (guard,) = gated(run, "mixed", "--guard", "return:-2%").json["guards"]
    assert (guard["guard"], guard["estimator"], guard["value"] is None) == ("return", "wdr", False)
    with closing(Store(sqlite_db, now=parse(LATER))) as store, store.read() as unit:
        visits, followed = unit.ask_value("SELECT count(*) FROM visit"), len(sessions.followed_visits(unit))
    run(
        "--allow-future", "--now", LATER, "recommend", "--policy", "u", "--session", "late"
    )  # the log goes on until then
    shown = run("--allow-future", "--now", LATER, "outcomes", "--json").json["outcomes"]
    share = next(row["value"] for row in shown if row["metric"] == "returned_7d")
    assert followed == round(share * visits) > 0
