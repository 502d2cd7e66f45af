"""A floor at named positions: slates against their definition, over every ranking and every coin."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.special import chdtrc

from rlrec import policy as kinds
from rlrec.app.evaluation.rows.loggers import least_propensities
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.slates import slate, slate_draws
from tests.conftest import Run

M, SIZE = 5, 3
FAMILIES = {
    "gumbel": Gumbel(np.array([1.0, 0.5, -0.2, 0.0, 0.3])),
    "point": Point(np.array([1.0, 0.5, 0.5, 0.2, 0.1])),
    "beta": Beta(np.array([2.0, 5.0, 1.0, 3.0, 9.0]), np.array([3.0, 4.0, 1.0, 9.0, 9.0])),
}
RANKINGS, PAGES = (np.array(list(permutations(range(M), size))) for size in (M, SIZE))
FLOORS = [(0.0, 0.3, 0.0), (0.0, 0.0, 0.5, 0.0), (0.2, 0.0, 0.2, 0.0)]


@cache
def joint(family: str, floors: tuple[float, ...]) -> Array:
    """Probability of every page: over all rankings, each with the coins of the positions."""
    ranking = slate.conditionals(FAMILIES[family], RANKINGS, floor=0.0).prod(axis=1)
    total = np.zeros(len(PAGES))
    for row, page in enumerate(PAGES):
        chance = ranking.copy()
        for position, arm in enumerate(page):
            first = np.isin(RANKINGS, page[:position], invert=True).argmax(axis=1)
            best = RANKINGS[np.arange(len(RANKINGS)), first]
            chance *= floors[position] / (M - position) + (1 - floors[position]) * (best == arm)
        total[row] = chance.sum()
    return total


@pytest.mark.parametrize("floors", FLOORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pages_and_marginals_are_exact(family: str, floors: tuple[float, ...]) -> None:
    scores, expected = FAMILIES[family], joint(family, floors)
    assert expected.sum() == pytest.approx(1, abs=1e-12)
    result = slate.conditionals(scores, PAGES, floor=floors).prod(axis=1)
    assert result == pytest.approx(expected, abs=1e-12)
    sums = [np.bincount(PAGES[:, position], weights=expected, minlength=M) for position in range(SIZE)]
    assert slate.marginals(scores, size=SIZE, floor=floors) == pytest.approx(np.array(sums), abs=1e-12)


@pytest.mark.parametrize("floors", FLOORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_draws_log_what_is_exact(family: str, floors: tuple[float, ...]) -> None:
    """Propensity, marginal and smallest propensity of each slot, for 5,000 pages whose frequencies pass a chi-square
    test (one false alarm in a million)."""
    scores, expected, n = FAMILIES[family], joint(family, floors), 5_000
    drawn = slate_draws.draw(scores, size=SIZE, floor=floors, seeds=np.full(n, 5, np.uint64), decisions=np.arange(n))
    index = np.zeros((M,) * SIZE, np.int64)
    index[tuple(PAGES.T)] = np.arange(len(PAGES))
    page = index[tuple(drawn.slates.T)]
    count, possible = np.bincount(page, minlength=len(PAGES)), expected > 1e-9
    assert count[~possible].sum() == 0
    chi2 = float(((count - n * expected)[possible] ** 2 / (n * expected)[possible]).sum())
    assert chdtrc(max(1, int(possible.sum()) - 1), chi2) > 1e-6
    assert drawn.propensity.prod(axis=1) == pytest.approx(expected[page], abs=1e-12)
    marginals = slate.marginals(scores, size=SIZE, floor=floors)
    assert drawn.marginal == pytest.approx(marginals[np.arange(SIZE), drawn.slates], abs=1e-12)
    for row in range(20):
        shown = drawn.slates[row]
        for position in range(SIZE):
            left = np.delete(slate.remaining(scores, shown[:position], floor=floors), shown[:position])
            assert drawn.minimum[row, position] == pytest.approx(left.min(), abs=1e-9)


def test_the_floor_holds_at_the_named_positions_alone() -> None:
    policy = kinds.make("epsilon-greedy", {"epsilon": 0.1, "floor": 0.2, "explore_slots": "3,5"})
    assert policy.exploration == pytest.approx((0.1, 0.1, 0.28, 0.1, 0.28, 0.1))
    assert kinds.make("thompson", {"floor": 0.2, "explore_slots": "1"}).exploration == (0.2, 0.0)
    assert policy.greedy().exploration == 0


@pytest.mark.parametrize(
    ("kind", "params", "says"),
    [
        ("thompson", {"floor": 0.1, "explore_slots": "0"}, "explore_slots is '0'"),
        ("thompson", {"floor": 0.1, "explore_slots": "3,3"}, "explore_slots is '3,3'"),
        ("thompson", {"explore_slots": "3"}, "the floor is 0"),
        ("lin-thompson", {"model": "shared", "explore_slots": "3"}, "fractions of samples"),
    ],
)
def test_what_names_no_positions_is_refused(kind: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        kinds.make(kind, params)


def test_what_the_floor_guarantees_is_below_every_marginal() -> None:
    for floors in FLOORS:
        least = least_propensities(SIZE, M, floor=floors)
        marginals = [slate.marginals(scores, size=SIZE, floor=floors) for scores in FAMILIES.values()]
        assert all((marginal.min(axis=1) >= least - 1e-12).all() for marginal in marginals)
    # who is certain at position 1 never stands at position 2
    assert least_propensities(SIZE, M, floor=(0.0, 0.3, 0.0)).tolist() == [0, 0, 0]
    assert least_propensities(SIZE, M, floor=(0.2, 0.0)).tolist() == pytest.approx([0.04, 0, 0], abs=1e-12)


@pytest.mark.slow
def test_a_log_of_named_positions_is_sound_and_judges_others(run: Run) -> None:
    run("arm", "import", "-", stdin=[{"arm": f"a{arm}"} for arm in range(M)]).done()
    words = ("--param", "floor=0.5", "--param", "explore_slots=2")
    run("policy", "create", "p", "--kind", "thompson", *words).done()
    options = [{"policy": "p", "session": f"s{row}", "k": 3} for row in range(200)]
    answers = run("recommend", "--input", "-", "--format", "ndjson", "--seed", 1, stdin=options).done().lines
    assert all(slot["propensity"] >= 0.5 / 4 - 1e-12 for answer in answers for slot in answer["slate"][1:2])
    assert run("doctor", "--json").done().json["ok"]
    assert run("decision", "show", 1, "--json").done().json["floor"] == [0, 0.5, 0]
    later = ("--now", "2030-01-01T00:00:00Z")
    (row,) = run(*later, "evaluate", "uniform", "--estimator", "ips", "--json").done().json
    assert row["mean_weight"] == pytest.approx(1, abs=0.1)
