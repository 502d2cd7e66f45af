"""Holdouts of routes: users who are kept apart for good, and what the route is worth against them."""

from pathlib import Path
from typing import Any

import pytest

from rlrec.sentences import experiment_sentences
from tests.conftest import ON_BOTH, Run, filled, runner, store_after

USERS = [f"u{number}" for number in range(40)]
CROWD = [f"u{number}" for number in range(160)]


def prepared(db: str) -> None:
    run = runner(db)
    run("arm", "import", "-", stdin='{"arm": "x"}\n{"arm": "y"}\n')
    run("policy", "create", "ts", "--kind", "thompson", "--param", "floor=0.1")
    run("policy", "create", "other", "--kind", "epsilon-greedy")
    run("policy", "freeze", "ts")
    run("route", "create", "home", "--to", "ts", "--holdout", "30%")


ready = store_after(prepared)


def variants(run: Run, turn: int = 0, users: list[str] = USERS) -> dict[str, str | None]:
    """Who gets which variant of which experiment, by user, in a session of their own."""
    lines = "".join(f'{{"policy": "home", "session": "{user}-{turn}", "user": "{user}"}}\n' for user in users)
    done = run("recommend", "--input", "-", "--format", "ndjson", stdin=lines).done()
    return {row["user"]: row["variant"] and f"{row['experiment']} {row['variant']}" for row in done.lines}


def apart(run: Run, turn: int) -> set[str]:
    return {user for user, variant in variants(run, turn).items() if variant == "home-holdout holdout"}


# -- who is in it --


@ON_BOTH
def test_users_stay_in_the_holdout_whatever_the_route_serves(ready: Run) -> None:
    first = apart(ready, 0)
    assert 4 <= len(first) <= 20  # 12 of 40 on average: outside by chance once in 500 stores
    ready("route", "set", "home", "--to", "ts@2")
    assert apart(ready, 1) == first
    ready("route", "rollback", "home")
    assert apart(ready, 2) == first
    ready("policy", "promote", "ts@2")
    assert apart(ready, 3) == first
    assert ready("doctor", "--json").json["findings"] == []


def test_a_holdout_keeps_the_rules_of_what_the_route_leads_to(run_sqlite: Run) -> None:
    """Of four arms two stand on the page, and the same one of them never twice before a person."""
    run = run_sqlite
    run("arm", "add", "x", "y", "--group", "page")
    run("arm", "add", "mail", "letter")
    run("policy", "create", "ts", "--kind", "thompson", "--param", "arms=@page", "--param", "not_shown=1")
    run("route", "create", "home", "--to", "ts", "--holdout", "50%")
    run("experiment", "create", "ab", "--variant", "a=ts", "--variant", "b=uniform", "--holdout-uniform", "50%")
    for key, name in (("policy", "home"), ("experiment", "ab")):
        policies, shown = set[str](), dict[str, set[str]]()
        for turn in range(2):
            people = [f"{name}-{user}" for user in USERS[:20]]
            lines = [{key: name, "session": f"{person}-{turn}", "user": person} for person in people]
            for answer in run("recommend", "--input", "-", stdin=lines).lines:
                policies.add(answer["policy"].split("@")[0])
                shown.setdefault(answer["user"], set()).add(answer["slate"][0]["arm"])
        assert len(shown) == 20
        # nobody of the 20 gets one of two sides, or all one of three: once in 500,000 stores
        assert policies == {"ts", "uniform"}
        assert all(arms == {"x", "y"} for arms in shown.values())
    assert run("doctor", "--json").json["findings"] == []


def test_a_comparison_of_a_part_of_the_log_says_what_status_keeps(ready: Run) -> None:
    variants(ready)
    words = "`rlrec status` keeps the newest comparison of a holdout without --log"
    shown = ("--now", "2099-01-01", "experiment", "show", "home-holdout")
    assert words not in ready(*shown).stderr
    assert words in ready(*shown, "--log", "since=2020-01-01").stderr


