"""Beliefs that a long process keeps up to date, arm by arm, are those that are stored."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec import times
from rlrec.app.distributions import exact
from rlrec.app.inputs import lookup
from rlrec.app.requests import recommend
from rlrec.app.requests.recommend import GroupPlan, Request, RequestGroup, recommend_group
from rlrec.app.serving.cache import ServingCache
from rlrec.store import Store, Unit
from tests.conftest import Run, begin

KINDS = [
    ("thompson", ()),
    ("exp3", ()),
    ("thompson", ("discount=0.9",)),
    ("lin-thompson", ()),
    ("two-stage", ("first=plackett-luce", "candidates=4")),
    ("two-stage", ("first=thompson", "second=lin-thompson", "candidates=4")),
]


def sums(serving: exact.VersionDistribution) -> list[Any]:
    both = [serving, *([serving.generator] if serving.generator else [])]
    return [array for each in both for array in (each._arms, each._sums)]


@pytest.mark.parametrize(("kind", "params"), KINDS)
def test_a_belief_that_is_kept_up_to_date_is_the_stored_one(
    run: Run, db: str, kind: str, params: tuple[str, ...]
) -> None:
    """Over groups of this process, and where another one comes between."""
    begin(run, [f"a{arm}" for arm in range(9)], "p", kind, *(word for pair in params for word in ("--param", pair)))
    with closing(Store(db)) as store:
        cache = ServingCache()
        for group in range(6):
            requests = [Request(policy="p", session=f"s{group}-{row}", size=2) for row in range(2)]
            recommend_group(store, requests, seed=group, cache=cache)
            if group == 3:
                run("recommend", "--policy", "p", "--session", "other").done()
                run("feedback", "1", "click", "--position", "1").done()

            def compared(unit: Unit) -> tuple[list[Any], list[Any]]:
                version, head = lookup.version(unit, "p")
                return sums(cache.serving(unit, version, head)), sums(exact.load(unit, version))

            with store.read() as unit:
                held, fresh = compared(unit)
            assert all(np.array_equal(a, b) for a, b in zip(held, fresh, strict=True))


def test_a_version_that_was_retired_is_served_with_the_belief_that_it_has(run: Run, db: str) -> None:
    """It has learned since it was served first, at the change that it was made at."""
    begin(run, [f"a{arm}" for arm in range(3)], "p", "thompson")
    run("policy", "rebuild", "p").done()
    with closing(Store(db)) as store:
        cache = ServingCache()

        def serve() -> None:
            recommend_group(store, [Request(policy="p@2", session="s")], cache=cache)

        serve()
        run("feedback", "1", "click").done()
        run("policy", "retire", "p@2").done()
        serve()
        with store.read() as unit:
            version, head = lookup.version(unit, "p@2")
            pairs = zip(sums(cache.serving(unit, version, head)), sums(exact.load(unit, version)), strict=True)
            assert all(np.array_equal(held, stored) for held, stored in pairs)


def test_the_price_of_a_frozen_version_is_that_of_the_arms_that_are_shown_now(run: Run, db: str) -> None:
    """An arm goes when its time is over, and no revision of the catalogue says so."""
    days = [times.parse(f"2030-01-0{day}T00:00:00Z") for day in (1, 3)]
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in "abc"]).done()
    run("arm", "add", "a", "--until", "2030-01-02T00:00:00Z").done()
    run("reward", "define", "savings", "cost=-1").done()
    run("policy", "create", "p", "--kind", "epsilon-greedy", "--param", "budget=cost:0.5/hour").done()
    run("policy", "freeze", "p").done()
    cache, shown = ServingCache(), list[list[int]]()
    for now in days:
        with closing(Store(db, now=now)) as store:
            recommend_group(store, [Request(policy="p@2", session="s")], cache=cache, dry_run=True)
            with store.read() as unit:
                version, head = lookup.version(unit, "p@2")
                shown.append(cache.serving(unit, version, head).catalogue.tolist())
    assert shown == [[1, 2, 3], [2, 3]]


def test_only_the_arms_that_moved_are_read(run: Run, db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(run, [f"a{arm}" for arm in range(9)], "p", "thompson")
    with closing(Store(db)) as store:
        cache = ServingCache()
        recommend_group(store, [Request(policy="p", session="s0", size=2)], cache=cache)
        monkeypatch.setattr(exact, "_stored_sums", None)  # it reads them all
        answers = recommend_group(store, [Request(policy="p", session="s1", size=2)], cache=cache)
        assert isinstance(answers[0], dict)


@pytest.mark.parametrize("size", [1, 2])
def test_probabilities_are_computed_before_a_lock_is_taken(
    run: Run, db: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Others wait for the lock of the policy, and would wait for them."""
    begin(run, [f"a{arm}" for arm in range(3)], "p", "thompson")
    computed, write = list[bool](), RequestGroup._write
    monkeypatch.setattr(recommend, "MAX_QUICK_CELLS", 0)  # a small group computes them quickly enough

    def observed(group: RequestGroup, plan: GroupPlan, unit: Unit) -> Any:
        for planned in plan.requests.values():
            computed.append(bool({"_cdf", "_shared_marginals"} & vars(planned.distribution.case.samplers[size]).keys()))
        return write(group, plan, unit)

    monkeypatch.setattr(RequestGroup, "_write", observed)
    with closing(Store(db)) as store:
        recommend_group(store, [Request(policy="p", session="s", size=size)], cache=ServingCache())
    assert computed == [True]


def test_contexts_that_are_remembered_have_a_bounded_size() -> None:
    cache = ServingCache()
    for number in range(30):
        context = {"text": "x" * 1_000_000, "number": number}
        text = cache.text(context)
        cache.add({text: number}, {})
        assert json.loads(text) == context
    assert sum(map(len, cache.contexts)) < 11_000_000
    assert sum(map(len, cache._texts)) < 11_000_000
