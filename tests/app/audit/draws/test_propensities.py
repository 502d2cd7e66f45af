"""The audit of kinds that read the visit so far: each decision is derived again from what it remembers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import closing
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest

from rlrec.app.audit.draws import propensities
from rlrec.store import Store
from tests.app.learned import trained
from tests.app.upkeep.test_doctor import audit, errors
from tests.conftest import ON_BOTH, filled, runner
from tests.policy import histories

READ = {"context": {"fields": {"page": ["x", "y"]}}, "arm": {"fields": {"price": "number", "kind": ["tea", "milk"]}}}
START = "2026-01-01T00:{:02}:00Z"


def grown(db: str) -> None:
    """Visits of a trained version, pages of one and three, with feedback between; arms change their features, one is
    retired, one is new to the version; two versions and a variant have served."""
    run = runner(db)

    def do(minute: int, *args: object, stdin: str | None = None) -> Any:
        return run("--now", START.format(minute), "-q", *args, stdin=stdin).done()

    def serve(minute: int, **options: Any) -> None:
        lines = [
            {"policy": "home", "session": f"s{i % 9}", "k": 1 + 2 * (i % 2), "context": {"page": "xy"[i % 2]}} | options
            for i in range(27)
        ]
        text = [{name: v for name, v in line.items() if v is not None} for line in lines]
        answers = do(minute, "recommend", "--input", "-", "--seed", 5, "--format", "ndjson", stdin=text).lines
        reported = [
            {"decision_id": answer["decision_id"], "position": 1, "events": {"click": 1.5}} for answer in answers[::2]
        ]
        reported += [{"decision_id": answer["decision_id"], "events": {"click": 0.5}} for answer in answers[::5]]
        do(minute, "feedback", "--input", "-", stdin=reported)

    for number in range(6):
        features = {"price": number / 3, "kind": ["tea", "milk"][number % 2]}
        do(0, "arm", "add", f"a{number}", "--features", json.dumps(features))
    with NamedTemporaryFile("w", suffix=".json") as read:
        read.write(json.dumps(READ))
        read.flush()
        do(0, "policy", "create", "home", "--kind", "gradient", "--param", "floor=0.1", "--features", read.name)
    serve(1)
    with closing(Store(db)) as store:
        trained(store, "home")
    serve(2)
    do(3, "arm", "add", "a2", "--features", json.dumps({"price": 7, "kind": "milk"}))
    do(3, "arm", "retire", "a4")
    do(3, "arm", "add", "a9", "--features", json.dumps({"price": -1, "kind": "tea"}))
    serve(4)
    do(5, "experiment", "create", "e", "--variant", "a=home", "--variant", "b=home@1")
    serve(6, policy=None, experiment="e", user="u")


@pytest.fixture
def served(sqlite_db: str) -> str:
    filled(sqlite_db, grown)
    return sqlite_db


def change(db: str, statement: str, *values: Any) -> None:
    with closing(Store(db)) as store:
        store.write(lambda unit: unit.tell(statement, *values))


def rows_of(db: str, statement: str) -> list[Any]:
    with closing(Store(db)) as store, store.read() as unit:
        return unit.ask(statement)


def all_late(db: str, size: int = 1) -> list[tuple[int, bytes]]:
    """The decisions of the trained version that have a history, and that."""
    chosen = (
        "SELECT d.id, d.history FROM decision d JOIN version v ON v.id = d.version_id"
        f" WHERE v.number = 2 AND d.step > 2 AND d.size = {size} ORDER BY d.id"
    )
    return [(key, bytes(packed)) for key, packed in rows_of(db, chosen)]


def late(db: str, size: int = 1) -> tuple[int, bytes]:
    """The first of them."""
    return all_late(db, size)[0]


@ON_BOTH
def test_a_sound_store_is_content(db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grown(db)
    monkeypatch.setattr(propensities, "STATES_AT_A_TIME", 7)
    report = audit(db)
    assert {finding.check for finding in report.findings} <= {"positions"}  # all clicks are at position 1
    assert report.checked["propensities"] == 108


@pytest.mark.parametrize("size", [1, 3])
def test_a_changed_propensity_is_found(served: str, size: int) -> None:
    keys = {}
    columns = ("propensity", "min_propensity", "marginal")
    for column, (key, _) in zip(columns, all_late(served, size)[:3], strict=True):
        keys[column] = f"decision {key}"
        change(served, f"UPDATE slot SET {column} = 0.999 * {column} WHERE decision_id = ? AND position = 1", key)
    reported = {subject for check, subject in errors(audit(served)) if check == "propensities"}
    assert reported >= {*keys.values()}, keys


def test_a_marginal_below_the_top_has_no_closed_form(served: str) -> None:
    key, _ = late(served, 3)
    change(served, "UPDATE slot SET marginal = 0.5 WHERE decision_id = ? AND position = 2", key)
    assert ("propensities", f"decision {key}") in errors(audit(served))


@pytest.mark.parametrize("size", [1, 3])
def test_another_seed_or_arm_is_found(served: str, size: int) -> None:
    key, _ = late(served, size)
    change(served, "UPDATE decision SET seed = seed + 1 WHERE id > ? AND id < ? + 20", key, key)
    drawn = {subject for check, subject in errors(audit(served)) if check == "draws"}
    assert len(drawn) > 5


def test_a_changed_weight_is_found(served: str) -> None:
    """Of one arm, or of all."""
    rows = rows_of(served, "SELECT w.version_id, w.arm_id, w.weights FROM arm_weights w ORDER BY 1, 2")
    version, arm, packed = rows[0]
    moved = np.frombuffer(packed, "<f8") + np.eye(1, len(packed) // 8)[0]
    change(
        served, "UPDATE arm_weights SET weights = ? WHERE version_id = ? AND arm_id = ?", moved.tobytes(), version, arm
    )
    assert len(errors(audit(served))) > 20


@pytest.mark.parametrize("bent", ["UPDATE arm_weights SET weights = ?", "DELETE FROM arm_weights WHERE weights <> ?"])
def test_weights_in_pieces_or_gone_are_found(served: str, bent: str) -> None:
    change(served, bent, b"1234567")
    assert any(check == "propensities" for check, _ in errors(audit(served)))


def entry(row: int, word: int, value: bytes) -> Callable[[bytes], bytes]:
    """A history with another word."""
    at = 24 * row + 8 * word
    return lambda packed: packed[:at] + value + packed[at + 8 :]


BENT: dict[str, Callable[[bytes], bytes | None]] = {
    "gap": entry(0, 0, struct.pack("<q", 10**9)),
    "gap below 0": entry(0, 0, struct.pack("<q", -1)),
    "shown": entry(0, 1, struct.pack("<q", 1)),
    "reward": entry(0, 2, struct.pack("<d", 7.0)),
    "arm": lambda packed: packed[:24] + bytes([1 + packed[24] % 6]) + packed[25:],
    "arm unknown": entry(1, 0, struct.pack("<q", 2**40)),
    "ago": entry(1, 1, struct.pack("<q", 1)),
    "ago of the future": entry(1, 1, struct.pack("<q", 0)),
    "ago before the visit": entry(1, 1, struct.pack("<q", 2**50)),
    "earned": entry(1, 2, struct.pack("<d", 3.5)),
    "no number": entry(1, 2, struct.pack("<d", float("nan"))),
    "too much": entry(1, 2, struct.pack("<d", 1e308)),
    "cut": lambda packed: packed[:-1],
    "an entry less": lambda packed: packed[:-24],
    "one byte": lambda packed: b"\x00",
    "nothing": lambda packed: b"",
    "not known": lambda packed: None,
}


@pytest.mark.slow
def test_another_history_is_found(served: str) -> None:
    """Each in a decision of its own."""
    long_histories = [row for row in all_late(served, 3) if len(histories.entries(row[1])) > 2]
    keys = {}
    for (bent, other), (key, packed) in zip(BENT.items(), long_histories[: len(BENT)], strict=True):
        keys[bent] = f"decision {key}"
        change(served, "UPDATE decision SET history = ? WHERE id = ?", other(packed), key)
    report = audit(served)
    assert {subject for _, subject in errors(report)} == {*keys.values()}, (keys, report.findings)


def test_a_first_decision_that_remembers_is_found(served: str) -> None:
    key = rows_of(served, "SELECT max(id) FROM decision WHERE step = 0")[0][0]
    _, packed = late(served)
    change(served, "UPDATE decision SET history = ? WHERE id = ?", packed, key)
    assert ("propensities", f"decision {key}") in errors(audit(served))


INTERCEPT = """'"intercept":true', '"intercept":7'"""
BROKEN = {
    "context": ("UPDATE context SET body = '7' WHERE id = 1", "context 1"),
    "no JSON": ("UPDATE context SET body = '{' WHERE id = 1", "context 1"),
    "eligible set": ("UPDATE eligible_set SET arms = '[1,2' WHERE id = 1", "eligible_set 1"),
    "no arms": ("UPDATE eligible_set SET arms = '[]' WHERE id = 1", "eligible_set 1"),
    "encoder": ("UPDATE version SET parameters = replace(parameters, '\"price\"', '\"rank\"')", "decision"),
    "no encoder": (f"UPDATE version SET parameters = replace(parameters, {INTERCEPT})", "policy home"),
    "shared weights": ("UPDATE version SET parameters = replace(parameters, 'similar', 'alike')", "decision"),
    "features": ("UPDATE arm_history SET features = '{}'", "decision"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_a_state_rests_on_is_found_and_no_crash(served: str, broken: str) -> None:
    statement, subject = BROKEN[broken]
    change(served, statement)
    assert any((subject + " ") in (where + " ") for _, where in errors(audit(served)))
