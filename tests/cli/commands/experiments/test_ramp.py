"""rlrec route ramp and advance: a candidate gets larger shares by itself, or goes back."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import rlrec
from rlrec.store.database.unit import Unit
from tests.conftest import ON_BOTH, Run, begin, click, filled, runner, store_after

STEPS = ("--steps", "20%,50%,100%", "--hold", "1d")
USERS = 300  # a day; 60 of them get the candidate in the first step
SIDES = ("current", "candidate")


def prepared(db: str) -> None:
    run = at(runner(db), 0)
    begin(run, "xyz", "ts", "thompson", "--param", "floor=0.1")
    run("policy", "create", "u", "--kind", "uniform")
    run("route", "create", "home", "--to", "ts")


ready = store_after(prepared)


def at(run: Run, days: float) -> Run:
    """The commands at so many days after the start."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_767_225_600 + round(86_400 * days)))
    return lambda *words, **options: run("--allow-future", "--now", now, *words, **options)


def ramp(run: Run, *words: str) -> Any:
    return run("route", "ramp", "home", "--to", "u", *(words or STEPS), "--json")


def advance(run: Run) -> Any:
    return run("route", "advance", "home", "--json")


def serve(run: Run, day: int, rates: dict[str, float]) -> dict[str, int]:
    """Each of the users of a day asks the route once, and clicks with the rate of the policy: how many each variant
    served."""
    users = [f"d{day}-{n}" for n in range(USERS)]
    lines = [{"policy": "home", "session": user, "user": user} for user in users]
    answers = run("recommend", "--input", "-", "--seed", day, stdin=lines).lines
    assert len(answers) == USERS
    counts: dict[str, int] = {}
    clicked = []
    for number, answer in enumerate(answers):
        counts[str(answer["variant"])] = counts.get(str(answer["variant"]), 0) + 1
        if (number * 7919 % 1000) / 1000 < rates[answer["policy"].partition("@")[0]]:
            clicked.append(answer["decision_id"])
    click(run, clicked)
    return counts


# -- a ramp by cron --


@pytest.mark.slow
def test_a_better_candidate_gets_everybody_step_by_step(ready: Run) -> None:
    ramp(at(ready, 0.1))
    rates, shares, dids = {"ts": 0.3, "u": 0.4}, [], []
    for day in range(8):
        counts = serve(at(ready, day + 0.5), day, rates)
        shares.append(counts.get("candidate", 0) / USERS)
        assert advance(at(ready, day + 0.9)).json["did"] in ("waited", "none")
        dids.append(advance(at(ready, day + 1.2)).json["did"])
        if dids[-1] == "none":
            break
    assert [did for did in dids if did != "waited"][:3] == ["advanced", "promoted", "none"]
    assert shares[0] < 0.3 < shares[dids.index("advanced") + 1] < 0.7
    last = at(ready, 20)
    assert last("recommend", "--policy", "home", "--session", "s", "--json").json["policy"] == "u"
    assert last("doctor", "--json").json["findings"] == []


@pytest.mark.slow
@ON_BOTH
def test_a_bad_candidate_goes_back_within_its_first_step(ready: Run) -> None:
    ramp(at(ready, 0.1), "--steps", "30%,100%", "--hold", "4d")
    for day in range(4):
        serve(at(ready, day + 0.5), day, {"ts": 0.6, "u": 0.1})
        done = advance(at(ready, day + 0.9))
        if done.exit_code:
            break
    assert (done.exit_code, done.json["did"], day < 4) == (3, "rolled-back", True)
    assert "candidate is worse than current" in done.stderr
    assert "route home serves ts@2" in done.stderr
    shown = at(ready, day + 0.9)("experiment", "show", "home-ramp-1", "--json").json["unit_differences"]
    earned = next(row for row in shown if row["metric"] == "reward_per_unit")
    assert f"{100 * earned['relative']:+.0f} % [" in done.json["why"]  # as of then; later ones count more
    assert "its figures can differ" in done.stderr
    again = advance(at(ready, 5))
    assert (again.exit_code, again.json["did"], "by `route advance home`" in again.json["why"]) == (0, "none", True)
    assert set(serve(at(ready, 6), 6, {"ts": 0.6})) == {"None"}
    learned = at(ready, 7)("policy", "show", "ts@2", "--json").json["arms"]  # what most users taught meanwhile is kept
    assert sum(row["pulls"] for row in learned) > USERS
    assert at(ready, 7)("doctor", "--json").json["findings"] == []


