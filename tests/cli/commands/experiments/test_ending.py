"""rlrec experiment stop --promote: what a variant has learned becomes the next version of its policy."""

import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.experiments import ending
from rlrec.errors import CheckFailed
from rlrec.store import Store
from tests.app.workers import promotes, together
from tests.cli.commands.experiments import test_route
from tests.conftest import ON_BOTH, Run, click, filled, runner, store_after

# A policy of each way to remember, by name: options of `policy create`.
POLICIES = {
    "fading": ("thompson", "--param", "floor=0.1", "--param", "discount=0.97"),
    "window": ("ucb", "--param", "floor=0.1", "--param", "window=64"),
    "settled": ("epsilon-greedy", "--reward", "late"),
    "linear": ("linucb", "--param", "floor=0.1"),
}
CONTEXTS = ('{"device": "phone"}', '{"device": "desk"}')
START = "2026-01-01T00:00:00Z"


def experimented(db: str, name: str) -> None:
    """A policy has served alone, then in an experiment, then again alone: more, or less, than its variant."""
    run = clocked(runner(db), 0)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in "xyz"])
    run("reward", "define", "late", "click=1", "--window", "1h", "--learn", "settled")
    assert run("policy", "create", name, "--kind", *POLICIES[name]).exit_code == 0
    variants = ("--variant", f"a={name}", "--variant", f"b={name}")
    serve(run, 0, 20, policy=name)
    assert run("experiment", "create", f"{name}-ab", *variants).exit_code == 0
    serve(run, 200, 120, experiment=f"{name}-ab")
    serve(run, 500, 20 if name == "fading" else 70, policy=name)


def clocked(run: Run, hours: float) -> Run:
    """The commands at so many hours after the start."""
    at = f"2026-01-{1 + int(hours // 24):02}T{int(hours % 24):02}:00:00Z"
    return lambda *words, **options: run("--allow-future", "--now", at, *words, **options)


