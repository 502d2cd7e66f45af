"""The reference of a write: the rows that a command wrote, by the driver's own bulk call, into a copy of its store.

Each group of rows was one transaction of the command. SQLite: `executemany`; PostgreSQL: COPY, and where the command
replaced rows COPY into a temporary table and one INSERT ... ON CONFLICT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from tests.benchmarks.measure import Sample, Stopwatch
from tests.benchmarks.shops import Shop

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of one table; `key` where a row of that key is replaced."""

    table: str
    columns: tuple[str, ...]
    rows: list[Row]
    key: str = ""

    @property
    def conflict(self) -> str:
        changed = ", ".join(f"{name} = excluded.{name}" for name in self.columns if name not in self.key.split(", "))
        return f" ON CONFLICT ({self.key}) DO UPDATE SET {changed}" if self.key else ""


Group = list[Rows]

BELIEF = "version_id, bucket, arm_id"
SUMS = "pulls, reward_sum, reward_squares, extra"
# Of a policy's changes: a query whose first column is the change, the table its rows go to, and the key it replaces.
CHANGED = [
    (f"SELECT b.seq, {BELIEF}, b.ordinal, {SUMS} FROM belief_delta b JOIN version v ON v.id = b.version_id"
     " WHERE v.policy_id = {policy} AND b.seq > {seq}", "belief", BELIEF),
    ("SELECT b.seq, b.* FROM belief_delta b JOIN version v ON v.id = b.version_id"
     " WHERE v.policy_id = {policy} AND b.seq > {seq}", "belief_delta", ""),
    ("SELECT DISTINCT b.seq, h.policy_id, b.seq, h.ordinal, h.live_id FROM belief_delta b"
     " JOIN version v ON v.id = b.version_id JOIN policy_head h ON h.policy_id = v.policy_id"
     " WHERE v.policy_id = {policy} AND b.seq > {seq}", "policy_head", "policy_id"),
]  # fmt: skip
NEW = " d.policy_id = {policy} AND d.seq > {seq}"
DECIDED = [
    (f"SELECT d.seq, s.* FROM session s JOIN decision d ON d.session_id = s.id WHERE{NEW} AND s.id > {{session}}"
     " ORDER BY s.id", "session", ""),
    (f"SELECT d.seq, v.* FROM visit v JOIN decision d ON d.session_id = v.session_id AND d.visit = v.number WHERE{NEW}"
     " ORDER BY v.session_id", "visit", "session_id, number"),
    (f"SELECT d.seq, d.* FROM decision d WHERE{NEW} ORDER BY d.id", "decision", ""),
    (f"SELECT d.seq, s.* FROM slot s JOIN decision d ON d.id = s.decision_id WHERE{NEW} ORDER BY d.id", "slot", ""),
    *CHANGED,
]  # fmt: skip
CLICKS = (
    " FROM event e JOIN decision d ON d.id = e.decision_id {joined}WHERE d.policy_id = {{policy}} AND e.seq > {{seq}}"
)
HEARD = [
    (f"SELECT e.seq, e.*{CLICKS.format(joined='')} ORDER BY e.decision_id, e.number", "event", ""),
    ("SELECT DISTINCT e.seq, k.*"
     + CLICKS.format(joined="JOIN feedback_key k ON k.key = e.key AND k.decision_id = e.decision_id ")
     + " ORDER BY k.key", "feedback_key", ""),
    *CHANGED,
]  # fmt: skip


def marks(shop: Shop, policy: str) -> dict[str, int]:
    """Where a store stands before a command: what it writes lies beyond."""
    with closing(shop.connect()) as connection:
        sql = f"SELECT p.id, h.seq FROM policy p JOIN policy_head h ON h.policy_id = p.id WHERE p.name = '{policy}'"
        policy_id, seq = connection.execute(sql).fetchone()
        session = connection.execute("SELECT coalesce(max(id), 0) FROM session").fetchone()[0]
    return {"policy": policy_id, "seq": seq, "session": session}


def groups(shop: Shop, before: Mapping[str, int], queries: Iterable[tuple[str, str, str]]) -> list[Group]:
    """What a command wrote beyond `before`, change by change."""
    result: dict[int, Group] = {}
    with closing(shop.connect()) as connection:
        for sql, table, key in queries:
            answer = connection.execute(sql.format(**before))
            columns = tuple(column[0] for column in answer.description[1:])
            parts: dict[int, list[Row]] = {}
            for seq, *row in answer:
                parts.setdefault(seq, []).append(tuple(row))
            for seq, rows in parts.items():
                result.setdefault(seq, []).append(Rows(table, columns, rows, key))
    return [group for _, group in sorted(result.items())]