@pytest.mark.slow
def test_a_bad_candidate_goes_back_to_the_live_version_where_its_rival_is_retired(ready: Run) -> None:
    run = at(ready, 0.1)
    run("route", "set", "home", "--to", "ts@1")
    assert ramp(run, "--steps", "50%,100%").exit_code == 0
    run("policy", "freeze", "ts")
    run("policy", "promote", "ts@2")
    assert run("policy", "retire", "ts@1").exit_code == 0
    serve(at(ready, 0.5), 0, {"ts": 0.9, "u": 0.05})
    done = advance(at(ready, 0.9))
    assert (done.exit_code, done.json["did"]) == (3, "rolled-back")
    assert done.json["why"].endswith("route home serves ts, since ts@1 is retired")
    assert (advance(at(ready, 1)).exit_code, advance(at(ready, 1)).json["did"]) == (0, "none")
    served = at(ready, 2)("recommend", "--policy", "home", "--session", "s", "--json").json
    assert (served["policy"], served["version"]) == ("ts", 2)
    assert at(ready, 2)("doctor", "--json").json["findings"] == []


def test_a_step_waits_until_it_has_lasted_and_until_something_is_known(ready: Run) -> None:
    started = ramp(at(ready, 0)).json
    assert (started["experiment"], started["set"]) == ("home-ramp-1", True)
    early, empty = advance(at(ready, 0.5)).json, advance(at(ready, 2)).json
    assert (early["did"], early["share"], early["next_share"], early["next_at"][:10]) == (
        "waited",
        0.2,
        0.5,
        "2026-01-02",
    )
    assert (empty["did"], "waits for more users" in empty["why"]) == ("waited", True)
    stood = at(ready, 0.5)("route", "show", "home", "--json").json["ramp"]
    begun = {"steps": [0.2, 0.5, 1], "hold_days": 1, "metric": ["reward_per_unit:default"], "guards": []}
    assert stood == begun | {name: early[name] for name in ("share", "next_share", "next_at", "why")}
    (row,) = at(ready, 0.5)("status", "--json").json["routes"]
    assert row["ramp"] == stood
    for words in (("route", "show", "home"), ("status",)):
        assert stood["why"] in at(ready, 0.5)(*words).stdout.splitlines()
    due = at(ready, 1.2)("status").stdout
    assert "50 % has been due since 2026-01-02T00:00:00.000000Z: `rlrec route advance home` takes the step" in due
    line = at(ready, 0.5)("route", "advance", "home")
    assert (line.exit_code, line.stdout) == (0, "home-ramp-1 is at 20 %; 50 % from 2026-01-02T00:00:00.000000Z on\n")


def test_a_step_lasts_at_least_as_long_as_the_window_of_its_reward(ready: Run) -> None:
    ready("reward", "define", "lasting", "click=1, return=1", "--window", "7d")
    begun = ramp(at(ready, 0), *STEPS, "--metric", "reward_per_unit:lasting").json
    assert begun["ramp"]["next_at"][:10] == "2026-01-08"
    outlook = "50 % from 2026-01-08T00:00:00.000000Z on, when the first users have had time for their rewards"
    assert advance(at(ready, 2)).json["why"] == f"home-ramp-1 is at 20 %; {outlook}"
    assert "waits for more users" in advance(at(ready, 7.1)).json["why"]


