"""Drafts of processes that were killed are removed by the next one; drafts of those that live are not."""

from __future__ import annotations

import fcntl
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import pytest

from rlrec import drafts
from rlrec.cli.program.files import complete_file, write_text
from rlrec.errors import RlrecError


def drafts_in(folder: Path) -> int:
    return len(list(folder.glob(".rlrec-*")))


def test_the_draft_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    def write_and_die() -> None:
        with complete_file(str(tmp_path / "log.jsonl")) as file:
            file.write(b"key of a user")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=write_and_die)
    process.start()
    process.join()
    assert (process.exitcode, drafts_in(tmp_path)) == (-signal.SIGKILL, 1)
    with complete_file(str(tmp_path / "log.jsonl")) as file:
        assert drafts_in(tmp_path) == 1
        file.write(b"complete")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"complete"]


def test_the_draft_of_somebody_who_still_writes_stays(tmp_path: Path) -> None:
    with complete_file(str(tmp_path / "slow")) as slow:
        with complete_file(str(tmp_path / "quick")) as quick:
            quick.write(b"quick")
        slow.write(b"slow")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"slow": b"slow", "quick": b"quick"}


def test_files_of_others_stay(tmp_path: Path) -> None:
    names = {".rlrec-notes", ".rlrec-0123456789abcdef.txt", "rlrec-0123456789abcdef"}
    for name in names:
        (tmp_path / name).touch()
    with complete_file(str(tmp_path / "log")):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*names, "log"}


def test_a_draft_that_was_taken_for_one_that_was_left_is_created_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may lock and delete it before its own does."""
    path, others = str(tmp_path / "draft"), iter([True, False])
    flock = fcntl.flock

    def delete_first(file: BinaryIO, operation: int) -> None:
        if next(others):
            os.unlink(path)
        flock(file, operation)

    monkeypatch.setattr("rlrec.drafts.fcntl.flock", delete_first)
    with drafts.create(path) as file:
        assert os.fstat(file.fileno()).st_ino == os.stat(path).st_ino


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named_by_the_file_that_is_written() -> None:
    with pytest.raises(RlrecError, match="cannot write /dev/full: no space left on device"):
        write_text("/dev/full", "a report")
