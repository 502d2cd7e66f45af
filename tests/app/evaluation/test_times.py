"""Rewards that change while a log is written, or are not all there when it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.evaluation.checks import LogDrift, YoungRewards
from rlrec.times import DAY_US, format_time
from tests.app import logs
from tests.app.evaluation import worlds
from tests.app.evaluation.worlds import World
from tests.conftest import runner


@pytest.mark.parametrize("shape", worlds.SHAPES)
@pytest.mark.parametrize("make", worlds.WRONG["drift"].values(), ids=[*worlds.WRONG["drift"]])
def test_rewards_that_change_are_seen_in_every_log(make: Callable[[str, int], World], shape: str) -> None:
    assert all(worlds.fails(LogDrift(), make(shape, seed)) for seed in range(4))


@pytest.mark.parametrize("shape", worlds.SHAPES)
def test_honest_logs_do_not_drift(shape: str) -> None:
    """Each fails in 4 of 1,000 logs at most: two of 40 alarm in 1 % of all seeds, at most."""
    assert sum(worlds.fails(LogDrift(), worlds.honest(shape, seed, decisions=800)) for seed in range(40)) <= 1


def test_batches_add_up_to_the_log() -> None:
    world = worlds.WRONG["drift"]["rates that halve"]("pages", 3)
    assert worlds.fails(LogDrift(), world, batches=7)
    assert not worlds.fails(LogDrift(), worlds.honest("pages", 3), batches=7)


def imported(
    db: str, *, days: float, later: float = 1.0, delay_days: float = 0.0, n: int = 4_000, seed: int = 1
) -> Any:
    """A row of `evaluate` about a log of so many days, whose clicks come with some delay and are weighed within a week.
    later: what rates are multiplied by in its last quarter. The log ends with its last decision."""
    rng, run = np.random.default_rng(seed), runner(db)
    at, arm = np.sort(rng.random(n)) * days, rng.integers(3, size=n)
    rate = np.array([0.4, 0.3, 0.2])[arm] * np.where(at < 0.75 * days, 1.0, later)
    age, has_click = rng.exponential(delay_days, n), rng.random(n) < rate
    is_logged = has_click & (at + age <= days)
    lines = [
        {
            "session": f"s{number}",
            "at": format_time(logs.START + int(at[number] * DAY_US)),
            "eligible": ["a0", "a1", "a2"],
            "slate": [{"arm": f"a{arm[number]}", "propensity": 1 / 3}],
            "events": [{"kind": "click", "at": format_time(logs.START + int((at[number] + age[number]) * DAY_US))}]
            if is_logged[number]
            else [],
        }
        for number in range(n)
    ]
    assert run("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=lines).exit_code == 0
    assert run("reward", "define", "weekly", "click=1", "--window", "7d").exit_code == 0
    return logs.estimate(db, "uniform", "ips", reward="weekly", cluster="session")


def test_a_young_import_is_weak(sqlite_db: str) -> None:
    """It earns .30, of which a third is on its way."""
    row = imported(sqlite_db, days=4.0, delay_days=2.0)
    assert row["upper"] < 0.25
    assert (row["verdict"], "young-rewards" in row["reasons"]) == ("weak", True)


def test_the_hint_on_young_rewards_names_a_day_before_which_they_have_come(sqlite_db: str, tmp_path: Path) -> None:
    imported(sqlite_db, days=8.0, delay_days=0.9)
    (table := tmp_path / "table.csv").write_text("arm,probability\na0,0.5\na1,0.25\na2,0.25\n")
    logs.create(sqlite_db, "near", "fixed", minutes=24 * 60 * 9, probabilities=str(table))
    run, words = runner(sqlite_db), ("evaluate", "near", "--reward", "weekly", "--cluster", "session")
    _, step = run(*words).stdout.split("Next: `rlrec ")
    command, meaning = step.split("`", 1)
    assert (command, meaning.split(",")[1]) == (
        "evaluate near@1 --reward weekly --cluster session --log until=2026-02-04", " with decisions that are older"
    )  # fmt: skip
    assert "young-rewards" not in run(*command.split()).stdout


def test_rates_that_fell_are_weak(sqlite_db: str) -> None:
    """The log says .26, and it earns .15 today."""
    row = imported(sqlite_db, days=30.0, later=0.5)
    assert row["lower"] > 0.2
    assert (row["verdict"], row["reasons"]) == ("weak", ["drift"])


def test_the_hint_on_drift_takes_the_place_of_an_earlier_time(sqlite_db: str, tmp_path: Path) -> None:
    """Followed again and again, it ends where nothing changes any more."""
    imported(sqlite_db, days=30.0, later=0.5)
    (table := tmp_path / "table.csv").write_text("arm,probability\na0,0.5\na1,0.25\na2,0.25\n")
    logs.create(sqlite_db, "near", "fixed", minutes=24 * 60 * 40, probabilities=str(table))
    run, command, days = runner(sqlite_db), "evaluate near@1 --reward weekly --cluster session", list[str]()
    while "drift" in (text := run(*command.split()).done().stdout):
        command = text.split("Next: `rlrec ")[1].partition("`")[0]
        days.append(command.rpartition("since=")[2])
    assert command.count("since=") == 1
    assert len(days) >= 2
    assert days == sorted({*days})


def test_what_changed_after_a_log_is_looked_at_there(sqlite_db: str, tmp_path: Path) -> None:
    """No part of the log itself is without that drift."""
    imported(sqlite_db, days=30.0, later=0.2)
    (table := tmp_path / "table.csv").write_text("arm,probability\na0,0.5\na1,0.25\na2,0.25\n")
    logs.create(sqlite_db, "near", "fixed", minutes=24 * 60 * 40, probabilities=str(table))
    words = ("evaluate", "near@1", "--reward", "weekly", "--cluster", "session", "--log", "policy=old,until=2026-02-20")
    hint = runner(sqlite_db)(*words).done().stdout.split("Next: `rlrec ")[1]
    assert hint.startswith("evaluate near@1 --reward weekly --cluster session --log since=2026-02-19T")


def test_an_import_that_is_as_it_was_is_ok(sqlite_db: str) -> None:
    row = imported(sqlite_db, days=30.0, delay_days=0.1)
    assert (row["verdict"], row["reasons"]) == ("ok", [])


def test_a_log_without_imported_decisions_is_never_young() -> None:
    checked = worlds.checked_rows(worlds.honest("impressions", 1))
    checked.rows.slots["imported"][:] = False
    assert YoungRewards().sums(checked) is None
