"""How much reward arrives within each window: by hand, and not fooled by young decisions."""

from __future__ import annotations

from typing import Any

import pytest

from rlrec.app.judging import delays
from rlrec.app.setup import reward
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.log import reader
from tests.app.shop import MINUTE, START, ask, clock, stocked, tell
from tests.conftest import ON_BOTH

DAY = 24 * 60 * MINUTE


@pytest.fixture
def shop(store: Store) -> Store:
    stocked(clock(store, START), home="uniform")
    slow = reward.Request(name="slow", weights="click=1, min(dwell_s,10)=0.1", window_us=20 * MINUTE, default=0.5)
    reward.define(store, slow)
    return store


def serve(store: Store, *, at: int, **more: Any) -> int:
    return int(ask(clock(store, at), **more)["decision_id"])


def later(store: Store, decision: int, delay: int, position: int | None = None, **events: Any) -> None:
    """What happened to a decision of START."""
    tell(clock(store, START + delay), decision, position, **events)


def shares(store: Store, now: int, name: str = "default", **options: Any) -> dict[float, float]:
    return {row["window_s"] / 60: row["share"] for row in delays.delays(clock(store, now), name, **options)}


def test_shares_multiply_from_the_longest_window_down(shop: Store) -> None:
    old = [serve(shop, at=START) for _ in range(4)]
    for decision, minute in zip(old, (0, 2, 10, 50), strict=False):
        later(shop, decision, minute * MINUTE, click=1)
    young = serve(shop, at=START + 55 * MINUTE)
    tell(clock(shop, START + 57 * MINUTE), young, click=1)
    rows = delays.delays(clock(shop, START + 62 * MINUTE))
    assert [(row["window_s"] / 60, row["events"], row["decisions"]) for row in rows] == [
        (1, 1, 5), (5, 3, 5), (15, 3, 4), (30, 3, 4), (60, 4, 4),
    ]  # fmt: skip
    assert [row["share"] for row in rows] == pytest.approx([0.75 * 2 / 3 / 3, 0.75 * 2 / 3, 0.75, 0.75, 1])
    assert [row["reward_per_decision"] for row in rows] == [0.2, 0.6, 0.75, 0.75, 1]
    assert [row["window_s"] / 60 for row in rows if row["own"]] == [30]


def test_young_decisions_do_not_look_poor(shop: Store) -> None:
    """Half of the reward takes ten minutes, which most decisions have not lived: of what came, 92 % came at once."""
    for decision in [serve(shop, at=START) for _ in range(2)]:
        later(shop, decision, 0, click=0.5)
    for decision in (1, 2):
        later(shop, decision, 10 * MINUTE, click=0.5)
    for _ in range(20):
        tell(shop, serve(shop, at=START + 30 * MINUTE), click=0.5)
    assert shares(shop, START + 33 * MINUTE) == pytest.approx({1: 0.5, 5: 0.5, 15: 1, 30: 1})


def test_the_reward_of_a_window_is_the_definitions_without_the_default(shop: Store) -> None:
    page = serve(shop, at=START, size=2)
    later(shop, page, 0, 1, dwell_s=8)  # 0.8 for a default of 0.5
    later(shop, page, 2 * MINUTE, 1, dwell_s=8)  # capped: 0.2 more
    later(shop, page, 10 * MINUTE, click=1)  # of the page
    later(shop, page, 12 * MINUTE, other=1)
    rows = delays.delays(clock(shop, START + 16 * MINUTE), "slow")
    assert [row["reward_per_decision"] for row in rows] == pytest.approx([0.3, 0.5, 1.5])
    assert [row["share"] for row in rows] == pytest.approx([0.2, 1 / 3, 1])


def test_a_page_with_a_censored_slot_is_left_out(shop: Store) -> None:
    retained, dropped = (serve(shop, at=START, size=2) for _ in range(2))
    later(shop, retained, 2 * MINUTE, 1, click=1)
    later(shop, dropped, 0, 1, click=1)
    later(shop, dropped, 0, 2, censor=True)
    assert shares(shop, START + 6 * MINUTE) == {1: 0, 5: 1}
    assert [row["decisions"] for row in delays.delays(shop)] == [1, 1]


def test_a_share_is_unknown_where_later_events_cancel_the_reward(shop: Store) -> None:
    decision = serve(shop, at=START)
    later(shop, decision, 0, click=1)
    later(shop, decision, 2 * MINUTE, click=-0.5)  # what is left is the default
    assert shares(shop, START + 6 * MINUTE, "slow") == {1: None, 5: 1}


@ON_BOTH
def test_an_imported_decision_is_old_enough_for_every_window(shop: Store) -> None:
    later(shop, serve(shop, at=START), 2 * MINUTE, click=1)
    shop.write(lambda unit: unit.tell("UPDATE decision SET imported = 1"))
    rows = delays.delays(shop)
    assert rows[-1]["window_s"] == 30 * DAY / 1e6
    assert [row["share"] for row in rows] == [0] + [1] * 13


def test_batches_add_up(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        later(shop, serve(shop, at=START, session=f"s{number}"), number * 5 * MINUTE, click=1)
    complete = delays.delays(clock(shop, START + DAY))
    cut = reader.batches
    monkeypatch.setattr(reader, "batches", lambda *args, **options: cut(*args, **options, size=2))
    assert delays.delays(shop) == complete


@ON_BOTH
def test_a_log_where_nothing_arrived_is_refused(shop: Store) -> None:
    with pytest.raises(InputError, match="no weighed event"):
        delays.delays(shop)
    decision = serve(shop, at=START)
    later(shop, decision, MINUTE, other=1)
    with pytest.raises(InputError, match="no weighed event"):
        delays.delays(clock(shop, START + DAY))
    later(shop, decision, DAY, click=1)
    with pytest.raises(InputError, match="no weighed event"):
        delays.delays(shop, log="since=2030-01-01")
    assert shares(shop, START + 3 * DAY)
