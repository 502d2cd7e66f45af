"""`status`: a store at a glance; `policy versions`: where versions come from, and when they were live."""

import json
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

import rlrec
from rlrec.app import opening
from rlrec.app.judging.report import quick_findings
from rlrec.store import Store, Unit
from rlrec.store.log import activity
from rlrec.times import parse
from tests.conftest import ON_BOTH, Run, click, runner, store_after

T0, LATER = "2026-01-01T12:00:00Z", "2026-01-01T14:30:00Z"
KEYS = {
    "revision", "arms", "users", "sessions", "decisions", "events", "policies", "routes", "experiments", "waiting",
    "events_by_hour", "warnings",
}  # fmt: skip


def _filled(run: Run, *, reward: str = "default") -> None:
    """Two arms, a policy, a route to it, and four decisions at noon, the first one with a click."""
    run("--now", T0, "arm", "add", "a")
    run("--now", T0, "arm", "add", "b")
    run("--now", T0, "policy", "create", "home", "--kind", "thompson", "--reward", reward)
    run("--now", T0, "route", "create", "front", "--to", "home")
    for number, name in enumerate(["home", "home", "front", "front"]):
        run("--now", T0, "recommend", "--policy", name, "--session", f"s{number}", "--user", "u1")
    assert run("--now", T0, "feedback", 1, "click").exit_code == 0


def _filled_at(db: str) -> None:
    _filled(runner(db))


noon = store_after(_filled_at)


