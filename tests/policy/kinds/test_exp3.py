"""Exp3, by hand and through the store: gains are estimated by what slots earned over their propensity."""

from __future__ import annotations

import random
from contextlib import closing
from math import exp
from typing import Any

import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec.app.learning import slot_statistics
from rlrec.policy.beliefs.base import Belief, Policy
from rlrec.policy.beliefs.statistics import SlotColumns
from rlrec.policy.slates import slate
from rlrec.store import Store
from rlrec.store.policies import policies
from tests.conftest import Run, begin

OFF = {"gamma": 0.5, "eta": 0.3}
IMPOSSIBLE: dict[str, list[Any]] = {
    "gamma": [0.0, -0.1, 1.1, float("nan"), "0.1", True],
    "eta": [-1.0, 1e300, float("inf"), float("nan"), "1", True],
}
ARMS = ("a", "b", "c")


def belief_after(policy: Policy, arm: list[int], reward: list[float], propensity: list[float], *, m: int) -> Belief:
    slots = SlotColumns(arm_id=np.array(arm), reward=np.array(reward), propensity=np.array(propensity))
    sums = np.zeros((m, policy.width))
    np.add.at(sums, slots.arm_id, policy.statistics(slots))
    return belief_of(sums)


def belief_of(sums: Any) -> Belief:
    none = np.zeros(len(sums))
    return Belief(
        pulls=sums[:, 0], reward_sum=sums[:, 1], reward_squares=sums[:, 2], alpha=none, beta=none,
        total=sums[:, 0].sum(), extra=sums[:, 3:],
    )  # fmt: skip


def probabilities(policy: Policy, belief: Belief) -> Any:
    names = [str(arm) for arm in range(len(belief.pulls))]
    return slate.p_first(policy.scores(belief, arms=names, context={}), floor=policy.exploration)


def test_two_steps_by_hand() -> None:
    """K = 2, gamma 0.2, eta = gamma / K = 0.1: p = 0.8 w / sum(w) + 0.1 (Auer et al. 2002, section 3)."""
    policy = kinds.make("exp3", {"gamma": 0.2})
    assert probabilities(policy, belief_of(np.zeros((2, 4)))) == pytest.approx([0.5, 0.5], abs=1e-15)
    # arm 0 earns 1 at probability 1/2: its gain is 2
    p_0 = 0.8 * exp(0.2) / (exp(0.2) + 1) + 0.1
    item = belief_after(policy, [0], [1.0], [0.5], m=2)
    assert probabilities(policy, item) == pytest.approx([p_0, 1 - p_0], abs=1e-15)
    # then arm 1 earns 0.5 at 1 - p_0
    two = belief_after(policy, [0, 1], [1.0, 0.5], [0.5, 1 - p_0], m=2)
    w_0, w_1 = exp(0.2), exp(0.1 * 0.5 / (1 - p_0))
    assert probabilities(policy, two)[0] == pytest.approx(0.8 * w_0 / (w_0 + w_1) + 0.1, abs=1e-15)
    assert policy.index(two) == pytest.approx([2.0, 0.5 / (1 - p_0)], abs=1e-15)


def test_eta_stands_for_gamma_over_the_eligible_arms() -> None:
    sums = np.column_stack([np.zeros((4, 3)), [3.0, 1.0, 0.0, 2.0]])
    usual, reported = (kinds.make("exp3", {"gamma": 0.2, "eta": eta}) for eta in (0.0, 0.05))
    assert probabilities(usual, belief_of(sums)) == pytest.approx(probabilities(reported, belief_of(sums)), abs=1e-15)
    assert probabilities(usual.greedy(), belief_of(sums)).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_gains_are_estimated_without_bias() -> None:
    """Over both arms that may be drawn, the estimate of each is what it would have earned."""
    policy, p, rewards = kinds.make("exp3", {}), np.array([0.3, 0.7]), np.array([0.2, 0.9])
    rows = policy.statistics(SlotColumns(arm_id=np.arange(2), reward=rewards, propensity=p))
    assert p * rows[:, 3] == pytest.approx(rewards, abs=1e-15)


