"""The log as visits: which of them count, and what they earned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlrec.app.log import ended_visits
from rlrec.app.log.ended_visits import Cutoff, EndedVisits
from rlrec.app.log.reward_log import UnusedVisits
from rlrec.app.requests import feedback, session
from rlrec.app.setup import reward
from rlrec.policy.gradients import history, returns
from rlrec.records import Reward
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import reader
from rlrec.store.log.selected import Selection
from tests.app.shop import MINUTE, SECOND, START, ask, clock, stocked, tell, version
from tests.conftest import ON_BOTH

HALF = 30 * MINUTE  # the window of the default reward, and when a visit times out


@pytest.fixture
def shop(store: Store) -> Store:
    return stocked(clock(store, START), home="uniform")


@pytest.fixture
def shop_sqlite(sqlite_db: str) -> Iterator[Store]:
    with closing(Store(sqlite_db)) as store:
        yield stocked(clock(store, START), home="uniform")


def pages(store: Store, key: str, *times: int, size: int = 1, name: str = "home") -> list[int]:
    """A decision of a session at each time, after the start: their ids."""
    return [int(ask(clock(store, START + at), name, key, size)["decision_id"]) for at in times]


def read(
    store: Store, now: int, selection: Selection | None = None, name: str = "home"
) -> tuple[list[EndedVisits], UnusedVisits]:
    """The visits that can be used at a time after the start, batch by batch, and how many others there are."""
    with clock(store, START + now).read() as unit, bulk.alongside(unit):
        visits, unused = _read(unit, selection or Selection(), version(unit, name).reward)
    return visits, replace(unused, mature_from=frozenset())


def _read(unit: Unit, selection: Selection, definition: Reward) -> tuple[list[EndedVisits], UnusedVisits]:
    result, total = [], UnusedVisits()
    cutoff = Cutoff.compute(unit, definition)
    for batch in reader.batches(unit, selection, columns=ended_visits.VISIT_COLUMNS, visits=True):
        some, unused = ended_visits.usable_visits(batch, definition, cutoff)
        result.append(some)
        total += unused
    return [row for row in result if len(row)], total


def lengths(result: list[EndedVisits]) -> list[int]:
    return [length for row in result for length in np.diff(row.start).tolist()]


def rewards(result: list[EndedVisits]) -> list[float]:
    return [value for row in result for value in row.reward.tolist()]


def test_a_visit_counts_when_it_is_over_and_its_windows_are(shop: Store) -> None:
    pages(shop, "s", 0, SECOND)
    last = SECOND + HALF
    assert read(shop, last) == ([], UnusedVisits(waiting=1))
    result, reported = read(shop, last + 1)
    assert (lengths(result), reported) == ([2], UnusedVisits())


def test_a_visit_that_was_ended_waits_for_its_windows_alone(shop: Store) -> None:
    reward.define(shop, reward.Request(name="quick", weights="click=1", window_us=MINUTE))
    from rlrec.app.policies import policy

    policy.create(shop, policy.Request(name="fast", kind="uniform", reward="quick"))
    pages(shop, "s", 0, name="fast")
    session.end(clock(shop, START + SECOND), "s")
    assert read(shop, MINUTE, name="fast")[1] == UnusedVisits(waiting=1)
    assert lengths(read(shop, MINUTE + 1, name="fast")[0]) == [1]


def test_the_visits_of_a_session_are_told_apart(shop: Store) -> None:
    pages(shop, "s", 0, SECOND, 2 * HALF, 2 * HALF + SECOND, 2 * HALF + 2 * SECOND)
    result, _ = read(shop, 5 * HALF)
    assert lengths(result) == [2, 3]
    assert [row.per_visit("visit").tolist() for row in result] == [[1, 2]]
    assert [returns.steps(row.start).tolist() for row in result] == [[0, 1, 0, 1, 2]]


def test_short_visits_do_not_come_first(shop: Store) -> None:
    """Who began with one that goes on, or after it, waits for that one: else short visits would be the rule."""
    pages(shop, "long", 0)
    pages(shop, "short", SECOND)
    pages(shop, "long", HALF - MINUTE)
    assert read(shop, HALF + 2 * SECOND) == ([], UnusedVisits(waiting=2))
    assert lengths(read(shop, 2 * HALF)[0]) == [2, 1]


def test_those_that_began_before_one_that_goes_on_count(shop: Store) -> None:
    pages(shop, "before", 0)
    pages(shop, "on", SECOND, HALF)
    result, reported = read(shop, HALF + 2 * SECOND)
    assert (lengths(result), reported) == ([1], UnusedVisits(waiting=1))


def test_a_visit_of_more_than_a_day_holds_nothing_up(shop_sqlite: Store) -> None:
    every = HALF - MINUTE
    times = list(range(0, 26 * 60 * MINUTE, every))
    pages(shop_sqlite, "robot", *times[:-2])
    pages(shop_sqlite, "guest", times[-3] + 1)
    pages(shop_sqlite, "robot", *times[-2:])
    result, reported = read(shop_sqlite, times[-1] + 1)
    assert (lengths(result), reported) == ([1], UnusedVisits(waiting=1))


def test_the_reward_of_a_page_is_that_of_its_slots_and_its_own(shop: Store) -> None:
    first, second = pages(shop, "s", 0, SECOND, size=2)
    for position, events in ((1, {"click": 1.0}), (2, {"click": 1.0}), (None, {"reward": 0.25})):
        tell(clock(shop, START + 2 * SECOND), first, position, **events)
    result, _ = read(shop, 2 * HALF)
    assert rewards(result) == [2.25, 0.0]
    assert result[0].default.tolist() == [False, True]
    assert second == first + 1


def test_an_event_after_the_window_earns_nothing(shop: Store) -> None:
    (number,) = pages(shop, "s", 0)
    tell(clock(shop, START + HALF), number, 1, at=START + HALF, click=1)
    tell(clock(shop, START + HALF + SECOND), number, 1, at=START + HALF + SECOND, reward=1)
    assert rewards(read(shop, 3 * HALF)[0]) == [1.0]


def test_an_event_of_a_page_counts_as_one(shop: Store) -> None:
    first, _ = pages(shop, "s", 0, SECOND, size=2)
    tell(clock(shop, START + SECOND), first, click=1)
    (result,) = read(shop, 3 * HALF)[0]
    assert (result.reward.tolist(), result.default.tolist()) == ([1.0, 0.0], [False, True])


def test_a_censored_slot_takes_the_visit_out_and_back(shop: Store) -> None:
    first, _ = pages(shop, "s", 0, SECOND)
    pages(shop, "t", SECOND)
    for censor, retained in ((True, [1]), (False, [2, 1])):
        feedback.feedback(shop, feedback.Line(decision_id=first, position=1, censor=censor))
        result, reported = read(shop, 3 * HALF)
        assert (lengths(result), reported.left_out) == (retained, 2 - len(retained))


@ON_BOTH
@pytest.mark.parametrize(
    ("cut", "retained"),
    [
        (Selection(since=START + SECOND), [1]),
        (Selection(until=START + SECOND), []),
        (Selection(first_id=2), [1]),
        (Selection(until=START + 2 * SECOND), [2]),
    ],
)
def test_a_visit_that_a_selection_cuts_is_left_out(shop: Store, cut: Selection, retained: list[int]) -> None:
    pages(shop, "s", 0, SECOND)
    pages(shop, "t", 2 * SECOND)
    result, reported = read(shop, 3 * HALF, cut)
    assert lengths(result) == retained
    assert reported.waiting == reported.silent == 0
    assert reported.left_out == (retained != [2])


def test_what_each_decision_knew_is_what_it_kept(shop: Store) -> None:
    first, second = pages(shop, "s", 0, 5 * SECOND, size=2)
    tell(clock(shop, START + 6 * SECOND), first, 1, click=1)
    pages(shop, "s", 9 * SECOND, size=2)
    result, _ = read(shop, 3 * HALF)
    histories = result[0].histories()
    assert (histories.gap_s.tolist(), histories.n_shown.tolist(), histories.reward.tolist()) == (
        [0, 5, 4],
        [0, 2, 4],
        [0, 0, 1],
    )
    assert histories.ago.tolist() == [1, 1, 2, 2, 1, 1]
    assert isinstance(histories, history.History)
    assert second == first + 1


def test_batches_split_no_session(shop_sqlite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "BATCH", 4, raising=False)
    for number in range(9):
        pages(shop_sqlite, f"s{number}", *(second * SECOND for second in range(9 * number, 9 * number + 3)))
    assert lengths(read(shop_sqlite, 3 * HALF)[0]) == [3] * 9


def test_taking_some_visits_takes_their_decisions_and_slots(shop_sqlite: Store) -> None:
    for number, size in enumerate((1, 2, 3)):
        pages(shop_sqlite, f"s{number}", *(second * SECOND for second in (9 * number, 9 * number + 1)), size=size)
    ((result,), _) = read(shop_sqlite, 3 * HALF)
    some = result.take(np.array([True, False, True]))
    assert (len(some), np.diff(some.start).tolist(), np.diff(some.first).tolist()) == (2, [2, 2], [1, 1, 3, 3])
    assert some.per_decision("decision_id").tolist() == [1, 2, 5, 6]
    assert some.per_visit("session_id").tolist() == result.per_visit("session_id")[[0, 2]].tolist()
    assert result.take(np.ones(3, np.bool_)) is result


def imported(store: Store, *rows: dict[str, Any]) -> None:

    from tests.conftest import runner

    runner(str(store.url.database))(
        "--now", "2027-01-15T08:00:00Z", "import-log", "-", "--layout", "jsonl", "--policy", "old", stdin=rows
    ).done()


def line(session_key: str, **changed: Any) -> dict[str, Any]:
    shown = [{"arm": "a", "propensity": 0.5}]
    return {"session": session_key, "slate": shown, "eligible": ["a", "b"], "at": "2027-01-01T00:00:00Z"} | changed


def test_imported_visits_are_old_enough_and_count_where_their_pages_are_whole(shop_sqlite: Store) -> None:
    imported(
        shop_sqlite,
        line("whole"),
        line("twice"),
        line("twice", at="2027-01-01T00:00:09Z", slate=[{"arm": "b", "propensity": 0.5}]),
        line("silent", slate=[{"arm": "a", "marginal": 0.5}, {"arm": "b", "marginal": 0.5}]),
    )
    result, reported = read(shop_sqlite, 1)
    assert sorted(lengths(result)) == [1, 2]
    assert reported == UnusedVisits(left_out=1, silent=1)