def portions(group: Group, places: Mapping[object, int], *, size: int = 1000) -> list[Group]:
    """One change as the command met it: its events and keys by groups of `size` lines, all else at the end.

    places: the line of each key and, for events without one, of each decision."""
    result: dict[int, Group] = {}
    options = []
    for piece in group:
        if piece.table not in ("event", "feedback_key"):
            options.append(piece)
            continue
        key, decision = piece.columns.index("key"), piece.columns.index("decision_id")
        parts: dict[int, list[Row]] = {}
        for row in piece.rows:
            parts.setdefault(places[row[key] or row[decision]] // size, []).append(row)
        for number, rows in parts.items():
            result.setdefault(number, []).append(replace(piece, rows=rows))
    return [*(group for _, group in sorted(result.items())), options]


def written(shop: Shop, transactions: Iterable[Iterable[Group]]) -> Sample:
    """Time of the bulk calls alone, with the commits and the closing; what makes the rows is not counted."""
    watch = Stopwatch()
    connection = shop.connect()
    write: Callable[[Any, Rows], None] = _copy if shop.postgres else executemany
    for transaction in transactions:
        with watch:
            connection.execute("BEGIN" if shop.postgres else "BEGIN IMMEDIATE")
        for group in transaction:
            for rows in group:
                with watch:
                    write(connection, rows)
        with watch:
            connection.execute("COMMIT")
    with watch:
        connection.close()
    return watch.sample


def executemany(connection: Any, rows: Rows) -> None:
    marks = ", ".join("?" * len(rows.columns))
    insert = f"INSERT INTO {rows.table} ({', '.join(rows.columns)}) VALUES ({marks}){rows.conflict}"
    connection.executemany(insert, rows.rows)


def _copy(connection: Any, rows: Rows) -> None:
    columns = ", ".join(rows.columns)
    with connection.cursor() as cursor:
        into = f"new_{rows.table}" if rows.key else rows.table
        if rows.key:
            cursor.execute(f"CREATE TEMPORARY TABLE IF NOT EXISTS {into} (LIKE {rows.table})")
        with cursor.copy(f"COPY {into} ({columns}) FROM STDIN") as copy:
            for row in rows.rows:
                copy.write_row(row)
        if rows.key:
            cursor.execute(f"INSERT INTO {rows.table} ({columns}) SELECT {columns} FROM {into}{rows.conflict}")
            cursor.execute(f"TRUNCATE {into}")


# -- an imported log, too large to be held --

PORTION = 10_000
# In the order of the foreign keys.
IMPORTED = [
    ("SELECT * FROM run WHERE id > {run} ORDER BY id", "run"),
    ("SELECT * FROM context WHERE id > {context} AND id <= {last_context} ORDER BY id", "context"),
    (
        "SELECT DISTINCT u.* FROM users u JOIN session s ON s.user_id = u.id JOIN decision d ON d.session_id = s.id"
        " WHERE d.id {portion} ORDER BY 1",
        "users",
    ),
    ("SELECT s.* FROM session s JOIN decision d ON d.session_id = s.id WHERE d.id {portion} ORDER BY 1", "session"),
    ("SELECT v.* FROM visit v JOIN decision d ON d.session_id = v.session_id WHERE d.id {portion} ORDER BY 1", "visit"),
    ("SELECT * FROM decision WHERE id {portion} ORDER BY id", "decision"),
    ("SELECT * FROM slot WHERE decision_id {portion} ORDER BY decision_id", "slot"),
    ("SELECT * FROM event WHERE decision_id {portion} ORDER BY decision_id", "event"),
    ("SELECT * FROM import_line WHERE decision_id {portion} ORDER BY decision_id", "import_line"),
]
LAST = "SELECT max(run_id), max(context_id), max(id) FROM decision"


def imported(before: Shop, after: Shop) -> Iterator[Group]:
    """What an import of one-decision sessions wrote, in portions of decisions, of which none divides a user."""
    with closing(before.connect()) as connection:
        run, context, decision = connection.execute(LAST).fetchone()
    with closing(after.connect()) as connection:
        connection.execute("CREATE INDEX IF NOT EXISTS ix_import_line_decision_id ON import_line (decision_id)")
        last = connection.execute(LAST).fetchone()[2]
        for low in range(decision, last, PORTION):
            portion = f"BETWEEN {low + 1} AND {low + PORTION}"
            new_run, new_context, _ = connection.execute(f"{LAST} WHERE id {portion}").fetchone()
            result = {"portion": portion, "run": run, "context": context, "last_context": new_context}
            yield [rows for sql, table in IMPORTED if (rows := _rows(connection, sql.format(**result), table)).rows]
            run, context = new_run, max(context, new_context)


def _rows(connection: Any, sql: str, table: str) -> Rows:
    answer = connection.execute(sql)
    return Rows(table, tuple(column[0] for column in answer.description), answer.fetchall())
