"""Who is behind the sessions of a log: people, known or not, or machines."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rlrec.app.evaluation.checks import MachineSessions, NoUsers
from rlrec.arrays import Ids
from rlrec.store.log.reader import ABSENT
from tests.app import logs
from tests.app.evaluation import worlds
from tests.conftest import Run

SERVED, LATER = ("--now", "2026-01-01"), ("--now", "2026-03-01")
KEYLESS = worlds.without_users("visits", 1, decisions=300)


def lacks_users(user: Ids) -> bool:
    return worlds.fails(NoUsers(), replace(KEYLESS, user=user), batches=3)


def test_a_log_without_any_user_is_weak_until_somebody_says_that_sessions_are_people() -> None:
    assert [worlds.fails(NoUsers(), KEYLESS, people=people) for people in (None, "stated")] == [True, False]


def test_sessions_without_a_user_beside_others_are_fine() -> None:
    assert lacks_users(KEYLESS.user)
    assert not lacks_users(np.where(KEYLESS.session % 2 == 0, ABSENT, KEYLESS.session + 1))


def test_simulated_sessions_are_visitors_and_imported_ones_may_not_be() -> None:
    checked = worlds.checked_rows(KEYLESS, people="simulated")  # its rows are imported
    slots = checked.rows.slots
    served = replace(checked, rows=replace(checked.rows, slots=slots | {"imported": ~slots["imported"]}))
    assert [NoUsers().fails(NoUsers().sums(rows)) for rows in (checked, served)] == [True, False]


@pytest.mark.parametrize(("options", "flagged"), [((), True), (("--cluster", "session"), False)])
def test_evaluate_takes_sessions_for_people_where_it_is_said(
    options: tuple[str, ...], flagged: bool, run_sqlite: Run
) -> None:
    lines = [
        json.dumps({"session": f"s{n}", "reward": n % 3 // 2, "eligible": ["a", "b"],
                    "slate": [{"position": 1, "arm": "ab"[n % 2], "propensity": 0.5}]})
        for n in range(100)
    ]  # fmt: skip
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin="\n".join(lines))
    (row,) = run_sqlite("evaluate", "uniform", "--estimator", "snips", *options, "--json").json
    assert ("no-users" in row["reasons"]) == flagged


def test_whoever_randomised_by_session_said_it(sqlite_db: str, run_sqlite: Run) -> None:
    logs.begin(sqlite_db, 3, "home", "uniform")
    run_sqlite("experiment", "create", "ab", "--unit", "session", "--variant", "old=home", "--holdout-uniform", "20%")
    for n in range(20):
        run_sqlite(*SERVED, "recommend", "--experiment", "ab", "--session", f"s{n}")
    flagged = [
        "no-users" in row["reasons"]
        for log in ((), ("--log", "experiment=ab"))
        for row in run_sqlite(*LATER, "evaluate", "uniform", "--estimator", "snips", *log, "--json").json
    ]
    assert flagged == [True, False]


@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_machines_with_sessions_of_their_own_are_seen_however_uneven_people_are(shape: str) -> None:
    """They have 4 % of the sessions and 17 % of the decisions; people's rates have beta distributions with a + b from
    0.3 to 6. Of 300 such logs none passed."""
    logs = (worlds.machines(shape, seed, spread=[0.3, 0.5, 0.7, 1.0, 1.3, 1.9, 6.0][seed % 7]) for seed in range(7))
    assert all(worlds.fails(MachineSessions(), log, batches=2) for log in logs)


@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_people_who_differ_strongly_are_no_machines(shape: str) -> None:
    """By beta distributions with a + b from 0.3 to 3. Of 200 such logs of each shape none failed."""
    assert not any(worlds.fails(MachineSessions(), worlds.honest(shape, seed, decisions=4_000)) for seed in range(10))


def test_a_log_of_clicks_at_nearly_everything_has_no_machines() -> None:
    world, rng = worlds.honest("visits", 1), np.random.default_rng(1)
    assert not worlds.fails(MachineSessions(), replace(world, reward=1.0 * (rng.random(world.arm.shape) < 0.95)))


def test_a_reward_of_the_whole_session_has_no_machines() -> None:
    """Each session earns everywhere or nowhere, as where a purchase is copied to all its slots."""
    world, rng = worlds.honest("visits", 2, decisions=4_000), np.random.default_rng(2)
    bought = rng.random(int(world.session.max()) + 1) < 0.1
    assert not worlds.fails(MachineSessions(), replace(world, reward=1.0 * bought[world.session][:, None]))