@pytest.mark.slow
def test_a_step_waits_until_each_guard_is_judged_to_hold(ready: Run) -> None:
    ready("reward", "define", "durable", "click=2")
    guards = ("--guard", "visits>=-5%", "--guard", "reward_per_unit:durable>=-80%")
    ramp(at(ready, 0.1), "--steps", "50%,100%", "--hold", "1d", *guards[2:])
    serve(at(ready, 0.5), 0, {"ts": 0.3, "u": 0.4})
    assert advance(at(ready, 1.2)).json["did"] == "promoted"
    at(ready, 1.3)("route", "set", "home", "--to", "ts")
    ramp(at(ready, 1.4), "--steps", "50%,100%", "--hold", "1d", *guards)
    serve(at(ready, 1.5), 1, {"ts": 0.3, "u": 0.4})
    waits = advance(at(ready, 2.5))
    assert (waits.exit_code, waits.json["did"], waits.json["share"]) == (0, "waited", 0.5)
    command = "experiment stop home-ramp-2 --promote candidate --anyway"
    assert "cannot tell yet whether visits per user fell by more than 5 %" in waits.json["why"]
    assert f"`rlrec {command}` promotes it by hand" in waits.json["why"]
    assert "durable" not in waits.json["why"]  # which holds
    assert at(ready, 2.6)(*command.split()).exit_code == 0
    assert "it serves u since" in advance(at(ready, 2.7)).json["why"]


@pytest.mark.slow
def test_the_reward_that_is_declared_decides_a_ramp_and_is_named(ready: Run) -> None:
    ready("reward", "define", "durable", "click=-1", "--default", "1")
    rates = {"ts": 0.6, "u": 0.1}  # of clicks: u earns more by the reward that dislikes these
    for metric, did, days in (("reward_per_unit:durable", "promoted", 0), ("reward_per_unit", "rolled-back", 3)):
        begun = ramp(at(ready, days + 0.1), "--steps", "50%,100%", "--hold", "1d", "--metric", metric).json
        assert begun["ramp"]["metric"][0].startswith(metric)
        serve(at(ready, days + 0.5), days, rates)
        done = advance(at(ready, days + 1.2))
        assert done.json["did"] == did, done.json["why"]
        at(ready, days + 1.3)("route", "set", "home", "--to", "ts")
    assert "per user by reward default" in done.json["why"]
    shared = ("route", "set", "home", "--to", "u", "--share", "20%", "--metric", "visits")
    late = at(ready, 5)(*shared, "--json").json["experiment"]
    assert at(ready, 5)("experiment", "show", late, "--json").json["metric"] == [{"metric": "visits", "reward": None}]
    assert "--metric visits" in at(ready, 5)("route", "show", "home").stdout


def test_a_ramp_that_begins_says_when_it_goes_on_and_what_decides(ready: Run) -> None:
    words = ("--to", "u", *STEPS, "--guard", "visits>=-5%")
    begun = at(ready, 0)("route", "ramp", "home", *words)
    assert begun.stdout.splitlines() == [
        "home-ramp-1 is at 20 %; 50 % from 2026-01-02T00:00:00.000000Z on",
        "candidate u against current ts; steps of 20, 50, 100 %, each for 1d at least",
        "decided by reward_per_unit:default; guarded by visits>=-5%",
        "`rlrec route advance home`, from cron, takes the steps, or takes the candidate back",
    ]
    state = at(ready, 0.1)("route", "show", "home", "--json").json["ramp"]
    assert (state["steps"], state["hold_days"], state["guards"]) == ([0.2, 0.5, 1], 1, ["visits>=-5%"])
    assert (state["metric"], state["next_at"]) == (["reward_per_unit:default"], "2026-01-02T00:00:00.000000Z")


@pytest.mark.parametrize("served", ["ts", "ts@2"])
def test_a_ramp_of_what_the_route_serves_is_refused(ready: Run, served: str) -> None:
    ready("policy", "freeze", "ts")
    ready("route", "set", "home", "--to", served)
    refused = ready("route", "ramp", "home", "--to", served, *STEPS)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert f"route home serves {served} already" in refused.stderr


