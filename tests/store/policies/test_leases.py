"""A lease is one holder's until it expires, whoever else asks; weights and reports stay with their version."""

from __future__ import annotations

import time

import pytest

from rlrec.store import Store, Unit
from rlrec.store.policies import beliefs, leases, policies
from tests.app.shop import START, clock, stocked, version
from tests.app.workers import together

TURNS = 8


@pytest.fixture
def policy_id(store: Store) -> int:
    stocked(store, home="uniform")
    with store.read() as unit:
        return version(unit, "home").policy.id


def take(store: Store, policy_id: int, token: str, *, now: int, until: int) -> leases.Lease | None:
    def work(unit: Unit) -> leases.Lease | None:
        return leases.take(unit, policy_id, holder=f"host {token}", token=token, now=now, until=until)

    return store.write(work)


def test_a_lease_is_one_holders_until_it_expires(store: Store, policy_id: int) -> None:
    assert take(store, policy_id, "one", now=10, until=20) is None
    assert take(store, policy_id, "two", now=20, until=30) == (policy_id, "host one", "one", 10, 20)
    assert take(store, policy_id, "two", now=21, until=30) is None
    with store.read() as unit:
        assert leases.current_lease(unit, policy_id) == (policy_id, "host two", "two", 21, 30)


def test_a_holder_takes_its_own_lease_again(store: Store, policy_id: int) -> None:
    take(store, policy_id, "one", now=10, until=20)
    assert take(store, policy_id, "one", now=15, until=40) is None
    with store.read() as unit:
        assert leases.current_lease(unit, policy_id) == (policy_id, "host one", "one", 10, 40)


def test_only_the_holder_renews_and_releases(store: Store, policy_id: int) -> None:
    take(store, policy_id, "one", now=10, until=20)
    assert not store.write(lambda unit: leases.renew(unit, policy_id, token="two", until=90))
    assert not store.write(lambda unit: leases.release(unit, policy_id, token="two"))
    assert store.write(lambda unit: leases.renew(unit, policy_id, token="one", until=90))
    assert store.write(lambda unit: leases.release(unit, policy_id, token="one"))
    with store.read() as unit:
        assert leases.current_lease(unit, policy_id) is None


def takes(store: Store, item: tuple[int, int]) -> int:
    number, policy_id = item
    return sum(take(store, policy_id, f"{number}", now=turn, until=turn) is None for turn in range(0, 2 * TURNS, 2))


def test_of_many_that_ask_at_once_one_has_it(store: Store, db: str, policy_id: int) -> None:
    won = together(takes, db, [(number, policy_id) for number in range(3)])
    assert 1 <= sum(won) <= 3 * TURNS
    with store.read() as unit:
        assert leases.current_lease(unit, policy_id) is not None
    rivals = together(first, db, [(number, policy_id) for number in range(4)])
    assert sum(rivals) == 1


def first(store: Store, item: tuple[int, int]) -> bool:
    number, policy_id = item
    return take(store, policy_id, f"rival {number}", now=1_000, until=2_000) is None


def test_the_clock_of_a_lease_is_the_databases(store: Store) -> None:
    stocked(store)
    with clock(store, START).read() as unit:
        assert unit.now == START
        assert abs(unit.clock() - time.time_ns() // 1000) < 60_000_000


def test_weights_and_a_report_stay_with_their_version(store: Store) -> None:
    stocked(store, home="uniform")

    def work(unit: Unit) -> int:
        live = version(unit, "home")
        answers = policies.add_version(
            unit, policy_id=live.policy.id, number=2, status="frozen", reward_id=live.reward.id, seq=0,
            learned_from={}, report={"curve": [1, 2]},
        )  # fmt: skip
        beliefs.add_weights(unit, answers, [(2, b"b\0"), (1, b"a\0")])
        assert policies.report(unit, live.id) is None
        return answers

    answers = store.write(work)
    with store.read() as unit:
        assert beliefs.weights(unit, answers) == [(1, b"a\0"), (2, b"b\0")]
        assert policies.report(unit, answers) == {"curve": [1, 2]}
