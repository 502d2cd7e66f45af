"""Version 1 of a trained policy that starts as a log was served."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rlrec.arrays import Array
from tests.conftest import Run, filled, runner

AT, LATER = "2026-01-01T00:00:00Z", ("--now", "2026-03-01T00:00:00Z")
WEIGHTS = np.array([[0.5, 2.0, -1.0], [0.0, -1.0, 1.0], [-0.5, 0.0, 2.0], [0.0, 0.5, 0.0]])
FLOOR = 0.02


def softmax(score: Array) -> Array:
    chance = np.exp(score)
    return (1 - FLOOR) * chance / chance.sum() + FLOOR / len(score)


def line(number: int, page: list[int], propensities: list[float | None], context: Any, *, earned: bool = False) -> str:
    """A decision among the four arms, by a logger that nobody knows."""
    slate = [
        {"arm": f"arm{arm}", "propensity": chance} if chance else {"arm": f"arm{arm}"}
        for arm, chance in zip(page, propensities, strict=True)
    ]
    decision = {
        "session": f"s{number}", "user": f"u{number}", "at": AT, "eligible": [f"arm{arm}" for arm in range(4)],
        "context": context, "slate": slate, "events": [{"kind": "click", "value": 1, "position": 1}] * earned,
    }  # fmt: skip
    return json.dumps(decision)


def contexts(db: str, size: int, propensities: bool) -> None:
    """600 pages of a logger that reads two numbers."""
    rng, lines = np.random.default_rng(3), []
    for number in range(600):
        x = rng.normal(size=2).round(3)
        score, page, chances = WEIGHTS @ np.append(1.0, x), list[int](), list[float]()
        for _ in range(size):
            left = np.array([arm for arm in range(4) if arm not in page])
            chance = softmax(score[left])
            drawn = rng.choice(len(left), p=chance)
            page, chances = [*page, int(left[drawn])], [*chances, float(chance[drawn])]
        stated = chances if propensities else [None] * size
        lines.append(line(number, page, stated, {"a": x[0], "b": x[1]}, earned=page[0] == 2))
    runner(db)("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin="\n".join(lines))


def copied(run: Run, *options: str) -> Any:
    return run(*LATER, "policy", "create", "pg", "--kind", "gradient", "--from-log", "policy=old", *options, "--json")


@pytest.mark.parametrize("size", [1, 2])
def test_version_1_serves_as_the_log_was_served(run_sqlite: Run, sqlite_db: str, size: int) -> None:
    """An imported policy, which draws nothing itself; the shares of arms alone would be .6 nats away."""
    filled(sqlite_db, contexts, size, True)
    answer = copied(run_sqlite, "--param", f"floor={FLOOR}")
    assert (answer.exit_code, answer.json["version"]) == (0, 1)
    assert answer.json["kl"] < 0.02
    assert "serves differently" not in answer.stderr
    for a, b in ((0.0, 0.0), (1.0, -1.0), (-1.0, 0.5)):
        context = json.dumps({"a": a, "b": b})
        arms = run_sqlite("policy", "show", "pg", "--context", context, "--json").json["arms"]
        chance = np.array([row["probability"] for row in sorted(arms, key=lambda row: row["arm"])])
        assert chance == pytest.approx(softmax(WEIGHTS @ [1.0, a, b]), abs=0.08)
    assert copied(run_sqlite, "--param", f"floor={FLOOR}").json == answer.json | {"created": False}


def test_a_copy_that_is_far_from_its_log_says_so(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, contexts, 1, True)
    answer = copied(run_sqlite, "--param", "floor=0.9")
    assert (answer.exit_code, answer.json["kl"] > 0.2) == (0, True)
    assert "version 1 is live, but serves differently from what it was copied from (KL 0." in answer.stderr


def test_the_gate_can_still_judge_what_is_trained_from_a_copy(run_sqlite: Run, sqlite_db: str) -> None:
    """The copy is fitted to the splits that teach and choose, and all visits are new to the training."""
    filled(sqlite_db, contexts, 1, True)
    copied(run_sqlite)
    rows = [
        run_sqlite(*LATER, "evaluate", "pg@1", "--log", log, "--json").json[0] for log in ("split=gate", "policy=old")
    ]
    assert ["in-sample" in row["reasons"] for row in rows] == [False, True]
    trained = run_sqlite(*LATER, "train-pg", "pg", "--min-new", 600, "--seed", 1, "--epochs", 3, "--json")
    assert (trained.exit_code, trained.json["trained"], trained.json["sessions"]) == (0, True, 600)


def test_a_log_without_propensities_leaves_it_uniform_and_says_so(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, contexts, 1, False)
    answer = copied(run_sqlite)
    assert (answer.exit_code, "kl" in answer.json) == (0, False)
    assert "version 1 is uniform: the log has no session that has ended, with propensities, to copy" in answer.stderr
    arms = run_sqlite("policy", "show", "pg", "--json").json["arms"]
    assert [row["probability"] for row in arms] == pytest.approx([0.25] * 4)


def test_a_filter_that_is_none_stores_nothing(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, contexts, 1, True)
    refused = run_sqlite(*LATER, "policy", "create", "pg", "--kind", "gradient", "--from-log", "policy=none", "--json")
    assert refused.exit_code == 2
    assert "pg" not in [row["policy"] for row in run_sqlite("policy", "list", "--json").json]


# -- steps that the log cannot judge --


def few(db: str) -> None:
    """40 uniform decisions, of which one arm earns: so few that no gate could judge any step."""
    lines = [line(number, [number % 4], [0.25], {}, earned=number % 4 == 2) for number in range(200)]
    run = runner(db)
    run("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin="\n".join(lines))
    run("policy", "create", "pg", "--kind", "gradient", "--param", "floor=0.05")


def test_a_bold_step_is_kept_and_offered_to_a_ramp(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, few)
    answer = run_sqlite(*LATER, "train-pg", "pg", "--seed", 1, "--epochs", 20, "--bold", "--json")
    assert (answer.exit_code, answer.json["promoted"], answer.json["candidate"]) == (0, False, None)
    assert answer.json["why"] == (
        "bold: this log cannot judge it; try it on 5 % of users: `rlrec route create home --to pg`, then `rlrec route "
        "set home --to pg@2 --share 5%`"
    )
    arms = run_sqlite("policy", "show", "pg@2", "--json").json["arms"]
    assert max(arms, key=lambda row: row["probability"])["arm"] == "arm2"
    # where a route is there, its name is said, and the commands do what is said
    assert run_sqlite(*LATER, "route", "create", "front", "--to", "pg").exit_code == 0
    refused = run_sqlite(
        *LATER, "train-pg", "pg", "--seed", 1, "--epochs", 20, "--bold", "--promote", "if-better", "--json"
    ).failed(3)
    words = "bold: this log cannot judge it; try it on 5 % of users: `rlrec route set front --to pg@3 --share 5%`"
    assert words in refused
    assert run_sqlite(*LATER, "route", "set", "front", "--to", "pg@3", "--share", "5%").exit_code == 0


def test_what_the_gate_cannot_tell_is_offered_to_a_ramp_too(run_sqlite: Run, sqlite_db: str) -> None:
    """Some arms earn a little more: the tune split supports the step, and the gate has too few visits."""
    rng, lines = np.random.default_rng(8), []
    for number in range(700):
        arm = int(rng.integers(4))
        lines.append(line(number, [arm], [0.25], {}, earned=bool(rng.random() < 0.3 + 0.06 * arm)))
    runner(sqlite_db)("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin="\n".join(lines))
    run_sqlite("policy", "create", "pg", "--kind", "gradient")
    answer = run_sqlite(*LATER, "train-pg", "pg", "--seed", 1, "--bold", "--json").json
    assert (answer["answer"], answer["promoted"]) == ("unknown", False)
    assert answer["why"].startswith("bold: this log cannot judge it; try it on 5 % of users: ")


def test_a_bold_step_never_goes_live_unasked(run_sqlite: Run, sqlite_db: str) -> None:
    filled(sqlite_db, few)
    refused = run_sqlite(*LATER, "train-pg", "pg", "--bold", "--promote", "always", "--json")
    assert refused.exit_code == 2
    assert refused.error["hint"] == "leave out --promote always"


def test_without_correction_arms_count_as_often_as_they_were_shown(run_sqlite: Run, sqlite_db: str) -> None:
    """Arm 2 earns most and was shown least: weights make up for that, and without them it stays behind."""
    rng, lines, chance, rates = np.random.default_rng(5), [], [0.7, 0.1, 0.05, 0.15], [0.4, 0.1, 0.8, 0.1]
    for number in range(600):
        arm = int(rng.choice(4, p=chance))
        lines.append(line(number, [arm], [chance[arm]], {}, earned=bool(rng.random() < rates[arm])))
    runner(sqlite_db)("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin="\n".join(lines))
    run_sqlite("policy", "create", "pg", "--kind", "gradient")
    best = []
    for options in ((), ("--no-correction",)):
        words = ("train-pg", "pg", "--from-version", 1, "--seed", 1, "--epochs", 8, "--baseline", "none", *options)
        version = run_sqlite(*LATER, *words, "--json").json["version"]
        arms = run_sqlite("policy", "show", f"pg@{version}", "--json").json["arms"]
        best.append(max(arms, key=lambda row: row["probability"])["arm"])
    assert best == ["arm2", "arm0"]
