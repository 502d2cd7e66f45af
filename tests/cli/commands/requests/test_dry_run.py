"""--dry-run says what a command would do, and leaves the store as it is."""

from __future__ import annotations

import shlex
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rlrec.cli import program
from rlrec.cli.program.shared import NOTHING_STORED
from rlrec.store import Store
from tests.cli.commands.requests.test_pipe import FLUSH, ask, tell
from tests.conftest import CommandResult, Run, filled, jsonl, runner
from tests.docs.test_examples import leaves

EARLY, CLOCK = ("--now", "2026-02-01T00:00:00Z"), ("--now", "2026-03-01T00:00:00Z")
LINES = [
    "arm add new",
    "arm import arms.ndjson",
    "arm retire a1",
    "arm restore a3",
    "reward define r2 click=2",
    "policy create p2 --kind thompson --from-log policy=home",
    "policy freeze home",
    "policy promote home@2",
    "policy retire home@3",
    "policy rollback other",
    "policy rebuild home --reward slow",
    "policy shadow front other",
    "route create front2 --to home",
    "route set front --to other",
    "route rollback front",
    "experiment create test2 --variant a=home --variant b=other",
    "experiment set test --weight a=1 --weight b=3",
    "experiment freeze test",
    "experiment stop test",
    "log exclude bots --where session=s1",
    "log include staff",
    "route ramp front --to other --steps 10%,100%",
    "feedback 1 click --position 1",
    "feedback --input events.ndjson",
    "settle",
    "session end s1",
    "user merge u1 --into u2",
    "import-log log.jsonl --layout jsonl --policy old",
    "pipe --input lines.ndjson --seed 3",
    "simulate bernoulli --policy home --sessions 12 --group 5 --seed 3 --env rates=0.5,0.1",
]
DRAWING = "pipe", "simulate"
# they have tests of their own, or need a longer log
ELSEWHERE = {
    "init",
    "demo",
    "doctor",
    "route advance",
    "recommend",
    "serve",
    "position fit",
    "train-pg",
    "db forget",
    "db prune",
    "db backup",
    "db copy",
}


