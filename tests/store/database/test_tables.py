"""What the tables promise is refused by the database itself, whatever program writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from rlrec.app.setup.init import init
from rlrec.errors import RlrecError
from rlrec.store import Store, Unit
from rlrec.store.database import database_errors, loading, tables
from tests.app.shop import ask, stocked, tell
from tests.conftest import _create

NAN, INF = float("nan"), float("inf")
NUMBERS_BAD = [NAN, INF, -INF, 1.1e308]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store in which every table of the loop has rows to copy. What is refused changes nothing, so all share it."""
    db = str(tmp_path_factory.mktemp("constraints") / "used.db")
    if request.param == "postgres":
        db = _create(request.getfixturevalue("postgres_server"), "constraints")
    with closing(Store(db)) as store:
        init(store)
        stocked(store, home="thompson")
        tell(store, ask(store, size=2, request_id="r1", user="u1"), 1, click=1, key="k1")
        ask(store, size=2)
        yield store


def refused(store: Store, statement: Any, values: dict[str, Any] | None = None) -> None:
    """The statement fails by a constraint, not by its grammar."""
    with pytest.raises(DBAPIError) as caught, store.engine.connect() as connection, connection.begin():
        connection.execute(statement, values or {})
    assert "constraint" in str(caught.value.orig).lower()


def changed(table: str, column: str) -> Any:
    return sa.text(f'UPDATE "{table}" SET {column} = :value')


def copied(store: Store, table: sa.Table, **other: Any) -> Any:
    """An insert of the newest row of a table with some values changed."""
    with store.read() as unit:
        row = unit.rows(sa.select(table).order_by(*(column.desc() for column in table.primary_key)))[0]
    values = dict(zip((column.name for column in table.columns), row, strict=True))
    return sa.insert(table).values(**values | other)


@pytest.mark.parametrize("fails", [False, True])
def test_checks_are_left_out_of_the_rows_meant_alone(used: Store, fails: bool) -> None:
    """The same statement is refused in the same transaction, after an error too."""

    def insert(unit: Unit, number: int, key: str) -> None:
        columns = {"id": [number], "key": [key], "digest": [0], "split": [0], "created_at": [0]}
        loading.write(unit, "session", columns)

    def work(unit: Unit) -> None:
        with suppress(ZeroDivisionError), loading.without_checks(unit):
            insert(unit, 10**9, "checked before")
            if fails:
                raise ZeroDivisionError
        insert(unit, 10**9 + 1, "")

    with pytest.raises(RlrecError, match="ck_session_key_length"):
        used.write(work)
    with used.read() as unit:
        assert not unit.ask("SELECT id FROM session WHERE id >= ?", 10**9)


@pytest.mark.parametrize("column", ["propensity", "marginal"])
@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, *NUMBERS_BAD])
def test_a_propensity_lies_above_0_and_up_to_1(used: Store, column: str, value: float) -> None:
    # SQLite stores NaN as NULL: an imported slot may lack a propensity, so the table takes it
    if value != value and not _postgres(used):
        pytest.skip("SQLite has no NaN")
    refused(used, changed("slot", column), {"value": value})


@pytest.mark.parametrize("value", [-1e-9, 1.5, INF])
def test_the_smallest_propensity_lies_between_0_and_1(used: Store, value: float) -> None:
    refused(used, changed("slot", "min_propensity"), {"value": value})


@pytest.mark.parametrize("value", [0.1, -INF, INF])
def test_a_log_propensity_is_finite_and_not_above_0(used: Store, value: float) -> None:
    refused(used, changed("decision", "log_propensity"), {"value": value})


@pytest.mark.parametrize("column", ["log_propensity", "seed"])
def test_a_decision_of_our_own_is_complete(used: Store, column: str) -> None:
    refused(used, changed("decision", column), {"value": None})


@pytest.mark.parametrize("value", NUMBERS_BAD)
@pytest.mark.parametrize(
    ("table", "column"),
    [("event", "value"), ("belief", "reward_sum"), ("belief", "pulls"), ("belief_delta", "reward_squares")],
)
def test_a_sum_never_takes_what_is_not_finite(used: Store, table: str, column: str, value: float) -> None:
    refused(used, changed(table, column), {"value": value})


