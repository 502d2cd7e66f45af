"""Stores to measure on: copies of one base each, and a log of any size, consistent, in plain SQL."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rlrec.store.log import contents
from tests.benchmarks.measure import Setting, rlrec, said

# As rlrec opens a file, but for one: its bulk writes vouch for foreign keys, the reference has them checked.
PRAGMAS = (
    "journal_mode = WAL",
    "wal_autocheckpoint = 8000",
    "synchronous = NORMAL",
    "cache_size = -64000",
    "foreign_keys = ON",
)
ARMS = 100
CONTEXTS = 2_000  # of the prepared log
FIRST = 2  # the first decision after those of a stocked store
PREPARED_AT, SERVED = "2026-01-01T00:00:00Z", 1_767_225_660_000_000  # the prepared log begins a minute later
SOON, LATER = {"RLREC_NOW": "2026-01-01T00:15:00Z"}, {"RLREC_NOW": "2026-02-01T00:00:00Z"}  # visits open; all mature
PACE = 50  # microseconds between two decisions of the prepared log


class Lite:
    """A store in a SQLite file."""

    postgres = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.db = str(setting.path(".db"))
        os.unlink(self.db)

    def copy(self) -> Lite:
        other = Lite(self.setting)
        shutil.copyfile(self.db, other.db)
        return other

    def drop(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(self.db + suffix).unlink(missing_ok=True)

    def connect(self) -> sqlite3.Connection:
        """As rlrec opens it, in plain sqlite3."""
        connection = sqlite3.connect(self.db, isolation_level=None)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        return connection


class Postgres:
    """A store in a database of its own, on a server whose URL has {} in the place of the database's name."""

    postgres = True

    def __init__(self, server: str, *, template: str = "template1") -> None:
        self.server = server
        self.name = f"bench_{uuid.uuid4().hex}"
        self._administer(f'CREATE DATABASE "{self.name}" TEMPLATE "{template}"')
        self.db = server.format(self.name)

    def copy(self) -> Postgres:
        return Postgres(self.server, template=self.name)

    def drop(self) -> None:
        self._administer(f'DROP DATABASE "{self.name}" WITH (FORCE)')

    def connect(self) -> Any:
        import psycopg

        return psycopg.connect(self.db, autocommit=True)

    def _administer(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.server.format("postgres"), autocommit=True) as connection:
            connection.execute(statement)


Shop = Lite | Postgres


@contextmanager
def copied(shop: Shop) -> Iterator[Shop]:
    """A copy that goes when it was used."""
    other = shop.copy()
    try:
        yield other
    finally:
        other.drop()


@contextmanager
def postgres_server(setting: Setting) -> Iterator[str]:
    """The server asked for, or one of the wheel that the tests use, without fsync."""
    if setting.postgres is not None:
        from sqlalchemy.engine import make_url

        url = make_url(setting.postgres).set(drivername="postgresql")
        yield url.set(database="{}").render_as_string(hide_password=False).replace("%7B%7D", "{}")
        return
    from tests.store.servers import NEWEST, new_server

    with new_server(programs=NEWEST, inside=setting.folder) as server:
        yield server.url("{}")


def tell(shop: Shop, *arguments: object, lines: Sequence[object] = (), now: str = PREPARED_AT) -> bytes:
    """A command of rlrec that prepares a store; `lines` are its stdin."""
    return said(rlrec("-q", "--db", shop.db, *arguments), stdin=ndjson(lines), added={"RLREC_NOW": now})


def ndjson(lines: Sequence[object]) -> bytes:
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)


