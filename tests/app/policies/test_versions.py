"""Versions: what a frozen belief holds, what it learned from, and what goes live."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.inputs import lookup
from rlrec.app.learning import belief_versions
from rlrec.app.log import lineage
from rlrec.app.policies import policy as policies
from rlrec.app.policies import versions
from rlrec.app.requests.feedback import Line, feedback
from rlrec.app.requests.recommend import Request, recommend
from rlrec.app.setup import reward as rewards
from rlrec.app.setup.arm import put
from rlrec.errors import CheckFailed, InputError
from rlrec.store import Store
from rlrec.store.policies import beliefs

MINUTE = 60_000_000
NOON = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z


@contextmanager
def at(db: str, minute: float) -> Iterator[Store]:
    """The store at so many minutes after noon."""
    with closing(Store(db, now=NOON + int(minute * MINUTE), notice=lambda _: None)) as store:
        yield store


def define(store: Store, name: str, **changed: Any) -> None:
    clipped: dict[str, Any] = {"weights": "click=1", "clip": (0.0, 1.0), "window_us": 30 * MINUTE}
    rewards.define(store, rewards.Request(name=name, **clipped | changed))


@pytest.fixture
def shop(db: str) -> str:
    """Arms a1 and a2; rewards that settle and that ignore late events; a policy for each, and one served at once."""
    with at(db, 0) as store:
        put(store, lambda: [[(key, {}) for key in ("a1", "a2")]])
        define(store, "slow", learn="settled")
        define(store, "strict", late="ignore")
        for name, reward in (("home", "default"), ("slow", "slow"), ("strict", "strict")):
            policies.create(store, policies.Request(name=name, kind="thompson", reward=reward))
    return db


def show(db: str, minute: float, policy: str, arm: str, *, session: str = "s", clicked: float | None = None) -> int:
    """A decision that shows one arm, clicked so many minutes after noon."""
    with at(db, minute) as store:
        request = Request(policy=policy, session=f"{session}-{policy}", arms=[arm])
        decision = int(recommend(store, request)["decision_id"])
    if clicked is not None:
        with at(db, clicked) as store:
            feedback(store, Line(decision_id=decision, events={"click": 1}))
    return decision


def sums(store: Store, reference: str) -> dict[int, tuple[float, ...]]:
    with store.read() as unit:
        version, _ = lookup.version(unit, reference)
        return {row[0]: tuple(row[1:]) for row in beliefs.sums(unit, version.id) if any(row[1:])}


@pytest.mark.parametrize("policy", ["home", "slow", "strict"])
def test_a_frozen_belief_holds_the_mature_slots_alone(shop: str, policy: str) -> None:
    show(shop, 0, policy, "a1", clicked=5)
    show(shop, 1, policy, "a2")
    show(shop, 20, policy, "a2", clicked=21)
    with at(shop, 31) as store:  # the second one is 30 minutes old: not yet older than its window
        versions.freeze(store, policy)
        assert sums(store, f"{policy}@2") == {1: (1, 1, 1)}
    with at(shop, 51) as store:
        versions.freeze(store, policy)
        assert sums(store, f"{policy}@3") == {1: (1, 1, 1), 2: (2, 1, 1)}


@pytest.mark.parametrize(("policy", "clicks"), [("home", 1), ("slow", 1), ("strict", 0)])
def test_a_late_event_counts_in_a_frozen_belief_as_in_its_source(shop: str, policy: str, clicks: float) -> None:
    show(shop, 0, policy, "a1", clicked=45)
    with at(shop, 60) as store:
        versions.freeze(store, policy)
        assert sums(store, f"{policy}@2") == {1: (1, clicks, clicks)}


def test_a_censored_slot_is_not_frozen(shop: str) -> None:
    first, _ = show(shop, 0, "home", "a1", clicked=1), show(shop, 0, "home", "a2")
    show(shop, 59, "home", "a1")
    with at(shop, 60) as store:
        feedback(store, Line(decision_id=first, censor=True))
        versions.freeze(store, "home")
        assert sums(store, "home@2") == {2: (1, 0, 0)}


def test_freezing_leaves_the_source_as_it_is(shop: str) -> None:
    show(shop, 0, "home", "a1", clicked=1)
    with at(shop, 2) as store:
        before = sums(store, "home")
        versions.freeze(store, "home")
        assert (sums(store, "home"), sums(store, "home@2")) == (before, {})
    show(shop, 3, "home", "a1")
    with at(shop, 4) as store:
        assert sums(store, "home") == {1: (2, 1, 1)}


def test_nothing_moves_a_frozen_belief(shop: str) -> None:
    first = show(shop, 0, "home", "a1")
    with at(shop, 60) as store:
        versions.freeze(store, "home")
        versions.promote(store, "home@2")
    show(shop, 61, "home", "a2", clicked=62)
    with at(shop, 63) as store:
        feedback(store, Line(decision_id=first, events={"click": 1}))
        assert sums(store, "home@2") == {1: (1, 0, 0)}
        assert sums(store, "home@1") == {1: (1, 1, 1), 2: (1, 1, 1)}  # credited whichever version served


def test_a_frozen_version_keeps_its_prior_and_the_belief_it_was_drawn_from(shop: str, tmp_path: Any) -> None:
    (tmp_path / "prior.csv").write_text("arm,alpha,beta\na1,3,5\n")
    with at(shop, 0) as store:
        policies.create(store, policies.Request(name="p", kind="thompson", prior=str(tmp_path / "prior.csv")))
    show(shop, 0, "p", "a1", clicked=1)
    with at(shop, 60) as store:
        versions.freeze(store, "p")
        versions.promote(store, "p@2")
        drawn = recommend(store, Request(policy="p", session="x", size=2), seed=3)
        with store.read() as unit:
            version, head = lookup.version(unit, "p")
            assert beliefs.prior(unit, version.id) == [(1, 3, 5)]
            assert exact.load(unit, version, seq=head.seq).belief(np.array([1])).pulls.tolist() == [1]
    assert drawn["slate"][0]["score"] in (4 / 9, 1 / 2)


def test_a_name_means_the_belief_that_learns_where_the_live_one_is_frozen(shop: str) -> None:
    with at(shop, 0) as store:
        versions.freeze(store, "home")
        versions.promote(store, "home@2")
    show(shop, 1, "home", "a1")
    with at(shop, 60) as store:
        assert versions.freeze(store, "home")["parent"] == 1
        assert sums(store, "home@3") == {1: (1, 0, 0)}
        assert versions.freeze(store, "home@2")["parent"] == 2
        assert sums(store, "home@4") == {}
        with store.read() as unit:
            copied, _ = lookup.version(unit, "home@4")
            assert copied.learned_from == {}  # a copy of what was frozen before the decision


def test_two_that_freeze_at_once_get_two_numbers(shop: str) -> None:
    def freeze(_: int) -> int:
        with at(shop, 1) as store:
            return int(versions.freeze(store, "home")["version"])

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(freeze, range(4))) == [2, 3, 4, 5]


def test_a_frozen_version_says_all_that_it_learned_from(shop: str) -> None:
    logged = [show(shop, 0, "strict", "a1", clicked=1), show(shop, 0, "strict", "a2")]
    with at(shop, 40) as store:
        policies.create(store, policies.Request(name="pupil", kind="thompson", from_log="policy=strict"))
    separate = show(shop, 41, "pupil", "a2", clicked=42)
    with at(shop, 80) as store:
        versions.freeze(store, "pupil")
        assert sums(store, "pupil@2") == {1: (1, 1, 1), 2: (2, 1, 1)}
        with store.read() as unit:
            version, _ = lookup.version(unit, "pupil@2")
            lessons = lineage.learned_from(lineage.ancestry(unit, version))
    assert [lesson.selection.last_id for lesson in lessons] == [separate, max(logged)]
    assert lessons[0].selection.policy_ids != lessons[1].selection.policy_ids


def test_a_fork_names_the_newest_decision_it_holds(shop: str) -> None:
    ids = [show(shop, minute, "home", "a1") for minute in (0, 10, 20)]
    with at(shop, 41) as store, store.read() as unit:
        version, _ = lookup.version(unit, "home")
        result, last = belief_versions.fork(unit, version)[:2]
        assert (last, {arm: tuple(sums) for (_, arm), sums in result.items()}) == (ids[1], {1: (2, 0, 0)})


def test_what_is_live_comes_back_in_order(shop: str) -> None:
    with at(shop, 0) as store:
        versions.freeze(store, "home")
        assert versions.promote(store, "home@2") == {
            "policy": "home", "version": 2, "previous": 1, "passed_by": [],
        }  # fmt: skip
        assert versions.promote(store, "home@2")["previous"] == 2  # nothing changed, nothing to roll back
        assert versions.promote(store, "home@1")["previous"] == 2
        assert versions.rollback(store, "home")["version"] == 2
        assert versions.rollback(store, "home")["version"] == 1
        with pytest.raises(CheckFailed):
            versions.rollback(store, "home")
        for wrong in ("home", "home@9", "nobody@1"):
            with pytest.raises(InputError):
                versions.promote(store, wrong)