def test_a_share_that_is_nearly_all_is_not_called_all(ready: Run) -> None:
    ramp(ready, "--steps", "0.0001%,99.9999%,100%", "--hold", "1d")
    assert advance(ready).json["why"].startswith("home-ramp-1 is at 0.0001 %; 99.9999 % from ")


def test_the_history_of_a_route_has_the_hold_as_it_can_be_typed(ready: Run) -> None:
    ramp(ready, "--steps", "50%,100%", "--hold", "1h")
    assert "--steps 50%,100% --hold 1h" in ready("route", "show", "home").stdout


def test_a_candidate_whose_split_is_not_as_defined_neither_steps_nor_is_promoted(ready: Run) -> None:
    """Somebody excluded most users whom a losing candidate does not serve."""
    ramp(at(ready, 0.1), "--steps", "50%,100%", "--hold", "1d")
    serve(at(ready, 0.5), 0, {"ts": 0.6, "u": 0.2})
    others = sides(ready)["current"][:100]
    assert len(others) == 100
    at(ready, 1)("log", "exclude", "staff", "--where", f"user={'+'.join(others)}")
    for days in (1.05, 2, 9):  # within the step, and long after
        done = advance(at(ready, days))
        assert (done.exit_code, done.json["did"], done.json["share"]) == (3, "blocked", 0.5)
        assert "not split as defined" in done.stderr
        assert "`rlrec route rollback home`" in done.json["why"]
        state = at(ready, days)("route", "show", "home", "--json").json["ramp"]
        assert (state["why"], state["next_share"], state["next_at"]) == (done.json["why"], None, None)
        assert done.json["why"] in at(ready, days)("status").stdout
    at(ready, 9)("log", "include", "staff")
    assert advance(at(ready, 9.1)).json["did"] == "rolled-back"


def sides(run: Run) -> dict[str, list[str]]:
    """The users of the first day by the variant that serves them."""
    users = [f"d0-{n}" for n in range(USERS)]
    lines = [{"policy": "home", "session": user, "user": user} for user in users]
    answers = at(run, 0.6)("recommend", "--input", "-", stdin=lines).lines
    variants = [answer["variant"] for answer in answers]
    return {name: [user for user, variant in zip(users, variants, strict=True) if variant == name] for name in SIDES}


@pytest.mark.slow
def test_visitors_who_log_in_later_neither_block_a_ramp_nor_decide_it(db: str, ready: Run) -> None:
    """Half of the visitors of each day log in once it is over, and click three times as often as the others: to their
    key the second step gives the candidate more often than to the keys that were drawn before, and both variants are
    alike. With these persons among the others the split is not as defined (p below 1e-6), and the candidate seems
    better by a fifth."""
    ramp(at(ready, 0.1), "--steps", "20%,60%,100%", "--hold", "1d")
    people = [(f"cookie{n}", f"user{n}", n % 2 == 0) for n in range(2 * USERS)]

    def visit(days: float, keys: Sequence[str]) -> None:
        run = at(ready, days)
        lines = [{"policy": "home", "session": f"{key}-{days}", "user": key} for key in keys]
        answers = run("recommend", "--input", "-", "--seed", 1, stdin=lines).lines
        ids = [(answer["decision_id"], logs_in) for answer, (_, _, logs_in) in zip(answers, people, strict=True)]
        click(run, [number for number, logs_in in ids if number * 7919 % 1000 < (600 if logs_in else 200)])

    visit(0.5, [cookie for cookie, _, _ in people])
    with rlrec.open(db, now="2026-01-01T20:00:00Z") as store:
        for cookie, user, logs_in in people:
            if logs_in:
                store.user.merge(cookie, into=user)
    assert advance(at(ready, 1.2)).json["did"] == "advanced"
    visit(1.5, [user if logs_in else cookie for cookie, user, logs_in in people])
    assert advance(at(ready, 1.9)).json["did"] == "waited"
    shown = at(ready, 1.9)("experiment", "show", "home-ramp-1", "--json").json
    earned = next(row for row in shown["unit_differences"] if row["metric"] == "reward_per_unit")
    assert (shown["sample_ratio"]["p_value"] > 0.001, earned["relative"] < 0.1) == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize(("merges", "is_mixed"), [(20, True), (5, False)])