def stocked(shop: Shop, setting: Setting) -> Shop:
    """One decision, 100 arms, `log`, which draws uniformly, and `home`, Thompson with a belief about every arm."""
    tell(shop, "init")
    tell(shop, "arm", "import", "-", lines=[{"arm": f"a{number}"} for number in range(1, ARMS + 1)])
    prior = setting.path(".csv")
    beliefs = [f"a{arm},{alpha},{beta}" for arm, (alpha, beta) in enumerate(posteriors(ARMS), 1)]
    prior.write_text("\n".join(["arm,alpha,beta", *beliefs]))
    tell(shop, "policy", "create", "log", "--kind", "uniform")
    tell(shop, "policy", "create", "home", "--kind", "thompson", "--prior", prior)
    tell(shop, "recommend", "--policy", "home", "--session", "first")
    return shop


def posteriors(arms: int) -> list[tuple[float, float]]:
    """Beta posteriors of click rates of 1 to 4 % after 100 to 10,000 pulls, no two equal."""
    draw = random.Random(3)
    rates = []
    for _ in range(arms):
        pulls = 10 ** draw.uniform(2, 4)
        clicks = pulls * draw.uniform(0.01, 0.04)
        rates.append((1 + clicks, 1 + pulls - clicks))
    return rates


def logged(shop: Shop, setting: Setting, decisions: int, *, visit: int = 1) -> Shop:
    """A stocked store and a log of `log`, 2 % clicks: `visit` decisions each of sessions s1, s2, ..., three a user."""
    stocked(shop, setting)
    contexts = [{"device": f"d{n % 3}", "hour": n % 24, "segment": f"g{n}"} for n in range(setting.size(CONTEXTS))]
    seeds = [{"policy": "log", "session": f"c{n}", "context": context} for n, context in enumerate(contexts)]
    tell(shop, "recommend", "--input", "-", lines=seeds)
    with closing(shop.connect()) as connection:
        _fill(connection, decisions, visit, postgres=shop.postgres)
    return shop


LAST = """SELECT d.id, (SELECT max(id) FROM session), d.policy_id, d.version_id, h.seq, d.eligible_id,
    d.catalogue_revision, (SELECT min(context_id) FROM decision), (SELECT count(DISTINCT context_id) FROM decision),
    (SELECT min(id) FROM arm)
    FROM decision d JOIN policy_head h ON h.policy_id = d.policy_id ORDER BY d.id DESC LIMIT 1"""
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < {})"
SUMS = "pulls, reward_sum, reward_squares"
FILL = """
INSERT INTO users (id, key) {users} SELECT i, 'u' || i FROM n;
INSERT INTO session (id, key, user_id, split, created_at) {visits}
    SELECT {session} + i, 's' || i, 1 + {hash} % {user}, (1 + {hash} % {user}) % 3, {at} FROM n;
INSERT INTO visit (session_id, number, started_at, last_at, steps, recent) {visits}
    SELECT {session} + i, 1, {at} + ((i - 1) * {visit} + 1) * {pace}, {at} + i * {visit} * {pace}, {visit}, '["a1"]'
    FROM n;
INSERT INTO decision (id, policy_id, version_id, belief_seq, seq, session_id, visit, step, context_id, state,
        eligible_id, catalogue_revision, size, log_propensity, seed, at, imported) {decisions}
    SELECT {decision} + i, {policy}, {version}, {seq}, {seq} + 1, {session} + 1 + (i - 1) / {visit}, 1,
        (i - 1) % {visit}, {context} + {hash} * 40503 / 65536 % {contexts},
        CASE (i - 1) % {visit} WHEN 0 THEN '{{"step":0}}'
            ELSE '{{"gap_s":0.00005,"recent":["a1"],"step":' || ((i - 1) % {visit}) || '}}' END,
        {eligible}, {revision}, 1, {log_propensity}, i, {at} + i * {pace}, 0 FROM n;
INSERT INTO slot (decision_id, position, arm_id, propensity, marginal, min_propensity, censored, rounded) {decisions}
    SELECT {decision} + i, 1, {arm} + {hash} / 65536 % {arms}, {chance}, {chance}, {chance}, 0, 0 FROM n;
INSERT INTO event (decision_id, number, position, kind, value, at, received_at, seq) {decisions}
    SELECT {decision} + i, 1, 1, 'click', 1, {at} + i * {pace}, {at} + i * {pace}, {seq} + 1
    FROM n WHERE {hash} / 1024 % 50 = 0;
INSERT INTO belief_delta (version_id, bucket, arm_id, seq, ordinal, d_pulls, d_reward_sum, d_reward_squares, {sums})
    SELECT {version}, 0, s.arm_id, {seq} + 1, 0, count(*), count(e.number), count(e.number),
        count(*) + coalesce(max(b.pulls), 0), count(e.number) + coalesce(max(b.reward_sum), 0),
        count(e.number) + coalesce(max(b.reward_squares), 0)
    FROM slot s LEFT JOIN event e ON e.decision_id = s.decision_id
    LEFT JOIN belief b ON b.version_id = {version} AND b.bucket = 0 AND b.arm_id = s.arm_id
    WHERE s.decision_id > {decision} GROUP BY s.arm_id;
DELETE FROM belief WHERE version_id = {version} AND arm_id IN (SELECT arm_id FROM slot WHERE decision_id > {decision});
INSERT INTO belief (version_id, bucket, arm_id, ordinal, {sums})
    SELECT version_id, bucket, arm_id, ordinal, {sums} FROM belief_delta
    WHERE version_id = {version} AND seq = {seq} + 1;
UPDATE policy_head SET seq = {seq} + 1 WHERE policy_id = {policy};
"""