def test_users_in_the_holdout_take_part_in_no_ramp(ready: Run) -> None:
    first = apart(ready, 0)
    ready("route", "set", "home", "--to", "other", "--share", "50%")
    during = variants(ready, 1)
    assert {user for user, variant in during.items() if variant == "home-holdout holdout"} == first
    assert {variant for user, variant in during.items() if user not in first} == {
        "home-ramp-1 current",
        "home-ramp-1 candidate",
    }
    ready("experiment", "stop", "home-ramp-1", "--promote", "candidate", "--anyway")
    assert apart(ready, 2) == first
    split = ready("experiment", "show", "home-holdout", "--json").json
    assert [row["units"] for row in split["variants"]] == [len(first), len(USERS) - len(first)]
    assert ready("doctor", "--json").json["findings"] == []


def test_a_user_who_is_first_seen_during_a_ramp_is_drawn_for_the_holdout(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    run_sqlite("route", "set", "home", "--to", "other", "--share", "50%")
    first = apart(run_sqlite, 0)
    assert first
    run_sqlite("route", "rollback", "home")
    assert apart(run_sqlite, 1) == first


def test_sessions_without_a_user_are_drawn_by_session(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    lines = "".join(f'{{"policy": "home", "session": "s{number}"}}\n' for number in range(40))
    once, again = (run_sqlite("recommend", "--input", "-", "--format", "ndjson", stdin=lines).lines for _ in range(2))
    assert [row["variant"] for row in once] == [row["variant"] for row in again]
    assert {row["variant"] for row in once} == {"holdout", None}


def test_streams_and_dry_runs_draw_the_same_users(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    line = '{"op": "recommend", "policy": "home", "session": "%s", "user": "%s"}\n'
    dry = {
        user
        for user in USERS
        if run_sqlite("recommend", "--policy", "home", "--session", user, "--user", user, "--dry-run", "--json").json[
            "variant"
        ]
    }
    answers = run_sqlite("pipe", stdin="".join(line % (user, user) for user in USERS)).lines
    assert {row["user"] for row in answers if row["variant"]} == dry == apart(run_sqlite, 1)


def test_decisions_and_exports_name_the_holdout(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    user = min(apart(run_sqlite, 0))
    row = next(row for row in run_sqlite("export-log", "-").lines if row["session"] == f"{user}-0")
    assert (row["variant"], row["route"]) == ("holdout", "home")
    number = row["decision_id"]
    decision = run_sqlite("decision", "show", number, "--json").json
    assert (decision["experiment"], decision["variant"], decision["policy"], decision["route"]) == (
        "home-holdout", "holdout", "uniform@home-holdout/holdout", "home",
    )  # fmt: skip
    assert decision["propensity"] == 0.5
    assert run_sqlite("session", "show", f"{user}-0").stdout.count("uniform@home-holdout/holdout") == 1


def test_holdouts_of_two_routes_are_drawn_by_themselves(ready: Run) -> None:
    ready("route", "create", "side", "--to", "other", "--holdout", "30%")
    held = {route: set[str]() for route in ("home", "side")}
    for route, users in held.items():
        lines = "".join(f'{{"policy": "{route}", "session": "{user}-{route}", "user": "{user}"}}\n' for user in CROWD)
        rows = ready("recommend", "--input", "-", "--format", "ndjson", stdin=lines).lines
        users |= {row["user"] for row in rows if row["variant"] == "holdout"}
    assert held["home"] & held["side"]  # 14 on average


def test_a_copy_of_the_store_keeps_the_holdout(ready: Run, tmp_path: Path) -> None:
    first = apart(ready, 0)
    copy = str(tmp_path / "copy.db")
    assert ready("db", "copy", "--to", copy).exit_code == 0
    copied = runner(copy)
    assert apart(copied, 1) == first
    assert copied("route", "show", "home", "--json").json["holdout"] == "home-holdout"
    assert copied("doctor", "--json").json["findings"] == []


# -- how it begins and ends --


def test_a_route_that_exists_gets_a_holdout_of_a_policy_that_stays(ready: Run) -> None:
    ready("route", "create", "front", "--to", "ts")
    words = ["route", "set", "front", "--holdout", "10%", "--holdout-policy", "ts@2", "--json"]
    assert ready(*words).json["changed"]
    assert not ready(*words).json["changed"]
    assert ready("route", "set", "front", "--holdout", "20%").exit_code == 6
    rows = ready("experiment", "show", "front-holdout", "--json").json["variants"]
    assert [(row["variant"], row["policy"], row["weight"]) for row in rows] == [
        ("holdout", "ts@front-holdout/holdout", 0.1), ("served", "ts", 0.9),
    ]  # fmt: skip


def test_the_served_side_is_what_the_route_serves_now(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    run_sqlite("route", "set", "home", "--to", "other")
    rows = run_sqlite("experiment", "list", "--json").json[0]["variants"]
    assert [row["policy"] for row in rows] == ["uniform@home-holdout/holdout", "other"]


def test_the_policy_that_the_route_began_with_can_serve_elsewhere(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    run_sqlite("route", "set", "home", "--to", "other")
    assert run_sqlite("route", "set", "home", "--to", "ts").exit_code == 0
    assert run_sqlite("policy", "promote", "ts@2").exit_code == 0


def test_decisions_before_the_holdout_are_not_called_censored(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    variants(run_sqlite)
    run_sqlite("experiment", "stop", "home-holdout")
    run_sqlite("route", "set", "home", "--holdout", "30%")
    later = ("--now", "+8d")
    shown = run_sqlite(*later, "experiment", "show", "home-holdout-2")
    assert (shown.exit_code, shown.stderr) == (0, "")
    run_sqlite("feedback", "1", "--censor")
    assert "censored" not in run_sqlite(*later, "experiment", "show", "home-holdout-2").stderr
    left_out = "left out: the rewards of censored slots, in 1 decision"
    assert left_out in run_sqlite(*later, "experiment", "show", "home-holdout").stderr


def test_a_holdout_tells_of_returns_too(ready: Run) -> None:
    """The policy learns clicks alone."""
    ready("reward", "define", "durable", "click=1,return=1")
    ready("reward", "define", "bought", "purchase=1")
    variants(ready)
    answer = ready("experiment", "show", "home-holdout", "--json").json
    assert answer["metric"] == [{"metric": "reward_per_unit", "reward": name} for name in ("default", "durable")]


def test_a_holdout_that_was_stopped_is_left_to_the_route(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    first = apart(run_sqlite, 0)
    run_sqlite("experiment", "stop", "home-holdout")
    assert first
    assert set(variants(run_sqlite, 1).values()) == {None}
    assert "holdout" not in run_sqlite("route", "show", "home", "--json").json
    split = run_sqlite("experiment", "show", "home-holdout", "--json").json
    assert sum(row["units"] for row in split["variants"]) == len(USERS)
    assert run_sqlite("route", "set", "home", "--holdout", "5%", "--json").json["holdout"] == "home-holdout-2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "new", "--to", "ts", "--holdout", "0%"], "the share is 0 %"),
        (["create", "new", "--to", "ts", "--holdout", "100%"], "the share is 100 %"),
        (["create", "new", "--to", "ts", "--holdout", "60%"], "the holdout is 0.6 of all units"),
        (
            ["create", "new", "--to", "ts", "--holdout", "5%", "--holdout-policy", "ts"],
            "would get ts, as the route does",
        ),
        (["create", "new", "--to", "ts@2", "--holdout", "5%", "--holdout-policy", "ts@2"], "would get ts@2"),
        (["create", "new", "--to", "ts", "--holdout", "5%", "--holdout-policy", "nope"], "unknown policy 'nope'"),
        (["create", "new", "--to", "ts", "--holdout", "5%", "--holdout-policy", "home"], "'home' is a route"),
        (["create", "new", "--to", "ts", "--holdout", "5%", "--holdout-policy", "other@1"], "still learns"),
        (["create", "new", "--to", "ts", "--holdout-policy", "other"], "--holdout-policy is for a holdout"),
        (["create", "new", "--to", "nope", "--holdout", "5%"], "unknown policy 'nope'"),
        (["create", "home", "--to", "ts", "--holdout", "5%"], "already exists"),
        (["set", "home", "--holdout", "5%"], "route home has another holdout"),
        (["set", "home", "--to", "other", "--holdout", "5%"], "give either --to"),
        (["set", "home"], "give either --to"),
        (["set", "home", "--holdout", "5%", "--require", "if-better"], "give either --to"),
    ],
)
def test_what_cannot_be_a_holdout_is_refused_in_one_line_and_stores_nothing(
    run_sqlite: Run, sqlite_db: str, words: list[str], message: str
) -> None:
    filled(sqlite_db, prepared)
    before = run_sqlite("route", "list", "--json").json, run_sqlite("experiment", "list", "--json").json
    done = run_sqlite("route", *words)
    assert done.exit_code in (2, 6)
    assert message in done.stderr.strip().splitlines()[-1]
    assert (run_sqlite("route", "list", "--json").json, run_sqlite("experiment", "list", "--json").json) == before


def test_a_holdout_begins_after_a_ramp(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    run_sqlite("route", "create", "front", "--to", "ts")
    run_sqlite("route", "set", "front", "--to", "other", "--share", "50%")
    assert "has a ramp that runs" in run_sqlite("route", "set", "front", "--holdout", "5%").failed(2)


def test_a_variant_of_a_holdout_is_not_promoted(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    refused = run_sqlite("experiment", "stop", "home-holdout", "--promote", "served")
    assert (refused.exit_code, "is the holdout of route home" in refused.stderr) == (2, True)


def test_the_label_of_the_served_side_is_no_log(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, prepared)
    apart(run_sqlite, 0)
    refused = run_sqlite("outcomes", "--log", "experiment=home-holdout,variant=served")
    assert (refused.exit_code, "unknown variant 'served'" in refused.stderr) == (2, True)


# -- what it tells --


def visited(run: Run, day: str, *routes: str) -> list[dict[str, Any]]:
    """A decision of every user by each of these routes."""
    lines = "".join(
        f'{{"policy": "{name}", "session": "{user}-{name}-{day}", "user": "{user}"}}\n'
        for name in routes
        for user in CROWD
    )
    rows: list[dict[str, Any]] = run(
        "--now", f"2026-01-{day}", "recommend", "--input", "-", "--format", "ndjson", stdin=lines
    ).lines
    return rows


def clicked(run: Run, day: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(f'{{"decision_id": {row["decision_id"]}, "events": {{"click": 1}}}}\n' for row in rows)
    assert run("--now", f"2026-01-{day}", "feedback", "--input", "-", stdin=lines).exit_code == 0


def test_the_comparison_counts_each_user_by_assignment_through_a_ramp(
    run_sqlite: Run, sqlite_db: str, tmp_path: Path
) -> None:
    filled(sqlite_db, prepared)
    run_sqlite("route", "create", "page", "--to", "ts")
    run_sqlite("--now", "2026-01-01", "route", "create", "front", "--to", "ts", "--holdout", "50%")
    # those outside earn two clicks on the route, those in the holdout one or none; another route does not count
    answers = visited(run_sqlite, "01", "front")
    first = {row["user"] for row in answers if row["variant"]}
    odd = {user for user in first if int(user[1:]) % 2}
    clicked(run_sqlite, "01", [row for row in answers if row["user"] not in first - odd])
    run_sqlite("--now", "2026-01-02", "route", "set", "front", "--to", "other", "--share", "50%")
    more = visited(run_sqlite, "02", "front", "page")
    clicked(run_sqlite, "02", [row for row in more if row["user"] not in first or row["route"] == "page"])
    shown = run_sqlite("--now", "2026-02-01", "experiment", "show", "front-holdout", "--json").json
    earned = {row["group"]: row for row in shown["outcomes"] if row["metric"] == "reward_per_unit"}
    assert (earned["holdout"]["value"], earned["served"]["value"]) == (len(odd) / len(first), 2.0)
    assert (earned["holdout"]["units"], earned["served"]["units"]) == (len(first), len(CROWD) - len(first))
    sentence = experiment_sentences(shown)[0]
    assert sentence.startswith("front against its holdout: default +")
    # `status` repeats it, the page begins with it
    noted = run_sqlite("status", "--json").json["holdouts"]
    assert [(row["route"], row["sentence"]) for row in noted] == [("front", sentence), ("home", None)]
    page = tmp_path / "page.html"
    assert run_sqlite("--now", "2026-02-01", "report", page).exit_code == 0
    headline = page.read_text(encoding="utf-8").partition("In short")[2]
    assert "front against its holdout: default +" in headline.partition("</li>")[0]


def test_status_repeats_nothing_that_was_found_ahead_of_the_clock_or_in_a_part_of_the_log(ready: Run) -> None:
    apart(ready, 0)
    for words in (["--now", "+40d", "experiment", "show", "home-holdout"],
                  ["experiment", "show", "home-holdout", "--log", "since=2026-01-01"]):  # fmt: skip
        assert ready(*words).exit_code == 0
        assert ready("status", "--json").json["holdouts"][0]["sentence"] is None
    assert "home has a holdout: `rlrec experiment show home-holdout` compares with it" in ready("status").stdout


@pytest.mark.parametrize(
    ("difference", "reasons", "start", "end"),
    [
        (
            (2.0, 1.5, 2.5),
            [],
            "home against its holdout: durable +200 % [+150, +250] a user, visits",
            "+31 % [+20, +42]",
        ),
        ((2.0, 1.5, 2.5), ["young-units"], "home against its holdout: durable +200 %", "it may grow or turn)"),
        ((2.0, 1.5, 2.5), ["picked-decisions"], "home against its holdout: durable +200 %", "away does not count"),
        ((0.1, -0.2, 0.4), [], "home: cannot tell yet whether it is better or worse than its holdout", "estimated"),
        ((2.0, 1.5, 2.5), ["sample-ratio"], "home: ", "(sample-ratio)"),
    ],
)
def test_a_sentence_gives_figures_where_the_direction_is_sure(
    difference: tuple[float, float, float], reasons: list[str], start: str, end: str
) -> None:
    (sentence,) = experiment_sentences(compared(difference, reasons))
    assert sentence.startswith(start), sentence
    assert sentence.endswith(end), sentence


def test_an_unsure_reward_does_not_hide_that_visits_fall() -> None:
    answer = compared((0.1, -0.2, 0.4), [])
    for row in answer["unit_differences"]:
        if row["metric"] == "visits":
            row |= {"value": -1.0, "relative": -0.5, "lower": -1.4, "upper": -0.6, "answer": "worse"}
    (sentence,) = experiment_sentences(answer)
    assert sentence.startswith("home: cannot tell yet whether it is better or worse than its holdout by durable")
    assert sentence.endswith("; but it brings people back less often: -50 % visits per user so far")


def test_a_sentence_says_where_drawing_at_random_does_better() -> None:
    """Of a uniform holdout alone: another one is what a frozen policy serves."""
    worse = compared((-2.0, -2.5, -1.5), [])
    answers = [worse | {"variants": [{"policy": f"{name}@home-holdout/holdout"}]} for name in ("uniform", "clicks")]
    sentences = [experiment_sentences(answer)[0] for answer in answers]
    assert sentences[0] == f"{sentences[1]}; drawing at random does better"
    assert sentences[1].endswith("visits +31 % [+20, +42]")
    young = compared((-2.0, -2.5, -1.5), ["young-units"]) | {"variants": answers[0]["variants"]}
    assert experiment_sentences(young)[0].endswith("; drawing at random did better")
    # what served before lowers it, too
    since = compared((-2.0, -2.5, -1.5), ["picked-decisions"]) | {"variants": answers[0]["variants"]}
    switched = answers[0] | {"led_to": ["clicks", "lasting"], "led_since": "2026-01-08T00:00:00.000000Z"}
    assert not [answer for answer in (since, switched) if "drawing at random" in experiment_sentences(answer)[0]]


def test_a_sentence_says_that_it_counts_what_served_before() -> None:
    answer = compared((2.0, 1.5, 2.5), [])
    answer["led_since"] = "2026-01-08T00:00:00.000000Z"
    (alone,), (after,) = (experiment_sentences(answer | {"led_to": names}) for names in (["new"], ["old", "new"]))
    command = "`rlrec outcomes --experiment home-holdout --reward durable --entered-since 2026-01-08T00:00:00.000000Z`"
    assert after == f"{alone}; a part of it is what old served: {command} compares those who first came to new"
    (nobody,) = experiment_sentences(answer | {"led_to": ["old", "new"], "has_newcomers": False})
    assert nobody == f"{alone}; a part of it is what old served, and nobody new has come since"


def test_those_who_first_came_after_a_switch_are_compared_by_themselves(ready: Run) -> None:
    """Whom an earlier policy served is left out on both sides; a filter of the log would keep those who still came."""
    variants(ready, 0)
    newcomers = [f"new{number}" for number in range(120)]
    lines = [f'{{"policy": "home", "session": "{user}-1", "user": "{user}"}}\n' for user in [*USERS, *newcomers]]
    ready("--now", "2099-01-08", "--allow-future", "recommend", "--input", "-", stdin="".join(lines)).done()
    outcomes = ("--now", "2099-02-01", "outcomes", "--experiment", "home-holdout")
    result = ready(*outcomes, "--entered-since", "2099-01-01", "--json").json
    units = [row["units"] for row in result["outcomes"] if row["metric"] == "visits"]
    assert (result["new"] + result["returning"], sum(units)) == (120, 120)
    doubts = {reason for row in result["differences"] for reason in row["reasons"]}
    assert "picked-decisions" not in doubts
    picked = ready(*outcomes, "--log", "since=2099-01-01", "--json").json
    assert picked["new"] + picked["returning"] == 160
    everybody = ready("--now", "2099-02-01", "outcomes", "--entered-since", "2099-01-01", "--json").json
    assert everybody["new"] + everybody["returning"] == 120
    nobody = ready("--now", "2099-02-01", "outcomes", "--entered-since", "2099-01-20")
    assert (nobody.exit_code, "--entered-since" in nobody.stderr) == (2, True)


@ON_BOTH
def test_what_served_last_is_named_with_a_command_that_looks_at_it_alone(ready: Run) -> None:
    """Also where a route comes back to a policy that it led to before; since the newest change, of a version too."""
    apart(ready, 0)
    times = [f"2099-01-0{day}T00:00:00.000000Z" for day in (1, 2, 3)]
    for at, reference in zip(times, ("other", "ts", "ts@1"), strict=True):
        ready("--now", at, "--allow-future", "route", "set", "home", "--to", reference).done()
    answer = ready("--now", "2099-02-01", "experiment", "show", "home-holdout", "--json").json
    assert (answer["led_to"], answer["led_since"], answer["has_newcomers"]) == (["other", "ts"], times[2], False)


def compared(difference: tuple[float, float, float], reasons: list[str]) -> dict[str, Any]:
    """The answer of a comparison whose holdout earned 1 a user and came once."""
    value, lower, upper = difference
    row = {
        "group": "served", "against": "holdout", "reasons": reasons, "p_value": None,
        "needed": None if reasons else 500, "answer": "unknown" if reasons or lower < 0 else "better",
    }  # fmt: skip
    earned = {**row, "metric": "reward_per_unit", "reward": "durable", "value": value, "relative": value}
    visits = {**row, "metric": "visits", "reward": None, "value": 0.31, "relative": 0.31, "lower": 0.2, "upper": 0.42}
    return {
        "experiment": "home-holdout", "route": "home", "unit": "user", "sample_ratio": {"p_value": 0.5},
        "unit_differences": [visits, {**earned, "lower": lower, "upper": upper}], "units_per_day": 100.0,
    }  # fmt: skip
