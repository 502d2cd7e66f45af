"""rlrec.open: the commands' use cases for notebooks, with their checks and their answers."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import rlrec
from rlrec.api import Recommender
from rlrec.app.evaluation.passes.request import Request
from rlrec.errors import CheckFailed, Conflict, InputError
from tests.cli.commands.requests.test_pipe import ask, stocked
from tests.conftest import ON_BOTH, Run, runner

CLOCK = "2026-03-01T00:00:00Z"
DEEP: dict[str, Any] = reduce(lambda inner, _: {"x": inner}, range(3000), dict[str, Any]())
processes = multiprocessing.get_context("fork")


@pytest.fixture
def shop(db: str) -> Run:
    run = runner(db)
    stocked(run)
    requests = [
        {key: value for key, value in ask(session=f"s{n}", k=2, context={"hour": n}).items() if key != "op"}
        for n in range(20)
    ]
    assert run("--now", "2026-02-01T00:00:00Z", "recommend", "--input", "-", stdin=requests).exit_code == 0
    events = [{"decision_id": n, "position": 1, "events": {"click": 1}, "key": f"k{n}"} for n in range(1, 15)]
    assert run("--now", "2026-02-01T00:01:00Z", "feedback", "--input", "-", stdin=events).exit_code == 0
    return run


@pytest.fixture
def notebook(shop: Run, db: str) -> Any:
    with rlrec.open(db, now=CLOCK) as opened:
        yield opened


def test_answers_are_those_of_the_commands(notebook: Recommender, shop: Run) -> None:
    now = ("--now", CLOCK)
    drawn = notebook.recommend("home", session="n1", k=2, context={"hour": 3}, seed=7, dry_run=True)
    command = (*now, "recommend", "--policy", "home", "--session", "n1", "-k", 2, "--context", '{"hour": 3}', "--json")
    assert drawn == shop(*command, "--seed", 7, "--dry-run").json
    assert notebook.policy("home") == shop(*now, "policy", "show", "home", "--json").json
    rules: dict[str, Any] = {"pin": {1: "a1"}, "least": {"a2": "0.2@2"}}
    ruled = notebook.recommend("home", session="n1", k=2, context={"hour": 3}, seed=7, dry_run=True, **rules)
    typed = ("--pin", "1=a1", "--least", "a2=0.2@2")
    assert ruled == shop(*command, *typed, "--seed", 7, "--dry-run").json
    rows = notebook.evaluate("home", "uniform", estimators="snips")
    assert (
        json.loads(json.dumps(rows.to_json()))
        == shop(*now, "evaluate", "home", "uniform", "--estimator", "snips", "--json").json
    )
    assert rows[0].target == "home"
    assert any(line.startswith("reason") or ":" in line for line in rows.notes)
    assert list(notebook.log("policy=home")) == shop("export-log", "-").lines


def test_what_is_recorded_is_stored_once(notebook: Recommender) -> None:
    drawn = notebook.recommend("home", session="n1", request_id="r1")
    assert notebook.recommend("home", session="n1", request_id="r1") == drawn | {"duplicate": True}
    at = datetime(2026, 3, 1, tzinfo=UTC)
    reported = notebook.feedback(request_id="r1", events={"click": 1}, at=at, key="k")
    assert reported == {"decision_id": drawn["decision_id"], "events": 1, "duplicates": 0, "reward": 1.0}
    assert notebook.feedback(drawn["decision_id"], {"click": 1}, at=str(at), key="k").duplicates == 1
    with pytest.raises(Conflict):
        notebook.feedback(drawn["decision_id"], {"click": 2}, key="k")


@pytest.mark.parametrize(
    ("keys", "field", "words"),
    [
        ({"session": ""}, "session", "a key has 1 to 200 characters"),
        ({"session": "a\0"}, "session", "NUL"),
        ({"session": "s", "k": 0}, "k", "k is 0"),
        ({"session": "s", "k": "2"}, "k", "expected a whole number"),
        ({"session": "s", "context": {"x": float("nan")}}, "context.x", "no NaN"),
        ({"session": "s", "context": {"x": {1, 2}}}, "context.x", "cannot show a set"),
        ({"session": "s", "context": {"x": {(1,): 2}}}, "context.x", "keys must be str"),
        ({"session": "s", "context": {"x": {"y": [1, float("inf")]}, "z": {1}}}, "context.x.y", "no NaN"),
        ({"session": "s", "seed": -1}, "seed", "seed is -1"),
        ({"session": "s", "seed": 1.5}, "seed", "seed is 1.5"),
        ({"session": "s", "policy": "hom"}, "policy", "unknown policy 'hom'"),
        ({"session": "s", "arms": ["zz"]}, "arms", "zz"),
    ],
)
def test_input_is_checked_as_lines_are(notebook: Recommender, keys: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        notebook.recommend(**({"policy": "home"} | keys))
    assert refused.value.field == field


def test_a_traceback_says_what_to_do(notebook: Recommender) -> None:
    with pytest.raises(InputError) as refused:
        notebook.recommend(policy="hom", session="s")
    text = "".join(traceback.format_exception_only(refused.value))
    assert text.endswith("unknown policy 'hom'\ndid you mean home?\nargument: policy\n")


def test_a_context_nested_too_deep_is_refused(notebook: Recommender) -> None:
    with pytest.raises(
        InputError, match=r"recursion depth|nested more than 64 deep"
    ):  # as deep as the interpreter gets
        notebook.recommend(policy="home", session="s", context=DEEP)


def test_estimates_read_as_the_table_of_the_command(notebook: Recommender, shop: Run) -> None:
    estimates = notebook.evaluate("home", "uniform", estimators="snips")
    assert repr(estimates) == shop("--now", CLOCK, "evaluate", "home", "uniform", "--estimator", "snips").stdout


def test_options_of_evaluate_are_those_of_the_use_case(notebook: Recommender) -> None:
    derived = {"sources", "tables", "fit_doubts", "apart"}  # from `targets` and `fitted_on`; `report` alone sets apart
    assert {field.name for field in fields(Request)} - derived <= {*inspect.signature(notebook.evaluate).parameters}
    with pytest.raises(InputError, match="level"):
        notebook.evaluate("home", level=2.0)
    with pytest.raises(TypeError):
        notebook.evaluate("home", sed=1)  # type: ignore[call-arg]


@ON_BOTH
def test_a_table_of_arrow_has_a_row_for_each(notebook: Recommender) -> None:
    pytest.importorskip("pyarrow")
    table = notebook.log().to_arrow()
    assert (table.num_rows, table["decision_id"].to_pylist()) == (20, list(range(1, 21)))
    assert table["context"][0].as_py() == '{"hour": 0}'
    assert table["events"][0].as_py()[0]["kind"] == "click"
    assert table["at"][0].as_py() == datetime(2026, 2, 1, tzinfo=UTC)
    missing = {name for record in notebook.log() for name in record} - {*table.column_names}
    assert missing == {"duplicate"} & missing  # of an answer, not of the log
    assert notebook.log("policy=home,until=2020-01-01").to_arrow().schema == table.schema
    estimates = notebook.evaluate("home", "uniform")
    assert estimates.to_arrow()["value"].to_pylist() == [row["value"] for row in estimates.to_json()]


def test_a_frame_of_pandas_has_a_row_for_each(notebook: Recommender) -> None:
    pytest.importorskip("pandas")
    frame = notebook.log().to_pandas()
    assert frame["reward"].sum() == 14
    assert str(frame["at"].dt.tz) == "UTC"
    assert frame["slate"][0][0]["position"] == 1
    estimates = notebook.evaluate("home", "uniform")
    assert list(estimates.to_pandas()["estimator"]) == [row["estimator"] for row in estimates.to_json()]
    assert notebook.log("until=2020-01-01").to_pandas().empty


@pytest.mark.parametrize("name", ["pandas", "pyarrow"])
def test_a_missing_library_is_named(notebook: Recommender, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    convert = {"pandas": "to_pandas", "pyarrow": "to_arrow"}[name]
    with pytest.raises(ImportError, match=rf"this needs {name}: pip install 'rlrec\[notebook\]'"):
        getattr(notebook.log(), convert)()


def test_a_store_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with rlrec.open(str(tmp_path / "none.db")) as opened, pytest.raises(CheckFailed):
        opened.policy("home")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_importing_the_package_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import rlrec; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["__future__", "rlrec"]


def talk(opened: Recommender, name: str, n: int = 30) -> None:
    """Requests and clicks, one after another, of a session of this name."""
    for number in range(n):
        answer = opened.recommend("home", session=name, k=2, request_id=f"{name}-{number}")
        assert (answer["session"], answer["request_id"]) == (name, f"{name}-{number}")
        opened.feedback(answer["decision_id"], {"click": 1}, position=1)


@pytest.mark.slow
def test_threads_share_a_store_and_log_what_was_drawn(shop: Run, db: str) -> None:
    with rlrec.open(db) as opened, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: talk(opened, name), "abcd"))
    assert shop("doctor", "--json").json["ok"]
    assert shop("status", "--json").json["decisions"] == 140


@pytest.mark.slow
def test_a_forked_process_has_connections_of_its_own(shop: Run, db: str) -> None:
    with rlrec.open(db) as opened:
        talk(opened, "parent", 1)
        children = [processes.Process(target=talk, args=(opened, name)) for name in "abc"]
        for child in children:
            child.start()
        talk(opened, "parent-again")
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert shop("doctor", "--json").json["ok"]
    assert shop("status", "--json").json["decisions"] == 141