def test_persons_whom_both_variants_of_a_step_served_are_counted(ready: Run, merges: int, is_mixed: bool) -> None:
    """Cookies of which each variant served one become persons; whom the next step moves has had one at a time."""
    ramp(at(ready, 0.1), "--steps", "40%,80%", "--hold", "1d")
    serve(at(ready, 0.5), 0, {"ts": 0.3, "u": 0.3})
    for pair in list(zip(*sides(ready).values(), strict=False))[:merges]:
        assert at(ready, 0.7)("user", "merge", pair[0], "--into", pair[1]).exit_code == 0
    assert advance(at(ready, 1.2)).json["did"] == "advanced"
    serve(at(ready, 1.5), 0, {"ts": 0.3, "u": 0.3})
    shown = at(ready, 1.9)("experiment", "show", "home-ramp-1", "--json").json
    earned = next(row for row in shown["unit_differences"] if row["metric"] == "reward_per_unit")
    assert ("mixed-units" in earned["reasons"]) == is_mixed


# -- what else ends it, and what is refused --


def test_a_ramp_ends_sooner_by_a_rollback_or_by_its_experiment(ready: Run) -> None:
    ramp(ready)
    assert ready("route", "rollback", "home", "--json").json["reference"] == "ts"
    assert advance(ready).json["did"] == "none"
    ramp(ready)
    assert ready("experiment", "stop", "home-ramp-2", "--promote", "candidate", "--anyway").exit_code == 0
    done = advance(ready).json
    assert (done["did"], "it serves u since" in done["why"]) == ("none", True)


def test_a_ramp_that_was_begun_by_a_share_alone_has_no_steps(ready: Run) -> None:
    assert ready("route", "show", "home", "--json").json["ramp"] is None
    ready("route", "set", "home", "--to", "u", "--share", "20%")
    state = ready("route", "show", "home", "--json").json["ramp"]
    assert (state["share"], state["next_share"], state["next_at"]) == (0.2, None, None)
    assert "has no steps" in advance(ready).failed(2)
    assert "\nhome-ramp-1: " not in ready("status").stdout
    sentence = ready("experiment", "show", "home-ramp-1").done().stdout.splitlines()[0]
    assert f"\nhome-ramp-1: {sentence} (as of " in ready("status").stdout  # whoever looks here alone learns of a loss


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "20%,20%,100%"), "is no list of steps"),
        (("--steps", "50%,20%"), "shares that rise"),
        (("--steps", "0,50%"), "is no list of steps"),
        (("--steps", "20%,120%"), "is no list of steps"),
        (("--steps", "100%"), "is no list of steps"),
        (("--steps", "x"), "is not a share"),
        (("--steps", "20%,100%", "--hold", "0s"), "--hold is 0"),
        (("--steps", "20%,100%", "--hold", "soon"), "soon"),
        (("--steps", "20%,100%", "--guard", "visitz>=-5%"), "unknown metric 'visitz'"),
        (("--steps", "20%,100%", "--guard", "reward_per_unit>=-5%"), "is the metric that decides"),
        (("--steps", "20%,100%", "--guard", "visits:-5%"), "is not a guard"),
    ],
)
def test_bad_options_are_refused_in_one_line_and_nothing_is_stored(
    ready: Run, words: tuple[str, ...], message: str
) -> None:  # fmt: skip
    refused = ready("route", "ramp", "home", "--to", "u", *words)
    assert (refused.exit_code, refused.stderr.count("\n"), message in refused.stderr) == (2, 1, True), refused.stderr
    assert ready("experiment", "list", "--json").json == []


