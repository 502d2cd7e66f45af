"""Bulk reads: through Arrow and a second process they give what the unit's own cursor gives, from the same snapshot."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.requests import session
from rlrec.arrays import Index, repeats_value
from rlrec.errors import RlrecError
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader
from rlrec.store.log.reader import Batch
from rlrec.store.log.selected import Selection, extent, few_test
from tests.app.shop import ask, clock, stocked, tell
from tests.app.workers import processes
from tests.conftest import PATIENCE_S, filled

LATE = 2**52  # microseconds after all decisions
READS = 5  # while another process writes; was run with 300 and three writers


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the log, a second process reads it."""
    monkeypatch.setattr(bulk, "MIN_DECISIONS", 0)


@pytest.fixture
def served(db: str, store: Store) -> Store:
    """Sessions that come back, some of users, one decision without probabilities, events of slots and of a page."""
    filled(db, serve)
    return store


def serve(db: str) -> None:
    with closing(Store(db)) as store:
        stocked(store, home="thompson", other="uniform")
        for number in range(40):
            name, user = ("home", "other")[number % 3 == 0], f"u{number % 7 % 4}" if number % 7 % 2 else None
            tell(store, ask(store, name, f"s{number % 7}", 1 + number % 3, user=user), 1, click=1.0, dwell_s=number / 7)
        tell(store, ask(store, "other", "t", 3), None, rating=0.5)
        store.write(
            lambda unit: unit.tell("UPDATE slot SET marginal = NULL, min_propensity = NULL WHERE decision_id = 5")
        )


def read(unit: Unit, **options: Any) -> list[Batch]:
    return list(reader.batches(unit, Selection(), **options))


def same(some: list[Batch], others: list[Batch]) -> None:
    assert len(some) == len(others)
    for item, other in zip(some, others, strict=True):
        for selected, theirs in ((item.slots, other.slots), (item.events, other.events)):
            assert list(selected) == list(theirs)
            for name in selected:
                assert selected[name].dtype == theirs[name].dtype
                np.testing.assert_array_equal(selected[name], theirs[name], err_msg=name)


SIZES = 1_000, 6  # decisions of a batch: all of the log, or few


@pytest.mark.slow
def test_both_ways_of_reading_give_the_same_columns(served: Store) -> None:
    with served.read() as unit:
        slow = {size: read(unit, size=size) for size in SIZES}
    with served.read() as unit, bulk.alongside(unit):
        assert unit.arrow_worker is not None
        for size in SIZES:
            same(read(unit, size=size), slow[size])
            assert np.isnan(np.concatenate([batch.slots["marginal"] for batch in slow[size]])).any()


def test_a_few_new_decisions_of_old_sessions_are_read_alone(served: Store) -> None:
    served.write(lambda unit: unit.tell(f"UPDATE decision SET at = {LATE} WHERE id IN (2, 3, 40)"))
    new = Selection(since=LATE)
    with served.read() as unit, bulk.alongside(unit):
        test, (all_rows,) = few_test(unit, new), reader.batches(unit, new)
        same([Batch.concatenate([*reader.batches(unit, new, few_test=test)])], [all_rows])
        assert np.unique(all_rows.slots["decision_id"]).tolist() == [2, 3, 40]
        assert extent(unit, new).decisions == 3


def test_columns_of_one_value_are_not_read_again_and_hold_what_is_stored(served: Store) -> None:
    """`censored` is 0 in all ranges, no slot of the first range lacks a marginal, one of a later one does."""
    with served.read() as unit:
        (complete,), pieces = read(unit, size=1_000), read(unit, size=6)
    assert any(np.isnan(piece.slots["marginal"]).any() for piece in pieces[1:])
    repeated = [name for name, column in pieces[-1].slots.items() if repeats_value(column)]
    assert {"censored", "imported", "subsampled"} <= set(repeated) < set(complete.slots)
    assert not pieces[-1].slots["censored"].flags.writeable
    for stored in (pieces, pickle.loads(pickle.dumps(pieces)), [piece.select_rows(rows_of(piece)) for piece in pieces]):
        same_slots(stored, complete)


def test_what_had_one_value_in_all_ranges_before_is_read_where_it_has_another(served: Store) -> None:
    """The last decision alone has a keep probability; the first session alone has the flag of an estimate."""
    served.write(lambda unit: unit.tell("UPDATE decision SET keep_probability = .5 WHERE id = 41"))
    served.write(lambda unit: unit.tell("UPDATE decision SET estimated = 1 WHERE session_id = 1"))
    with served.read() as unit:
        (complete,), pieces = read(unit, size=1_000), read(unit, size=1)
    assert set(complete.slots["keep_probability"]) == {0.5, 1.0}
    same_slots(pieces, complete)


def rows_of(piece: Batch) -> Index:
    """All rows but those of one decision."""
    return np.flatnonzero(piece.slots["decision_id"] != 5)


