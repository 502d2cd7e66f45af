"""A gate spends error on every look whose result could have been read, whenever its process is killed: real processes,
SIGKILL, both databases."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

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
ANNOUNCED = """
import sys
from rlrec.store import Store

write = Store.write

def announced(self, *words, **more):
    print("begins to write", file=sys.stderr, flush=True)
    return write(self, *words, **more)

Store.write = announced
"""
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


@contextmanager
def process(db: str, *words: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", "rlrec", "--db", db, "--lock-timeout", "10m", *words], env={**os.environ, **env},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        try:
            yield child
        finally:
            child.kill()


def killed_before_commit(db: str, *words: str) -> bytes:
    """The output of a command that was killed while it waited to store its look, behind another writer. PostgreSQL says
    that it waits; of SQLite, whose one lock this writer has, it is enough that the command has begun to write."""
    training, server = words == TRAIN, "://" in db
    with writer(db) as ask, TemporaryDirectory() as folder:
        if server:
            ask("BEGIN")
            ask("LOCK TABLE gate_look, version IN EXCLUSIVE MODE")
        elif not training:
            ask("BEGIN IMMEDIATE")
        Path(folder, "sitecustomize.py").write_text(ANNOUNCED)
        with process(db, *words, PYTHONPATH=folder) as child:
            assert child.stderr is not None
            lines = iter(child.stderr.readline, b"")
            if training and not server:  # it had to store its lease
                assert any(b"epoch 1 of 2" in line for line in lines)
                ask("BEGIN IMMEDIATE")
            if server:
                until(lambda: ask(WAITING) > 0 or child.poll() is not None)
            else:
                assert WRITES in lines
            assert child.poll() is None
            child.kill()
            printed = child.communicate()[0]
        ask("ROLLBACK")
    return printed


def killed_after_commit(db: str, *words: str) -> None:
    """Kill a command as soon as its look is in the store."""
    looks = LOOKS["train-pg" if words == TRAIN else "route"]
    with writer(db) as ask:
        before = ask(looks)
        with process(db, *words) as child:
            until(lambda: ask(looks) > before or child.poll() not in (None, 0))
            child.kill()


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
        serve(opened(store), liked=lambda key, step, before: key == "tea", visits=1_000)


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