def _fill(connection: Any, decisions: int, visit: int, *, postgres: bool) -> None:
    names = ("decision", "session", "policy", "version", "seq", "eligible", "revision", "context", "contexts", "arm")
    newest = dict(zip(names, connection.execute(LAST).fetchone(), strict=True))
    visits = decisions // visit
    script = FILL.format(
        **newest, visit=visit, user=visits // 3, at=SERVED, pace=PACE, arms=ARMS, chance=1 / ARMS,
        log_propensity=-math.log(ARMS), sums=SUMS, hash="(i * 2654435761 % 4294967296)",
        visits=NUMBERS.format(visits), decisions=NUMBERS.format(visits * visit), users=NUMBERS.format(visits // 3),
    )  # fmt: skip
    if not postgres:  # nothing is lost if this fails: it is made anew
        connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("BEGIN")
    for statement in script.split(";\n")[:-1]:
        connection.execute(statement)
    mark = "%s" if postgres else "?"
    for table in ("users", "session"):
        ids, keys = zip(
            *connection.execute(f"SELECT id, key FROM {table} WHERE digest IS NULL").fetchall(), strict=True
        )
        rows = list(zip(contents.key_digests(keys), ids, strict=True))
        connection.cursor().executemany(f"UPDATE {table} SET digest = {mark} WHERE id = {mark}", rows)
    for name in ("users", "session", "decision") if postgres else ():
        connection.execute(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), (SELECT max(id) FROM {name}))")
    connection.execute("COMMIT")
    if not postgres:
        connection.execute("PRAGMA journal_mode = WAL")


def reminded(shop: Shop) -> Shop:
    """A log whose visits know what they have shown, as `recommend` leaves them: one slot each."""
    from rlrec.app.serving import open_sessions

    shown = "SELECT d.session_id, d.id, s.arm_id FROM decision d JOIN slot s ON s.decision_id = d.id"
    mark = "%s" if shop.postgres else "?"
    with closing(shop.connect()) as connection:
        rows = connection.execute(
            f"{shown} JOIN visit v ON v.session_id = d.session_id AND v.history IS NULL"
        ).fetchall()
        session, decision, arm = np.array(rows, np.int64).T
        slots = open_sessions.pack(decision, np.zeros_like(arm), np.ones_like(arm), arm)
        blobs = [(slot.tobytes(), key) for slot, key in zip(slots, session.tolist(), strict=True)]
        connection.execute("BEGIN")
        connection.cursor().executemany(f"UPDATE visit SET history = {mark} WHERE session_id = {mark}", blobs)
        connection.execute("COMMIT")
    return shop
