"""Start-up: what a command imports is what a shell loop pays for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rlrec import policy as kinds
from tests.conftest import Run, runner

ALWAYS = {"alembic", "pytest", "tabulate", "scipy", "sqlalchemy.orm", "scipy.stats", "matplotlib", "pandas"}
ONCE = ALWAYS | {
    "psycopg",
    "msgspec",
    "rlrec.cli.text.lines",
    "rlrec.cli.program.failures",
    "rlrec.store.database.tables",
}
BARE = {
    "rlrec",
    "rlrec.cli",
    "rlrec.errors",
    "rlrec.times",
    *(
        f"rlrec.cli.{name}"
        for name in [
            "program",
            "program.app",
            "program.shared",
            "program.signals",
            "output",
            "output.output",
            "text",
            "text.text",
            "text.values",
        ]
    ),
}


EACH = """
import json, sys
from rlrec.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        assert not end.code, words
    print("\\nmodules", json.dumps([words, [*sys.modules]]), flush=True)
"""


def ran_in_turn(db: str, *commands: Sequence[object]) -> Iterator[tuple[list[str], set[str], str]]:
    """Commands of one process: each, what had been imported by its end, and its stdout."""
    each = json.dumps([["--db", db, *map(str, words)] for words in commands])
    result = subprocess.run([sys.executable, "-c", EACH, each], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    stdout = ""
    for line in result.stdout.splitlines():
        if line.startswith("modules "):
            words, modules = json.loads(line.removeprefix("modules "))
            yield words, {*modules}, stdout
            stdout = ""
        else:
            stdout += f"{line}\n"


def ran(db: str, *words: object) -> tuple[set[str], str]:
    """The modules that a real command imported (with the packages they are in), and its stdout."""
    command = [sys.executable, "-X", "importtime", "-m", "rlrec", "--db", db, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rsplit("|", 1)[1].strip() for line in lines[1:]}
    other = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert other == []
    return names, result.stdout


@pytest.fixture
def shop(run_sqlite: Run) -> Run:
    for words in (
        ["arm", "add", "a"],
        ["arm", "add", "b"],
        *(["policy", "create", kind, "--kind", kind] for kind in ("thompson", "epsilon-greedy", "uniform")),
        ["recommend", "--policy", "thompson", "--session", "s1"],
        ["recommend", "--policy", "uniform", "--session", "s1", "-k", 2],
    ):
        assert run_sqlite(*words).exit_code == 0
    return run_sqlite


@pytest.mark.parametrize(
    "words", [["--help"], ["recommend", "--help"], ["feedback", "--help"], ["policy", "-h"], ["train-pg", "-h"]]
)
def test_help_imports_neither_sqlalchemy_nor_numpy(words: list[str], sqlite_db: str) -> None:
    names, stdout = ran(sqlite_db, *words)
    assert "Usage: rlrec" in stdout
    assert not names & (ALWAYS | {"sqlalchemy", "numpy", "msgspec", "psycopg", "rlrec.app", "rlrec.store"})


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["settle", "-h"]])
def test_help_imports_little_of_the_program(words: list[str], sqlite_db: str) -> None:
    names, _ = ran(sqlite_db, *words)
    assert {name for name in names if name.startswith("rlrec")} <= BARE | {
        "rlrec.cli.commands",
        "rlrec.cli.commands.requests",
        "rlrec.cli.commands.requests.settle",
    }
    assert not names & {"json", "csv", "dataclasses", "pathlib", "urllib.parse", "shlex", "select"}


@pytest.mark.slow
def test_a_single_recommend_imports_no_scipy(shop: Run, sqlite_db: str) -> None:
    kinds, sizes = ("thompson", "epsilon-greedy", "uniform"), (1, 2)
    commands = [
        ["recommend", "--policy", kind, "--session", "s2", "-k", size, "--json"] for kind in kinds for size in sizes
    ]
    slates = []
    for words, names, stdout in ran_in_turn(sqlite_db, *commands):
        slates.append(len(json.loads(stdout)["slate"]))
        assert {"sqlalchemy", "numpy"} <= names, words
        assert not names & ONCE, words
    assert slates == [1, 2] * 3


@pytest.mark.slow
@pytest.mark.parametrize("words", [["policy", "show", "thompson"], ["exposure"]])
def test_looking_at_beliefs_and_rates_imports_no_scipy(shop: Run, sqlite_db: str, words: list[str]) -> None:
    names, stdout = ran(sqlite_db, *words, "--json")
    assert json.loads(stdout)["arms"]
    assert not {name for name in names if name.startswith("scipy")}


@pytest.mark.slow
@pytest.mark.parametrize("words", [["feedback", 1, "click"], ["feedback", 2, "click", "--position", 2, "--key", "k"]])
def test_a_single_feedback_imports_no_numpy(shop: Run, sqlite_db: str, words: list[object]) -> None:
    names, stdout = ran(sqlite_db, *words, "--json")
    assert json.loads(stdout)["events"] == 1
    assert not names & (ONCE | {"numpy", "rlrec.cli.output.tables", "rlrec.store.log.returns"})


@pytest.mark.slow
def test_lists_exports_and_backups_import_no_numpy(shop: Run, sqlite_db: str, tmp_path: Path) -> None:
    experiment = shop("experiment", "create", "ab", "--variant", "a=thompson", "--variant", "b=uniform")
    route = shop("route", "create", "home", "--to", "thompson")
    assert (experiment.exit_code, route.exit_code) == (0, 0)
    files = tmp_path / "log.jsonl", tmp_path / "copy.db"
    lists = (["policy", "list"], ["session", "list"], ["experiment", "list"], ["route", "list"], ["settle"])
    first = ["export-log", files[0], "--log", "policy=thompson"]  # histories of later steps are unpacked as arrays
    commands = [[*words, "--json"] for words in (*lists, first, ["db", "backup", files[1]])]
    for words, names, stdout in ran_in_turn(sqlite_db, *commands):
        assert json.loads(stdout), words
        assert "numpy" not in names, words
    assert all(file.stat().st_size for file in files)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["evaluate", "uniform"], marks=pytest.mark.slow),
        pytest.param(["policy", "show", "thompson"], marks=pytest.mark.slow),
        ["settle"],
    ],
)
def test_reading_a_log_imports_no_definitions_of_tables(shop: Run, sqlite_db: str, words: list[str]) -> None:
    names, _ = ran(sqlite_db, "--now", "2099-01-01T00:00:00Z", *words, "--json")
    assert not names & {"rlrec.store.database.tables", "sqlalchemy.dialects.postgresql"}


def test_a_kind_that_reads_no_context_counts_slots_without_numpy() -> None:
    script = """
