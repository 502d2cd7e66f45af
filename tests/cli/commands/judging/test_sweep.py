"""`rlrec sweep`: its answer, its table, the command that it ends with, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from rlrec import policy as kinds
from rlrec.cli.commands.judging.sweep import KINDS
from tests.conftest import Run, click, filled, runner, store_after

LATER = ("--now", "2026-03-01")
DEVICES = ("phone", "tablet", "desk")
BEST = dict(zip(DEVICES, "abc", strict=True))
SWEEP = ("sweep", "--cluster", "session", *LATER, "--kinds")


def stocked(db: str) -> None:
    """Each device has its best arm. 20 groups of 30 requests, a minute apart."""
    run = runner(db)
    assert run("arm", "import", "-", stdin=[{"arm": arm} for arm in "abc"]).exit_code == 0
    assert run("reward", "define", "durable", "click=1, return=1", "--window", "1d").exit_code == 0
    assert run("policy", "create", "draw", "--kind", "uniform").exit_code == 0
    serve(run, "draw")


def serve(run: Run, name: str, *, hour: int = 12, groups: int = 20) -> float:
    """What each request earned."""
    clicks = 0
    for minute in range(groups):
        now = ("--now", f"2026-02-01T{hour}:{minute:02}:00Z", "--allow-future")
        lines = [
            {"policy": name, "session": f"{name}{minute}.{number}", "context": {"device": DEVICES[number % 3]}}
            for number in range(30)
        ]
        answers = run("recommend", "--input", "-", *now, stdin=lines).lines
        best = [BEST[DEVICES[number % 3]] for number in range(30)]
        liked = [row["decision_id"] for row, arm in zip(answers, best, strict=True) if row["slate"][0]["arm"] == arm]
        clicks += len(liked)
        click(run, liked, *now)
    return clicks / groups / 30


shop = store_after(stocked)


def test_the_answer_comes_first_then_a_table_and_the_command_of_the_best(shop: Run) -> None:
    result = shop(*SWEEP, "thompson,linucb", "--param", "linucb:alpha=0.5")
    first, second, _, _, _, *table = result.stdout.splitlines()
    assert result.exit_code == 0
    assert first.startswith("linucb alpha=0.5 is the best; it is better than what was logged: +")
    assert second == "judged on 420 decisions, the last 7 of 10 stretches of time"
    assert table[0].split()[:2] == ["linucb", "alpha=0.5"]
    assert {"thompson", "uniform", "logged"} <= {word for line in table for word in line.split()}
    command = "rlrec policy create linucb --kind linucb --param alpha=0.5 --from-log all"
    assert f"To create linucb alpha=0.5: `{command}`" in result.stdout


def test_the_command_names_the_file_of_features_and_policies_of_the_kind(shop: Run, tmp_path: Path) -> None:
    """Whoever reads the name of the winner may take another policy of its kind for it."""
    (path := tmp_path / "features.json").write_text('{"context": {"fields": {"device": ["phone", "web"]}}}')
    shop("policy", "create", "careful", "--kind", "linucb", "--param", "alpha=0.3").done()
    text = shop(*SWEEP, "linucb", "--features", path).done().stdout
    assert f"--kind linucb --features {path} --from-log all`; of this kind, with other parameters: careful (" in text


@pytest.mark.slow
def test_the_command_creates_what_was_judged(shop: Run) -> None:
    result = shop(*SWEEP, "thompson,linucb", "--log", "policy=draw", "--json").json
    assert shop(*result["command"].split()[1:], *LATER, "--allow-future").exit_code == 0
    assert serve(shop, result["best"], hour=14, groups=2) == 1.0
    again = shop(*SWEEP, "thompson,linucb", "--log", "policy=draw", "--json").json
    assert again["command"].split()[3] == "linucb-2"  # a name that is free
    assert again["candidates"] == result["candidates"]
    assert (result["same"], again["same"]) == ([], ["linucb"])  # which exists by then


def test_json_has_every_candidate_best_first(shop: Run) -> None:
    words = *SWEEP, "ucb,linucb", "--param", "linucb:alpha=0,2", "--param", "linucb:floor=0.1"
    result = shop(*words, "--json").json
    rows = result["candidates"]
    assert {row["target"] for row in rows} == {"ucb", "linucb alpha=0 floor=0.1", "linucb alpha=2 floor=0.1", "uniform"}
    assert rows[0]["params"]["floor"] == 0.1
    assert (rows[-1]["kind"], rows[0]["kind"]) == (None, "linucb")
    assert [row["value"] for row in rows] == sorted((row["value"] for row in rows), reverse=True)
    for row in rows:
        assert row["lift_lower"] == row["simultaneous_lower"] <= row["lift"] <= row["lift_upper"]
        if row["target"] != "uniform":  # which served, whatever the model of rewards adds
            assert row["lift"] == pytest.approx(row["value"] / result["served"] - 1, rel=1e-9)
    assert (result["reward"], result["returns"], len(result["begins"])) == ("default", False, 7)
    table = csv.DictReader(shop(*words, "--format", "csv").stdout.splitlines())
    assert [(row["target"], float(row["lift"])) for row in table] == [(row["target"], row["lift"]) for row in rows]


def test_details_have_every_estimator(shop: Run) -> None:
    text = shop(*SWEEP, "ucb", "--details").stdout
    assert {"ips", "snips", "dr"} <= {word for line in text.splitlines() for word in line.split()}


def test_what_a_sweep_cannot_see_is_said(shop: Run) -> None:
    text = shop(*SWEEP, "ucb", "--reward", "durable").stdout
    assert "reward durable weighs returns; a sweep does not see what a candidate does to these in time" in text
    assert "`rlrec effects --reward durable`" in text


def test_without_known_visitors_nothing_is_claimed(shop: Run) -> None:
    text = shop("sweep", *LATER, "--kinds", "linucb").stdout
    assert text.startswith(
        "linucb: this log cannot tell whether it is better or worse than what was logged, per impression ("
    )
    assert "only if each is another person, this command with `--cluster session`" in text


def test_a_log_without_propensities_tells_nothing(run: Run, tmp_path: Any) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        {
            "session": f"s{number}",
            "at": f"2026-01-01T00:{number:02}:00Z",
            "slate": [{"arm": "ab"[number % 2]}],
            "eligible": ["a", "b"],
            "reward": 1,
        }
        for number in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert run("import-log", path, "--layout", "jsonl", "--policy", "old").exit_code == 0
    result = run(*SWEEP, "ucb")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert "no selected decision has the probability of its draw" in result.stderr


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        ("thomson", [], "unknown kind 'thomson'"),
        ("", [], "unknown kind ''"),
        ("ucb,ucb", [], "kind 'ucb' is named twice"),
        ("gradient", [], "kind gradient cannot learn from a log slot by slot"),
        ("two-stage", [], "kind two-stage cannot learn from a log slot by slot"),
        ("uniform", [], "kind uniform cannot learn from a log slot by slot"),
        ("ucb", ["--param", "ucb:alpha=1"], "kind ucb has no parameter 'alpha'"),
        ("ucb", ["--param", "linucb:alpha=1"], "--param 'linucb:alpha=1' names a kind that is not swept"),
        ("ucb", ["--param", "c=1"], "--param is 'c=1'"),
        ("ucb", ["--param", "ucb:c=1,"], "--param is 'ucb:c=1,'"),
        ("ucb", ["--param", "ucb:c=-1"], "c is -1"),
        ("ucb", ["--param", "ucb:c=x"], "parameter c is 'x'"),
        ("ucb", ["--param", "ucb:discount=0.9"], "parameter 'discount' tells nothing here"),
        ("ucb", ["--param", "ucb:c=" + ",".join(map(str, range(41)))], "41 candidates are more than 40"),
        ("linucb", ["--param", "linucb:model=joint"], "model is 'joint'"),
        ("thompson", ["--reward", "durable"], "reward 'durable' may leave [0, 1]"),
        ("ucb", ["--reward", "none"], "unknown reward 'none'"),
        ("ucb", ["--log", "policy=none"], "unknown policy 'none'"),
        ("ucb", ["--log", "since=2027-01-01"], "empty log"),
        ("ucb", ["--log", "parquet:there"], "a sweep learns from the log of a store"),
        ("ucb", ["--level", "1"], "level 1"),
        ("ucb", ["--cluster", "shop"], "unknown cluster 'shop'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(sqlite_db: str, kinds: str, options: list[str], message: str) -> None:
    result = filled(sqlite_db, stocked)("sweep", *LATER, "--kinds", kinds, *options)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert message in result.stderr


def test_the_help_names_every_kind_that_a_sweep_plays(shop: Run) -> None:
    for kind in kinds.KINDS:
        refused = shop(*SWEEP, kind).stderr
        assert ("cannot learn from a log" in refused) == (kind not in KINDS), kind
