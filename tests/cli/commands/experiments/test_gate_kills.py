"""A gate spends error on every look whose result could have been read, whenever its process is killed: real processes,
SIGKILL, both databases."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any

import psycopg
import pytest

from rlrec.cli import main
from rlrec.ope.comparisons.comparison import gate_alpha, nightly_alpha
from rlrec.store import Store
from tests.app.visitors import LATER, opened, serve
from tests.cli.commands.experiments.test_route_gate import LATER as CENTURY
from tests.cli.commands.experiments.test_route_gate import prepared
from tests.conftest import ON_BOTH, PATIENCE_S, Run, filled, store_after
from tests.stops import until

pytestmark = [pytest.mark.slow, ON_BOTH]
SET = ("--allow-future", "--now", CENTURY, "route", "set", "home", "--require", "if-better", "--json", "--to")
NOW = "2027-01-16T08:00:00Z"  # LATER
TRAIN = ("--now", NOW, "train-pg", "visits", "--seed", "1", "--epochs", "2", "--promote", "if-better", "--json")
WAITING = "SELECT count(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation WHERE NOT granted"
WRITES = b"begins to write\n"
LOOKS = {"route": "SELECT count(*) FROM gate_look", "train-pg": "SELECT count(*) FROM version WHERE report IS NOT NULL"}


@contextmanager
def writer(db: str) -> Iterator[Callable[[str], Any]]:
    """Another client: runs a statement and gives back the first value."""
    if "://" in db:
        with psycopg.connect(db, autocommit=True) as server:
            yield (
                lambda text: (
                    row[0] if (cursor := server.execute(text)).description and (row := cursor.fetchone()) else 0
                )
            )
    else:
        with closing(sqlite3.connect(db, isolation_level=None, timeout=PATIENCE_S)) as file:
            yield lambda text: row[0] if (row := file.execute(text).fetchone()) else 0


class Command:
    """A process that runs a command once `start` is called. It is forked before this process opens the store: SQLite
    notes the locks of a process in its memory."""

    def __init__(self, db: str, *words: str) -> None:
        (self._out, out), (err_end, err) = os.pipe(), os.pipe()
        self._started, self._start = Pipe(duplex=False)
        words = ("rlrec", "--db", db, "--lock-timeout", "10m", *words)
        self.process = get_context("fork").Process(target=_run, args=(words, self._started, out, err), daemon=True)
        self.process.start()
        os.close(out)
        os.close(err)
        self.stderr = os.fdopen(err_end, "rb")

    def start(self) -> None:
        self._start.send(True)

    def kill(self) -> bytes:
        """What it has printed until it is killed."""
        self.process.kill()
        self.process.join()
        self.stderr.close()
        with open(self._out, "rb") as printed:
            return printed.read()


def _run(words: Sequence[str], started: Connection, out: int, err: int) -> None:
    write = Store.write

    def announced(self: Store, *words: Any, **more: Any) -> Any:
        os.write(err, WRITES)
        return write(self, *words, **more)

    started.recv()
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
    sys.argv, Store.write = [*words], announced  # type: ignore[method-assign]
    main()


def killed_before_commit(db: str, *words: str) -> bytes:
    """The output of a command that was killed while it waited to store its look, behind another writer. PostgreSQL says
    that it waits; of SQLite, whose one lock this writer has, it is enough that the command has begun to write."""
    training, server, command = words == TRAIN, "://" in db, Command(db, *words)
    with writer(db) as ask:
        if server:
            ask("BEGIN")
            ask("LOCK TABLE gate_look, version IN EXCLUSIVE MODE")
        elif not training:
            ask("BEGIN IMMEDIATE")
        command.start()
        lines = iter(command.stderr.readline, b"")
        if training and not server:  # it had to store its lease
            assert any(b"epoch 1 of 2" in line for line in lines)
            ask("BEGIN IMMEDIATE")
        if server:
            until(lambda: ask(WAITING) > 0 or not command.process.is_alive())
        else:
            assert WRITES in lines
        assert command.process.is_alive()
        printed = command.kill()
        ask("ROLLBACK")
    return printed


def killed_after_commit(db: str, *words: str) -> None:
    """Kill a command as soon as its look is in the store."""
    looks, command = LOOKS["train-pg" if words == TRAIN else "route"], Command(db, *words)
    with writer(db) as ask:
        before = ask(looks)
        command.start()
        until(lambda: ask(looks) > before or command.process.exitcode not in (None, 0))
        command.kill()


routed = store_after(prepared)


def test_a_look_of_a_route_that_nobody_could_read_spends_nothing(routed: Run, db: str) -> None:
    assert killed_before_commit(db, *SET, "good") == b""
    done = routed(*SET, "good").json
    assert (done["gate"]["candidate"], done["repeated"], done["changed"]) == (1, False, True)


def test_a_stored_look_of_a_route_spends_once_and_changes_the_route_or_not(routed: Run, db: str) -> None:
    killed_after_commit(db, *SET, "worse")
    again = routed(*SET, "worse").json
    assert (again["gate"]["candidate"], again["repeated"], again["set"]) == (1, True, False)
    killed_after_commit(db, *SET, "good")
    shown = routed("--now", CENTURY, "route", "show", "home", "--json").json
    assert (shown["reference"], shown["history"][0]["gate"]["candidate"], len(shown["history"])) == ("good", 2, 2)
    other = routed(*SET, "alike").json["gate"]
    assert (other["candidate"], other["alpha"]) == (3, gate_alpha(3))


def logged(db: str) -> None:
    with closing(Store(db, now=LATER, notice=lambda _: None)) as store:
        serve(opened(store), liked=lambda key, step, before: key == "tea", visits=400)


@pytest.mark.parametrize("kill", [killed_before_commit, killed_after_commit])
def test_a_training_spends_where_its_version_is_stored(db: str, kill: Callable[..., bytes | None]) -> None:
    """The next look counts those that were stored, and takes the lease of the killed process."""
    run, spent = filled(db, logged), int(kill is killed_after_commit)
    assert not kill(db, *TRAIN)
    assert [gate["candidate"] for gate in gates(run)] == [1] * spent
    assert run("--now", NOW, "train-pg", "visits", "--seed", 2, "--epochs", 2).exit_code == 0
    assert [gate["candidate"] for gate in gates(run)] == [*range(1, spent + 2)]
    assert [gate["alpha"] for gate in gates(run)] == [nightly_alpha(number) for number in range(1, spent + 2)]


def gates(run: Run) -> list[dict[str, Any]]:
    """The looks that the versions of the policy had, oldest first."""
    versions = run("--now", NOW, "policy", "versions", "visits", "--json").json
    return [row["gate"] for row in versions if row["gate"] is not None]
