"""A kind that counts pulls by the position of the slot: it is one class, and every way into a belief follows it."""

from __future__ import annotations

from contextlib import closing
from typing import Any, ClassVar

import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec.app.learning import slot_statistics
from rlrec.arrays import Array
from rlrec.policy.beliefs.statistics import POSITION, CountedSlot, SlotColumns
from rlrec.policy.kinds.thompson import Thompson
from rlrec.store import Store
from rlrec.store.policies import policies
from tests.conftest import ON_BOTH, Run, begin

ARMS, LATER = ("a", "b", "c"), "2100-01-01T00:00:00Z"


class Examined(Thompson):
    """Thompson sampling in which a slot at position p counts 1 / p of a pull, and its reward in full."""

    needed_columns: ClassVar[frozenset[str]] = frozenset({POSITION})

    def slot_statistics(self, slot: CountedSlot) -> tuple[float, ...]:
        return 1 / slot.position, slot.reward / slot.position, slot.reward**2 / slot.position

    def statistics(self, slots: SlotColumns) -> Array:
        assert slots.position is not None
        return super().statistics(slots) / slots.position[:, None]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "examined", f"{__name__}:Examined")


def served(run: Run, *create: object) -> dict[int, list[float]]:
    """Slates of three arms, every second one clicked at position 2: pulls and rewards by arm, as they should count."""
    begin(run, ARMS, "p", "examined", *create)
    lines = [{"policy": "p", "session": f"s{page}", "k": 3} for page in range(40)]
    answers = run("recommend", "--input", "-", "--format", "ndjson", "--seed", 1, stdin=lines).done().lines
    clicks = [{"decision_id": answer["decision_id"], "position": 2, "events": {"click": 1}} for answer in answers[::2]]
    run("feedback", "--input", "-", stdin=clicks).done()
    total = {arm: [0.0, 0.0] for arm in range(1, 4)}
    for number, answer in enumerate(answers):
        for slot in answer["slate"]:
            sums = total[ARMS.index(slot["arm"]) + 1]
            sums[0] += 1 / slot["position"]
            sums[1] += 0.5 * (slot["position"] == 2 and number % 2 == 0)
    return total


def stored(db: str, name: str, number: int = 1) -> dict[int, Any]:
    with closing(Store(db)) as store, store.read() as unit:
        policy_id = policies.live(unit, [name])[name].version.policy.id
        versions = {version.number: version for version in policies.versions(unit, [policy_id])}
        sums = slot_statistics.stored_sums(unit, versions[number], ordinal=policies.ordinal(unit, policy_id))
    return {arm: row[:2] for (_, arm), row in sums.items()}


def same(result: dict[int, Any], expected: dict[int, list[float]]) -> bool:
    return result.keys() == expected.keys() and all(np.allclose(result[arm], expected[arm]) for arm in result)


@pytest.mark.parametrize("create", [(), ("--reward", "slow"), ("--param", "discount=1")])
def test_a_belief_follows_the_kind_however_it_learns(run: Run, db: str, create: tuple[str, ...]) -> None:
    run("reward", "define", "slow", "click=1", "--clip", "0,1", "--learn", "settled", "--window", "1s").done()
    expected = served(run, *create)
    run("--allow-future", "--now", LATER, "settle").done()
    assert same(stored(db, "p"), expected)
    run("--allow-future", "--now", LATER, "policy", "rebuild", "p").done()
    run("--allow-future", "--now", LATER, "policy", "freeze", "p").done()
    assert same(stored(db, "p", 2), expected)
    assert same(stored(db, "p", 3), expected)
    assert run("--now", LATER, "doctor", "--json").done().json["ok"]


@ON_BOTH
def test_logs_experiments_and_priors_follow_the_kind(run: Run, db: str) -> None:
    expected = served(run)
    run(
        "--allow-future", "--now", LATER, "policy", "create", "q", "--kind", "examined", "--from-log", "policy=p"
    ).done()
    run("--allow-future", "--now", LATER, "experiment", "create", "x", "--variant", "a=p", "--variant", "b=q").done()
    assert same(stored(db, "q"), expected)
    assert same(stored(db, "p@x/a"), expected)
    prior = ("--prior-from", "policy=p", "--prior-weight", 1)
    run("--allow-future", "--now", LATER, "policy", "create", "r", "--kind", "examined", *prior).done()
    mean = sum(row[1] for row in expected.values()) / sum(row[0] for row in expected.values())
    shown = {row["arm"]: row["mean"] for row in run("policy", "show", "r", "--json").done().json["arms"]}
    wanted = {ARMS[arm - 1]: (row[1] + mean) / (row[0] + 1) for arm, row in expected.items()}
    assert shown == pytest.approx(wanted, rel=1e-12)


def test_studies_follow_the_kind(run_sqlite: Run) -> None:
    words = ("simulate", "bernoulli", "--ephemeral", "--steps", 50, "--runs", 3, "--seed", 1, "--json")
    usual, examined = (run_sqlite(*words, "--kind", kind).done().json["regret"] for kind in ("thompson", "examined"))
    assert usual == examined  # all slots of a study stand at position 1