def same_slots(pieces: list[Batch], complete: Batch) -> None:
    """The slots of complete sessions, as those of the whole log with the same decisions."""
    slots = Batch.concatenate(pieces).slots
    complete = complete.select_rows(np.flatnonzero(np.isin(complete.slots["decision_id"], slots["decision_id"])))
    slots = {name: slots[name] for name in complete.slots}
    same([Batch(slots=slots, events={})], [Batch(slots=complete.slots, events={})])


def histories_of(store: Store) -> dict[int, bytes | None]:
    """A history for most decisions: some have no bytes, every fifth has none."""
    with store.read() as unit:
        ids = [row[0] for row in unit.ask("SELECT id FROM decision ORDER BY id")]
    result = {number: None if number % 5 == 0 else b"\0\xffab" * (number % 4) for number in ids}
    store.write(lambda unit: unit.tell_each("UPDATE decision SET history = ? WHERE id = ?",
                                            [(blob, number) for number, blob in result.items()]))  # fmt: skip
    return result


def test_bytes_come_as_they_are_stored(served: Store) -> None:
    stored = histories_of(served)
    columns = ["history", "recorded", "position"]
    with served.read() as unit:
        slow = {size: read(unit, size=size, columns=columns) for size in SIZES}
    with served.read() as unit, bulk.alongside(unit):
        assert unit.arrow_worker is not None
        for size in SIZES:
            same(read(unit, size=size, columns=columns), slow[size])
        item = reader.ask_slots(unit, ["history"], ["d.id = 2"], order="s.position").columns()
    assert item["history"].tolist() == [stored[2]] * 2
    for batch in (batch for batches in slow.values() for batch in batches):
        reported = zip(*(batch.slots[name].tolist() for name in ("decision_id", "recorded", "history")), strict=True)
        for number, recorded, blob in reported:
            assert (recorded, blob) == (stored[number] is not None, stored[number] or b"")


def test_no_bytes_at_all_are_bytes_too(served: Store) -> None:
    served.write(lambda unit: unit.tell("UPDATE decision SET history = NULL"))
    with served.read() as unit, bulk.alongside(unit):
        (batch,) = read(unit, columns=["history", "recorded"])
        assert set(batch.slots["history"].tolist()) == {b""}
        assert not batch.slots["recorded"].any()
        assert (batch.visits, batch.keys) == (None, None)


def test_visits_and_keys_of_a_batch_come_with_it(served: Store) -> None:
    session.end(served, "s1")
    with served.read() as unit:
        slow = {size: read(unit, size=size, visits=True, keys=True) for size in SIZES}
        expected = unit.ask(
            "SELECT session_id, number, started_at, last_at, coalesce(ended_at, -1), steps FROM visit ORDER BY 1, 2"
        )
        users: dict[int, str] = dict(unit.ask("SELECT s.id, u.key FROM session s JOIN users u ON u.id = s.user_id"))
        keyed: dict[int, str] = dict(unit.ask("SELECT id, key FROM session"))
    with served.read() as unit, bulk.alongside(unit):
        fast = {size: read(unit, size=size, visits=True, keys=True) for size in SIZES}
    for size in SIZES:
        same(fast[size], slow[size])
    for batches in (*slow.values(), *fast.values()):
        visits, keys = ([batch.visits for batch in batches], [batch.keys for batch in batches])
        assert joined(visits) == expected
        assert joined(keys) == [(number, keyed[number], users.get(number, "")) for number in sorted(keyed)]
    assert sum(row[4] != reader.ABSENT for row in expected) == 1


def joined(many: list[Columns | None]) -> list[tuple[Any, ...]]:
    """Rows of several tables of columns."""
    return [row for item in many if item for row in zip(*(column.tolist() for column in item.values()), strict=True)]


def test_only_the_columns_asked_for_are_read(served: Store) -> None:
    with served.read() as unit:
        (complete,) = read(unit)
        (some,) = read(unit, columns=["arm_id"])
    assert list(some.slots) == ["decision_id", "session_id", "position", "arm_id"]
    same([some], [Batch(slots={name: complete.slots[name] for name in some.slots}, events=complete.events)])


def test_sessions_far_apart_are_read_whole(store: Store) -> None:
    """A session that comes back when others have filled the log: its ids are no range."""
    stocked(store, home="uniform")
    for number in range(30):
        ask(store, "home", "regular" if number % 10 == 0 else f"s{number}", 2)
    with store.read() as unit, bulk.alongside(unit):
        result = read(unit, size=3)
        (complete,) = read(unit)
    assert len(result) > 5
    sessions = [set(batch.slots["session_id"].tolist()) for batch in result]
    assert sum(map(len, sessions)) == len(set.union(*sessions))
    together = np.concatenate([batch.slots["decision_id"] for batch in result])
    np.testing.assert_array_equal(together, complete.slots["decision_id"])


