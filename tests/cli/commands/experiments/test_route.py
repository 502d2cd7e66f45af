"""rlrec route: a name that callers use while what it leads to changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlrec.store import Store
from tests.app.shop import fixed
from tests.conftest import ON_BOTH, Run, begin, filled, runner, store_after


def prepared(db: str) -> None:
    """A policy that learns, with a frozen copy, and a uniform one."""
    run = runner(db)
    begin(run, "xy", "ts", "thompson", "--param", "floor=0.1")
    run("policy", "create", "u", "--kind", "uniform")
    run("policy", "freeze", "ts")
    run("route", "create", "home", "--to", "ts")


ready = store_after(prepared)


def recommend(run: Run, session: str = "s", *words: Any) -> Any:
    return run("recommend", "--policy", "home", "--session", session, *words, "--json").done().json


def served(run: Run) -> tuple[str, int]:
    answer = recommend(run)
    return answer["policy"], answer["version"]


def show(run: Run) -> Any:
    return run("route", "show", "home", "--json").json


# -- what callers get --


def test_callers_get_what_the_route_was_set_to(ready: Run) -> None:
    assert served(ready) == ("ts", 1)
    assert ready("route", "set", "home", "--to", "ts@2", "--json").json["set"]
    assert served(ready) == ("ts", 2)
    ready("route", "set", "home", "--to", "u")
    assert served(ready) == ("u", 1)


def test_a_route_without_a_version_follows_the_live_one(ready: Run) -> None:
    ready("policy", "promote", "ts@2")
    assert served(ready) == ("ts", 2)
    assert (show(ready)["version"], show(ready)["live"]) == (2, True)


def test_a_decision_says_its_route_and_a_retry_repeats_it(ready: Run) -> None:
    first = recommend(ready, "s", "--request-id", "r1")
    ready("route", "set", "home", "--to", "u")
    assert (first["route"], first["policy"]) == ("home", "ts")
    assert recommend(ready, "s", "--request-id", "r1") == first | {"duplicate": True}
    assert ready("recommend", "--policy", "u", "--session", "s", "--json").json["route"] is None


def test_a_stream_follows_a_route_from_group_to_group(ready: Run) -> None:
    lines = [{"policy": name, "session": name} for name in ("home", "ts", "u")]
    answers = ready("recommend", "--input", "-", stdin=lines).lines
    assert [(answer["route"], answer["policy"]) for answer in answers] == [("home", "ts"), (None, "ts"), (None, "u")]


def test_the_route_of_a_decision_survives_an_export(ready: Run, tmp_path: Any) -> None:
    answer, path = recommend(ready), tmp_path / "log.jsonl"
    ready("export-log", path)
    assert json.loads(path.read_text())["route"] == "home"
    other = runner(str(tmp_path / "other.db"))
    other("init")
    assert other("import-log", path, "--layout", "jsonl").exit_code == 0
    other("export-log", tmp_path / "again.jsonl")
    again = json.loads((tmp_path / "again.jsonl").read_text())
    assert (again["route"], again["slate"][0]["arm"]) == ("home", answer["slate"][0]["arm"])


# -- history --


def test_history_has_every_change_newest_first(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@2")
    ready("route", "set", "home", "--to", "ts@2")
    ready("route", "rollback", "home")
    result = show(ready)
    assert {"route": "home", "policy": "ts", "version": 1, "experiment": None}.items() <= result.items()
    assert [(row["policy"], row["version"], row["by"]) for row in result["history"]] == [
        ("ts", None, "route rollback home"),
        ("ts", 2, "route set home --to ts@2"),
        ("ts", None, "route create home --to ts"),
    ]
    assert result["since"] == result["history"][0]["at"]


def test_repeated_rollbacks_walk_back(ready: Run) -> None:
    for reference in ("ts@2", "u", "ts@1"):
        ready("route", "set", "home", "--to", reference)
    for expected in ("u", "ts@2", "ts"):
        assert ready("route", "rollback", "home", "--json").json["reference"] == expected
    assert ready("route", "rollback", "home").exit_code == 3
    assert served(ready) == ("ts", 1)


def test_a_set_after_a_rollback_is_undone_alone(ready: Run) -> None:
    for words in (("set", "home", "--to", "u"), ("rollback", "home"), ("set", "home", "--to", "ts@2")):
        ready("route", *words)
    assert ready("route", "rollback", "home", "--json").json["reference"] == "ts"
    assert ready("route", "rollback", "home").exit_code == 3


def test_the_table_says_what_serves_since_when_and_why(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@2")
    table = ready("route", "show", "home").stdout
    assert table.startswith("route home serves ts, version 2\nsince 2")
    assert "by `route set home --to ts@2`" in table
    assert table.index("route set") < table.index("route create")
    assert "home" in ready("route", "list").stdout


# -- what is refused --


def test_the_table_of_a_ramp_names_what_callers_get(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@2", "--share", "50%")
    table = ready("route", "show", "home").stdout
    assert table.startswith("route home serves the variants of the ramp home-ramp-1, whichever version is live")


def test_a_route_over_a_log_of_another_time_says_so(ready: Run) -> None:
    words = "times are those of the clock when the route was set; the newest decision is of 2"
    draw = ("recommend", "--policy", "ts", "--session")
    assert ready("--now", "2020-01-01", *draw, "old").exit_code == 0
    assert words in ready("route", "show", "home").stderr
    assert ready(*draw, "new").exit_code == 0
    assert words not in ready("route", "show", "home").stderr


def test_policies_and_routes_share_their_names(ready: Run) -> None:
    assert ready("route", "create", "ts", "--to", "u", "--json").error["code"] == 6
    assert ready("policy", "create", "home", "--kind", "uniform", "--json").error["code"] == 6
    assert ready("route", "create", "other", "--to", "home").exit_code == 2


def test_an_import_does_not_take_the_name_of_a_route(ready: Run, tmp_path: Any) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"session": "s1", "slate": [{"arm": "x", "propensity": 0.5}], "eligible": ["x", "y"]}\n')
    done = ready("import-log", path, "--layout", "jsonl", "--policy", "home")
    assert (done.exit_code, "'home' is the name of a route" in done.stderr) == (2, True)


def test_the_same_create_again_changes_nothing(ready: Run) -> None:
    again = ready("route", "create", "home", "--to", "ts", "--json")
    assert (again.exit_code, again.json["created"]) == (0, False)
    assert ready("route", "create", "home", "--to", "u").exit_code == 6
    assert len(show(ready)["history"]) == 1
    next_command = "recommend --policy other --session s1` draws and logs a slate"
    words = ("route", "create", "other", "--to", "ts")
    assert [next_command in ready(*words).stderr for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (["show", "hom"], "did you mean home?"),
        (["set", "hom", "--to", "ts"], "unknown route"),
        (["set", "home", "--to", "st"], "unknown policy 'st'"),
        (["set", "home", "--to", "ts@9"], "no version 9"),
        (["rollback", "nowhere"], "unknown route"),
        (["create", "a b", "--to", "ts"], "a b"),
    ],
)
def test_unknown_names_are_refused_in_one_line(ready: Run, words: list[str], result: str) -> None:
    done = ready("route", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert result in done.stderr


def test_a_route_is_no_policy_elsewhere_and_the_error_says_so(ready: Run) -> None:
    assert "is a route" in ready("policy", "show", "home").failed(2)


def test_a_retired_version_is_not_served(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@1")
    ready("route", "set", "home", "--to", "u")
    ready("policy", "promote", "ts@2")
    ready("policy", "retire", "ts@1")
    assert ready("route", "set", "home", "--to", "ts@1").exit_code == 2
    assert ready("route", "rollback", "home").exit_code == 3


# -- ramps --

LATER = "2099-01-01T00:00:00Z"


def ramp(run: Run, *words: Any) -> Any:
    return run("route", "set", "home", "--to", "u", "--share", "25%", *words, "--json")


def variants(run: Run, sessions: int) -> list[Any]:
    lines = [{"policy": "home", "session": f"n{number}"} for number in range(sessions)]
    return [answer["variant"] for answer in run("recommend", "--input", "-", stdin=lines).done().lines]


def test_a_ramp_splits_the_users_of_the_route(ready: Run) -> None:
    started = ramp(ready).json
    assert (started["experiment"], started["policy"], started["set"]) == ("home-ramp-1", "ts", True)
    lines = [{"policy": "home", "session": f"s{n}", "user": f"u{n % 20}"} for n in range(40)]
    streams = (ready("recommend", "--input", "-", stdin=half).done() for half in (lines[:20], lines[20:]))
    answers = [answer for stream in streams for answer in stream.lines]
    by_user = {(answer["user"], answer["variant"], answer["policy"]) for answer in answers}
    assert len(by_user) == 20
    assert {row[1:] for row in by_user} == {
        ("current", "ts@home-ramp-1/current"), ("candidate", "u@home-ramp-1/candidate"),
    }  # fmt: skip
    shown = ready("experiment", "list", "--json").json[0]["variants"]
    assert [(row["variant"], row["weight"]) for row in shown] == [("current", 0.75), ("candidate", 0.25)]


def test_sessions_without_a_user_are_split_by_session(ready: Run) -> None:
    ramp(ready)
    labels = variants(ready, 20)
    assert labels == variants(ready, 20)
    assert {*labels} == {"current", "candidate"}
    assert ready("doctor", "--json").json["findings"] == []


def test_in_one_group_a_session_that_gets_a_user_late_is_two_units(ready: Run) -> None:
    ramp(ready)
    lines = [{"policy": "home", "session": f"s{n}", "user": user} for n in range(20) for user in (None, f"u{n}")]
    stdin = [{key: value for key, value in line.items() if value} for line in lines]
    assert ready("recommend", "--input", "-", stdin=stdin).exit_code == 0
    assert ready("doctor", "--json").json["findings"] == []


def test_callers_of_a_stopped_ramp_are_served_what_the_route_was_set_to(ready: Run) -> None:
    ramp(ready)
    variants(ready, 5)
    stopped = ready("experiment", "stop", "home-ramp-1", "--json")
    assert (stopped.exit_code, stopped.json["route"]) == (0, "home")
    assert "--promote LABEL" in stopped.stderr
    assert served(ready) == ("ts", 1)
    assert {row["experiment"] for row in show(ready)["history"]} == {None, "home-ramp-1"}
    assert show(ready)["experiment"] is None


def test_a_promoted_variant_serves_with_the_belief_that_it_learned(ready: Run) -> None:
    ready("route", "set", "home", "--to", "u")
    ready("route", "set", "home", "--to", "ts", "--share", "50%")
    learned = sum(label == "candidate" for label in variants(ready, 12))
    promoted = ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway", "--json").json
    assert (promoted["promoted"], promoted["live"], show(ready)["reference"]) == ("candidate", "ts@3", "ts")
    assert served(ready) == ("ts", 3)
    assert sum(row["pulls"] for row in belief(ready, "ts")) == learned + 1 > 1
    assert ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway", "--json").json[
        "already_stopped"
    ]


def belief(run: Run, reference: str) -> Any:
    return run("policy", "show", reference, "--json").json["arms"]


def live(run: Run) -> int:
    return next(row["version"] for row in run("policy", "versions", "ts", "--json").json if row["live"])


def test_a_route_follows_the_policy_of_a_frozen_version_that_was_promoted(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@2", "--share", "0.5")
    ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway")
    assert (show(ready)["reference"], live(ready), served(ready)) == ("ts", 2, ("ts", 2))
    ready("policy", "freeze", "ts")
    ready("policy", "promote", "ts@3")
    assert served(ready) == ("ts", 3)


@ON_BOTH
def test_a_rollback_of_a_route_takes_the_promotion_of_its_ramp_back(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@2", "--share", "0.5")
    ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway")
    assert ready("route", "rollback", "home", "--json").json["version"] == 1
    assert (live(ready), served(ready)) == (1, ("ts", 1))
    (times,) = (row["promoted"] for row in ready("policy", "versions", "ts", "--json").json if row["version"] == 2)
    assert [(time["by"], time["ended_by"]) for time in times] == [
        ("experiment stop home-ramp-1 --promote candidate", "route rollback home")
    ]
    refused = ready("route", "rollback", "home")
    assert (refused.exit_code, "rlrec policy rollback" in refused.stderr) == (3, False)


def test_rollbacks_go_back_behind_a_promotion_that_came_before_later_changes(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@2", "--share", "0.5")
    ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway")
    ready("route", "set", "home", "--to", "u")
    assert ready("route", "rollback", "home", "--json").json["version"] == 2
    assert (live(ready), served(ready)) == (2, ("ts", 2))
    assert ready("route", "rollback", "home", "--json").json["version"] == 1
    assert (live(ready), served(ready)) == (1, ("ts", 1))
    assert ready("route", "rollback", "home").exit_code == 3


def test_rollbacks_go_back_behind_two_promotions_and_a_ramp_that_ended_without(ready: Run) -> None:
    ready("policy", "freeze", "ts")
    for number, words in (
        (2, ("--promote", "candidate", "--anyway")),
        (3, ("--promote", "candidate", "--anyway")),
        (2, ()),
    ):
        ready("route", "set", "home", "--to", f"ts@{number}", "--share", "0.5")
        name = show(ready)["experiment"]
        assert ready("experiment", "stop", name, *words).exit_code == 0
    assert live(ready) == 3
    for version in (2, 1):
        assert ready("route", "rollback", "home", "--json").json["version"] == version
        assert (live(ready), served(ready)) == (version, ("ts", version))
    assert ready("route", "rollback", "home").exit_code == 3


def test_a_route_that_an_earlier_release_pinned_is_a_warning(ready: Run, store: Store) -> None:
    ready("route", "set", "home", "--to", "ts@2", "--share", "0.5")
    ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway")
    assert (ready("status").exit_code, "home" in ready("doctor").stdout) == (0, False)
    second = "SELECT id FROM version WHERE number = 2 AND version.policy_id = route_change.policy_id"
    pin = f"UPDATE route_change SET version_id = ({second}) WHERE command = ?"
    store.write(lambda unit: unit.tell(pin, "experiment stop home-ramp-1 --promote candidate"))
    shown, audited = ready("status"), ready("doctor")
    assert (shown.exit_code, audited.exit_code) == (3, 0)
    for text in (shown.stdout, audited.stdout):
        assert "warning live, route home: serves ts@2, whichever version is live" in text
        assert "`rlrec route set home --to ts`" in text
    ready("route", "set", "home", "--to", "ts")
    assert (ready("status").exit_code, served(ready)) == (0, ("ts", 2))


def test_a_promotion_says_who_does_not_get_it(ready: Run) -> None:
    run = ready
    run("policy", "freeze", "ts")
    assert run("policy", "promote", "ts@2", "--json").json["passed_by"] == []
    run("experiment", "create", "ab", "--variant", "a=ts@2", "--variant", "b=u")
    run("route", "set", "home", "--to", "ts@2")
    route, experiment = run("policy", "promote", "ts@3", "--json").json["passed_by"]
    assert ("route home serves ts@2" in route, "`rlrec route set home --to ts`" in route) == (True, True)
    assert ("experiment ab serves ts@2" in experiment, "`rlrec experiment stop ab`" in experiment) == (True, True)
    status = run("status")
    assert (status.exit_code, status.stdout.count("info live, ")) == (0, 2)
    run("route", "set", "home", "--to", "ts")
    run("experiment", "stop", "ab")
    assert run("policy", "rollback", "ts", "--json").json["passed_by"] == []
    assert "info live" not in run("status").stdout


def test_a_promotion_names_the_route_that_serves_what_a_ramp_learned(ready: Run) -> None:
    run = ready
    ramp(run)
    run("experiment", "stop", "home-ramp-1")
    run("route", "set", "home", "--to", "ts@home-ramp-1/current")
    (line,) = run("policy", "promote", "ts@2", "--json").json["passed_by"]
    assert "route home serves ts@home-ramp-1/current" in line
    assert (run("status").exit_code, "info live" in run("status").stdout) == (0, False)


def test_a_version_that_went_live_where_no_route_leads_is_named(ready: Run, tmp_path: Path) -> None:
    run = ready
    run("route", "set", "home", "--to", "u")
    run("recommend", "--policy", "ts", "--session", "s")
    assert run("policy", "promote", "ts@2", "--json").json["passed_by"] == []  # somebody calls it by its name
    tomorrow = ("--now", "+25h", "--allow-future")
    remedy = "`rlrec route set home --to ts --share 20%` gives it to some users"
    page = tmp_path / "page.html"
    assert run(*tomorrow, "report", page).exit_code == 0
    texts = [run(*tomorrow, "status").stdout, run(*tomorrow, "doctor").stdout, page.read_text()]
    texts.append(run(*tomorrow, "policy", "promote", "ts@1").stdout)
    idle = "serves no route, and nobody outside of experiments got it within 24 hours; ts@"
    assert [idle in text and f" is live: {remedy}" in text for text in texts] == [True] * 4
    run(*tomorrow, "route", "set", "home", "--to", "u", "--share", "20%")  # the route takes no second ramp
    assert f" is live: once home-ramp-1 has ended, {remedy}" in run(*tomorrow, "status").stdout
    run(*tomorrow, "route", "create", "next", "--to", "u")  # which of two routes would suit, nobody can tell
    text = run(*tomorrow, "status").stdout
    assert (idle in text, "gives it to some users" in text) == (True, False)
    assert run(*tomorrow, "policy", "rollback", "ts", "--json").json["passed_by"] == []
    assert idle not in run(*tomorrow, "status").stdout
    run(*tomorrow, "policy", "promote", "ts@1")
    run(*tomorrow, "experiment", "stop", "home-ramp-1")
    run(*tomorrow, "route", "set", "home", "--to", "ts")
    assert remedy not in run(*tomorrow, "status").stdout


def test_a_policy_whose_arms_have_all_left_their_group_is_named(ready: Run) -> None:
    run = ready
    run("arm", "add", "x", "--group", "hot")
    run("policy", "create", "heat", "--kind", "uniform", "--param", "arms=@hot")
    run("policy", "create", "warm", "--kind", "uniform", "--param", "least=@hot=0.5")
    run("experiment", "create", "ab", "--variant", "a=heat", "--variant", "b=warm")
    assert "live, policy" not in run("status").stdout
    run("arm", "add", "x", "--group", "cold")
    left = "warning live, policy heat@ab/a: no arm is left by its `arms` and `block`"
    rests = "info live, policy warm@ab/b: least @hot=0.5 has no effect: no arm that it names can be shown now"
    for command in ("status", "doctor"):
        text = run(command).stdout
        assert (left in text, rests in text) == (True, True)
    run("experiment", "stop", "ab")
    assert "live, policy" not in run("status").stdout  # nobody asks for them


def test_a_rollback_of_a_route_leaves_a_later_promotion_alone(ready: Run) -> None:
    run = ready
    run("route", "set", "home", "--to", "ts@2", "--share", "0.5")
    run("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway")
    run("policy", "promote", "ts@1")
    refused = run("route", "rollback", "home")
    assert (refused.exit_code, "`rlrec policy rollback ts`" in refused.stderr, live(run)) == (3, True, 1)


def test_a_ramp_begins_at_a_version_that_stays_and_learns(ready: Run) -> None:
    ready("route", "set", "home", "--to", "ts@1")
    assert ramp(ready).exit_code == 0
    ready("experiment", "stop", "home-ramp-1")
    assert show(ready)["reference"] == "ts@1"


def test_a_ramp_after_a_ramp_keeps_the_name_of_its_policy(ready: Run) -> None:
    ramp(ready)
    ready("experiment", "stop", "home-ramp-1", "--promote", "current")
    ramp(ready)
    assert {recommend(ready, f"n{n}")["policy"] for n in range(12)} == {
        "ts@home-ramp-2/current", "u@home-ramp-2/candidate",
    }  # fmt: skip
    ready("experiment", "stop", "home-ramp-2", "--promote", "current")
    assert (show(ready)["reference"], served(ready)) == ("ts", ("ts", 4))
    assert ready("doctor").exit_code == 0


def test_a_rollback_ends_a_ramp_and_undoes_a_promotion(ready: Run) -> None:
    ramp(ready)
    assert ready("route", "rollback", "home", "--json").json["reference"] == "ts"
    assert ready("experiment", "list", "--json").json[0]["status"] == "stopped"
    ramp(ready)
    ready("experiment", "stop", "home-ramp-2", "--promote", "candidate", "--anyway")
    assert served(ready) == ("u", 1)
    assert ready("route", "rollback", "home", "--json").json["reference"] == "ts"
    assert ready("route", "rollback", "home").exit_code == 3


def ramp_between(db: str, rates: str) -> None:
    """Callers of `home` in two halves: `current` always shows arm x, `candidate` always shows arm y."""
    run = runner(db)
    for arm in "xy":
        run("arm", "add", arm)
        fixed(run, arm, {arm: 1})
    run("route", "create", "home", "--to", "x")
    run("route", "set", "home", "--to", "y", "--share", "50%")
    words = ("--env", f"rates={rates}", "--policy", "home", "--sessions", 400, "--group", 400, "--seed", 1)
    assert run("simulate", "bernoulli", *words).exit_code == 0


STOP = ("--allow-future", "--now", "2030-01-01", "experiment", "stop", "home-ramp-1", "--promote")


def test_a_candidate_that_surely_loses_is_promoted_only_anyway(sqlite_db: str) -> None:
    """p is below 1e-9 for these rates."""
    run = filled(sqlite_db, ramp_between, "0.6,0.3")
    refused = run(*STOP, "candidate")
    assert (refused.exit_code, refused.stderr.count("\n"), show(run)["experiment"]) == (3, 1, "home-ramp-1")
    shown = run("--now", "2030-01-01", "experiment", "show", "home-ramp-1", "--json").json["unit_differences"]
    (row,) = (row for row in shown if (row["metric"], row["group"]) == ("reward_per_unit", "candidate"))
    assert f"candidate is worse than current: {100 * row['relative']:+.2g} % [" in refused.stderr
    done = run(*STOP, "candidate", "--anyway", "--json").json
    assert (done["unit_differences"][0]["value"], show(run)["policy"]) == (row["value"], "y")
    assert run(*STOP, "candidate").exit_code == 0


def test_anyway_alone_is_refused(run_sqlite: Run) -> None:
    result = run_sqlite("experiment", "stop", "ab", "--anyway")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give --promote LABEL, too" in result.stderr


def test_the_winner_of_a_ramp_and_what_served_before_are_promoted(sqlite_db: str) -> None:
    run = filled(sqlite_db, ramp_between, "0.3,0.6")
    assert run(*STOP, "current").exit_code == 3
    assert run(*STOP, "current", "--anyway", "--dry-run").exit_code == 0
    done = run(*STOP, "candidate")
    assert (done.exit_code, show(run)["policy"]) == (0, "y")
    assert "candidate is better than current: +" in done.stderr


def test_an_undecided_ramp_is_promoted_only_anyway_and_says_so(sqlite_db: str) -> None:
    """Equal rates: the seed decides, and with it 19 of 20 would do."""
    run = filled(sqlite_db, ramp_between, "0.5,0.5")
    assert (run(*STOP, "candidate").exit_code, show(run)["policy"]) == (3, "x")
    done = run(*STOP, "candidate", "--anyway")
    assert (done.exit_code, show(run)["policy"]) == (0, "y")
    assert "cannot tell yet whether it is better or worse than current" in done.stderr
    assert "promoted anyway" in done.stderr


def test_a_ramp_that_nobody_saw_is_promoted_and_says_so(ready: Run) -> None:
    ramp(ready)
    assert "last step: `rlrec experiment show home-ramp-1` says whether" in ready("status").stdout
    done = ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway")
    assert (done.exit_code, "this log cannot tell whether it is better or worse" in done.stderr) == (0, True)


@pytest.mark.parametrize("share", ["0", "100%", "5", "-5%", "120%", "x"])
def test_a_share_outside_of_its_range_is_refused(ready: Run, share: str) -> None:
    done = ready("route", "set", "home", "--to", "u", f"--share={share}")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "5% or 0.05" in done.stderr or "1% or 0.01" in done.stderr


def test_a_share_is_checked_before_the_store_is_read(ready: Run) -> None:
    assert "the share is 200 %" in ready("route", "set", "nowhere", "--to", "nothing", "--share", "200%").failed(2)


def test_while_a_ramp_runs_the_route_is_set_by_its_end_alone(ready: Run) -> None:
    ramp(ready)
    assert "experiment stop home-ramp-1" in ready("route", "set", "home", "--to", "u").failed(2)


def test_promotion_needs_a_ramp_that_runs_and_one_of_its_labels(ready: Run) -> None:
    ramp(ready)
    assert "did you mean" in ready("experiment", "stop", "home-ramp-1", "--promote", "candidat").stderr
    ready("experiment", "stop", "home-ramp-1")
    assert "ts@home-ramp-1/current" in ready("experiment", "stop", "home-ramp-1", "--promote", "current").failed(2)
    assert ready("route", "set", "home", "--to", "ts@home-ramp-1/current").exit_code == 0


@pytest.mark.parametrize("words", [["outcomes", "--log", "policy=home"], ["evaluate", "u", "--log", "policy=home"]])
def test_a_route_in_a_log_filter_is_named_as_one(ready: Run, words: list[str]) -> None:
    done = ready(*words).failed(2)
    assert done == ("Error: 'home' is a route, not a policy, in the log filter. write route=home\n")


@ON_BOTH
def test_a_filter_picks_the_decisions_that_were_asked_for_by_a_route(ready: Run) -> None:
    for number in range(6):
        recommend(ready, f"home{number}", "--user", f"u{number}")
        assert ready("recommend", "--policy", "ts", "--session", f"ts{number}", "--user", f"v{number}").exit_code == 0
    now = ("--now", "2099-01-01T00:00:00Z")
    for estimator in ("snips", "pdis"):
        (row,) = ready(*now, "evaluate", "u", "--estimator", estimator, "--log", "route=home", "--json").json
        assert row["n"] == 6
    visits = ready(*now, "outcomes", "--log", "route=home,policy=ts", "--json").json["outcomes"]
    assert {row["units"] for row in visits if row["metric"] == "visits"} == {6}
    done = ready(*now, "evaluate", "u", "--log", "route=hom")
    assert (done.exit_code, done.stderr) == (2, "Error: unknown route 'hom' in the log filter. did you mean home?\n")


def test_what_a_policy_learned_from_a_route_is_in_sample_there_alone(ready: Run) -> None:
    lines = [{"policy": name, "session": f"{name}{number}"} for number in range(40) for name in ("home", "u")]
    ready("recommend", "--input", "-", stdin=lines).done()
    now = ("--allow-future", "--now", "2099-01-01T00:00:00Z")
    ready(*now, "policy", "create", "late", "--kind", "thompson", "--from-log", "route=home")
    ready(*now, "policy", "freeze", "late")
    for estimator in ("snips", "pdis"):
        words = ("evaluate", "late@2", "--estimator", estimator, "--json", "--log")
        rows = [ready(*now, *words, log).json[0] for log in ("route=home", "policy=u")]
        assert ["in-sample" in row["reasons"] for row in rows] == [True, False]


def test_a_route_says_that_a_rebuilt_version_does_not_serve(ready: Run) -> None:
    recommend(ready)
    for words in (("route", "create", "other", "--to", "ts"), ("route", "set", "home", "--to", "ts")):
        assert "serves ts@1, not" not in ready(*words).stderr  # a frozen copy is for others to name
    rebuilt = ready("policy", "rebuild", "ts")
    assert "makes it live; until then it does not serve" in rebuilt.stderr
    for words in (("route", "create", "third", "--to", "ts"), ("route", "set", "home", "--to", "ts")):
        answer = ready(*words).done()
        assert "serves ts@1, not ts@3, which was rebuilt later: `rlrec policy promote ts@3`" in answer.stderr
    assert "not ts@3" not in ready("route", "create", "pinned", "--to", "ts@1").stderr
    ready("policy", "promote", "ts@3")
    assert "not ts@3" not in ready("route", "create", "fourth", "--to", "ts").stderr
    assert served(ready) == ("ts", 3)


def test_a_look_that_rests_on_nothing_shows_no_figure(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    lines = [{"policy": "home", "session": f"s{user}", "user": f"u{user}"} for user in range(30)]
    run_sqlite("recommend", "--input", "-", stdin=lines).done()
    looked = run_sqlite(
        "--now", "+40d", "--allow-future", "route", "set", "home", "--to", "u", "--require", "if-better"
    )
    assert looked.exit_code == 3, looked.stderr
    header, figures = (line.split() for line in looked.stdout.splitlines()[-3:] if not line.startswith("--"))
    row = dict(zip(header, figures, strict=False))
    assert (row["estimate"], row["lower"], row["upper"]) == ("-", "-", "-")
