"""Beliefs that fade or end, through the store: by the ordinal of decisions, never by when feedback came."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.inputs import lookup
from rlrec.app.policies import versions
from rlrec.app.requests.recommend import Request as Page
from rlrec.app.requests.recommend import recommend_group
from rlrec.app.serving.cache import ServingCache
from rlrec.app.upkeep.doctor import Request, doctor
from rlrec.records import Version
from rlrec.store import Store, Unit
from tests.app.defined import arm_ids
from tests.conftest import ON_BOTH, CommandResult, runner

Run = Callable[..., CommandResult]
MEMORIES = {"discount": "discount=0.9", "window": "window=64"}
ARMS = ("a1", "a2", "a3")


@pytest.fixture(params=list(MEMORIES))
def shop(request: pytest.FixtureRequest, db: str) -> tuple[str, Run, str]:
    run = runner(db)
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in ARMS]).done()
    create = ("policy", "create", "p", "--kind", "thompson", "--param", "floor=0.3", "--param", MEMORIES[request.param])
    run(*create).done()
    return db, run, request.param


def serve(run: Run, n: int, *, seed: int, size: int = 1) -> list[dict[str, Any]]:
    options = [{"policy": "p", "session": f"s{seed}-{i}", "k": size} for i in range(n)]
    return run("recommend", "--input", "-", "--format", "ndjson", "--seed", seed, stdin=options).done().lines


def tell(run: Run, lines: list[dict[str, Any]]) -> None:
    run("feedback", "--input", "-", stdin=lines).done()


def believed(db: str, name: str = "p") -> dict[int, tuple[float, ...]]:
    """Pulls and rewards per arm that count now."""
    with closing(Store(db)) as store, store.read() as unit:
        version, _ = lookup.version(unit, name)
        return counted(unit, version)


def counted(unit: Unit, version: Version) -> dict[int, tuple[float, ...]]:
    stored = exact.load(unit, version)
    ids = arm_ids(stored)
    belief = stored.belief(ids)
    return {int(arm): (belief.pulls[index], belief.reward_sum[index]) for index, arm in enumerate(ids)}


def expected(kind: str, served: list[dict[str, Any]], clicked: set[int]) -> dict[str, list[float]]:
    """The same by the definition, from all slots in order of their decisions."""
    total: dict[str, list[float]] = {}
    for ordinal, decision in enumerate(served, 1):
        age = len(served) - ordinal
        newest = (ordinal // 2 + 1) * 2 - 1  # of its bucket: 64 // 32 ordinals wide
        weight = 0.9**age if kind == "discount" else float(newest > len(served) - 64)
        for slot in decision["slate"]:
            sums = total.setdefault(slot["arm"], [0.0, 0.0])
            sums[0] += weight
            sums[1] += weight * (decision["decision_id"] in clicked)
    return total


def same(result: dict[int, tuple[float, ...]], wanted: dict[str, list[float]]) -> bool:
    names = {arm: index for index, arm in enumerate(ARMS, 1)}
    rows = [(result.get(name, (0.0, 0.0)), wanted.get(arm, [0.0, 0.0])) for arm, name in names.items()]
    return all(np.allclose(item, other, rtol=1e-9, atol=1e-9) for item, other in rows)


@ON_BOTH
def test_sums_are_those_of_the_definition_whatever_the_order(shop: tuple[str, Run, str]) -> None:
    db, run, kind = shop
    served = serve(run, 40, seed=1)
    early = {answer["decision_id"] for answer in served[::3]}
    tell(run, [{"decision_id": item, "events": {"click": 1}, "position": 1} for item in early])
    served += serve(run, 70, seed=2)
    assert same(believed(db), expected(kind, served, early))
    late = {answer["decision_id"] for answer in served[1::3]} - early
    tell(run, [{"decision_id": item, "events": {"click": 1}, "position": 1} for item in sorted(late, reverse=True)])
    assert same(believed(db), expected(kind, served, early | late))


@pytest.mark.slow
def test_every_propensity_is_derived_again(shop: tuple[str, Run, str]) -> None:
    db, run, _ = shop
    for turn in range(6):
        served = serve(run, 25, seed=turn, size=1 + turn % 2)
        tell(
            run,
            [{"decision_id": answer["decision_id"], "events": {"click": 1}, "position": 1} for answer in served[::2]],
        )
    run("feedback", served[0]["decision_id"], "--censor").done()
    with closing(Store(db)) as store:
        report = doctor(store, Request())
    assert {finding.check for finding in report.findings} <= {"positions"}  # all clicks are at position 1
    assert report.checked["propensities"] == 150
    assert run("decision", "show", served[-1]["decision_id"], "--json").done().json["agrees"] is True


def test_a_frozen_memory_fades_no_more(shop: tuple[str, Run, str]) -> None:
    db, run, kind = shop
    served = serve(run, 30, seed=1)
    later = "2100-01-01T00:00:00Z"
    run("--allow-future", "--now", later, "policy", "freeze", "p").done()
    before = believed(db, "p@2")
    serve_at = [{"policy": "p", "session": f"x{i}"} for i in range(30)]
    run("--now", later, "--allow-future", "recommend", "--input", "-", stdin=serve_at).done()
    assert before == believed(db, "p@2")
    assert same(before, expected(kind, served, set()))


@pytest.mark.slow
def test_a_retired_memory_serves_as_it_ended(shop: tuple[str, Run, str]) -> None:
    db, run, _ = shop
    served = serve(run, 80, seed=1)
    tell(run, [{"decision_id": answer["decision_id"], "events": {"click": 1}, "position": 1} for answer in served[::2]])
    for words in (("rebuild", "p"), ("promote", "p@2"), ("retire", "p@1")):
        run("policy", *words).done()
    serve(run, 70, seed=2)
    before = believed(db, "p@1")
    shown = run("recommend", "--policy", "p@1", "--session", "s", "--json").done().json
    assert before == believed(db, "p@1")
    assert run("decision", "show", shown["decision_id"], "--json").done().json["agrees"] is True
    with closing(Store(db)) as store:
        assert doctor(store, Request()).findings == []


@pytest.mark.slow
def test_a_stream_sees_that_a_memory_was_retired(shop: tuple[str, Run, str]) -> None:
    db, run, _ = shop
    serve(run, 80, seed=1)
    for words in (("rebuild", "p"), ("promote", "p@2")):
        run("policy", *words).done()
    cache = ServingCache()
    with closing(Store(db)) as store:
        for turn in range(6):
            options = [Page(policy=name, session=f"{name}-{turn}") for name in ("p", "p@1")]
            recommend_group(store, options, cache=cache)
            if turn == 2:
                versions.retire(store, "p@1")
        assert doctor(store, Request()).findings == []


@ON_BOTH
@pytest.mark.slow
def test_a_copy_holds_only_what_counts(shop: tuple[str, Run, str]) -> None:
    db, run, kind = shop
    serve(run, 300, seed=1)
    run("policy", "freeze", "p").done()
    run("--allow-future", "--now", "2100-01-01T00:00:00Z", "policy", "freeze", "p").done()
    with closing(Store(db)) as store, store.read() as unit:
        counts: dict[int, int] = dict(unit.ask("SELECT version_id, count(*) FROM belief GROUP BY version_id"))
    assert counts[1] > 100 if kind == "window" else counts[1] == len(ARMS)
    assert 0 < counts[3] <= (33 if kind == "window" else 1) * len(ARMS)
    assert 2 not in counts  # nothing is mature
    with closing(Store(db)) as store:
        assert {finding.check for finding in doctor(store, Request()).findings} == {"clock"}  # of 2100


@ON_BOTH
def test_a_decision_writes_only_the_arms_it_shows(shop: tuple[str, Run, str]) -> None:
    db, run, _ = shop
    serve(run, 1, seed=1)
    serve(run, 1, seed=2)
    with closing(Store(db)) as store, store.read() as unit:
        counts = unit.ask("SELECT seq, count(*) FROM belief_delta GROUP BY seq ORDER BY seq")
    assert counts == [(1, 1), (2, 1)]