def test_an_abandoned_read_does_not_disturb_the_next(served: Store) -> None:
    with served.read() as unit, bulk.alongside(unit):
        next(reader.batches(unit, Selection(), size=6))
        complete = read(unit)
    with served.read() as unit:
        same(complete, read(unit))


# -- the same snapshot --


def writes(db: str, ready: Any, stop: Any) -> None:
    """Decide and answer until told to stop."""
    with closing(Store(db)) as store:
        number = 0
        while not stop.is_set():
            tell(store, ask(store, "home", f"w{number}", 2), 1, click=1.0)
            number += 1
            ready.set()


@pytest.fixture
def busy(served: Store, db: str) -> Iterator[Store]:
    """A store that another process writes to all the time."""
    ready, stop = processes.Event(), processes.Event()
    process = processes.Process(target=writes, args=(db, ready, stop))
    process.start()
    assert ready.wait(PATIENCE_S)
    yield clock(served, None)
    stop.set()
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
def test_both_connections_see_one_state_whoever_writes(busy: Store) -> None:
    counts, used = set(), 0
    for _ in range(READS):
        with busy.read() as unit, bulk.alongside(unit):
            used += unit.arrow_worker is not None
            for _ in range(2):
                batches = read(unit, size=10)
                slots = sum(len(batch) for batch in batches)
                events = sum(len(batch.events["kind"]) for batch in batches)
                assert slots == unit.ask_value("SELECT count(*) FROM slot")
                assert events == unit.ask_value("SELECT count(*) FROM event")
            counts.add(slots)
    assert used > READS // 2
    assert len(counts) > 1


def test_where_no_state_can_be_shared_the_unit_reads_itself(served: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with served.read() as unit:
        slow = read(unit)
    monkeypatch.setattr(bulk, "SNAPSHOT_ATTEMPTS", 0)
    monkeypatch.setattr(bulk, "_share_postgres_snapshot", lambda unit, worker: False)
    with served.read() as unit, bulk.alongside(unit):
        assert unit.arrow_worker is None
        same(read(unit), slow)


# -- the second process --

COUNT = """
import sqlite3, sys
print(sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM decision").fetchone())
"""


def test_reading_gives_up_no_lock_of_this_process(sqlite_db: str) -> None:
    """Two SQLites in one process would: what is written after the second has closed was lost to others."""
    with closing(Store(sqlite_db)) as store:
        stocked(store, home="uniform")
        ask(store)
        with store.read() as unit, bulk.alongside(unit):
            assert unit.arrow_worker is not None
            read(unit)
        ask(store)
        for expected in (2, 3):
            result = subprocess.run(
                [sys.executable, "-c", COUNT, sqlite_db], capture_output=True, check=True, text=True
            )
            assert result.stdout == f"({expected},)\n"
            ask(store)
    with closing(sqlite3.connect(sqlite_db)) as connection:
        assert connection.execute("SELECT count(*) FROM decision").fetchone() == (4,)


def test_without_a_driver_the_unit_reads_itself(served: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "find_spec", lambda name: None)
    with served.read() as unit, bulk.alongside(unit):
        assert unit.arrow_worker is None
        assert len(read(unit)) == 1


def test_a_writing_unit_reads_what_it_wrote(served: Store) -> None:
    def work(unit: Unit) -> int:
        unit.tell("UPDATE slot SET censored = 1")
        (batch,) = read(unit)
        return int(batch.slots["censored"].sum())

    assert served.write(work) > 40


def test_a_process_that_died_is_an_error(served: Store) -> None:
    with served.read() as unit, bulk.alongside(unit):
        unit.arrow_worker._process.kill()
        unit.arrow_worker._process.wait()
        with pytest.raises(RlrecError, match="ended"):
            read(unit)


@pytest.mark.parametrize(
    ("text", "why"), [("SELECT 1 FROM nowhere", "nowhere"), ("SELECT user_id FROM session", "nulls")]
)
def test_an_answer_that_cannot_be_had_is_an_error_in_one_line(served: Store, text: str, why: str) -> None:
    with served.read() as unit, bulk.alongside(unit):
        options = bulk.PendingQuery(unit, text, {"one": np.int64})
        with pytest.raises(RlrecError, match=rf"the store failed: [^\n]*{why}[^\n]*$"):
            options.columns()


def test_no_password_stands_in_a_command_line(
    postgres_server: str, postgres_template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "is_long", lambda *_: True)  # an empty log, too
    db = postgres_server.format(postgres_template).replace("postgres:@", "postgres:s%40cret@")
    with closing(Store(db)) as store, store.read() as unit, bulk.alongside(unit):
        assert unit.arrow_worker is not None
        assert "s%40cret" in bulk._open_postgres(unit)["uri"]
        assert b"cret" not in Path(f"/proc/{unit.arrow_worker._process.pid}/cmdline").read_bytes()
        assert read(unit) == []
