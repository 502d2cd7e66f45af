"""Imports use two processes: an error, a kill and a file that grows change no more than with one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rlrec.app.imports.background import BackgroundItems
from rlrec.app.imports.layouts import jsonl
from rlrec.app.imports.layouts.base import Source
from rlrec.cli.text.lines import decode_group
from rlrec.errors import InputError, RlrecError
from tests.conftest import PATIENCE_S, Run

LINE = '{"session": "%s", "slate": [{"arm": "a", "propensity": 0.5}], "eligible": ["a", "b"]}\n'


def fail_after(items: list[int]) -> Iterator[int]:
    yield from items
    raise InputError("line 7 is bad", hint="mend it", field="arm", line=7)


def test_items_and_the_error_after_them_come_from_the_other_process() -> None:
    items = list[int]()
    with closing(BackgroundItems(fail_after([1, 2]))) as background, pytest.raises(InputError) as caught:
        items.extend(background)
    assert items == [1, 2]
    error = caught.value
    assert (error.message, error.hint, error.field, error.line) == ("line 7 is bad", "mend it", "arm", 7)


def test_another_process_that_was_killed_is_an_error_and_no_end() -> None:
    def items() -> Iterator[int]:
        yield os.getpid()
        time.sleep(2 * PATIENCE_S)

    with closing(BackgroundItems(items())) as background:
        other = next(background)
        assert other != os.getpid()
        os.kill(other, signal.SIGKILL)
        with pytest.raises(RlrecError, match="has ended"):
            next(background)


def test_closing_ends_the_other_process() -> None:
    def items() -> Iterator[int]:
        yield os.getpid()
        time.sleep(2 * PATIENCE_S)

    with closing(BackgroundItems(items())) as background:
        other = next(background)
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_a_file_that_grows_is_read_to_the_end_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes read the same lines, whichever of them comes first."""
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    path = tmp_path / "log.jsonl"
    path.write_text("".join(LINE % f"s{n}" for n in range(7)))
    source = Source(file=str(path), name="log", decode=decode_group)
    with closing(jsonl.Jsonl(source, policy="log", now=0, options={})) as layout:
        groups = layout.decode_all(with_text=False)
        next(groups)
        with path.open("a") as file:
            file.write(LINE % "late" * 5)
        assert list(groups) == [[]] * 3
        assert [key for rows in layout.groups() for key in rows.session] == [f"s{n}" for n in range(7)]


@pytest.mark.parametrize("bad", range(7))
def test_the_first_bad_line_is_named_whichever_process_reads_it(
    run_sqlite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    path = tmp_path / "log.jsonl"
    path.write_text("".join("{}\n" if n >= bad else LINE % f"s{n}" for n in range(7)))
    assert f"line {bad + 1}, field session" in run_sqlite("import-log", path, "--layout", "jsonl").failed(2)
    assert run_sqlite("export-log", "-").stdout == ""


def test_blank_groups_change_no_order_and_no_line_number(
    run_sqlite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.GROUP", 2)
    path = tmp_path / "log.jsonl"
    path.write_text("\n\n\n" + LINE % "s1" + "\r\n \n\n" + LINE % "s2" + LINE % "s3" + "\n\n" + LINE.strip() % "s4")
    assert run_sqlite("import-log", path, "--layout", "jsonl", "--json").json["accepted"] == 4
    assert [line["session"] for line in run_sqlite("export-log", "-").lines] == ["s1", "s2", "s3", "s4"]
    path.write_text("\n\n\n" + LINE % "s5" + "\n\n{}")
    assert "line 7, field session" in run_sqlite("import-log", path, "--layout", "jsonl").stderr


def test_a_line_beyond_every_bound_is_named(run_sqlite: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.imports.layouts.base.LINE_BYTES", 200)
    monkeypatch.setattr("rlrec.app.imports.layouts.base.BLOCK_BYTES", 100)
    path = tmp_path / "log.jsonl"
    path.write_text(LINE % "s1" + LINE % ("s" * 1_000) + LINE % "s2")
    result = run_sqlite("import-log", path, "--layout", "jsonl")
    assert (result.exit_code, "line 2" in result.stderr, "longer than" in result.stderr) == (2, True, True)


@pytest.mark.slow
def test_no_process_outlives_an_import_that_was_killed(sqlite_db: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(LINE % f"s{n}" for n in range(60_000)))
    command = [sys.executable, "-m", "rlrec", "--db", sqlite_db, "import-log", str(path), "--layout", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (numbers := children.read_text().split()):
            time.sleep(0.01)
        process.kill()
    end = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{numbers[0]}").exists():  # it ends at the next line it reads
        assert time.monotonic() < end
        time.sleep(0.02)