def test_a_version_that_a_file_pins_is_named_once_another_one_is_live(
    noon: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rlrec.toml").write_text('[recommend]\npolicy = "home@1"\n', encoding="utf-8")
    words = ("--now", LATER, "status", "--json")
    assert noon(*words).json["warnings"] == []
    noon("--now", LATER, "policy", "freeze", "home")
    noon("--now", LATER, "policy", "promote", "home@2")
    status = noon(*words)
    (row,) = (row for row in status.json["warnings"] if "rlrec.toml" in row["detail"])
    assert (status.exit_code, row["severity"], row["subject"]) == (0, "info", "policy home")
    assert row["detail"] == "rlrec.toml has `recommend` draw from version 1, and version 2 is live"


def test_variants_are_listed_as_long_as_they_serve(noon: Run) -> None:
    noon("policy", "create", "other", "--kind", "uniform")

    def listed() -> set[str]:
        return {row["policy"] for row in noon("status", "--json").json["policies"]}

    separate = listed()
    noon("route", "set", "front", "--to", "other", "--share", "50%")
    assert listed() == separate | {"home@front-ramp-1/current", "other@front-ramp-1/candidate"}
    noon("experiment", "stop", "front-ramp-1")
    noon("route", "set", "front", "--to", "other@front-ramp-1/candidate")
    assert listed() == separate | {"other@front-ramp-1/candidate"}
    noon("route", "set", "front", "--to", "home")
    assert listed() == separate


def test_an_empty_store_has_a_status(run: Run) -> None:
    status = run("status", "--json").json
    assert status.keys() >= KEYS
    assert (status["policies"], status["decisions"], status["events_by_hour"]) == ([], 0, [0] * 24)


def test_status_counts_what_is_stored(noon: Run) -> None:
    status = noon("--now", LATER, "status", "--json").json
    assert {name: status[name] for name in ("arms", "users", "sessions", "decisions", "events")} == {
        "arms": 2, "users": 1, "sessions": 4, "decisions": 4, "events": 1,
    }  # fmt: skip
    (policy,) = status["policies"]
    assert (policy["policy"], policy["kind"], policy["live"], policy["versions"]) == ("home", "thompson", 1, 1)
    assert (policy["decisions"], policy["decisions_24h"]) == (4, 4)
    assert policy["last_at"] == "2026-01-01T12:00:00.000000Z"
    (route,) = status["routes"]
    assert (route["route"], route["policy"], route["version"], route["decisions_24h"]) == ("front", "home", 1, 2)


def test_events_stand_in_their_hour(noon: Run) -> None:
    hours = noon("--now", LATER, "status", "--json").json["events_by_hour"]
    assert (len(hours), hours[-3], sum(hours)) == (24, 1, 1)
    assert sum(noon("--now", "2026-01-03", "status", "--json").json["events_by_hour"]) == 0


@pytest.mark.parametrize(
    ("now", "immature", "day"), [("2026-01-01T12:29:00Z", 4, 4), (LATER, 0, 4), ("2026-01-03", 0, 0)]
)
def test_decisions_wait_for_their_window(noon: Run, now: str, immature: int, day: int) -> None:
    status = noon("--now", now, "status", "--json").json
    assert (status["waiting"]["immature"], status["policies"][0]["decisions_24h"]) == (immature, day)


def test_slots_that_wait_to_be_settled_are_a_warning(run: Run) -> None:
    run("--now", T0, "reward", "define", "slow", "click=1", "--clip", "0,1", "--learn", "settled")
    _filled(run, reward="slow")
    early = run("--now", T0, "status", "--json")
    assert (early.exit_code, early.json["waiting"]["unsettled"]) == (0, 4)
    late = run("--now", LATER, "status", "--json")
    assert (late.exit_code, late.json["warnings"][0]["check"]) == (3, "waiting")
    assert "warning waiting, policy home: version 1: slots since" in run("--now", LATER, "status").stdout
    run("--now", LATER, "settle")
    assert run("--now", LATER, "status").exit_code == 0


def test_events_that_stop_coming_are_a_warning_unless_they_are_excluded(sqlite_db: str, noon: Run) -> None:
    pages = "".join(f'{{"policy": "home", "session": "t%d-{number}"}}\n' for number in range(300))
    for hour in (1, 2, 3):
        clock = ["--now", f"2026-01-02T{hour:02}:00:00Z"]
        assert noon(*clock, "recommend", "--input", "-", stdin=pages.replace("%d", str(hour))).exit_code == 0
        if hour == 1:
            click(noon, range(5, 305, 2), *clock)
            assert noon("--now", "2026-01-02T01:50:00Z", "status").exit_code == 0
    result = noon("--now", "2026-01-02T05:00:00Z", "status", "--json")
    assert (result.exit_code, [row["check"] for row in result.json["warnings"]]) == (3, ["reward-outage"])
    with rlrec.open(sqlite_db, now="2026-01-02T05:00:00Z") as store:
        assert "reward-outage" in [finding.check for finding in quick_findings(store.store)]
        store.log.exclude("outage", where="since=2026-01-02T02:00:00Z")
        assert "reward-outage" not in [finding.check for finding in quick_findings(store.store)]
    assert noon("--now", "2026-01-02T05:00:00Z", "status").exit_code == 0


@ON_BOTH
def test_a_running_experiment_is_listed(noon: Run) -> None:
    noon("--now", T0, "experiment", "create", "ab", "--variant", "x=home", "--variant", "y=home")
    noon("--now", T0, "recommend", "--experiment", "ab", "--session", "e1", "--user", "u1")
    (experiment,) = noon("--now", T0, "status", "--json").json["experiments"]
    assert (experiment["experiment"], experiment["units"], experiment["variants"]) == ("ab", 1, ["x", "y"])
    noon("--now", T0, "experiment", "stop", "ab")
    assert noon("--now", T0, "status", "--json").json["experiments"] == []


def test_a_version_that_waits_is_named_until_it_is_live(noon: Run) -> None:
    noon("--now", T0, "policy", "freeze", "home")
    assert noon("--now", T0, "status", "--json").json["policies"][0]["waiting"] is None  # a copy waits for nothing
    noon("--now", T0, "policy", "rebuild", "home")
    assert "home@3 has waited since 2026-01-01 12:00: `rlrec policy promote home@3` makes it live" in noon(
        "--now", T0, "status"
    ).stdout.replace("\n", " ")
    noon("--now", T0, "policy", "promote", "home@3")
    assert noon("--now", T0, "status", "--json").json["policies"][0]["waiting"] is None
    noon("--now", T0, "policy", "rollback", "home").done()
    again = noon("--now", T0, "status").stdout.replace("\n", " ")
    assert "home@3 was rolled back on 2026-01-01 12:00: `rlrec policy promote home@3` makes it live again" in again


@ON_BOTH
def test_doctor_waits_for_no_lock(run: Run, db: str) -> None:
    with closing(Store(db)) as other:
        other.write(lambda unit: locked_audit(unit, run))
    assert run("status", "--json").json["doctor"] is None


def locked_audit(unit: Unit, run: Run) -> None:
    """An audit while a transaction keeps locked what it writes."""
    if unit.postgres:
        unit.tell("LOCK TABLE run IN EXCLUSIVE MODE")
    started = time.monotonic()
    result = run("doctor")
    assert time.monotonic() - started < 20  # a lock is waited for 30 s
    assert (result.exit_code, "`rlrec status` will not know of this audit" in result.stderr) == (0, True)


def test_status_says_what_doctor_found_last(noon: Run) -> None:
    assert noon("--now", LATER, "doctor").exit_code == 0
    status = noon("--now", LATER, "status", "--json").json
    assert (status["doctor"]["errors"], status["doctor"]["at"]) == (0, "2026-01-01T14:30:00.000000Z")


def test_versions_say_when_they_were_live(noon: Run) -> None:
    noon("--now", "2026-01-02", "policy", "freeze", "home")
    noon("--now", "2026-01-03", "policy", "promote", "home@2")
    noon("--now", "2026-01-04", "policy", "rollback", "home")
    first, second = noon("--now", "2026-01-05", "policy", "versions", "home", "--json").json
    assert (first["status"], first["live"], first["parent"]) == ("learning", True, None)
    assert (second["status"], second["live"], second["parent"], second["gate"]) == ("frozen", False, 1, None)
    assert [(time["at"][:10], time["until"] and time["until"][:10], time["by"]) for time in first["promoted"]] == [
        ("2026-01-01", "2026-01-03", "policy create"), ("2026-01-04", None, "policy rollback"),
    ]  # fmt: skip
    assert second["promoted"] == [
        {
            "at": "2026-01-03T00:00:00.000000Z", "until": "2026-01-04T00:00:00.000000Z", "by": "policy promote",
            "ended_by": "policy rollback",
        }
    ]  # fmt: skip


def test_versions_have_the_keys_of_the_contract(noon: Run) -> None:
    rows = noon("policy", "versions", "home", "--json").json
    keys = {"version", "status", "live", "parent", "created_at", "learned_from", "gate", "promoted"}
    assert [row.keys() >= keys for row in rows] == [True]
    result = noon("policy", "versions", "home")
    assert "version 1 is live from 2026-01-01T12:00:00.000000Z (policy create)" in result.stdout


def test_versions_of_a_version_are_refused(noon: Run) -> None:
    result = noon("policy", "versions", "home@1", "--json")
    assert (result.exit_code, json.loads(result.stderr)["code"]) == (2, 2)


def test_a_kind_that_nobody_weighs_is_noticed_once_in_a_store(noon: Run) -> None:
    first = noon("--now", T0, "feedback", 1, "clik").stderr
    assert "no reward definition weighs 'clik'" in first
    assert "did you mean click?" in first
    assert noon("--now", T0, "feedback", 2, "clik").stderr == ""
    assert "weighs 'dwell_s'" in noon("--now", T0, "feedback", 2, "dwell_s=3").stderr


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["evaluate", "uniform"], "the first at 12:30Z, in 25 min; to look now, add `--now 2026-01-01T12:30:01Z`"),
        (["evaluate", "uniform", "--estimator", "pdis"], "the first at 13:00Z, in 55 min; to look now, add `--now"),
        (["policy", "freeze", "home"], "not mature yet: 4 slots, the last at 12:30Z, in 25 min; version 2"),
        (["train-pg", "visits"], "the first at 12:30Z, in 25 min; to look now, add `--now 2026-01-01T13:00:01Z`"),
    ],
)  # fmt: skip
def test_what_is_not_mature_says_when_it_will_be(noon: Run, command: list[str], text: str) -> None:
    noon("--now", T0, "policy", "create", "visits", "--kind", "gradient")
    assert text in noon("--now", "2026-01-01T12:05:00Z", *command).stderr


