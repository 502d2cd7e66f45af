"""Outcomes of units are those of a census, whatever the order of the log, and say how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.app import arm, experiment, feedback, policy, recommend, reward, session, versions
from rlrec.app.experiment import Request as Split
from rlrec.app.experiment import VariantSpec
from rlrec.app.inputs import lookup
from rlrec.app.outcomes import Request, Result, outcomes
from rlrec.store import Store
from tests.app import census
from tests.app.shop import MINUTE, START, clock

DAY = 24 * 60 * MINUTE
REWARDS = ("default", "durable")


def stocked(store: Store) -> Store:
    store.notice = lambda line: None
    arm.put(clock(store, START), lambda: [[arm.ArmFeatures(arm=key, features={}) for key in "abcd"]])
    reward.define(store, reward.Request(name="durable", weights="click=0.5, buy=2", window_us=3 * DAY))
    for name in ("home", "side"):
        policy.create(store, policy.Request(name=name, kind="thompson", parameters={"floor": "0.1"}))
    return store


def split(store: Store, by: str = "user") -> None:
    variants = [VariantSpec(label="a", policy="home"), VariantSpec(label="b", policy="side")]
    experiment.create(store, Split(name="ab", variants=variants, by=by))


def serve(store: Store, rng: np.random.Generator, *, days: float, named: str | None, users: int = 9) -> None:
    """Some decisions of random users and sessions at one moment, with events; some visits end."""
    lines = []
    for _ in range(int(rng.integers(1, 6))):
        user = int(rng.integers(users))
        key = f"u{user}-{rng.integers(3)}" if user else f"nobody{rng.integers(4)}"
        owner = f"u{user}" if user else None
        served = {"experiment": named} if named and owner else {"policy": str(rng.choice(["home", "side"]))}
        lines.append(recommend.Request(session=key, user=owner, size=int(rng.integers(1, 3)), **served))
    answers = recommend.recommend_group(clock(store, START + round(days * DAY)), lines)
    for answer in answers:
        for kind in ("click", "buy", "skip"):
            if rng.random() < 0.3:
                position = None if rng.random() < 0.2 else 1
                store.now = START + round(days * DAY) + int(rng.integers(0, 50 * MINUTE))
                line = feedback.Line(decision_id=answer["decision_id"], events={kind: 1.5}, position=position)
                feedback.feedback(store, line)
        if rng.random() < 0.04:
            feedback.feedback(store, feedback.Line(decision_id=answer["decision_id"], position=1, censor=True))
        if rng.random() < 0.3:
            session.end_all(store, [answer["session"]])


def story(store: Store, *, by: str = "user", moments: int = 60) -> None:
    """Sixty moments over eight weeks; an experiment from the fourth on, a new version from the third on."""
    stocked(store)
    rng, days = np.random.default_rng(3), 0.0
    for number in range(moments):
        days += float(rng.choice([0.01, 0.2, 1.0, 5.0], p=[0.4, 0.3, 0.2, 0.1]))
        if number == moments // 3:
            versions.freeze(clock(store, START + round(days * DAY)), "home")
            versions.promote(store, "home@2")
        if number == moments // 2:
            split(clock(store, START + round(days * DAY)), by)
        serve(store, rng, days=days, named="ab" if number >= moments // 2 else None)
    clock(store, START + round((days + 0.1) * DAY))


def figures(result: Result) -> dict[Any, tuple[Any, int]]:
    named = {
        (row["group"], " ".join(filter(None, [row["metric"], row["reward"]]))): (row["value"], row["units"])
        for row in result["outcomes"]
    }
    return {key: value for key, value in named.items() if value[1]}


def totals(sums: census.Sums) -> dict[Any, tuple[Any, int]]:
    counted = {key: [unit for unit in units.values() if unit[1]] for key, units in sums.items()}
    return {
        key: (pytest.approx(sum(n for n, _ in units) / sum(d for _, d in units), rel=1e-9, abs=1e-12), len(units))
        for key, units in counted.items()
        if units
    }


@pytest.mark.slow
def test_outcomes_are_those_of_a_census(store: Store) -> None:
    story(store)
    with store.read() as unit:
        rewards = {name: lookup.reward(unit, name) for name in REWARDS}
        counts = {by: census.count(unit, rewards, by=by) for by in (None, "policy", "version", "week")}
        of_experiment = {
            by: census.count(unit, rewards, by=by, chosen=lambda row: row.variant is not None)
            for by in ("variant", "users")
        }
    for by, counted in counts.items():
        assert figures(outcomes(store, Request(by=by, rewards=REWARDS))) == totals(counted)
    for by, counted in of_experiment.items():
        assert figures(outcomes(store, Request(experiment="ab", by=by, rewards=REWARDS))) == totals(counted)


@pytest.mark.slow
def test_units_of_an_experiment_by_session_are_sessions(store: Store) -> None:
    story(store, by="session")
    with store.read() as unit:
        rewards = {"default": lookup.reward(unit, "default")}
        counted = census.count(unit, rewards, by="variant", chosen=lambda row: row.variant is not None, by_session=True)
    result = outcomes(store, Request(experiment="ab"))
    assert (result["unit"], figures(result)) == ("session", totals(counted))