@pytest.mark.simulation
@pytest.mark.parametrize(("params", "switching"), [({"gamma": 0.1}, False), ({"gamma": 0.1, "discount": 0.98}, True)])
def test_an_adversary_gains_little(params: dict[str, Any], switching: bool) -> None:
    """A fixed sequence in which the better arm pays 0.8 and the other 0.2, for good or by turns of 400 steps. Uniform
    earns 0.5 a step, and this clearly more: at least 0.6, in each of 5 runs."""
    policy, steps = kinds.make("exp3", params), 2_000
    fade = policy.forgetting.discount
    for seed in range(5):
        rng, sums, earned = np.random.default_rng(seed), np.zeros((2, 4)), 0.0
        for step in range(steps):
            p = probabilities(policy, belief_of(sums))
            arm = int(rng.random() >= p[0])
            reward = 0.8 if arm == (step // 400 % 2 if switching else 1) else 0.2
            slot = SlotColumns(arm_id=np.array([arm]), reward=np.array([reward]), propensity=p[[arm]])
            sums *= fade
            sums[arm] += policy.statistics(slot)[0]
            earned += reward
        assert earned / steps > 0.6


# -- through the store --


def played(run: Run, *create: object, n: int = 120) -> list[dict[str, Any]]:
    """Slates of two arms, and clicks in an order of their own, some told twice: the clicked slots."""
    begin(run, ARMS, "p", "exp3", *create)
    rng, clicked = random.Random(1), list[dict[str, Any]]()
    for seed in range(4):  # the later ones from what the earlier ones taught
        options = [{"policy": "p", "session": f"s{seed}-{page}", "k": 2} for page in range(n // 4)]
        answers = run("recommend", "--input", "-", "--format", "ndjson", "--seed", seed, stdin=options).done().lines
        slots = [slot | {"id": answer["decision_id"]} for answer in answers for slot in answer["slate"]]
        clicks = [slot for slot in slots if rng.random() < {"a": 0.7, "b": 0.3, "c": 0.1}[slot["arm"]]]
        reported = [{"decision_id": s["id"], "position": s["position"], "events": {"click": 1}} for s in clicks]
        rng.shuffle(reported)
        run("feedback", "--input", "-", stdin=reported + reported[:5]).done()
        clicked += clicks
    return clicked


def gains(db: str, number: int | None = None) -> dict[int, float]:
    """The estimated gains in a belief, by arm."""
    with closing(Store(db)) as store, store.read() as unit:
        live = policies.live(unit, ["p"])["p"].version
        versions = {version.number: version for version in policies.versions(unit, [live.policy.id])}
        version = versions[number or live.number]
        now = policies.ordinal(unit, live.policy.id)
        sums = slot_statistics.stored_sums(unit, version, ordinal=now)
    return {arm: float(row[3]) for (_, arm), row in sums.items()}


def by_definition(clicked: list[dict[str, Any]]) -> dict[int, float]:
    total = dict.fromkeys(range(1, 4), 0.0)
    for slot in clicked:
        total[ARMS.index(slot["arm"]) + 1] += 1 / slot["marginal"]
    return total


@pytest.mark.slow
@pytest.mark.parametrize(("db", "create"), [("sqlite", ()), ("postgres", ("--reward", "slow"))], indirect=["db"])
def test_a_belief_sums_rewards_over_marginals_however_it_learns(run: Run, db: str, create: tuple[str, ...]) -> None:
    run("reward", "define", "slow", "click=1", "--clip", "0,1", "--learn", "settled", "--window", "1s").done()
    clicked = played(run, *create)
    run("--allow-future", "--now", "2100-01-01T00:00:00Z", "settle").done()
    assert gains(db) == pytest.approx(by_definition(clicked), rel=1e-12)
    run("--allow-future", "--now", "2100-01-01T00:00:00Z", "policy", "rebuild", "p").done()
    assert gains(db, 2) == pytest.approx(by_definition(clicked), rel=1e-12)
    run("--allow-future", "--now", "2100-01-01T00:00:00Z", "policy", "freeze", "p").done()
    assert gains(db, 3) == pytest.approx(by_definition(clicked), rel=1e-12)
    assert run("--now", "2100-01-01", "doctor", "--json").done().json["ok"]


def test_censored_slots_leave_the_gains_and_come_back(run: Run, db: str) -> None:
    clicked = played(run, n=40)
    run("feedback", clicked[0]["id"], "--position", clicked[0]["position"], "--censor").done()
    assert gains(db) == pytest.approx(by_definition(clicked[1:]), rel=1e-12)
    run("feedback", clicked[0]["id"], "--position", clicked[0]["position"], "--uncensor").done()
    assert gains(db) == pytest.approx(by_definition(clicked), rel=1e-12)
    assert run("doctor", "--json").done().json["ok"]


@pytest.mark.parametrize("memory", ["discount=0.95", "window=64"])
def test_gains_fade_as_all_sums_do(run: Run, db: str, memory: str) -> None:
    played(run, "--param", memory)
    live = gains(db)
    run("policy", "rebuild", "p").done()
    assert gains(db, 2) == pytest.approx(live, rel=1e-9)
    assert run("doctor", "--json").done().json["ok"]


def test_a_log_and_an_experiment_hand_gains_on(run: Run, db: str) -> None:
    clicked, later = played(run, n=40), "2100-01-01T00:00:00Z"
    run("--allow-future", "--now", later, "policy", "create", "q", "--kind", "exp3", "--from-log", "policy=p").done()
    run("--allow-future", "--now", later, "experiment", "create", "x", "--variant", "a=p", "--variant", "b=q").done()
    shown = {row["arm"]: row["score"] for row in _slate(run, "q")}
    expected = by_definition(clicked)
    assert shown == pytest.approx({arm: expected[number] for number, arm in enumerate(ARMS, 1)}, rel=1e-12)
    assert {row["arm"]: row["score"] for row in _slate(run, "p@x/a")} == pytest.approx(shown, rel=1e-12)


def _slate(run: Run, name: str) -> Any:
    words = ("recommend", "--policy", name, "--session", "new", "-k", 3, "--dry-run", "--json")
    return run("--now", "2100-01-01T00:00:01Z", *words).done().json["slate"]


def test_people_see_what_it_would_serve(run: Run) -> None:
    played(run, n=40)
    arms = run("policy", "show", "p", "--json").done().json["arms"]
    assert sum(arm["probability"] for arm in arms) == pytest.approx(1, abs=1e-12)
    assert max(arms, key=lambda arm: arm["probability"])["arm"] == "a"
    run("policy", "freeze", "p").done()
    assert run("policy", "diff", "p", "p@2", "--json").done().exit_code == 0
    study = run("simulate", "bernoulli", "--ephemeral", "--kind", "exp3", "--steps", 400, "--runs", 5, "--json").done()
    assert study.json["regret"] > 0