def test_an_experiment_says_when_its_decisions_are_mature(noon: Run) -> None:
    noon("--now", T0, "experiment", "create", "ab", "--variant", "x=home", "--variant", "y=home")
    noon("--now", T0, "recommend", "--experiment", "ab", "--session", "e1", "--user", "u1")
    result = noon("--now", "2026-01-01T12:05:00Z", "experiment", "show", "ab")
    assert "no decision of ab is mature yet: the first at 12:30Z, in 25 min" in result.stderr


def test_the_time_to_look_shows_the_estimate(noon: Run) -> None:
    hint = noon("--now", T0, "evaluate", "uniform").stderr
    clock = hint.partition("--now ")[2].partition("`")[0]
    assert noon("--now", clock, "evaluate", "uniform").exit_code == 0


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["policy", "create", "more", "--kind", "uniform"], "recommend --policy more --session s1` draws"),
        (["doctor"], "checks of 4 decisions: nothing is wrong."),
        (["settle"], "0 slots entered the beliefs, 0 wait for the end of their window."),
    ],
)  # fmt: skip
def test_a_command_ends_with_a_sentence_or_the_next_command(noon: Run, command: list[str], text: str) -> None:
    noon("--now", T0, "experiment", "create", "ab", "--variant", "x=home", "--variant", "y=home")
    result = noon("--now", LATER, *command)
    assert text in result.stderr.splitlines()[-1]
    for quiet in (["-q", "--now", LATER, *command], ["--now", LATER, *command, "--json"]):
        assert text not in noon(*quiet).stderr


