"""The loop of serving and learning on pages whose clicks fall with the position, with a curve and without."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from rlrec.app import policy, simulate
from rlrec.store import Store, arms
from tests.app import logs
from tests.app.test_examined import curve

ARMS, SIZE = 20, 5
LOOK = 1 / np.arange(1, SIZE + 1)


def looped(db: str, rates: np.ndarray, *, pages: int, seed: int) -> dict[str, dict[str, float]]:
    """The belief about each arm after so many more pages, which visitors look through as 1 / position."""
    table = Path(db).with_suffix(".csv")
    table.write_text("arm,rate\n" + "".join(f"a{arm},{rate}\n" for arm, rate in enumerate(rates)))
    request = simulate.Request(
        environment="pbm", parameters={"rates": str(table)}, policy="home", sessions=pages, size=SIZE, seed=seed,
        group=10,
    )  # fmt: skip
    with closing(Store(db)) as store:
        simulate.simulate(store, request)
        return {row["arm"]: row for row in policy.show(store, "home")["arms"]}


def covered(beliefs: dict[str, dict[str, float]], rates: np.ndarray) -> float:
    inside = [beliefs[f"a{arm}"]["lower"] <= rate <= beliefs[f"a{arm}"]["upper"] for arm, rate in enumerate(rates)]
    return float(np.mean(inside))


def started(db: str, seed: int, **parameters: str) -> np.ndarray:
    logs.catalogue(db, ARMS)
    curve(db, *LOOK)
    logs.create(db, "home", "thompson", floor="0.02", **parameters)
    return np.random.default_rng(seed).uniform(0.02, 0.5, ARMS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_a_curve_beliefs_cover_and_a_new_best_arm_rises(sqlite_db: str, seed: int) -> None:
    """Of 20 intervals of 95 %, fewer than 16 cover in one of 400 seeds."""
    rates = started(sqlite_db, seed, position="home")
    beliefs = looped(sqlite_db, rates, pages=1_500, seed=seed)
    page = sorted(beliefs, key=lambda arm: -beliefs[arm]["mean"])[:SIZE]
    earned = np.array([rates[int(arm[1:])] for arm in page]) @ LOOK
    assert covered(beliefs, rates) >= 0.8
    assert earned / (np.sort(rates)[::-1][:SIZE] @ LOOK) > 0.95
    with closing(Store(sqlite_db)) as store:
        store.write(lambda unit: arms.put(unit, {f"a{ARMS}": "{}"}))
    beliefs = looped(sqlite_db, np.append(rates, 0.7), pages=500, seed=seed + 10)
    assert beliefs[f"a{ARMS}"]["probability"] > 0.5


@pytest.mark.slow
def test_without_a_curve_beliefs_are_about_positions(sqlite_db: str) -> None:
    rates = started(sqlite_db, 1)
    assert covered(looped(sqlite_db, rates, pages=1_500, seed=1), rates) < 0.5