@pytest.fixture
def shop(db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A store where each of LINES has something to do, and the files that they read in the current folder."""
    monkeypatch.chdir(tmp_path)
    run = filled(db, fill)
    Path("arms.ndjson").write_text('{"arm": "a1", "features": {"x": 1}}\n{"arm": "b"}\n')
    Path("events.ndjson").write_text(jsonl({"decision_id": n, "events": {"click": 1}} for n in (1, 2, 2)))
    Path("lines.ndjson").write_text(
        jsonl([ask(session="n", request_id="r"), FLUSH, tell(decision_id=1, position=1), tell(request_id="r"), ask()])
    )
    log = [record | {"session": f"old-{record['session']}"} for record in run("export-log", "-").lines]
    Path("log.jsonl").write_text(jsonl(log))
    return run


def fill(db: str) -> None:
    run = runner(db)
    pages = [ask(session=f"s{n}", k=2, policy=("home", "slow")[n % 2]) for n in range(20)]
    for page in pages:
        del page["op"]
    for text, stdin in (
        ("arm import -", '{"arm": "a1"}\n{"arm": "a2"}\n{"arm": "a3"}\n'),
        ("arm retire a3", None),
        ("reward define slow click=1 --learn settled --clip 0,1", None),
        ("policy create home --kind thompson --param floor=0.1", None),
        ("policy create slow --kind thompson --reward slow", None),
        ("policy create other --kind uniform", None),
        ("policy freeze home", None),
        ("policy rebuild home --reward slow", None),
        ("policy freeze other", None),
        ("policy promote other@2", None),
        ("route create front --to other", None),
        ("route set front --to home", None),
        ("experiment create test --variant a=home --variant b=other", None),
        ("recommend --input -", jsonl(pages)),
        ("log exclude staff --where session=s2", None),
    ):
        result = run(*EARLY, *shlex.split(text), stdin=stdin)
        assert result.exit_code == 0, (text, result.stderr)


def content(db: str) -> dict[str, list[Any]]:
    """All rows of all tables."""
    with closing(Store(db)) as store, store.read() as unit:
        names = sa.inspect(unit.connection).get_table_names()
        return {name: sorted(map(repr, unit.ask(f"SELECT * FROM {name}"))) for name in sorted(names)}


@pytest.mark.parametrize("line", LINES)
def test_a_dry_run_answers_as_the_command_does_and_stores_nothing(shop: Run, db: str, line: str) -> None:
    before = content(db)

    def run(*more: str) -> CommandResult:
        return shop(*CLOCK, *shlex.split(line), "--json", *more)

    dry = run("--dry-run")
    assert (dry.exit_code, dry.stderr.splitlines()[-1]) == (0, NOTHING_STORED), dry.stderr
    assert content(db) == before
    real = run().done()
    if "://" in db and line.startswith(DRAWING):  # ids of a sequence are not taken back, and draws depend on them
        assert [answer.keys() for answer in real.lines] == [answer.keys() for answer in dry.lines]
    else:
        assert real.stdout == dry.stdout
    assert content(db) != before


def test_each_command_that_has_it_is_run() -> None:
    paths = [path.removeprefix("rlrec ") for path, _ in leaves(program, "rlrec")]
    tested = {path for path in paths if any(f"{line} ".startswith(f"{path} ") for line in LINES)}
    having = {
        path.removeprefix("rlrec ")
        for path, command in leaves(program, "rlrec")
        if any("--dry-run" in param.opts for param in command.params)
    }
    assert having == tested | ELSEWHERE


def test_a_refused_dry_run_stores_nothing(shop: Run, db: str) -> None:
    before = content(db)
    assert shop(*CLOCK, "arm", "retire", "a1", "nobody", "--dry-run").exit_code == 2
    (Path("bad.ndjson")).write_text('{"decision_id": 1, "events": {"click": 1}}\nno\n')
    stream = ("feedback", "--input", "bad.ndjson", "--on-error", "quarantine", "--rejects", "rejects", "--dry-run")
    assert shop(*CLOCK, *stream, "--json").exit_code == 5
    assert content(db) == before


def test_init_says_what_it_would_do(tmp_path: Path) -> None:
    new = runner(str(tmp_path / "new.db"))
    dry = new("init", "--dry-run", "--json")
    assert (dry.exit_code, dry.stderr.splitlines()) == (0, [NOTHING_STORED])
    assert list(tmp_path.iterdir()) == []
    assert dry.json == new("init", "--json").json
    assert new("init", "--dry-run", "--json").json == new("init", "--json").json
    assert new("init", "--session-timeout", "45m", "--dry-run").exit_code == 6
    assert runner(str(tmp_path / "no" / "new.db"))("init", "--dry-run").exit_code == 1


@pytest.mark.slow
def test_a_stream_that_is_tried_does_not_keep_others_out(sqlite_db: str, run_sqlite: Run, forked_rlrec: Path) -> None:
    """Neither while its lines are awaited, nor while its answers are not read."""
    fill(sqlite_db)
    command = [forked_rlrec, "--db", sqlite_db, "pipe", "--dry-run"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write(jsonl(ask(session=f"n{n}") for n in range(1000)).encode())
        child.stdin.flush()
        assert run_sqlite("arm", "add", "a4").exit_code == 0
        child.stdin.close()
        assert child.stderr.readline() == f"{NOTHING_STORED}\n".encode()
        assert run_sqlite("arm", "add", "a5").exit_code == 0
        child.kill()


def test_the_demo_lists_its_commands(run_sqlite: Run, tmp_path: Path) -> None:
    steps = run_sqlite("demo", "--dry-run", "--keep", tmp_path / "kept", "--json").json
    assert steps[0]["command"] == "rlrec init"
    assert {step["output"] for step in steps} == {None}
    files = run_sqlite("demo", "--data", tmp_path / "data", "--dry-run", "--json").json
    assert list(tmp_path.glob("data")) + list(tmp_path.glob("kept")) == []
    assert files == run_sqlite("demo", "--data", tmp_path / "data", "--json").json


def test_a_rehearsed_audit_leaves_no_note_and_a_rehearsed_repair_moves_nothing(run_sqlite: Run) -> None:
    for words in (
        ["arm", "add", "a"],
        ["policy", "create", "home", "--kind", "uniform"],
        ["--now", "+9d", "--allow-future", "recommend", "--policy", "home", "--session", "s"],
    ):
        assert run_sqlite(*words).exit_code == 0
    rehearsed = run_sqlite("doctor", "--repair-clock", "--dry-run", "--json")
    assert (rehearsed.exit_code, rehearsed.json["decisions"], NOTHING_STORED in rehearsed.stderr) == (0, 1, True)
    assert "ahead of the database's clock" in run_sqlite("doctor", "--dry-run").stdout
    assert "last doctor: never" in run_sqlite("status").stdout
    assert run_sqlite("doctor", "--repair-clock", "--json").json["decisions"] == 1
    assert "ahead of" not in run_sqlite("doctor").stdout
    assert "last doctor: 0 errors" in run_sqlite("status").stdout