def test_a_comparison_says_whom_it_affects(noon: Run) -> None:
    noon("--now", LATER, "policy", "freeze", "home")
    text = noon("--now", LATER, "policy", "diff", "home", "home@2").stdout
    assert text.startswith("a: home\nb: home@2\na is live: 4 decisions in 24 h through front\nb is not live\n")
    assert "b in place of a would show 0.0% of requests another arm at position 1" in text


def test_advice_that_was_followed_is_not_repeated(noon: Run, sqlite_db: str) -> None:
    claim = "best known for default in the long run: home@1 (+1 default a page [+0, +2] above what this log shows)"
    for command, is_done in (("policy promote home@1", True), ("policy promote home@2", False)):
        sentence = f"{claim}: `rlrec {command}` makes it live"
        with closing(Store(sqlite_db, now=parse(T0))) as store:
            opening.note(store, activity.BEST_POLICY, {"reward": "default"}, {"sentence": sentence, "by": "evaluate"})
        text = noon("--now", T0, "status").stdout
        assert (claim in text, command in text) == (True, not is_done)


@pytest.mark.slow
def test_a_watched_status_is_shown_again_until_it_is_interrupted(
    run_sqlite: Run, sqlite_db: str, forked_rlrec: Path
) -> None:
    command = [forked_rlrec, "--db", sqlite_db, "status", "--watch", "1s", "--format", "ndjson"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert json.loads(child.stdout.readline())["arms"] == 0
        assert run_sqlite("arm", "add", "a").exit_code == 0
        deadline = time.monotonic() + 60
        while json.loads(child.stdout.readline())["arms"] == 0:
            assert time.monotonic() < deadline
        child.send_signal(signal.SIGINT)
        assert (child.wait(timeout=60), child.stderr.read()) == (130, b"Error: interrupted.\n")
    assert "is not a duration" in run_sqlite("status", "--watch", "soon").failed(2)


def test_a_watch_waits_between_two_looks(run_sqlite: Run) -> None:
    for pause in ("0s", "99ms"):
        refused = run_sqlite("status", "--watch", pause)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "--watch waits for at least 100ms" in refused.stderr