import sys
from rlrec import policy
from rlrec.policy.beliefs.statistics import CountedSlot
for kind in policy.KINDS:
    if kind not in CONTEXTUAL:
        counts = policy.make(kind, {"probabilities": {"a": 1.0}} if kind == "fixed" else {})
        assert counts.slot_statistics(CountedSlot(1, 1, 1, 1, 0.5, 1.0))[:3] == (1.0, 1.0, 1.0), kind
        assert "numpy" not in sys.modules, kind
"""
    fixed = {"probabilities": {"a": 1.0}}
    contextual = [kind for kind in kinds.KINDS if kinds.make(kind, fixed if kind == "fixed" else {}).is_contextual]
    assert len(contextual) < len(kinds.KINDS)
    subprocess.run([sys.executable, "-c", script.replace("CONTEXTUAL", repr(contextual))], check=True)


def test_what_was_loaded_is_not_taken_apart_at_the_end() -> None:
    script = """
import atexit, gc, sys
from rlrec.cli import main
atexit.register(lambda: print(gc.get_freeze_count() > 10_000, flush=True))
sys.argv[1:] = ["--version"]
main()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1:] == ["True"]


def test_results_alone_go_to_stdout(shop: Run, sqlite_db: str) -> None:
    result = runner(sqlite_db)("feedback", 1, "unheard_of", "--json")
    assert result.json["events"] == 1
    assert result.stderr.count("\n") == 1
    assert runner(sqlite_db)("--quiet", "feedback", 1, "unheard_of", "--json").stderr == ""
    for form in ("table", "json", "ndjson", "csv"):
        answer = runner(sqlite_db)("recommend", "--policy", "uniform", "--session", "s1", "--format", form)
        assert (answer.exit_code, answer.stderr) == (0, "")
        assert answer.stdout
