"""rlrec evaluate: the contract of its answer, and what a person sees."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from rlrec.ope.checks.reasons import GROUPS
from rlrec.ope.units.estimate import Estimate
from rlrec.sentences import approximate
from tests.app import logs, trained
from tests.app.shop import fixed
from tests.conftest import Run, click_events, filled, jsonl, runner

CONTRACT = [
    "target", "version", "estimator", "estimand", "unit", "value", "std_error", "lower", "upper", "level", "interval",
    "cluster", "clusters", "n", "ess", "max_weight", "mean_weight", "top1_share", "unsupported", "verdict", "reasons",
]  # fmt: skip
LATER = ("--now", "2026-03-01")


@pytest.fixture
def log(sqlite_db: str) -> None:
    filled(sqlite_db, logged)


def logged(db: str) -> None:
    logs.begin(db, 4, "home", "epsilon-greedy", epsilon="0.5")
    logs.serve(db, "home", pages=600, rates=(0.1, 0.2, 0.3, 0.4))


def test_json_has_the_contracts_keys_in_its_order(log: Any, run_sqlite: Run) -> None:
    result = run_sqlite(*LATER, "evaluate", "uniform", "--json").done()
    assert [row["estimator"] for row in result.json] == ["ips", "snips", "dr"]
    for row in result.json:
        assert list(row)[: len(CONTRACT)] == CONTRACT
        assert row["estimand"] == "mean reward per impression, as served, logging states"
        assert (row["level"], row["interval"], row["unit"], row["n"]) == (0.95, "bootstrap-t", "impression", 600)
        assert row["lower"] < row["value"] < row["upper"]


@pytest.mark.slow
def test_sessions_and_impressions_stand_in_the_order_asked(log: Any, run_sqlite: Run) -> None:
    result = run_sqlite(*LATER, "evaluate", "uniform", "--estimator", "wdr,ips", "--gamma", "0.5", "--json")
    assert [(row["estimator"], row["unit"], row["n"]) for row in result.json] == [
        ("wdr", "session", 300), ("ips", "impression", 600),
    ]  # fmt: skip
    assert result.json[0]["estimand"] == "mean return per session, as served, gamma 0.5"
    assert list(result.json[0]) == list(result.json[1])


@pytest.mark.slow
def test_repeated_lists_of_estimators_are_one(log: Any, run_sqlite: Run) -> None:
    repeated = run_sqlite(*LATER, "evaluate", "uniform", "--estimator", "dr", "--estimator", "ips,snips", "--json")
    assert repeated.json == run_sqlite(*LATER, "evaluate", "uniform", "--estimator", "dr,ips,snips", "--json").json
    assert {row["estimator"] for row in repeated.json} == {"dr", "ips", "snips"}


def test_a_table_tells_from_which_step_on_a_log_is_no_support(sqlite_db: str, run_sqlite: Run) -> None:
    logs.begin(sqlite_db, 40, "log", "uniform")
    logs.create(sqlite_db, "home", "gradient")
    trained.version(sqlite_db, "home", bias=[9.0, *[0.0] * 39])
    logs.serve(sqlite_db, "log", pages=400, rates=[0.5] * 40, start=3.0)
    notes = run_sqlite(*LATER, "evaluate", "home", "--estimator", "wpdis", "--details").stdout
    assert "horizon: from step 0 on the effective sample size for home@2 is below 5 % of the sessions" in notes


def test_a_built_in_is_judged_by_what_the_policies_beside_it_or_of_the_log_learn(
    sqlite_db: str, run_sqlite: Run
) -> None:
    def rewards(*targets: str) -> dict[str, str]:
        result = run_sqlite(*LATER, "evaluate", *targets, "--estimator", "snips", "--json")
        return {row["target"]: row["reward"] for row in result.json}

    logs.catalogue(sqlite_db, 4)
    for reward in ("done", "other"):
        assert run_sqlite("reward", "define", reward, "finished=1").exit_code == 0
        run_sqlite("policy", "create", reward, "--kind", "uniform", "--reward", reward)
    for session in ("s1", "s2"):
        run_sqlite("--now", "2026-01-01", "recommend", "--policy", "done", "--session", session)
    assert rewards("uniform") == {"uniform": "done"}
    assert rewards("uniform", "other") == {"uniform": "other", "other": "other"}
    assert rewards("uniform", "done", "other") == {"uniform": "default", "done": "done", "other": "other"}
    table = run_sqlite(*LATER, "evaluate", "done", "other", "--estimator", "snips").stdout
    assert "--reward judges all by one" in table
    assert re.search(r"^done +1 .* done .*\n.*^other +1 .* other ", table, re.MULTILINE)
    alone = run_sqlite(*LATER, "evaluate", "uniform", "--estimator", "snips").stdout
    assert alone.startswith("uniform: ")
    assert "; no row earned anything by reward done\n" in alone


def test_groups_are_named(log: Any, run_sqlite: Run) -> None:
    result = run_sqlite(*LATER, "evaluate", "uniform", "--estimator", "snips", "--by", "arm", "--json")
    assert [(row["by"], row["group"]) for row in result.json] == [("arm", f"a{arm}") for arm in range(4)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(log: Any, run_sqlite: Run) -> None:
    first, again, other = (
        run_sqlite(*LATER, "evaluate", "home", "uniform", "--seed", seed, "--json").stdout for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_details_have_all_estimates_and_explain_their_reasons(log: Any, run_sqlite: Run) -> None:
    result = run_sqlite(*LATER, "evaluate", "home@1", "--estimator", "ips,dm", "--details")
    sentence, grid, notes = result.stdout.split("\n\n")
    unknown = "this log cannot tell whether it is better or worse than what was logged, per impression ("
    assert sentence.startswith(f"home@1: {unknown}")
    assert grid.split("\n")[0].split()[:3] == ["target", "version", "estimator"]
    assert len(grid.splitlines()) == 4
    reported = {line.split(":")[0] for line in notes.splitlines()}
    assert {"in-sample", "no-interval", "low-ess"} <= reported
    assert "heavy-tail" not in reported


def test_the_answer_comes_first_then_a_row_a_target_then_its_reasons_by_group(log: Any, run_sqlite: Run) -> None:
    result = run_sqlite(*LATER, "evaluate", "uniform", "home@1")
    first, grid, notes = result.stdout.split("\n\n")
    sentences, read = first.rsplit("\n", 1)
    assert re.fullmatch(r"600 decisions (on|from 2026-\d\d-\d\d to) 2026-\d\d-\d\d, reward default", read)
    assert [line.split(" ")[0].rstrip(":") for line in sentences.splitlines()] == ["uniform", "home@1"]
    # the sentence names what more of this log would not mend, and the lines below all reasons
    assert sentences.endswith("it is better or worse than what was logged, per impression (log: no-users, in-sample)")
    assert "home@1, low-ess: " in notes
    assert "%" not in grid  # a lift that the log cannot tell is no result
    assert "%" not in run_sqlite(*LATER, "evaluate", "home@1", "--by", "day").stdout.split("\n\n")[1]
    assert [line.split()[0] for line in grid.splitlines()[2:]] == ["uniform", "home"]
    lines = notes.splitlines()
    *lines, assumption = lines
    assert assumption == "assumed by dr: what a slot earns does not depend on what was shown before"
    assert {line.split(":")[0] for line in lines if not line.startswith((" ", "Next"))} <= {*GROUPS}
    assert any(line.startswith("  home@1, in-sample: the target, or the model of rewards, learned") for line in lines)
    # one command a target, against its worst reason
    steps = [line for line in lines if line.startswith("Next")]
    assert steps == [
        f"Next for {name}: log the user of each session; only if each is another person, "
        f"`rlrec evaluate {name} --cluster session`"
        for name in ("uniform", "home@1")
    ]
    # home learned from this log as it served: no experiment compares it with itself
    words = (*LATER, "evaluate", "home@1", "--cluster", "session")
    step = "Next: `rlrec outcomes --by policy` shows what it earned as it served; a holdout of a route tells its worth"
    assert step in run_sqlite(*words).stdout.splitlines()
    # the log is as near uniform as a floor would make it
    assert not [line for line in lines if "floor=" in line]


def test_a_policy_that_has_learned_nothing_is_named(log: Any, run_sqlite: Run) -> None:
    run_sqlite(*LATER, "policy", "create", "blank", "--kind", "ucb").done()
    run_sqlite(*LATER, "policy", "create", "taught", "--kind", "ucb", "--from-log", "all").done()
    lines = run_sqlite(*LATER, "evaluate", "uniform", "home", "blank", "taught").done().stdout.splitlines()
    assert [line.split(",")[0] for line in lines if "nothing" in line] == ["blank@1 has learned nothing yet"]
    assert not [line for line in lines if line.startswith(("blank@1 is ", "blank@1: "))]  # no answer about its prior
    (figures,) = (line.split() for line in lines if line.startswith("blank "))
    assert figures[4:7] == ["-"] * 3  # what `uniform` would earn is nothing that it has, nor are its reasons
    assert [line for line in lines if "blank@1, low-ess" in line or line.startswith("log of blank")] == []
    (command,) = (line.split("`")[1] for line in lines if "nothing" in line)
    assert "no 10 stretches of time" in run_sqlite(*LATER, *command.split()[1:]).failed(3)  # it is no wrong usage


def test_a_newer_version_that_waits_is_named(log: Any, run_sqlite: Run) -> None:
    run_sqlite(*LATER, "policy", "rebuild", "home").done()
    waits = "home@1 is judged, which is live; home@2 is newer, and waits: name it to judge that"
    assert waits in run_sqlite(*LATER, "evaluate", "uniform", "home").done().stderr
    assert waits not in run_sqlite(*LATER, "evaluate", "uniform", "home@1").done().stderr
    run_sqlite(*LATER, "policy", "promote", "home@2").done()
    assert "waits" not in run_sqlite(*LATER, "evaluate", "home").done().stderr


def test_a_policy_that_equals_one_of_several_loggers_is_told_where_the_others_are_compared(
    sqlite_db: str, run_sqlite: Run
) -> None:
    """An even policy served a few visits beside one that nearly always shows the same arm: the few alone tell of it."""
    logs.begin(sqlite_db, 20, "sure", "epsilon-greedy", epsilon="0.001")
    logs.create(sqlite_db, "even", "uniform")
    logs.serve(sqlite_db, "even", pages=60, rates=[0.5] * 20)
    logs.serve(sqlite_db, "sure", pages=600, rates=[0.5] * 20, start=3.0)
    text = run_sqlite(*LATER, "evaluate", "uniform", "--cluster", "session").done().stdout
    others = "others are compared with it by an experiment, or --log all"
    assert text.startswith(f"uniform is the same policy as even@1: {others}\n")
    assert "Next" not in text


def test_a_policy_with_variants_is_selected_by_its_versions(run_sqlite: Run) -> None:
    """`policy=home` selects the variants of an experiment, too."""

    def at(time: str, *words: str, stdin: Any = None) -> str:
        return run_sqlite("--now", time, "--allow-future", *words, stdin=stdin).done().stderr

    run_sqlite("arm", "import", "-", stdin=[{"arm": arm} for arm in "abc"])
    run_sqlite("policy", "create", "home", "--kind", "epsilon-greedy", "--param", "epsilon=0.5")
    at("2030-03-01", "recommend", "--policy", "home", "--session", "first")
    at("2030-03-01", "feedback", "1", "click")  # from now on, one arm is shown most
    at("2030-03-02", "experiment", "create", "ab", "--variant", "a=home", "--variant", "b=uniform:0.01")
    lines = [{"experiment": "ab", "session": f"e{number}", "user": f"e{number}"} for number in range(60)]
    lines += [{"policy": "home", "session": f"p{number}"} for number in range(20)]
    at("2030-03-03", "recommend", "--input", "-", stdin=lines)
    for log in ("", "policy=home,"):
        words = ("--log", log) if log else ()
        notice = f"serves now: `rlrec evaluate uniform --log {log}loggers=home@1` compares it with that"
        assert notice in at("2030-04-01", "evaluate", "uniform", *words)
        assert "serves now" not in at("2030-04-01", "evaluate", "uniform", "--log", f"{log}loggers=home@1")


def test_a_target_that_is_compared_with_what_no_longer_serves_says_so(sqlite_db: str, run_sqlite: Run) -> None:
    """A log that was imported tells more of it than the policy that serves now."""
    logs.begin(sqlite_db, 3, "old", "epsilon-greedy", epsilon="0.7")
    logs.create(sqlite_db, "present", "epsilon-greedy", epsilon="0.2")
    logs.serve(sqlite_db, "old", pages=400, rates=[0.2, 0.5, 0.8], group=50)
    logs.serve(sqlite_db, "present", pages=100, rates=[0.2, 0.5, 0.8], group=50, start=20.0)
    notes = run_sqlite(*LATER, "evaluate", "uniform", "--cluster", "session").done().stderr
    others, command = notes.split("`")[:2]
    assert others.endswith("% of what uniform is compared with is not present, which serves now: ")
    assert command == "rlrec evaluate uniform --log policy=present --cluster session"
    assert "serves now" not in run_sqlite(*LATER, *command.split()[1:]).done().stderr
    swept = run_sqlite(*LATER, "sweep", "--kinds", "ucb", "--cluster", "session").done().stderr
    assert "is not present, which serves now: this command with `--log policy=present` compares with that" in swept
    # a holdout logged the newest decision, and its route serves another policy
    logs.serve(sqlite_db, "old", pages=1, rates=[0.5] * 3, start=30.0)
    assert "is not old" not in run_sqlite(*LATER, "evaluate", "uniform", "--cluster", "session").done().stderr
    run_sqlite("--now", "2026-09-01", "route", "create", "home", "--to", "present").done()
    assert "is not present" in run_sqlite(*LATER, "evaluate", "uniform", "--cluster", "session").done().stderr


def test_targets_that_served_their_own_rows_neither_have_figures_nor_widen_bounds(
    sqlite_db: str, run_sqlite: Run
) -> None:
    """Each variant was judged on other rows than `uniform`, whose question alone the log answers."""
    logs.catalogue(sqlite_db, 2)
    for number, name in enumerate(("left", "right")):
        fixed(run_sqlite, name, {"a0": 0.05 + 0.9 * number, "a1": 0.95 - 0.9 * number})
        logs.serve(sqlite_db, name, pages=300, rates=[0.2, 0.5], start=1.0 + 2 * number)
    command = (*LATER, "evaluate", "--cluster", "session", "uniform")
    alone, both = (run_sqlite(*command, *names).done().stdout for names in ((), ("left", "right")))
    lift = re.compile(r"^uniform .* (\S+ % \[.*\])  ", re.M)
    assert lift.findall(both) == lift.findall(alone) != []
    rows = [line.split() for line in both.splitlines() if line.startswith(("left  ", "right  "))]
    assert [row[4:8] for row in rows] == [["-"] * 4] * 2
    assert "neither values nor lifts compare them" not in both


def test_few_groups_have_a_sentence_each(log: Any, run_sqlite: Run) -> None:
    lines = run_sqlite(*LATER, "evaluate", "uniform", "--by", "policy", "--cluster", "session").stdout.splitlines()
    assert lines[0].startswith("3 estimates by policy, 1 group: ")
    assert lines[1].startswith("home: uniform")
    assert "per impression" in lines[1]


def test_a_policy_that_paces_what_it_spends_is_named_beside_targets_that_do_not(log: Any, run_sqlite: Run) -> None:
    run_sqlite("reward", "define", "savings", "cost=-1").done()
    run_sqlite("policy", "create", "thrifty", "--kind", "ucb", "--param", "budget=cost:2/day").done()
    paced = "thrifty paces what it spends (cost:2/day); what does not may earn more by spending more"
    assert paced in run_sqlite(*LATER, "evaluate", "uniform").done().stderr
    for words in (["uniform", "--reward", "savings"], ["thrifty"]):
        assert "paces" not in run_sqlite(*LATER, "evaluate", *words).done().stderr


def test_what_a_target_did_not_learn_from_is_named(log: Any, run_sqlite: Run) -> None:
    create = ("policy", "create", "taught", "--kind", "thompson", "--from-log", "policy=home,split=train")
    assert run_sqlite(*LATER, *create).exit_code == 0
    words = ("evaluate", "taught@1", "--log", "policy=home", "--cluster", "session")
    (step,) = (line for line in run_sqlite(*LATER, *words).stdout.splitlines() if line.startswith("Next"))
    command = "evaluate taught@1 --cluster session --log policy=home,split=gate"
    assert step == f"Next: `rlrec {command}`, by users from whom it did not learn"
    assert "in-sample" not in run_sqlite(*LATER, *command.split()).stdout


def test_no_line_speaks_of_two_targets(log: Any, run_sqlite: Run) -> None:
    text = run_sqlite(*LATER, "evaluate", "uniform", "home@1").stdout
    assert [line for line in text.splitlines() if "uniform" in line and "home" in line] == []


def test_effective_sample_sizes_of_a_table_are_whole_numbers(log: Any, run_sqlite: Run) -> None:
    _, grid, *_ = run_sqlite(*LATER, "evaluate", "home", "uniform").stdout.split("\n\n")
    head, _, *rows = grid.splitlines()
    index = head.index("  ess") + 5
    assert [row[:index].split()[-1].isdigit() for row in rows] == [True, True]


def test_which_targets_may_still_be_the_best_is_asked_for(log: Any, run_sqlite: Run) -> None:
    """home@1 has learned from this log: what it would earn neither leaves out others nor is left out."""
    for name, shares in {"high": (0.01, 0.01, 0.08, 0.9), "low": (0.9, 0.08, 0.01, 0.01)}.items():
        fixed(run_sqlite, name, {f"a{arm}": share for arm, share in enumerate(shares)})
    command = (*LATER, "evaluate", "high", "low", "home@1", "--estimator", "snips", "--cluster", "session")
    first, *_ = run_sqlite(*command, "--best").stdout.splitlines()
    assert first == "high@1 may still be the best; low@1 is not; this log cannot tell about home@1"
    assert first not in run_sqlite(*command).stdout
    none_better = run_sqlite(*LATER, "evaluate", "low", "home@1", "--cluster", "session", "--best").stdout
    start = "none is known to be better than what was logged: this log cannot tell about home@1\n"
    assert none_better.startswith(start)
    rows = run_sqlite(*command, "--json").json
    assert [(row["target"], row["may_be_best"]) for row in rows] == [("high", True), ("low", False), ("home", None)]
    for words in (["high"], ["high", "low", "--by", "policy"]):
        assert "--best compares targets" in run_sqlite(*LATER, "evaluate", *words, "--best").stderr


def test_a_log_without_times_says_nothing_of_hours(run_sqlite: Run, tmp_path: Path) -> None:
    """Each import dates its lines by itself: what lies between two imports is no traffic."""
    rng, source = np.random.default_rng(3), tmp_path / "log.vw"
    for hour in range(3):
        actions, costs = rng.integers(1, 3, 200), -(rng.random(200) < 0.3).astype(int)
        pairs = enumerate(zip(actions.tolist(), costs.tolist(), strict=True), 200 * hour)
        source.write_text("".join(f"{action}:{cost}:0.5 | x:{number}\n" for number, (action, cost) in pairs))
        options = ("--layout", "vw", "--actions", 2, "--policy", "old")
        assert run_sqlite("--now", f"2026-01-01T0{hour}:00:00Z", "import-log", source, *options).exit_code == 0
    fixed(run_sqlite, "near", {"1": 0.4, "2": 0.6})
    command = ("--now", "2026-02-01T00:00:00Z", "evaluate", "near", "--cluster", "session")
    rows = run_sqlite(*command, "--json").json
    assert {row["needed_days"] for row in rows} == {None}
    assert any(row["needed"] for row in rows)
    assert "of this traffic" not in run_sqlite(*command).stdout


def test_what_is_needed_is_told_in_clusters_and_in_days_of_the_logs_traffic(log: Any, run_sqlite: Run) -> None:
    fixed(run_sqlite, "near", {"a0": 0.2, "a1": 0.2, "a2": 0.3, "a3": 0.3})
    command = (*LATER, "evaluate", "near", "--cluster", "session")
    rows, text = run_sqlite(*command, "--json").json, run_sqlite(*command).stdout
    (shown,) = (row for row in rows if row["estimator"] == "dr")
    assert shown["answer"] == "unknown"
    seconds = 86_400 * shown["needed_days"] / shown["needed"] * shown["clusters"]
    assert f"about a 50 % chance of an answer after {approximate(shown['needed']):,} more visits (" in text
    times = [record["at"] for record in run_sqlite(*LATER, "export-log", "-").lines]
    span = datetime.fromisoformat(max(times)) - datetime.fromisoformat(min(times))
    assert len({*times}) == 2  # two groups: a third one was to be expected as long after the second
    assert seconds == pytest.approx(2 * span.total_seconds(), rel=0.01)
    # while rewards are on their way, only the traffic whose rewards are there
    at_half = datetime.fromisoformat(min(times)) + span / 2 + timedelta(minutes=30)
    rows = run_sqlite("--now", at_half.isoformat(), *command[2:], "--plan", "0.05", "--json").json
    (half,) = (row for row in rows if row["estimator"] == "dr")
    assert 0 < half["clusters"] < shown["clusters"]
    seconds = 86_400 * half["plan"]["needed_days"] / half["plan"]["needed"] * half["clusters"]
    assert seconds == pytest.approx(span.total_seconds() / 2, abs=1)
    # the same lift with a chance of 80 % in place of even odds
    lift = f"{shown['lift']:.17g}"
    plans = {row["estimator"]: row["plan"] for row in run_sqlite(*command, "--plan", lift, "--json").json}
    ratio = (plans["dr"]["needed"] + shown["clusters"]) / (shown["needed"] + shown["clusters"])
    assert ratio == pytest.approx((1 + 0.8416212 / 1.9599640) ** 2, rel=1e-3)
    small, large = (run_sqlite(*command, "--plan", lift).stdout for lift in ("1%", "300%"))
    assert "visits (" in small.splitlines()[1]
    assert large.splitlines()[1].startswith("this log is long enough to tell a lift of +300 % of near@1")
    assert "the lift of --plan is 0 %" in run_sqlite(*command, "--plan", "0").stderr


@pytest.mark.slow
def test_ndjson_and_csv_hold_a_row_an_estimate(log: Any, run_sqlite: Run) -> None:
    lines = run_sqlite(*LATER, "evaluate", "uniform", "--format", "ndjson").lines
    table = list(csv.DictReader(io.StringIO(run_sqlite(*LATER, "evaluate", "uniform", "--format", "csv").stdout)))
    assert [row["estimator"] for row in lines] == [item["estimator"] for item in table] == ["ips", "snips", "dr"]


def test_options_come_from_the_environment(log: Any, run_sqlite: Run) -> None:
    result = run_sqlite(*LATER, "evaluate", "uniform", "--json", env={"RLREC_EVALUATE_ESTIMATOR": "clipped-ips:2"})
    assert [row["estimator"] for row in result.json] == ["clipped-ips:2"]


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["nobody"], "unknown target 'nobody'"),
        (["uniform", "--interval", "cressie-read"], "does not exist for dr"),
        (["uniform", "--interval", "cressie-read", "--estimator", "sndr"], "does not exist for sndr"),
        (["uniform", "--estimator", "switch-dr:nan"], "tau of switch-dr is nan"),
        (["uniform", "--estimator", "dros:0"], "lambda of dros is 0"),
        (["uniform", "--by", "arm", "--estimator", "sndr"], "sndr does not work by arm"),
        (["uniform", "--log", "policy=hom"], "did you mean home?"),
        (["uniform", "--gamma", "1.5"], "gamma is 1.5"),
        (["uniform", "--by", "arm", "--estimator", "wdr"], "no one arm"),
        (["uniform", "--log", "split=test"], "unknown split 'test'"),
        (["uniform", "--by", "hour"], "no context of the log has the field 'hour'"),
        ([], "Missing argument"),
    ],
)
def test_an_error_is_one_line_and_code_2(log: Any, run_sqlite: Run, words: list[str], result: str) -> None:
    answer = run_sqlite(*LATER, "evaluate", *words).failed(2)
    assert result in answer
    assert answer.count("\n") == 1


def test_an_empty_log_is_said_to_be_one(run_sqlite: Run) -> None:
    answer = run_sqlite("evaluate", "uniform", "--json")
    assert answer.exit_code == 2
    assert answer.error["code"] == 2
    assert answer.error["error"].startswith("empty log")


def test_the_page_explains_every_figure(run_sqlite: Run) -> None:
    names = {field.name for field in fields(Estimate)} - {"estimator", "estimand", "unit", "level"}
    output = run_sqlite("help", "evaluate").stdout
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", output)] == []


def test_the_page_lists_every_estimator(run_sqlite: Run) -> None:
    text = run_sqlite("help", "evaluate").stdout
    *_, markdown = run_sqlite("help", "evaluate", "--json").json
    for output in (text, markdown):
        assert [name for name in ope.ESTIMATORS if f"\n- `{name}" not in output] == []
    assert "cascade" in run_sqlite("help", "--man").stdout


def test_help_has_an_example_that_runs(log: Any, run_sqlite: Run) -> None:
    assert "rlrec evaluate home uniform" in run_sqlite("evaluate", "--help").stdout
    assert run_sqlite(*LATER, "evaluate", "home", "uniform").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("audience", "flagged"), [("cascade", True), ("pbm", False)])
def test_pages_whose_slots_depend_on_those_above_are_flagged(run_sqlite: Run, audience: str, flagged: bool) -> None:
    run_sqlite("policy", "create", "u", "--kind", "uniform")
    played = run_sqlite(
        "simulate",
        audience,
        "--policy",
        "u",
        "-k",
        "4",
        "--sessions",
        "2000",
        "--group",
        "500",
        "--seed",
        "1",
        "--json",
    )
    command = "--now", played.json["ended_at"], "evaluate", "uniform", "--estimator", "ips,snips", "--json"
    assert ["dependent-slots" in row["reasons"] for row in run_sqlite(*command).json] == [flagged] * 2


@pytest.mark.slow
def test_where_a_visit_changes_the_next_one_session_estimates_are_weak_at_best(run_sqlite: Run, tmp_path: Path) -> None:
    """Chocolate earns more in a visit that begins well, and later visits begin worse."""
    run_sqlite("policy", "create", "u", "--kind", "uniform")
    for name, kale in (("sweet", 0.3), ("green", 0.7)):
        (tmp_path / name).write_text(f"arm,probability\nchocolate,{1 - kale}\nkale,{kale}\n")
    played = run_sqlite(
        "simulate", "choc-kale", "--policy", "u", "--sessions", "2000", "--group", "500", "--seed", "1", "--json"
    )
    for name in ("sweet", "green"):
        run_sqlite("policy", "create", name, "--kind", "fixed", "--param", f"probabilities={tmp_path / name}")
    command = "--now", played.json["ended_at"], "evaluate", "sweet", "green", "--estimator", "wdr,dr-rl"
    rows = run_sqlite(*command, "--json").json
    assert all("carry-over" in row["reasons"] and row["verdict"] != "ok" for row in rows)
    text = run_sqlite(*command).stdout
    assert "only an experiment per user can tell" in text


def test_a_log_whose_propensities_are_false_judges_nothing(run_sqlite: Run, tmp_path: Path) -> None:
    """Arms are shown .7, .2 and .1 of the time, and the log says 1/3 each."""
    rng = np.random.default_rng(5)
    lines = [
        {"session": f"s{n}", "slate": [{"position": 1, "arm": f"a{arm}", "propensity": 1 / 3}], "reward": arm / 2,
         "eligible": ["a0", "a1", "a2"]}
        for n, arm in enumerate(rng.choice(3, 600, p=[0.7, 0.2, 0.1]).tolist())
    ]  # fmt: skip
    path = tmp_path / "false.jsonl"
    path.write_text(jsonl(lines))
    run_sqlite("import-log", str(path), "--layout", "jsonl", "--policy", "old")
    uniform, itself = (
        run_sqlite("evaluate", name, "--estimator", "snips", "--log", "policy=old", "--json").json[0]
        for name in ("uniform", "old")
    )
    assert (uniform["verdict"], uniform["reasons"][0]) == ("insufficient", "wrong-propensities")
    assert "wrong-propensities" not in itself["reasons"]


# -- logs that tell little --


def test_an_imported_row_that_showed_an_arm_for_sure_supports_no_other(run_sqlite: Run) -> None:
    """`uniform` wants half of b, which had no chance; the sentence says so, though dm has a value."""
    line = {"eligible": ["a", "b"], "slate": [{"position": 1, "arm": "a", "propensity": 1.0}]}
    lines = [json.dumps({"session": f"s{n}", "reward": n % 3 // 2, **line}) for n in range(100)]
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin="\n".join(lines))
    rows = run_sqlite("evaluate", "uniform", "--estimator", "snips,dm", "--json").json
    assert [row["unsupported"] for row in rows] == [0.5, 0.5]
    text = run_sqlite("evaluate", "uniform", "--estimator", "snips,dm").stdout
    assert text.startswith(
        "uniform: this log cannot tell whether it is better or worse than what was logged, per impression (support: "
    )


def test_the_sentence_never_rests_on_a_model_alone(run_sqlite: Run, tmp_path: Path) -> None:
    """40 effective visits are too few; dm, which weighs nothing, is weak."""
    lines = [
        json.dumps({"session": f"s{n}", "reward": n % 3 // 2, "eligible": ["a", "b"],
                    "slate": [{"position": 1, "arm": "ab"[n % 2], "propensity": 0.5}]})
        for n in range(40)
    ]  # fmt: skip
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin="\n".join(lines))
    (tmp_path / "b.csv").write_text("arm,probability\na,0.1\nb,0.9\n")
    run_sqlite("policy", "create", "b", "--kind", "fixed", "--param", f"probabilities={tmp_path / 'b.csv'}")
    command = "evaluate", "b", "--estimator", "snips,dm", "--cluster", "session"
    assert [row["verdict"] for row in run_sqlite(*command, "--json").json] == ["insufficient", "weak"]
    assert run_sqlite(*command).stdout.startswith("b@1: cannot tell yet")


def test_rewards_that_are_all_the_same_are_no_certainty(run_sqlite: Run, tmp_path: Path) -> None:
    line = {"eligible": ["a", "b"], "reward": 1}
    lines = [
        json.dumps({"session": f"s{n}", "slate": [{"position": 1, "arm": "ab"[n % 2], "propensity": 0.5}], **line})
        for n in range(2_000)
    ]
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin="\n".join(lines))
    rows = run_sqlite("evaluate", "uniform", "--estimator", "ips,snips,dr,wdr", "--cluster", "session", "--json").json
    assert [(row["verdict"], row["reasons"]) for row in rows] == [("weak", ["no-variation"])] * 4
    assert {row["answer"] for row in rows} == {"same"}  # the policy that served, whatever it earns
    (tmp_path / "b.csv").write_text("arm,probability\na,0.1\nb,0.9\n")
    run_sqlite("policy", "create", "b", "--kind", "fixed", "--param", f"probabilities={tmp_path / 'b.csv'}")
    rows = run_sqlite("evaluate", "b", "--estimator", "snips,dr", "--json").json
    assert {(row["answer"], row["needed"]) for row in rows} == {("unknown", None)}


def test_the_logs_own_policy_is_the_same(run_sqlite: Run, tmp_path: Path) -> None:
    """Of a uniform log whose propensities have four digits: all weights are within 2 in 10,000 of 1."""
    rng, lines = np.random.default_rng(1), []
    for n in range(600):
        eligible = list("abcdefg")[: (3, 7)[n % 2]]
        arm = int(rng.integers(len(eligible)))
        slate = [{"position": 1, "arm": eligible[arm], "propensity": round(1 / len(eligible), 4)}]
        reward = int(rng.random() < 0.3 + 0.05 * arm)
        lines.append(json.dumps({"session": f"s{n}", "reward": reward, "eligible": eligible, "slate": slate}))
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin="\n".join(lines))
    for estimator in ("ips", "snips", "pdis"):
        done = run_sqlite("evaluate", "uniform", "--estimator", estimator)
        assert done.stdout.startswith("uniform is the same policy as what was logged: no difference\n")
    page = tmp_path / "page.html"
    assert run_sqlite("report", page).exit_code == 0
    assert 'id="estimates"' not in page.read_text()  # an imported policy is not judged against itself


def test_a_model_makes_no_difference_of_a_policy_that_served_the_log(sqlite_db: str) -> None:
    """Of however short a log, on which `dr`, whose model has an error, has another value."""
    logs.begin(sqlite_db, 2, "even", "uniform")
    logs.serve(sqlite_db, "even", pages=200, rates=[0.3, 0.3])
    run = runner(sqlite_db)
    lines = run("evaluate", "even", "--cluster", "session").stdout.splitlines()
    assert lines[0] == "even@1 is the same policy as what was logged: no difference"
    rows = {row["estimator"]: row for row in run("evaluate", "even", "--cluster", "session", "--json").json}
    assert rows["dr"]["value"] != rows["dr"]["served"]
    assert {(row["lift_lower"], row["lift_upper"], row["answer"]) for row in rows.values()} == {(0.0, 0.0, "same")}


# -- visits: where a step carries over to later ones, whole visits answer --


def bar(db: str) -> None:
    """Visitors of `barista`, whom too much of one item bores, and a policy that shows one item most of the time."""
    run = runner(db)
    assert run("policy", "create", "log", "--kind", "uniform").exit_code == 0
    run("simulate", "barista", "--policy", "log", "--sessions", "800", "--group", "100", "--seed", "1").done()
    path = Path(db.removeprefix("sqlite:///")).with_suffix(".csv")
    path.write_text("arm,probability\narm0,0.55\narm1,0.15\narm2,0.15\narm3,0.15\n")
    assert run("policy", "create", "same", "--kind", "fixed", "--param", f"probabilities={path}").exit_code == 0


def test_what_carries_over_is_judged_by_whole_visits(sqlite_db: str) -> None:
    """Served to 3,000 fresh visitors, the policy earns 4.02 a visit, and the logger 4.77."""
    run = filled(sqlite_db, bar)
    rows = run("evaluate", "same", "--json").json
    assert [row["unit"] for row in rows] == ["session", "impression", "impression", "impression"]
    assert rows[0]["lower"] < 4.02 < rows[0]["upper"]
    assert "carry-over" in rows[1]["reasons"]
    assert (rows[0]["answer"], rows[1]["answer"]) == ("worse", "unknown")
    text = run("evaluate", "same").stdout
    assert text.startswith("same@1 is worse than what was logged: -")
    assert "per visit" in text.partition("\n")[0]


def forgetful(db: str) -> None:
    """Visitors of `pbm`, who click as if they had seen nothing before."""
    run = runner(db)
    assert run("policy", "create", "log", "--kind", "uniform").exit_code == 0
    words = ("--sessions", "1000", "--group", "500", "--seed", "1", "--steps", "5")
    run("simulate", "pbm", "--policy", "log", *words).done()


@pytest.mark.slow
@pytest.mark.parametrize(("audience", "flagged"), [(bar, True), (forgetful, False)])
def test_an_audience_that_tires_is_flagged_and_one_without_memory_is_not(
    sqlite_db: str, audience: Callable[[str], None], flagged: bool
) -> None:
    run = filled(sqlite_db, audience)
    run(*LATER, "policy", "create", "ts", "--kind", "thompson", "--from-log", "policy=log")
    rows = run(*LATER, "evaluate", "ts", "--estimator", "snips,dr", "--json").json
    assert ["carry-over" in row["reasons"] for row in rows] == [flagged] * 2
    by_step = run(*LATER, "evaluate", "ts", "--estimator", "snips", "--by", "step", "--json").json
    assert [row["group"] for row in by_step[:3]] == [0, 1, 2]
    assert "no one step" in run(*LATER, "evaluate", "ts", "--estimator", "wdr", "--by", "step").failed(2)


@pytest.mark.parametrize("options", [["--estimator", "snips"], ["--by", "arm"], ["--cluster", "row"]])
def test_whoever_asks_for_slots_gets_slots(sqlite_db: str, options: list[str]) -> None:
    run = filled(sqlite_db, bar)
    assert {row["unit"] for row in run("evaluate", "same", *options, "--json").json} == {"impression"}


def test_a_sentence_says_that_later_visits_are_not_counted(run_sqlite: Run, tmp_path: Path) -> None:
    """A reward that weighs returns seems to speak of the long run; what visitors earn once they are back is in no
    estimate. Seeded."""
    (tmp_path / "table.csv").write_text("arm,probability\na,0.9\nb,0.1\n")
    run_sqlite("arm", "add", "a", "b")
    run_sqlite("reward", "define", "durable", "click=1, return=1", "--window", "1d").done()
    run_sqlite("reward", "define", "clicks", "click=1", "--window", "1d").done()
    run_sqlite("policy", "create", "log", "--kind", "uniform").done()
    run_sqlite("policy", "create", "more", "--kind", "fixed", "--param", f"probabilities={tmp_path}/table.csv").done()
    lines = [{"policy": "log", "session": f"s{user}", "user": f"u{user}"} for user in range(400)]
    answers = run_sqlite("recommend", "--input", "-", "--seed", 1, "--json", stdin=lines).lines
    clicks = click_events(answers, lambda slot: slot["arm"] == "a")
    run_sqlite("feedback", "--input", "-", stdin=clicks).done()
    words = ("--now", "+3d", "evaluate", "more", "--estimator", "ips", "--reward")
    answer = run_sqlite(*words, "durable").stdout.splitlines()[0]
    assert answer.startswith("more@1 is better than what was logged: ")
    assert " per impression by durable, later visits not counted" in answer
    assert "later visits" not in run_sqlite(*words, "clicks").stdout


def test_days_of_the_log_go_by_the_time_zone(run_sqlite: Run) -> None:
    """The night in which the clocks of Berlin change belongs to the day that begins there."""
    slate = {"eligible": ["x", "y"], "slate": [{"arm": "x", "propensity": 0.5}]}
    line = {"session": "s", "user": "u", "at": "2026-03-28T23:30:00Z", **slate}
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin=jsonl([line]))
    assert "1 decision on 2026-03-28, " in run_sqlite("evaluate", "uniform").stdout
    berlin = run_sqlite("--tz", "Europe/Berlin", "evaluate", "uniform", "--log", "since=2026-03-29")
    assert "1 decision on 2026-03-29, " in berlin.stdout
