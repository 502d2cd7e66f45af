"""An audience before the store: the same log as a script's, on a clock of its own."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.app import arm as catalogue
from rlrec.app import policy
from rlrec.app.doctor import Request as Audit
from rlrec.app.doctor import doctor
from rlrec.app.simulate import Request, simulate
from rlrec.errors import InputError
from rlrec.store import Store, decisions, events
from rlrec.times import SECOND, parse
from tests.app.shop import added_up, dump, sums

START = parse("2026-01-01")


@pytest.fixture
def shop(store: Store) -> Store:
    policy.create(store, policy.Request(name="home", kind="thompson"))
    return store


def served(shop: Store, **rest: Any) -> dict[str, Any]:
    given = {
        "environment": "bernoulli",
        "policy": "home",
        "sessions": 12,
        "parameters": {"rates": "0.9,0.1"},
        "seed": 1,
    }
    return simulate(shop, Request(**given | rest))


def times(store: Store) -> list[int]:
    with store.read() as unit:
        found = decisions.find(unit, [*range(1, decisions.peek(unit))])
    return [(found[number].at - START) // SECOND for number in sorted(found)]


def test_the_belief_is_what_the_audience_gave(shop: Store) -> None:
    found = served(shop, size=2, group=5, steps=2)
    assert (found["decisions"], found["optimum_per_session"], found["regret"]) == (24, pytest.approx(2), 0)
    assert sum(one[1] for one in sums(shop, "home").values()) == found["reward"]
    assert sums(shop, "home") == added_up(shop, "home")
    assert doctor(shop, Audit(sample=50)).ok


def test_the_clock_starts_in_2026_and_stands_a_second_later_after_every_decision(shop: Store) -> None:
    found = served(shop, sessions=3, group=2, steps=2)
    assert times(shop) == [0, 0, 2, 2, 4, 5]
    assert found["ended_at"] == "2026-01-01T00:00:06.000000Z"


def test_the_next_simulation_starts_at_the_newest_decision(shop: Store) -> None:
    served(shop, sessions=3)
    shop.now = None
    served(shop, sessions=2)
    assert times(shop) == [0, 1, 2, 2, 3]


def test_steps_of_a_session_are_one_visit(shop: Store) -> None:
    served(shop, sessions=2, group=2, steps=3)
    with shop.read() as unit:
        found = decisions.find(unit, [*range(1, 7)])
    assert [(found[number].visit, found[number].step) for number in sorted(found)] == [
        (1, 0), (1, 0), (1, 1), (1, 1), (1, 2), (1, 2),
    ]  # fmt: skip


def test_a_click_comes_when_its_time_has_come_and_the_last_ones_are_waited_for(shop: Store) -> None:
    given = {"rates": "1,1", "delay": "3", "shape": "fixed"}
    found = served(shop, environment="delayed", parameters=given, sessions=5)
    with shop.read() as unit:
        happened = [one for group in events.of(unit, [*range(1, 6)]).values() for one in group]
    assert [(one.at - START) // SECOND for one in happened] == [3, 4, 5, 6, 7]
    assert [(one.received_at - START) // SECOND for one in happened] == [3, 4, 5, 6, 7]
    assert (found["reward"], found["ended_at"]) == (5, "2026-01-01T00:00:07.000000Z")


def test_contexts_are_logged(shop: Store) -> None:
    served(shop, environment="contextual", parameters={"arms": "2", "features": "3"}, sessions=4, group=2)
    with shop.read() as unit:
        rows = unit.ask("SELECT body FROM context ORDER BY id")
    assert len({row[0] for row in rows}) == 4


def test_one_seed_gives_one_log(sqlite_template: Path, tmp_path: Path) -> None:
    def played(name: str) -> object:
        shutil.copy(sqlite_template, tmp_path / name)
        with closing(Store(str(tmp_path / name), now=START)) as store:
            policy.create(store, policy.Request(name="home", kind="thompson"))
            return served(store, environment="contextual", parameters={"arms": "3"}), dump(store)

    assert played("one.db") == played("other.db")


def test_arms_of_an_audience_take_the_places_of_as_many_in_the_catalogue(shop: Store) -> None:
    catalogue.put(shop, lambda: [[catalogue.Line(arm=key, features={}) for key in ("tea", "cocoa")]])
    served(shop, parameters={"rates": "1,0"}, sessions=30)
    with shop.read() as unit:
        keys = dict(unit.ask("SELECT id, key FROM arm"))
    assert {keys[arm]: bool(found[1]) for arm, found in sums(shop, "home").items()} == {"cocoa": True, "tea": False}


def test_an_audience_that_does_not_fit_the_catalogue_is_refused(shop: Store) -> None:
    catalogue.put(shop, lambda: [[catalogue.Line(arm=key, features={}) for key in ("tea", "cocoa", "mate")]])
    with pytest.raises(InputError, match="has 2 arms"):
        served(shop)