@pytest.mark.parametrize(
    ("table", "other"),
    [
        (tables.arm, {"id": 999}),  # the same key
        (tables.session, {"id": 999}),
        (tables.users, {"id": 999}),
        (tables.policy, {"id": 999}),
        (tables.version, {"id": 999}),  # the same number
        (tables.reward, {"id": 999}),
        (tables.feedback_key, {"decision_id": 2}),
        (tables.event, {"value": 5.0}),
        (tables.slot, {"arm_id": 1}),
        (tables.belief_delta, {"pulls": 7.0}),
        (tables.decision, {"id": 999}),  # the same step of the visit
        (tables.context, {"id": 999}),
        (tables.eligible_set, {"id": 999}),
        (tables.settings, {"salt": "x"}),
    ],
)
def test_what_is_there_once_cannot_come_twice(used: Store, table: sa.Table, other: dict[str, Any]) -> None:
    refused(used, copied(used, table, **other))


def test_a_request_id_answers_one_decision(used: Store) -> None:
    refused(used, copied(used, tables.decision, id=999, step=9, request_key="r1", request_digest=b"x"))


@pytest.mark.parametrize(
    ("table", "other"),
    [
        (tables.decision, {"id": 999, "step": 9, "session_id": 999}),
        (tables.decision, {"id": 999, "step": 9, "policy_id": 999}),
        (tables.decision, {"id": 999, "step": 9, "version_id": 999}),
        (tables.decision, {"id": 999, "step": 9, "context_id": 999}),
        (tables.decision, {"id": 999, "step": 9, "eligible_id": 999}),
        (tables.slot, {"decision_id": 999}),
        (tables.slot, {"position": 9, "arm_id": 999}),
        (tables.event, {"decision_id": 999, "position": None}),
        (tables.event, {"number": 9, "position": 9}),  # a position that was not shown
        (tables.feedback_key, {"key": "k9", "decision_id": 999}),
        (tables.belief, {"arm_id": 999}),
        (tables.belief_delta, {"version_id": 999}),
        (tables.visit, {"session_id": 999}),
        (tables.policy_head, {"policy_id": 999}),
    ],
)
def test_nothing_refers_to_what_is_not_there(used: Store, table: sa.Table, other: dict[str, Any]) -> None:
    refused(used, copied(used, table, **other))


def test_what_others_refer_to_stays(used: Store) -> None:
    for name in ("decision", "slot", "arm", "version", "session", "policy"):
        refused(used, sa.text(f"DELETE FROM {name}"))


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("arm", "key", ""), ("arm", "key", "x" * 201), ("session", "split", 3), ("version", "status", "lost"),
        ("reward", "learn", "never"), ("reward", "late", "perhaps"), ("reward", "clip_low", 2.0),
        ("slot", "position", 0), ("slot", "censored", 2), ("decision", "size", 0), ("decision", "step", -1),
        ("decision", "imported", 2), ("settings", "session_timeout_us", 0), ("event", "kind", ""),
        ("version", "number", 0), ("visit", "number", 0),
    ],
)  # fmt: skip
def test_a_value_outside_its_range_is_refused(used: Store, table: str, column: str, value: Any) -> None:
    refused(used, changed(table, column), {"value": value})


@pytest.mark.parametrize(("table", "column"), [("slot", "propensity"), ("event", "value"), ("decision", "at")])
def test_text_is_no_number(used: Store, table: str, column: str) -> None:
    with pytest.raises(DBAPIError, match=r"cannot store TEXT|invalid input syntax"), used.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {table} SET {column} = 'often'"))


def test_a_failed_constraint_is_one_line_and_stores_nothing(used: Store) -> None:
    def work(unit: Unit) -> None:
        unit.connection.execute(sa.text("DELETE FROM feedback_key"))
        unit.connection.execute(changed("slot", "propensity"), {"value": 1.5})

    with pytest.raises(Exception, match="failed") as caught:
        used.write(work)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, database_errors.Retry)
    with used.read() as unit:
        assert unit.ask_value("SELECT count(*) FROM feedback_key") == 1


def _postgres(store: Store) -> bool:
    return store.engine.dialect.name == "postgresql"
