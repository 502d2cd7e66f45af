"""A store in which everything has happened that can happen, and a way past every check of its references."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.conftest import CommandResult, Run, runner

Row = tuple[Any, ...]
START, LATER, LAST = "2026-01-01T00:00:00Z", "2026-01-01T00:20:00Z", "2026-01-01T02:00:00Z"
FIXED = "value,arm,probability\nx,a1,0.5\nx,a2,0.5\n*,a1,0.25\n*,a3,0.75\n"
READ = {"context": {"fields": {"page": ["x", "y", "z"]}}, "arm": {"fields": {"price": "number"}}}
LATER_ON = "2026-01-01T00:58:00Z"


def grown(db: str) -> None:
    """A store in which everything has happened that can happen: every kind, k = 1 and 3, late and settled rewards."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "fixed.csv").write_text(FIXED)
        (Path(folder) / "read.json").write_text(json.dumps(READ))
        grow(runner(db), Path(folder))


def grow(run: Run, folder: Path) -> None:
    """Serve and teach by the clock; the folder has what kinds read."""

    def do(at: str, *args: object, stdin: str | None = None) -> CommandResult:
        return run("--now", at, "-q", *args, stdin=stdin).done()

    def serve(at: str, name: str, *, sessions: str, field: str = "policy", n: int = 30) -> list[Any]:
        options = [
            {field: name, "session": f"{sessions}{i // 3}", "user": f"u{i // 9}", "k": 1 + 2 * (i % 2)}
            | {"context": {"page": "xyz"[i % 3]}}
            for i in range(n)
        ]
        return do(at, "recommend", "--input", "-", "--seed", len(sessions), "--format", "ndjson", stdin=options).lines

    def tell(at: str, decisions: list[Any]) -> None:
        ids = [answer["decision_id"] for answer in decisions]
        lines = [{"decision_id": key, "position": 1, "events": {"click": 1, "seen": 1}} for key in ids[::3]]
        lines += [{"decision_id": key, "events": {"reward": 0.5}, "key": f"k{key}"} for key in ids[1::5]]
        lines += [{"decision_id": key, "position": 1, "events": {"click": -1}} for key in ids[::9]]
        lines += [{"decision_id": key, "censor": True} for key in ids[::7]]
        lines += [{"decision_id": key, "censor": False} for key in ids[::14]]
        do(at, "feedback", "--input", "-", stdin=lines)

    for price, arm in enumerate(("a1", "a2", "a3", "a4", "a5")):
        do(START, "arm", "add", arm, "--features", json.dumps({"price": price}))
    do(START, "reward", "define", "slow", "click=1, reward=0.3", "--clip", "0,1", "--learn", "settled")
    policies = [
        ("ts", "thompson", "floor=0.1"), ("ts-slow", "thompson", "floor=0.05"), ("ucb", "ucb", "floor=0.2"),
        ("greedy", "epsilon-greedy", "epsilon=0.3"), ("uniform", "uniform", "floor=0"),
        ("fixed", "fixed", f"probabilities={folder / 'fixed.csv'}"),
    ]  # fmt: skip
    for name, kind, param in policies:
        more = ["--param", "by=page"] if kind == "fixed" else ["--reward", "slow"] if name == "ts-slow" else []
        do(START, "policy", "create", name, "--kind", kind, "--param", param, *more)
    remembering = {
        "fades": ("thompson", "discount=0.9"), "ends": ("ucb", "window=8"), "sees": ("linucb", "floor=0.1"),
        "shares": ("lin-thompson", "model=shared", "samples=20"),
    }  # fmt: skip
    for name, (kind, *params) in remembering.items():
        more = ["--features", str(folder / "read.json")] if name in {"sees", "shares"} else []
        more += [word for param in params for word in ("--param", param)]
        do(START, "policy", "create", name, "--kind", kind, *more)
    served = {name: 30 for name, _, _ in policies} | dict.fromkeys(remembering, 12)
    first = [item for name, n in served.items() for item in serve(START, name, sessions=f"{name}-", n=n)]
    tell(LATER, first)
    do(LATER, "arm", "retire", "a5")
    again = [
        item for name, n in served.items() for item in serve("2026-01-01T00:40:00Z", name, sessions=f"{name}-", n=n)
    ]
    do("2026-01-01T00:45:00Z", "policy", "freeze", "fades")
    do("2026-01-01T00:45:00Z", "policy", "freeze", "sees")
    do("2026-01-01T00:45:00Z", "policy", "freeze", "ts")
    do("2026-01-01T00:45:00Z", "policy", "freeze", "ts-slow")
    do("2026-01-01T00:45:00Z", "policy", "promote", "ts@2")
    do("2026-01-01T00:45:00Z", "policy", "create", "taught", "--kind", "thompson", "--from-log", "policy=ts")
    do("2026-01-01T00:45:00Z", "experiment", "create", "e", "--variant", "a=greedy", "--variant", "b=ts@2")
    tell("2026-01-01T00:50:00Z", again)
    late = [*serve("2026-01-01T00:55:00Z", "ts", sessions="frozen-"), *serve(LATER_ON, "taught", sessions="taught-")]
    late += serve(LATER_ON, "e", sessions="e-", field="experiment")
    tell(LATER_ON, late)
    do(LAST, "settle")


def sql(db: str, *statements: str) -> list[Row]:
    """Statements past every check of references: the rows of the last one."""
    if "://" not in db:
        with closing(sqlite3.connect(db)) as connection, connection:
            rows = [connection.execute(statement).fetchall() for statement in statements]
        return rows[-1]
    import psycopg

    with psycopg.connect(db) as server:
        server.execute("SET session_replication_role = replica")
        result: list[Row] = []
        for statement in statements:
            cursor = server.execute(statement)
            result = cursor.fetchall() if cursor.description else []
        return result
