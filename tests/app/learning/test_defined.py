"""Beliefs that forget or see contexts are what their definition says, whatever happened in whatever order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlrec.app.distributions import exact
from rlrec.app.experiments import experiment
from rlrec.app.policies import policy, rebuild, versions
from rlrec.app.requests import settle
from rlrec.app.requests.feedback import Line
from rlrec.app.requests.pipe import Pipe
from rlrec.app.requests.pipe import Request as VariantSpec
from rlrec.app.requests.recommend import Answer, Request, recommend_group
from rlrec.app.setup import arm
from rlrec.app.upkeep.doctor import Request as Audit
from rlrec.app.upkeep.doctor import doctor
from rlrec.errors import InputError
from rlrec.store import Store
from rlrec.store.log import decisions
from rlrec.store.policies import policies
from tests.app.defined import MEMORIES, arm_ids, remembering, wrong
from tests.app.shop import MINUTE, SECOND, START, clock, stocked, tell_all, version
from tests.conftest import ON_BOTH

CLOSE = 1e-9
NAMES = ("fades", "ends", "sees-fading", "shares")


def shop(store: Store, *names: str, learns: str = "counted", prices: float = 1.0) -> Store:
    store.notice = lambda _: None
    stocked(clock(store, START))
    priced(store, prices)
    remembering(store, *names, learns=learns)
    return store


def priced(store: Store, prices: float) -> None:
    arm.put(store, lambda: [[(key, {"price": prices * i}) for i, key in enumerate("abcde")]])


def draw(store: Store, n: int, *names: str, seed: int, size: int = 1, field: str = "policy") -> list[Any]:
    chance = random.Random(seed)
    options = [
        Request(
            **{field: chance.choice(names)},
            session=f"{seed}-{i}",
            size=size,
            context={"hour": chance.random(), "device": chance.choice("xyz")},
        )
        for i in range(n)
    ]
    return list(recommend_group(store, options, seed=seed))


def click(store: Store, answers: list[Answer], value: float = 1.0, **options: Any) -> None:
    tell_all(
        store,
        [Line(decision_id=answer["decision_id"], position=1, events={"click": value}, **options) for answer in answers],
    )


def audited(store: Store) -> list[Any]:
    return [finding for finding in doctor(store, Audit()).findings if finding.severity == "error"]


def numbers(store: Store, name: str) -> list[int]:
    """Versions whose belief a definition tells: all but the frozen ones."""
    with store.read() as unit:
        selected = policies.versions(unit, [version(unit, name).policy.id])
    return [item.number for item in selected if item.status == "learning"]


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_any_history_leaves_the_belief_of_the_definition(store: Store, half: int) -> None:
    """Pages of three, late and negative events, censoring, other rewards, frozen and promoted versions."""
    names, chance, answers = list(MEMORIES)[half::2], random.Random(half), list[Any]()
    shop(store)
    for index, name in enumerate(names):
        remembering(store, name, learns=("counted", "ignored", "settled")[index % 3])
    for step in range(12):
        store.now = (store.now or 0) + chance.choice([1, SECOND, MINUTE, 11 * MINUTE])
        answers += draw(store, 12, *names, seed=step, size=chance.randint(1, 3))
        lines = [
            Line(
                decision_id=answer["decision_id"], position=chance.randint(1, len(answer["slate"])),
                events={"click": chance.choice([1, -1, 0.3])}, censor=chance.choice([None, None, True, False]),
            )
            for answer in chance.sample(answers, 10)
        ]  # fmt: skip
        tell_all(store, lines)
        name = chance.choice(names)
        if step % 4 == 0:
            versions.freeze(store, f"{name}@1")
        elif step % 4 == 2:
            other = chance.choice(["counted", "ignored", "settled"])
            rebuilt = rebuild.rebuild(store, rebuild.Request(reference=f"{name}@1", reward=other))
            versions.promote(store, f"{name}@{rebuilt['version']}")
    settle.settle(store)
    assert max(wrong(store, name, number) for name in names for number in numbers(store, name)) < CLOSE
    assert audited(store) == []


# -- rebuilt --


class Killed(Exception):
    pass


def killed(monkeypatch: pytest.MonkeyPatch, after: int, work: Callable[[], Any]) -> None:
    """End a rebuild at its first transaction but so many."""
    left = iter([True] * after)
    portion = rebuild._enter_portion

    def dies(*args: Any, **options: Any) -> bool:
        if not next(left, False):
            raise Killed
        return portion(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "_enter_portion", dies)
        with pytest.raises(Killed):
            work()


@pytest.mark.slow
@pytest.mark.parametrize("learns", ["counted", "ignored"])
def test_a_rebuild_that_was_cut_short_goes_on_while_others_write(
    store: Store, monkeypatch: pytest.MonkeyPatch, learns: str
) -> None:
    monkeypatch.setattr(rebuild, "PORTION", 7)
    shop(store, *NAMES, learns=learns)
    early = draw(store, 100, *NAMES, seed=1)
    store.now = START + 11 * MINUTE
    for after, name in enumerate(NAMES):
        requests = rebuild.Request(reference=name)
        killed(monkeypatch, after % 3, lambda options=requests: rebuild.rebuild(store, options))
        with pytest.raises(InputError, match="has not finished"):
            versions.promote(store, f"{name}@2")
    answers = draw(store, 40, *NAMES, seed=2)
    click(store, early[::2] + answers[::3])
    assert max(wrong(store, name, 2) for name in NAMES) < CLOSE  # as far as they have come
    for name in NAMES:
        assert rebuild.rebuild(store, rebuild.Request(reference=name))["version"] == 2
        versions.promote(store, f"{name}@2")
    click(store, draw(store, 40, *NAMES, seed=3)[::2])
    click(store, early[1::4], -1.0)
    assert max(wrong(store, name, number) for name in NAMES for number in (1, 2)) < CLOSE
    assert audited(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("learns", ["counted", "settled"])
def test_what_was_before_a_change_never_enters_what_starts_after_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, learns: str
) -> None:
    """Neither by the rebuild, nor by others that let slots in while it is cut short, nor by events."""
    shop(store, "fades", "sees", learns=learns)
    early = [draw(store, 150, name, seed=1) for name in ("fades", "sees")]
    store.now = START + 11 * MINUTE
    for name in ("fades", "sees"):
        click(store, draw(store, 150, name, seed=2))
    store.now += 11 * MINUTE
    for name, before in zip(("fades", "sees"), early, strict=True):
        requests = rebuild.Request(reference=name, after_drift="adwin")
        killed(monkeypatch, 0, lambda options=requests: rebuild.rebuild(store, options))
        if learns == "counted":  # slots of the other enter by any command: it would be finished
            draw(store, 3, name, seed=3)
        assert rebuild.rebuild(store, requests)["version"] == 2
        click(store, before, censor=True)
        click(store, draw(store, 5, name, seed=4))
    assert max(wrong(store, name, number) for name in ("fades", "sees") for number in (1, 2)) < CLOSE
    assert audited(store) == []


# -- served --


@ON_BOTH
@pytest.mark.parametrize("frozen", [False, True])
def test_a_stream_sees_arms_as_they_are_described_now(store: Store, frozen: bool) -> None:
    shop(store, "shares", learns="counted")
    click(store, draw(store, 40, "shares", seed=1)[::2])
    store.now = START + 11 * MINUTE
    if frozen:
        versions.freeze(store, "shares")
        versions.promote(store, "shares@2")
    stream = Pipe(store)
    for turn in range(3):
        stream.group([VariantSpec(policy="shares", session=f"{turn}-{i}", context={"hour": 0.3}) for i in range(2)])
        stream.group([VariantSpec(policy="shares", session="s", arms=["unknown"])])  # refused: nothing changes
        priced(store, 5.0 - turn)
        arm.put(store, lambda turn=turn: [[(f"new{turn}", {"price": 3})]])
    assert audited(store) == []


@pytest.mark.slow
def test_variants_go_on_from_the_ordinal_of_their_fork(store: Store) -> None:
    shop(store, *NAMES)
    early = draw(store, 80, *NAMES, seed=1)
    store.now = START + 11 * MINUTE
    versions.freeze(store, "ends")
    labels = dict(zip("vwxyz", [*NAMES, "ends@2"], strict=True))
    wanted = [experiment.VariantSpec(label=label, policy=name) for label, name in labels.items()]
    experiment.create(store, experiment.Request(name="e", variants=wanted, by="session"))
    answers = draw(store, 100, "e", seed=2, field="experiment")
    click(store, early[::3] + answers[::2])
    with store.read() as unit:
        for label, name in labels.items():
            its, base = version(unit, f"{name.split('@')[0]}@e/{label}"), version(unit, name.split("@")[0])
            selected = sum(answer["variant"] == label for answer in answers)
            assert policies.ordinal(unit, its.policy.id) == its.ordinal + (0 if name == "shares" else selected)
            assert its.ordinal == policies.ordinal(unit, base.policy.id)
    assert max(wrong(store, name) for name in NAMES) < CLOSE
    assert audited(store) == []


def test_decisions_count_while_nobody_learns(store: Store) -> None:
    """A belief that is rebuilt later knows how old they are."""
    names = ("fades", "ends", "sees-fading")
    shop(store, *names)
    draw(store, 40, *names, seed=1)
    store.now = START + 11 * MINUTE
    for name in names:
        versions.freeze(store, name)
        versions.promote(store, f"{name}@2")
        versions.retire(store, f"{name}@1")
    click(store, draw(store, 60, *names, seed=2)[::2])
    for name in names:
        rebuild.rebuild(store, rebuild.Request(reference=name))
    with store.read() as unit:
        for name in names:
            answers = version(unit, name, 3)
            ages = decisions.find(unit, list(range(1, 101)))
            selected = [age.ordinal for age in ages.values() if age.policy_id == answers.policy.id]
            assert selected == list(range(1, answers.ordinal + 1))
    assert max(wrong(store, name, 3) for name in names) < CLOSE
    assert audited(store) == []


# -- at the edge of numbers --


@pytest.mark.slow
def test_what_has_faded_to_nothing_counts_as_nothing(store: Store) -> None:
    """Arms idle for 1,200 decisions at half a memory each: their weight is below the smallest number."""
    names = {"fades": "thompson", "bound": "kl-ucb", "sees": "linucb", "bends": "logistic-thompson"}
    shop(store)
    for name, kind in names.items():
        options = {"discount": "0.5", "floor": "0.1"}
        policy.create(store, policy.Request(name=name, kind=kind, parameters=options, reward="counted"))
    early = draw(store, 40, *names, seed=1)
    for name in names:
        recommend_group(store, [Request(policy=name, session=f"{name}-{i}", arms=["a"]) for i in range(1_200)], seed=2)
    click(store, early, censor=True)
    with store.read() as unit:
        for name in names:
            stored = exact.load(unit, version(unit, name))
            pulls = stored.belief(arm_ids(stored)).pulls
            assert (pulls[0], pulls[1:].any()) == (2, False)
    draw(store, 20, *names, seed=3)
    assert max(wrong(store, name) for name in names) < CLOSE
    assert audited(store) == []


@pytest.mark.slow
def test_arms_whose_slots_were_all_censored_count_as_nothing(store: Store) -> None:
    """What is left of their sums is rounding, some of it below 0."""
    names = ("fades", "sees-fading", "soft")
    shop(store, *names)
    answers = [item for turn in range(4) for item in draw(store, 40, *names, seed=turn)]
    click(store, answers[::2])
    click(store, answers, censor=True)
    with store.read() as unit:
        for name in names:
            stored = exact.load(unit, version(unit, name))
            belief = stored.belief(arm_ids(stored))
            assert (belief.pulls.any(), belief.reward_sum.any(), belief.total) == (False, False, 0)
    draw(store, 20, *names, seed=9)
    assert audited(store) == []


@pytest.mark.parametrize("window", [1, 31, 33, 100_000])
def test_windows_of_any_length(store: Store, window: int) -> None:
    shop(store)
    for name in ("ucb", "linucb"):
        options = {"window": str(window), "floor": "0.1"}
        policy.create(store, policy.Request(name=name, kind=name, parameters=options, reward="counted"))
    for turn in range(4):
        click(store, draw(store, 30, "ucb", "linucb", seed=turn)[::2])
    assert max(wrong(store, name) for name in ("ucb", "linucb")) < CLOSE
    assert audited(store) == []


@pytest.mark.slow
def test_a_context_of_a_hundred_features(store: Store) -> None:
    shop(store)
    broad = {"context": {"fields": {"taste": {"type": "vector", "length": 99}}}}
    policy.create(store, policy.Request(name="wide", kind="lin-thompson", reward="counted", features=broad))
    rng = np.random.default_rng(1)
    for turn in range(2):
        tastes = [{"taste": rng.normal(size=99).tolist()} for _ in range(30)]
        options = [Request(policy="wide", session=f"{turn}-{i}", context=taste) for i, taste in enumerate(tastes)]
        click(store, list(recommend_group(store, options, seed=turn))[::2])
    assert wrong(store, "wide") < CLOSE
    assert audited(store) == []
