"""A reward with `return` on the log of a bandit of clicks: what `evaluate` answers about `uniform`, against what fresh
users of `uniform` earn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.graduation import Shop
from tests.benchmarks.measure import Figure, Setting

STORES, FRESH, SESSIONS = 20, 10, 2_000  # stores of the bandit and of uniform; visits of each, of some 1,500 users
HELD, RIGHT = 0.9, 1.0
UNITS = {"sips": "slate", "wdr": "session"}  # the unit of each estimator


def returns(setting: Setting) -> Iterator[Figure]:
    """The share of stores whose answer has the right sign, and whose interval holds what uniform earns on a page."""
    sessions, stores = setting.size(SESSIONS), max(int(STORES * setting.scale), 2)
    fresh = [earned(setting, 500 + number, sessions) for number in range(max(stores // 2, 2))]
    truth = {unit: sum(means[unit] for means in fresh) / len(fresh) for unit in UNITS.values()}
    rows = [answer(setting, number, sessions) for number in range(1, stores + 1)]
    held = sum(row["lower"] <= truth[row["unit"]] <= row["upper"] for row in rows)
    right = sum((row["value"] > row["served"]) == (truth[row["unit"]] > row["served"]) for row in rows)
    answers = [row["answer"] for row in rows]
    yield Figure(name=f"intervals that hold it, {held} of {stores}", value=held / stores, unit="", at_least=HELD)
    yield Figure(name=f"right sign, {right} of {stores}", value=right / stores, unit="", at_least=RIGHT)
    yield Figure(name="answers of better", value=answers.count("better") / stores, unit="")
    yield Figure(name="answers of worse", value=answers.count("worse") / stores, unit="", at_most=0.0)


def answer(setting: Setting, seed: int, sessions: int) -> dict[str, Any]:
    """The answer about uniform of a store whose pages a bandit of clicks served, with a floor of 5 %."""
    shop = Shop(setting.path(".db"), seed=seed)
    shop.run("policy", "create", "logger", "--kind", "thompson", "--param", "floor=0.05")
    shop.serve("logger", sessions, number=0)
    row: dict[str, Any] = shop.run("evaluate", "uniform", "--reward", "durable")[0]
    return row


def earned(setting: Setting, seed: int, sessions: int) -> dict[str, float]:
    """What a page and a visit of fresh users of uniform earn."""
    shop = Shop(setting.path(".db"), seed=seed)
    shop.run("policy", "create", "logger", "--kind", "uniform")
    shop.serve("logger", sessions, number=0)
    rows = shop.run("evaluate", "uniform", "--reward", "durable", "--estimator", ",".join(UNITS))
    return {row["unit"]: row["served"] for row in rows}
