"""A store that somebody changed by hand: commands say which row is gone or cannot be read."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from rlrec.store import Store
from tests.conftest import Run, filled, runner

ASK = ("recommend", "--session", "s", "--context", '{"x": 1}', "--json")


@pytest.fixture
def shop(sqlite_db: str) -> Run:
    return filled(sqlite_db, stocked)


def stocked(db: str) -> None:
    run = runner(db)
    for arm in ("a", "b"):
        run("arm", "add", arm, "--features", '{"heat": 1}')
    for policy, kind in (("home", "thompson"), ("lin", "lin-thompson"), ("grad", "gradient")):
        run("policy", "create", policy, "--kind", kind)
        decision = run(*ASK, "--policy", policy, "--request-id", policy, "--seed", 2).json["decision_id"]
        run("feedback", decision, "click")


@pytest.mark.parametrize("change", ["UPDATE visit SET steps = 0", "UPDATE decision SET step = 1"])
def test_a_session_whose_steps_are_damaged_is_named(run: Run, store: Store, change: str) -> None:
    run("arm", "add", "a"), run("policy", "create", "home", "--kind", "uniform")
    run("recommend", "--policy", "home", "--session", "s")
    store.write(lambda unit: unit.tell(change))
    result = run("recommend", "--policy", "home", "--session", "s").failed(1)
    assert result.startswith("Error: the store is damaged: a visit of session 's' counts fewer steps than its")
    assert "rlrec doctor" in result
    assert result.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words", "where"),
    [
        ("DELETE FROM arm", ("--policy", "home", "--request-id", "home"), "of table arm is gone"),
        ("DELETE FROM eligible_set", ("--policy", "home"), "row 1 of table eligible_set is gone"),
        ("DELETE FROM session", ("--policy", "home", "--request-id", "home"), "row 1 of table session is gone"),
        ("DELETE FROM version", ("--policy", "home", "--request-id", "home"), "row 1 of table version is gone"),
        ("DELETE FROM decision", ("--policy", "home"), "decision 1 is gone, and its events are not"),
        ("UPDATE eligible_set SET arms = '{'", ("--policy", "home"), "arms of eligible_set 1 is '{'"),
        ("UPDATE policy SET params = '[]'", ("--policy", "home"), "params of policy 1 is '[]'"),
        ("UPDATE reward SET weights = '{'", ("--policy", "home"), "weights of reward 1 is '{'"),
        ("UPDATE version SET learned_from = '{'", ("--policy", "home"), "learned_from of version 1 is '{'"),
        ("UPDATE version SET parameters = '[]'", ("--policy", "grad"), "parameters of version 3 is '[]'"),
        ("UPDATE context SET body = '{'", ("--policy", "lin"), "body of context 1 is '{'"),
        ("UPDATE belief SET extra = x'0001'", ("--policy", "lin"), "the sums of a belief"),
        (
            "UPDATE decision SET source = '{'",
            ("--policy", "home", "--request-id", "home"),
            "source of decision 1 is '{'",
        ),
    ],
)
def test_the_damaged_row_is_named(shop: Run, sqlite_db: str, change: str, words: tuple[str, ...], where: str) -> None:
    with closing(sqlite3.connect(sqlite_db, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(change)
    result = shop(*ASK, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    error = json.loads(result.stderr.splitlines()[-1])
    assert where in error["error"]
    assert "rlrec doctor" in error["hint"]


@pytest.mark.parametrize(
    ("change", "words", "where"),
    [
        ("DELETE FROM slot", ("decision", "show", 1), "decision 1 has 0 of its 1 slots"),
        ("UPDATE context SET body = '{'", ("decision", "show", 1), "body of context 1 is '{'"),
        ("UPDATE context SET body = '{'", ("export-log", "-"), "body of context 1 is '{'"),
        ("DELETE FROM eligible_set", ("export-log", "-"), "row 1 of table eligible_set is gone"),
        ("DELETE FROM variant", ("export-log", "-"), "row 1 of table variant is gone"),
        ("DELETE FROM version", ("feedback", 1, "click"), "row 1 of table version is gone"),
        ("DELETE FROM policy_head", ("feedback", 1, "click"), "row 1 of table policy_head is gone"),
        ("DELETE FROM variant", ("experiment", "show", "tea"), "the variants of experiment tea are gone"),
        (
            "UPDATE policy_head SET live_id = 99",
            ("experiment", "show", "tea"),
            "row home@tea/a of table policy is gone",
        ),
        ("DELETE FROM version", ("evaluate", "uniform"), "row 1 of table version is gone"),
        ("DELETE FROM version", ("report", "/dev/null"), "row 1 of table version is gone"),
        ("DELETE FROM context", ("evaluate", "uniform"), "row 1 of table context is gone"),
        ("DELETE FROM session", ("evaluate", "uniform"), "row 1 of table session is gone"),
        ("DELETE FROM session", ("exposure",), "row 1 of table session is gone"),
        ("DELETE FROM arm WHERE key = 'a'", ("evaluate", "home"), "row 1 of table arm is gone"),
        ("DELETE FROM eligible_set", ("evaluate", "grad"), "row 1 of table eligible_set is gone"),
    ],
)
def test_commands_that_read_the_log_name_the_damaged_row(
    shop: Run, sqlite_db: str, change: str, words: tuple[object, ...], where: str
) -> None:
    shop("experiment", "create", "tea", "--variant", "a=home", "--variant", "b=grad", "--unit", "session")
    shop(*ASK, "--experiment", "tea")
    with closing(sqlite3.connect(sqlite_db, isolation_level=None)) as connection:
        connection.execute("UPDATE decision SET at = at - 86400000000")
        connection.execute(change)
    result = shop(*words)
    assert (result.exit_code, where in result.stderr) == (1, True), result.stderr


@pytest.mark.parametrize("context", [1, 2, 3])
def test_no_context_stands_in_for_one_that_is_gone(run_sqlite: Run, sqlite_db: str, context: int) -> None:
    run_sqlite("arm", "add", "a"), run_sqlite("policy", "create", "lin", "--kind", "linucb")
    for x in (1, 2, 3):
        run_sqlite("recommend", "--policy", "lin", "--session", x, "--context", f'{{"x": {x}}}')
    with closing(sqlite3.connect(sqlite_db, isolation_level=None)) as connection:
        connection.execute("UPDATE decision SET at = at - 86400000000")
        connection.execute(f"DELETE FROM context WHERE id = {context}")
    result = run_sqlite("evaluate", "lin").failed(1)
    assert result.startswith(f"Error: the store is damaged: row {context} of table context is gone.")
