"""A store in a folder in which nothing can be made, or on a full disk: it is read like any other, or one line says what
to do."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from rlrec.errors import StoreBusy
from rlrec.store import Store
from rlrec.store.database import engine
from tests.app.grown import grown
from tests.conftest import CommandResult, filled, runner

LATE = "2026-01-01T03:00:00Z"
RIGHTS = "-dac_override,-dac_read_search"  # by which root writes into any folder
WITHOUT = ["setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}"] if os.geteuid() == 0 else []
READING = ("init",), ("doctor",), ("evaluate", "greedy"), ("db", "copy", "--to", "{}/copy.db")
COMMANDS = """
import json, os, sys
from click.testing import CliRunner
from rlrec.cli import program
for words in json.loads(sys.argv[2]):
    if words[0] == "unlink":
        os.unlink(words[1])
        continue
    result = CliRunner().invoke(program, ["--db", sys.argv[1], *words])
    print(json.dumps([result.exit_code, result.stdout, result.stderr]))
"""
Commands = Callable[..., list[CommandResult]]


def in_process(before: Sequence[str], db: str, many: Sequence[Sequence[str]]) -> list[CommandResult]:
    """What commands say, in a process that `before` starts."""
    line = [*before, sys.executable, "-c", COMMANDS, db, json.dumps(many)]
    lines = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [CommandResult(*json.loads(line)) for line in lines]


@pytest.fixture
def shelf(sqlite_db: str, tmp_path: Path) -> Iterator[Path]:
    """A folder without rights to write, with a store in it."""
    filled(sqlite_db, grown)
    folder = tmp_path / "shelf"
    folder.mkdir()
    shutil.copy(sqlite_db, folder / "rlrec.db")
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.fixture
def commands(shelf: Path) -> Commands:
    """Run commands on that store, in a process that may not write there."""

    def run(*many: Sequence[str]) -> list[CommandResult]:
        return in_process(WITHOUT, str(shelf / "rlrec.db"), [["--now", LATE, *words] for words in many])

    return run


@pytest.mark.slow
def test_a_store_is_read_where_nothing_can_be_written(shelf: Path, commands: Commands, tmp_path: Path) -> None:
    other = tmp_path / "writable.db"
    shutil.copy(shelf / "rlrec.db", other)
    many = [[word.format(tmp_path) for word in words] for words in READING]
    *answers, refused = commands(*many, ("recommend", "--policy", "ts", "--session", "new"))
    for words, answer in zip(many, answers, strict=True):
        answer.done()
        assert words[0] != "evaluate" or answer.stdout == runner(str(other))("--now", LATE, *words).done().stdout
    assert [path.name for path in shelf.iterdir()] == ["rlrec.db"]
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "cannot be written" in refused.stderr


@pytest.mark.slow
def test_a_store_that_was_not_closed_needs_its_log(shelf: Path, commands: Commands, tmp_path: Path) -> None:
    shelf.chmod(0o755)
    with closing(sqlite3.connect(shelf / "rlrec.db", isolation_level=None)) as writer:
        writer.execute("UPDATE settings SET salt = 'other'")
        shelf.chmod(0o555)
        commands(("status",))[0].done()  # as long as somebody has it open
        copies = [shutil.copy(shelf / f"rlrec.db{end}", tmp_path) for end in ("", "-wal")]
    shelf.chmod(0o755)
    for copy in copies:
        shutil.copy(copy, shelf)
    shelf.chmod(0o555)
    (refused,) = commands(("status",))
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"copy it together with {shelf}/rlrec.db-wal" in refused.stderr
    assert runner(str(copies[0]))("--now", LATE, "status").exit_code == 0


@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line_whoever_meets_it(sqlite_db: str) -> None:
    fill = 'mount -t tmpfs -o size=4m none /mnt && cp $0 /mnt/s.db; cat /dev/zero > /mnt/fill 2> /dev/null; exec "$@"'
    filled(sqlite_db, grown)
    mount = ["unshare", "-m", "sh", "-c", fill, sqlite_db]
    if os.geteuid() or shutil.which("unshare") is None or subprocess.run([*mount, "true"], check=False).returncode:
        pytest.skip("needs a file system of its own")
    draw = ("recommend", "--policy", "ts", "--session", "new")
    refused, read, healthy = in_process(mount, "/mnt/s.db", [draw, ("status",), ("unlink", "/mnt/fill"), ("doctor",)])
    for result in (refused, read):
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert "the disk of /mnt/s.db is full" in result.stderr
    healthy.done()


def test_who_reads_without_locks_notices_a_writer(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # also where root runs the tests
    path = str(shelf / "rlrec.db")
    with closing(Store(path)) as store:
        with store.read() as unit:
            assert unit.ask_value("SELECT count(*) FROM decision") > 0
        with pytest.raises(StoreBusy, match="was written while it was read"), store.read():
            write_elsewhere(path)
        with store.read() as unit:
            assert unit.ask_value("SELECT salt FROM settings") == "other"
    assert engine.is_frozen(path)


def write_elsewhere(path: str) -> None:
    """Change a store through a connection of its own, and close it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("UPDATE settings SET salt = 'other'")
