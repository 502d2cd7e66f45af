"""Signals end a real process with one line, the exit code of the signal, and nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from rlrec.app.upkeep import doctor
from rlrec.store import Store
from tests.conftest import ON_BOTH, PATIENCE_S, begin, runner

pytestmark = pytest.mark.slow
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REQUEST = b'{"op": "recommend", "policy": "home", "session": "s"}\n'
LONG = ("simulate", "bernoulli", "--policy", "home", "--sessions", "1000000", "--env", "rates=0.5,0.4", "--group", "50")


@pytest.fixture
def shop(db: str) -> str:
    """A store with two arms and a policy `home`."""
    run = runner(db)
    begin(run, ("a1", "a2"), "home", "thompson")
    return db


@contextmanager
def process(
    db: str, *words: str, program: Sequence[str] = (sys.executable, "-m", "rlrec"), **streams: Any
) -> Iterator[subprocess.Popen[bytes]]:
    pipes = {name: streams.get(name, subprocess.PIPE) for name in ("stdin", "stdout", "stderr")}
    with subprocess.Popen([*program, "-q", "--db", db, *words], env=os.environ, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


def ended(child: subprocess.Popen[bytes], number: int) -> tuple[int, bytes]:
    child.send_signal(number)
    _, stderr = child.communicate(timeout=PATIENCE_S)
    return child.returncode, stderr


def decisions(store: Store) -> int:
    with store.read() as unit:
        return int(unit.ask_value("SELECT count(*) FROM decision"))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_waiting_pipe_ends_with_one_line(shop: str, number: signal.Signals) -> None:
    with process(shop, "pipe") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(REQUEST)
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["decision_id"] == 1
        assert ended(child, number) == (128 + number, b"Error: interrupted.\n")


@ON_BOTH
def test_a_busy_process_ends_without_a_traceback_and_keeps_the_store_whole(shop: str, forked_rlrec: Path) -> None:
    with closing(Store(shop)) as store:
        for number in SIGNALS:
            with process(shop, *LONG, program=[str(forked_rlrec)]) as child:
                before = decisions(store)
                while decisions(store) == before:
                    assert child.poll() is None
                    time.sleep(0.01)
                time.sleep(number / 50)
                assert ended(child, number) == (128 + number, b"Error: interrupted.\n")
        assert doctor.doctor(store, doctor.Request()).ok


def unread(pipe: IO[bytes]) -> bool:
    """Whether bytes wait in a pipe."""
    return any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))


def test_nothing_is_left_in_the_temporary_folder(shop: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(os.listdir(tmp_path))
    with process(shop, "feedback", "--input", "-") as child:
        assert child.stdin is not None
        child.stdin.write(b'{"decision_id": 1, "events": {"click": 1}}\n' * 1_000)
        child.stdin.flush()
        while unread(child.stdin):
            time.sleep(0.01)
        assert ended(child, signal.SIGTERM)[0] == 143
    assert set(os.listdir(tmp_path)) == before


def test_a_second_signal_ends_at_once_and_quietly(tmp_path: Path) -> None:
    script = (
        "import signal, time\nfrom rlrec.cli.program import signals\n"
        "signal.signal(signal.SIGINT, signals.unwind_command)\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(3600)\n"
        "finally:\n    print('unwinding', flush=True)\n    time.sleep(3600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        for word in (b"ready\n", b"unwinding\n"):
            assert child.stdout.readline() == word
            child.send_signal(signal.SIGINT)
        assert (child.wait(PATIENCE_S), child.communicate()[1]) == (130, b"")


def test_a_signal_after_the_work_ends_at_once_and_quietly() -> None:
    """As the second one of `timeout`, whose first one ended `--follow`."""
    script = (
        "import os, signal, sys\nfrom rlrec import cli\nsys.argv = ['rlrec', '--version']\n"
        "cli.discard_unwritten = lambda stream: os.kill(os.getpid(), signal.SIGTERM)\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.startswith("rlrec")) == (143, "", True)


def test_an_ignored_signal_stays_ignored(shop: str) -> None:
    command = ["nohup", sys.executable, "-m", "rlrec", "--db", shop, "pipe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(REQUEST)
        child.stdin.flush()
        child.stdout.readline()
        child.send_signal(signal.SIGHUP)
        child.stdin.write(REQUEST)
        child.stdin.close()
        assert json.loads(child.stdout.readline())["decision_id"] == 2
        assert child.wait(PATIENCE_S) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_pipe_whose_answers_cannot_be_written_fails(shop: str) -> None:
    with open("/dev/full", "wb") as full, process(shop, "pipe", stdout=full) as child:
        _, stderr = child.communicate(REQUEST, timeout=PATIENCE_S)
    assert child.returncode == 1
    assert stderr.startswith(
        b"Error: cannot write the output: No space left on device. what the command did is stored;"
    )