def serve(run: Run, first: int, number: int, **name: str) -> None:
    """A decision of each of these users, half of whom click."""
    lines = [
        {**name, "session": f"s{n}", "user": f"u{n}", "context": json.loads(CONTEXTS[n // 2 % 2])}
        for n in range(first, first + number)
    ]
    answers = run("recommend", "--input", "-", "--seed", first, stdin=lines).lines
    assert len(answers) == number
    click(run, [answer["decision_id"] for answer in answers[::2]])


def believed(run: Run, reference: str, context: str = CONTEXTS[0]) -> list[tuple[Any, ...]]:
    rows = run("policy", "show", reference, "--context", context, "--json").json["arms"]
    return [(row["arm"], row["pulls"], row["reward_sum"], row["probability"]) for row in rows]


def sound(run: Run) -> bool:
    return run("doctor", "--json").json["findings"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_the_belief_of_a_variant_becomes_the_next_version(sqlite_db: str, name: str) -> None:
    ready = filled(sqlite_db, experimented, name)
    run = clocked(ready, 200)
    run("settle")
    done = run("experiment", "stop", f"{name}-ab", "--promote", "b", "--anyway", "--json")
    assert (done.exit_code, done.json["live"], done.json["passed_by"]) == (0, f"{name}@2", [])
    newest = [line["user"] for line in run("export-log", "-").lines if line["policy"] == f"{name}@{name}-ab/b"][-1]
    for user in (None, "u4", newest):  # either forgets what came from the past of both
        assert user is None or run("db", "forget", "--user", user, "--yes").exit_code == 0
        for context in CONTEXTS:
            pairs = zip(*(believed(run, which, context) for which in (f"{name}@{name}-ab/b", name)), strict=True)
            for (arm, *figures), row in pairs:
                assert row == (arm, *(pytest.approx(figure, rel=1e-9) for figure in figures))
    with closing(Store(sqlite_db)) as store, store.read() as unit:  # each slot was taken out where it was
        assert unit.ask_value("SELECT min(pulls) FROM belief") > -1e-9
    serve(run, 1000, 20, policy=name)
    assert sound(run)
    if name == "linear":  # which forgets nothing: what either policy served, and nothing twice
        run = clocked(ready, 300)
        slots = [line for line in run("export-log", "-").lines if line["policy"] in (name, f"{name}@{name}-ab/b")]
        assert run("policy", "rebuild", name, "--json").json["version"] == 3
        assert sum(pulls for _, pulls, *_ in believed(run, f"{name}@3")) == len(slots)
        assert sound(run)
    assert run("policy", "rollback", name, "--json").json["version"] == 1
    serve(run, 2000, 5, policy=name)
    assert sound(run)


def test_a_rebuild_of_a_variant_is_refused_since_it_would_lack_what_was_copied(pair: Run) -> None:
    serve(clocked(pair, 0), 0, 5, policy="ts")
    later = clocked(pair, 300)
    create(later, "a=ts", "b=u")
    refused = later("policy", "rebuild", "ts@ab/a").failed(2)
    assert "began with a copy of a belief of ts" in refused
    assert "--kind thompson --param floor=0.1 --from-log policy=ts`" in refused
    assert pair("policy", "show", "ts@ab/a@2").exit_code == 2


def test_a_variant_that_learned_from_what_is_excluded_is_rebuilt_once_it_is_promoted(pair: Run) -> None:
    create(pair, "a=ts", "b=u")
    serve(pair, 0, 40, experiment="ab")
    users = "+".join(f"u{number}" for number in range(0, 40, 2))
    excluded = pair("log", "exclude", "bots", "--where", f"user={users}")
    assert "ts@ab/a has learned from them, and no rebuild replaces it while its experiment runs" in excluded.stderr
    assert "policy rebuild ts@ab/a" not in excluded.stdout + excluded.stderr
    again = pair("log", "exclude", "bots", "--where", f"user={users}", "--json").json
    assert (again["rebuild"], again["variants"]) == ([], {"ts@ab/a": "rlrec policy rebuild ts"})
    done = pair("experiment", "stop", "ab", "--promote", "a", "--anyway")
    assert "ts@3 has learned from decisions that are excluded: `rlrec policy rebuild ts`" in done.stderr
    rebuilt = pair("policy", "rebuild", "ts", "--json")
    pulls = [sum(row[1] for row in believed(pair, f"ts@{number}")) for number in (3, rebuilt.json["version"])]
    assert 0 < pulls[0] - pulls[1] < 20  # those of the users of this variant who are excluded
    assert f"and ts@3, which is live, has {pulls[0]}: `rlrec policy diff ts@3 ts@4` compares them" in rebuilt.stderr


def test_a_rebuild_of_a_promoted_variant_keeps_the_log_with_which_its_policy_was_created(pair: Run) -> None:
    serve(clocked(pair, 0), 0, 20, policy="ts")
    day = clocked(pair, 24 * 4)
    assert day("policy", "create", "new", "--kind", "thompson", "--from-log", "policy=ts").exit_code == 0
    for number, rebuilt in ((1, 3), (2, 5)):  # the second variant is a copy of a belief that was rebuilt
        day = clocked(pair, 24 * 5 * number)
        assert day("experiment", "create", f"e{number}", "--variant", "a=new", "--variant", "b=u").exit_code == 0
        serve(day, 100 * number, 40, experiment=f"e{number}")
        later = clocked(pair, 24 * (5 * number + 3))
        live = later("experiment", "stop", f"e{number}", "--promote", "a", "--anyway", "--json").json["live"]
        again = later("policy", "rebuild", "new")
        assert (live, "pulls" in again.stderr) == (f"new@{rebuilt - 1}", False)
        assert later("db", "forget", "--user", f"u{number}", "--yes").exit_code == 0  # of the first log
        assert believed(later, f"new@{rebuilt}") == believed(later, live)
        assert later("policy", "promote", f"new@{rebuilt}").exit_code == 0
    assert "of policy=ts and policy=new@e1/a+new@e2/a" in later("policy", "versions", "new").stdout
    assert not [row for row in later("doctor", "--json").json["findings"] if row["severity"] == "error"]


# -- what goes live --


pair = store_after(test_route.prepared)


def create(run: Run, *variants: str, **options: str) -> None:
    words = [word for text in variants for word in ("--variant", text)]
    words += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert run("experiment", "create", "ab", "--unit", "session", *words).exit_code == 0


def test_the_answer_says_which_routes_serve_what_went_live(pair: Run) -> None:
    remedy = "`rlrec route set home --to u` lets home serve it"
    create(pair, "a=ts", "b=u")
    words = ("experiment", "stop", "ab", "--promote", "b", "--anyway")
    table = pair(*words)
    assert f"none: {remedy}" in table.stdout
    assert "serves no route" not in table.stderr  # once is enough
    again = pair(*words, "--json").json
    assert (again["routes"], again["remedy"]) == ([], remedy)
    pair(*remedy.split("`")[1].split()[1:])
    assert pair("route", "show", "home", "--json").json["reference"] == "u"
    served = pair(*words, "--json").json
    assert (served["routes"], served["remedy"]) == (["home"], None)


def promote(run: Run, label: str, *words: str) -> Any:
    return run("experiment", "stop", "ab", "--promote", label, *words, "--json")


def served(run: Run, name: str = "home") -> tuple[str, int]:
    answer = run("recommend", "--policy", name, "--session", "s", "--json").json
    return answer["policy"], answer["version"]


def test_routes_follow_what_was_promoted_and_a_rollback_of_the_policy(pair: Run) -> None:
    create(pair, "a=u", "b=ts")
    assert pair("recommend", "--experiment", "ab", "--session", "s1").exit_code == 0
    done = promote(pair, "b", "--anyway").json
    assert (done["promoted"], done["live"], served(pair)) == ("b", "ts@3", ("ts", 3))
    newest = pair("policy", "versions", "ts", "--json").json[-1]
    assert newest["promoted"][0]["by"] == "experiment stop ab --promote b"
    assert "what ts@ab/b had learned" in pair("policy", "versions", "ts").stdout
    pair("policy", "rollback", "ts")
    assert served(pair) == ("ts", 1)
    assert sound(pair)


def test_the_same_promotion_again_changes_nothing_and_another_one_is_refused(pair: Run) -> None:
    create(pair, "a=u", "b=ts")
    assert promote(pair, "b", "--anyway").json["already_stopped"] is False
    again = promote(pair, "b").json
    assert (again["already_stopped"], again["live"], served(pair)) == (True, "ts@3", ("ts", 3))
    shown = pair("experiment", "show", "ab").stdout
    assert re.search(r"^experiment ab, stopped at \S+, b promoted as ts@3, by session$", shown, re.M)
    assert "is stopped already" in promote(pair, "a", "--anyway").failed(2)
    assert "a variant of an experiment that stopped at 20" in pair("policy", "show", "ts@ab/b").stdout
    assert "stopped" not in pair("policy", "show", "ts").stdout


@pytest.mark.parametrize(
    ("variants", "label", "live"),
    [
        (("a=u", "b=ts@2"), "b", "ts@2"),  # a frozen version is the one that it is a copy of
        (("a=ts", "b=u"), "b", "u@1"),  # what counts and learns nothing, too
        (("a=ts", "b=u"), "a", "ts@3"),  # what the others are compared with needs no proof
    ],
)
def test_what_a_variant_serves_goes_live(pair: Run, variants: tuple[str, str], label: str, live: str) -> None:
    create(pair, *variants)
    done = promote(pair, label, *(["--anyway"] if label == "b" else [])).json
    assert done["live"] == live
    assert served(pair, live.partition("@")[0]) == (live.partition("@")[0], int(live[-1]))


def test_one_of_two_interleaved_rankers_goes_live(pair: Run) -> None:
    pair("policy", "freeze", "ts")
    pair("experiment", "create", "ab", "--interleave", "ts@2,ts@3")
    refused = promote(pair, "B")
    assert refused.exit_code == 3, refused.stderr
    assert promote(pair, "B", "--anyway").json["live"] == "ts@3"
    assert served(pair) == ("ts", 3)


def test_a_promotion_names_who_does_not_get_it(pair: Run) -> None:
    pair("route", "set", "home", "--to", "ts@1")
    create(pair, "a=u", "b=ts")
    done = pair("experiment", "stop", "ab", "--promote", "b", "--anyway")
    assert "route home serves ts@1" in done.stderr
    assert "`rlrec route set home --to ts`" in done.stderr
    assert served(pair) == ("ts", 1)


def test_what_the_policy_served_elsewhere_meanwhile_is_said_to_be_left_out(pair: Run) -> None:
    create(pair, "a=u", "b=ts")
    served(pair)
    done = pair("experiment", "stop", "ab", "--promote", "b", "--anyway")
    assert "ts served 1 decision outside of ab meanwhile, which ts@3 has not learned from" in done.stderr


def test_a_holdout_keeps_what_it_serves_and_nobody_is_told_to_end_it(pair: Run) -> None:
    """An experiment of the same kind that is none is named beside it."""
    assert pair("route", "create", "front", "--to", "u", "--holdout", "5%", "--holdout-policy", "ts").exit_code == 0
    create(pair, "a=u", "b=ts")
    pair("policy", "rebuild", "ts")
    assert pair("policy", "promote", "ts@2").exit_code == 0
    named = [row["subject"] for row in pair("doctor", "--json").json["findings"] if row["check"] == "live"]
    assert named == ["experiment ab"]


# -- what is refused --


@pytest.mark.parametrize(
    ("label", "hint"),
    [("holdout", "built-in uniform"), ("c", "unknown variant 'c' in experiment ab"), ("bb", "did you mean b?")],
)
def test_a_label_without_a_version_is_refused_and_nothing_stops(pair: Run, label: str, hint: str) -> None:
    create(pair, "a=u", "b=ts", holdout_uniform="10%")
    refused = pair("experiment", "stop", "ab", "--promote", label, "--anyway")
    assert (refused.exit_code, refused.stderr.count("\n"), hint in refused.stderr) == (2, 1, True)
    assert pair("experiment", "list", "--json").json[0]["status"] == "running"


@pytest.mark.parametrize(("label", "exit_code"), [("b", 3), ("a", 0)])
def test_what_loses_or_is_unknown_is_not_promoted_unasked(
    run_sqlite: Run, tmp_path: Path, label: str, exit_code: int
) -> None:  # fmt: skip
    """p is below 1e-9 for these rates."""
    pair = run_sqlite
    pair("reward", "define", "taps", "click=1").done()
    for arm in "xy":
        pair("arm", "add", arm)
        (tmp_path / arm).write_text(f"arm,probability\n{arm},1\n")
        pair(
            "policy", "create", arm, "--kind", "fixed", "--param", f"probabilities={tmp_path / arm}", "--reward", "taps"
        )
    create(pair, "a=x", "b=y", guard="reward_per_visit>=-5%")
    assert promote(pair, "b").exit_code == 3  # nobody has seen it
    words = ("--env", "rates=0.6,0.3", "--experiment", "ab", "--sessions", 400, "--group", 400, "--seed", 1)
    assert pair("simulate", "bernoulli", *words).exit_code == 0
    done = pair("experiment", "stop", "ab", "--promote", label)
    assert (done.exit_code, bool(re.search("b is worse than a: -.* by taps", done.stderr))) == (exit_code, True)
    assert pair("experiment", "list", "--json").json[0]["status"] == ("running" if exit_code else "stopped")
    if exit_code:
        done = pair("experiment", "stop", "ab", "--promote", label, "--anyway")
        assert re.search("^b breaks a guard: .*; promoted anyway$", done.stderr, re.M)


def test_where_users_are_young_the_refusal_names_the_command_that_compares_equal_ages(run_sqlite: Run) -> None:
    """New users come on each of ten days, and return every other day."""
    run_sqlite("arm", "add", "x", "y")
    for policy in ("p", "q"):
        run_sqlite("policy", "create", policy, "--kind", "uniform")
    run_sqlite("--now", "2026-01-01", "experiment", "create", "ab", "--variant", "a=p", "--variant", "b=q").done()
    for day in range(1, 11):
        users = [f"{begun}-{n}" for begun in range(day, 0, -2) for n in range(20)]
        lines = [{"experiment": "ab", "session": f"{user}/{day}", "user": user} for user in users]
        run_sqlite("--now", f"2026-01-{day:02}", "recommend", "--input", "-", "--seed", day, stdin=lines).done()
    refused = run_sqlite("--now", "2026-01-11", "experiment", "stop", "ab", "--promote", "b")
    assert refused.exit_code == 3
    assert "`rlrec outcomes --experiment ab --age 7d" in refused.stderr


def test_on_a_terminal_the_command_asks(pair: Run, store: Store) -> None:
    create(pair, "a=u", "b=ts")
    questions: list[str] = []

    def agrees_at_last(question: str) -> bool:
        questions.append(question)
        return len(questions) > 1

    with pytest.raises(CheckFailed, match="b was not promoted"):
        ending.stop(store, "ab", promote="b", confirm=agrees_at_last)
    assert ending.stop(store, "ab", promote="b", confirm=agrees_at_last)["live"] == "ts@3"
    assert ["Promote b all the same?" in question for question in questions] == [True, True]


@pytest.mark.slow
@ON_BOTH
def test_several_who_promote_at_once_make_one_version(pair: Run, db: str) -> None:
    create(pair, "a=u", "b=ts")
    assert set(together(promotes, db, ["b"] * 3)) == {"ts@3"}
    assert [row["version"] for row in pair("policy", "versions", "ts", "--json").json] == [1, 2, 3]
    assert sound(pair)
