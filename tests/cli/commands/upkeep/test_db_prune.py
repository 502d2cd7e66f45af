"""`db prune`: old visits are gone, beliefs are what they were, and what would lack them is refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.app.grown import grown, sql
from tests.conftest import ON_BOTH, Run, filled, runner

LATE, BEFORE = "2026-01-01T03:00:00Z", "2026-01-01T00:50:00Z"
BELIEFS = (
    "SELECT version_id, bucket, arm_id, ordinal, pulls, reward_sum, reward_squares, extra FROM belief"
    " ORDER BY version_id, bucket, arm_id"
)


@pytest.fixture
def healthy(db: str) -> str:
    filled(db, grown)
    return db


def at(run: Run, *words: object, **more: Any) -> Any:
    return run("--now", LATE, *words, "--json", **more).done().json


@pytest.mark.slow
@ON_BOTH
def test_beliefs_stay_to_the_last_bit_and_the_audit_is_content(healthy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.upkeep.db_removals.VISITS", 50)
    run, before = runner(healthy), sql(healthy, BELIEFS)
    counted = at(run, "db", "prune", "--before", BEFORE, "--dry-run")
    assert at(run, "db", "prune", "--before", BEFORE, "--yes") == counted
    assert counted["decisions"] > 300
    assert sql(healthy, "SELECT count(*) FROM decision WHERE at < 1767227400000000") == [(0,)]
    assert sql(healthy, BELIEFS) == before
    assert run("--now", LATE, "doctor").exit_code == 0
    assert at(run, "db", "prune", "--before", BEFORE, "--yes")["decisions"] == 0


@ON_BOTH
def test_changes_from_which_no_decision_is_left_are_merged(healthy: str) -> None:
    """How the probabilities of a decision arose is shown as before."""
    run, count = runner(healthy), "SELECT count(*) FROM belief_delta"
    ((number,),) = sql(healthy, "SELECT min(id) FROM decision WHERE at > 1767228600000000")
    before, shown = sql(healthy, count)[0][0], at(run, "decision", "show", number)
    at(run, "db", "prune", "--before", BEFORE, "--yes")
    merged = sql(healthy, count)[0][0]
    assert merged < 0.8 * before
    assert at(run, "decision", "show", number) == shown
    at(run, "db", "prune", "--before", "2026-01-01T01:30:00Z", "--yes")
    assert sql(healthy, count)[0][0] < merged
    assert run("--now", LATE, "doctor").exit_code == 0


def test_the_audit_still_checks_beliefs_whose_slots_are_gone(healthy: str) -> None:
    run = runner(healthy)
    at(run, "db", "prune", "--before", BEFORE, "--yes")
    sql(healthy, "UPDATE pruned_sums SET pulls = pulls + 1 WHERE version_id = 1 AND arm_id = 1")
    doctored = run("--now", LATE, "doctor", "--json")
    subjects = {
        (finding["check"], finding["subject"])
        for finding in doctored.json["findings"]
        if finding["severity"] == "error"
    }
    assert (doctored.exit_code, subjects) == (3, {("slots", "policy ts arm a1")})


def test_where_nothing_is_deleted_a_busy_store_is_not_told_that_rows_were(healthy: str) -> None:
    with closing(sqlite3.connect(healthy)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM decision").fetchall()
        words = ("--now", LATE, "--lock-timeout", "50ms", "db", "prune", "--before", "2025-01-01", "--yes")
        refused = runner(healthy)(*words)
    assert "no row is left to delete" in refused.stderr


def test_the_page_of_a_policy_says_which_columns_lack_pruned_decisions(healthy: str) -> None:
    run = runner(healthy)
    assert "pruned" not in run("--now", LATE, "policy", "show", "ts").done().stdout
    at(run, "db", "prune", "--before", BEFORE, "--yes")
    assert "served and ipw_mean are of those left" in run("--now", LATE, "policy", "show", "ts").done().stdout


def test_a_dry_run_says_that_nothing_was_changed(healthy: str) -> None:
    words = ("--now", LATE, "db", "prune", "--before", BEFORE, "--yes")
    assert "nothing was changed" in runner(healthy)(*words, "--dry-run").done().stderr
    assert "nothing was changed" not in runner(healthy)(*words).done().stderr


@ON_BOTH
def test_after_a_prune_everything_goes_on(healthy: str) -> None:
    """Freezing, feedback, serving and forgetting leave a store that the audit is content with."""
    run = runner(healthy)
    at(run, "db", "prune", "--before", BEFORE, "--yes")
    for name in ("fades", "greedy", "ends", "sees"):
        at(run, "policy", "freeze", name)
    left = sql(healthy, "SELECT id, policy_id FROM decision ORDER BY id")
    for number, _ in left[::7]:
        at(run, "feedback", number, "click", "--position", 1)
    for name in ("fades", "ends", "ts-slow", "sees"):
        at(run, "recommend", "--policy", name, "--session", "new", "--user", "u3")
    at(run, "db", "forget", "--user", "u3", "--yes")
    at(run, "db", "prune", "--before", "2026-01-01T00:56:00Z", "--yes")
    assert run("--now", LATE, "doctor").exit_code == 0


def test_estimates_of_later_visits_and_probabilities_stay(healthy: str) -> None:
    run = runner(healthy)
    later = ("evaluate", "taught", "uniform", "--log", "since=2026-01-01T00:57:00Z", "--estimator", "snips,dr,sips")
    before = at(run, *later), at(run, "policy", "show", "ts-slow")["arms"]
    at(run, "db", "prune", "--before", BEFORE, "--yes")
    after = at(run, *later), at(run, "policy", "show", "ts-slow")["arms"]
    assert after[0] == before[0]
    served = [{name: arm[name] for name in ("arm", "pulls", "mean", "probability")} for arm in after[1]]
    assert served == [{name: arm[name] for name in served[0]} for arm in before[1]]


def test_a_rebuild_that_would_lack_decisions_is_refused(healthy: str) -> None:
    run = runner(healthy)
    at(run, "db", "prune", "--before", BEFORE, "--yes")
    refused = run("--now", LATE, "policy", "rebuild", "ts-slow")
    assert (refused.exit_code, refused.stderr.count("\n")) == (3, 1)
    assert "were pruned: a rebuild would lack them" in refused.stderr
    same = "--kind thompson --param floor=0.05 --reward slow --from-log policy=ts-slow"
    assert f"`rlrec policy create NEW {same}`" in refused.stderr
    contextual = run("--now", LATE, "policy", "rebuild", "sees@1").stderr  # no command has its features
    assert "`rlrec" not in contextual.partition("would lack them")[2]
    assert "1" in run("--now", LATE, "feedback", 1, "click").failed(2)
    assert at(run, "policy", "rebuild", "taught")["rebuilt"] is True  # it has lost none


def test_what_is_not_mature_or_not_settled_stays(run: Run) -> None:
    """A visit goes as a whole, or not at all."""

    def do(time: str, *words: object) -> Any:
        return run("--now", f"2026-01-01T{time}:00Z", "-q", *words, "--json").done().json

    do("00:00", "arm", "add", "a1")
    do("00:00", "reward", "define", "slow", "click=1", "--clip", "0,1", "--learn", "settled", "--window", "1h")
    do("00:00", "policy", "create", "slow", "--kind", "thompson", "--reward", "slow")
    do("00:00", "policy", "create", "fast", "--kind", "thompson")
    for time, session in (("00:00", "a"), ("00:20", "b"), ("00:40", "b"), ("01:00", "b"), ("01:20", "c")):
        do(time, "recommend", "--policy", "fast", "--session", session)
    do("01:20", "recommend", "--policy", "slow", "--session", "d")
    complete = do("02:10", "db", "prune", "--before", "2026-01-01T00:50:00Z", "--yes")
    assert (complete["visits"], complete["decisions"], complete["policies"]) == (1, 1, ["fast"])
    waiting = do("03:00", "db", "prune", "--before", "2026-01-01T02:30:00Z", "--yes")
    assert (waiting["before"], waiting["visits"]) == ("2026-01-01T02:00:00.000000Z", 2)  # d has not entered its belief
    do("03:00", "settle")
    assert do("03:00", "db", "prune", "--before", "2026-01-01T02:30:00Z", "--yes")["policies"] == ["slow"]
    assert run("--now", "2026-01-01T03:00:00Z", "doctor").exit_code == 0
    assert do("03:00", "recommend", "--policy", "fast", "--session", "a")["decision_id"] == 7
