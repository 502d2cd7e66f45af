"""Changes that go to the database together, and sums that one statement adds up: as if each had gone by itself."""

from __future__ import annotations

import random

import pytest

from rlrec.app.learning.ledger import Ledger
from rlrec.errors import RlrecError
from rlrec.store import Store, Unit
from rlrec.store.database import database_errors
from rlrec.store.log import settings
from rlrec.store.policies import beliefs
from tests.app.shop import stocked, version

ADDED = "INSERT INTO arm (key, features, added_at) VALUES (?, '{}', 0)"


def test_a_query_sees_the_changes_that_wait(store: Store) -> None:
    def work(unit: Unit) -> tuple[int, int]:
        for key in "ab":
            unit.note(ADDED, key)
        unit.insert("users", ("key", "digest"), [("u", 1), ("v", 2)])
        return unit.ask_value("SELECT count(*) FROM arm"), unit.ask_value("SELECT count(*) FROM users")

    assert store.write(work) == (2, 2)


CHANGES = {
    "UPDATE settings SET removals = 7": "removals",
    "INSERT INTO exclusion (name, filter, by_unit, created_at) VALUES ('staff', 'user=u', 0, 1)": "has_exclusions",
    "UPDATE reward SET weights = '{\"return\": 1.0}'": "weighs_returns",
}


@pytest.mark.parametrize(("statement", "name"), CHANGES.items())
def test_a_unit_sees_the_settings_that_a_statement_of_its_own_changed(
    store: Store, statement: str, name: str
) -> None:  # fmt: skip
    def work(unit: Unit) -> list[bool]:
        before = bool(getattr(settings.get(unit), name))
        unit.tell(statement)
        return [before, bool(getattr(settings.get(unit), name))]

    assert store.write(work) == [False, True]


def test_queries_that_go_together_are_answered_each(store: Store) -> None:
    def work(unit: Unit) -> list[list[tuple[object, ...]]]:
        unit.note(ADDED, "a")
        unit.note(ADDED, "b")
        return unit.ask_all(
            ("SELECT key FROM arm WHERE key IN (?*) ORDER BY key", ["a", "b"]), ("SELECT count(*) FROM users",)
        )

    assert [[*map(tuple, rows)] for rows in store.write(work)] == [[("a",), ("b",)], [(0,)]]


def test_changes_that_nobody_asks_for_are_stored_in_their_order(store: Store) -> None:
    def work(unit: Unit) -> None:
        unit.note(ADDED, "a")
        unit.note("UPDATE arm SET key = ? WHERE key = ?", "b", "a")

    store.write(work)
    with store.read() as unit:
        assert unit.ask("SELECT key FROM arm") == [("b",)]


def test_one_change_that_fails_takes_all_back(store: Store) -> None:
    def work(unit: Unit) -> None:
        unit.insert("users", ("key", "digest"), [("u", 1)])
        unit.note(ADDED, "a")
        unit.note(ADDED, "a")
        unit.note(ADDED, "b")

    with pytest.raises(database_errors.NotUnique):
        store.write(work)
    with store.read() as unit:
        assert [unit.ask_value(f"SELECT count(*) FROM {table}") for table in ("arm", "users")] == [0, 0]


@pytest.mark.parametrize("width", [1, 4, 40])
def test_sums_are_added_bit_for_bit_however_many_change(store: Store, width: int) -> None:
    draw = random.Random(width)
    stocked(store, arms=[f"a{number}" for number in range(width)], home="thompson")
    with store.read() as unit:
        version_id, arms = version(unit, "home").id, [row[0] for row in unit.ask("SELECT id FROM arm ORDER BY id")]
    expected: dict[tuple[int, int], tuple[float, ...]] = {(0, arm): (0.0, 0.0, 0.0) for arm in arms}
    for seq in range(1, 6):
        changes = {(0, arm): [draw.gauss(0, 10**7) for _ in range(3)] for arm in draw.sample(arms, (width + 1) // 2)}
        for key, change in changes.items():
            expected[key] = tuple(was + new for was, new in zip(expected[key], change, strict=True))
        store.write(lambda unit, seq=seq, changes=changes: beliefs.add(unit, version_id, seq=seq, changes=changes))
        with store.read() as unit:
            stored = {(0, row.arm_id): row[1:] for row in beliefs.sums(unit, version_id)}
            newest = {(0, row.arm_id): row[1:] for row in beliefs.sums(unit, version_id, seq=seq)}
        assert stored == newest == {key: sums for key, sums in expected.items() if key in stored}
        assert stored.keys() >= changes.keys()
    with store.read() as unit:
        deltas = unit.ask("SELECT sum(d_pulls) FROM belief_delta WHERE version_id = ?", version_id)
    assert deltas[0][0] == pytest.approx(sum(sums[0] for sums in expected.values()))


def test_a_policy_whose_row_is_gone_is_named(store: Store) -> None:
    stocked(store, home="thompson")

    def work(unit: Unit) -> None:
        unit.tell("DELETE FROM policy_head")
        Ledger(unit, [1]).seq(1)

    with pytest.raises(RlrecError, match="row 1 of table policy_head is gone"):
        store.write(work)


def test_rows_that_nobody_reads_on_can_outlive_their_store(store: Store) -> None:
    """As where a command is interrupted: the cursor ends after the connection, and says nothing of it."""

    def fill(unit: Unit) -> None:
        for key in "abc":
            unit.note(ADDED, key)

    store.write(fill)
    with store.read() as unit:
        portions = unit.portions("SELECT key FROM arm ORDER BY key")
        assert next(portions) == [("a",), ("b",), ("c",)]
    store.close()
    portions.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("writes", [False, True])
def test_a_unit_closes_its_cursor(store: Store, writes: bool) -> None:
    """Else the garbage collector may close it in a thread that has SQLite's lock: that waits for this connection, which
    waits for the lock."""
    if writes:
        cursor = store.write(lambda unit: unit.driver)
    else:
        with store.read() as unit:
            cursor = unit.driver
    with pytest.raises(Exception, match="closed"):
        cursor.execute("SELECT 1")