def test_a_route_has_one_ramp(ready: Run) -> None:
    ramp(ready)
    assert "has a ramp that runs" in ramp(ready).failed(2)
    assert advance(at(ready, 400)).exit_code == 0
    assert ready("route", "advance", "hom").exit_code == 2


# -- killed at any moment --

BAD, GOOD = {"ts": 0.6, "u": 0.1}, {"ts": 0.3, "u": 0.4}
ADVANCE = ("route", "advance", "home")
# A command by what it does, with the steps of a ramp that has served a day of users, and their rates.
KILLED = {
    "begins": (("route", "ramp", "home", "--to", "u", *STEPS), None, GOOD),
    "advanced": (ADVANCE, "50%,80%", GOOD),
    "promoted": (ADVANCE, "50%,100%", GOOD),
    "rolled-back": (ADVANCE, "50%,100%", BAD),
    "ends": (("experiment", "stop", "home-ramp-1", "--promote", "current", "--anyway"), "50%,100%", BAD),
}


def served_a_day(db: str, did: str) -> None:
    _, steps, rates = KILLED[did]
    prepared(db)
    if steps is not None:
        ramp(at(runner(db), 0.1), "--steps", steps, "--hold", "1d")
        serve(at(runner(db), 0.5), 1, rates)


def counted_or_killed(db: str, words: tuple[str, ...], last: int | None, counts: Any) -> None:
    """Run a command in this process, which ends by SIGKILL with the statement of this number, or after the last."""
    run_query, insert, count = Unit._run, Unit.tell_each, 0

    def counted(work: Any) -> Any:
        def run(*words: Any) -> Any:
            nonlocal count
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*words)

        return run

    with patch.object(Unit, "_run", counted(run_query)), patch.object(Unit, "tell_each", counted(insert)):
        at(runner(db), 2)(*words)
    counts.send(count)
    os.kill(os.getpid(), signal.SIGKILL)


def statements(db: str, words: tuple[str, ...], last: int | None) -> int | None:
    """How many statements a command sent before it was killed; None where that was in between."""
    receiver, sender = Pipe(duplex=False)
    process = get_context("fork").Process(target=counted_or_killed, args=(db, words, last, sender))
    process.start()
    sender.close()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    try:
        return int(receiver.recv())
    except EOFError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("did", KILLED)
def test_a_command_that_is_killed_leaves_a_route_that_serves(sqlite_db: str, tmp_path: Path, did: str) -> None:
    words, _, _ = KILLED[did]
    run = at(filled(sqlite_db, served_a_day, did), 2)
    before = run("route", "show", "home", "--json").json
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(sqlite_db)) as file:  # the log that is ahead of the file, too
        file.execute("VACUUM INTO ?", [str(other)])
    total = statements(str(other), words, None)
    assert total is not None
    states = list[Any]()
    for last in (total // 3, total - 18, total - 12, total - 6):
        assert statements(sqlite_db, words, last) is None
        states.append(run("route", "show", "home", "--json").json)
        assert run("recommend", "--policy", "home", "--session", f"s{last}").exit_code == 0
    assert states[:2] == [before] * 2  # what it reads once it has stored its change comes last
    assert statements(sqlite_db, words, None) is not None  # its answer was lost
    run = at(runner(sqlite_db), 2.1)
    again = run(*words, "--json")
    assert again.exit_code == (2 if did == "begins" else 0)
    assert again.exit_code or again.json.get("did", "none") in ("none", "waited")
    policy = {"ends": "ts", "rolled-back": "ts", "promoted": "u"}.get(did)
    answer = run("recommend", "--policy", "home", "--session", "last", "--user", "last", "--json").json
    assert answer["policy"] == policy or (policy is None and answer["experiment"] == "home-ramp-1")
    assert run("doctor", "--json").json["findings"] == []
