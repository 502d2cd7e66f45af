"""Two stages: candidates and slates against enumeration, and the beliefs of both stages."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.special import chdtrc

from rlrec import policy as kinds
from rlrec.arrays import Array, Ids, Index
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, Policy
from rlrec.policy.beliefs.statistics import SlotColumns
from rlrec.policy.kinds.two_stage import ranking_seeds
from rlrec.policy.slates import slate
from rlrec.policy.slates.slate_draws import SlateSampler

M, CANDIDATES, SIZE = 6, 3, 2
PULLS, CLICKS = np.array([20.0, 10, 10, 0, 5, 40]), np.array([9.0, 3, 3, 0, 0, 10])
NAMES = [f"a{arm}" for arm in range(M)]
PAIRS = [
    ("plackett-luce", {"first.floor": 0.2}, "thompson", {"second.floor": 0.1}),
    ("thompson", {}, "plackett-luce", {"second.temperature": 0.5}),
    ("epsilon-greedy", {"first.epsilon": 0.5}, "ucb", {"second.floor": 0.3, "second.explore_slots": "2"}),
]
LISTS = np.array(list(permutations(range(M), CANDIDATES)))


def policy_of(first: str, of_first: dict[str, Any], second: str, of_second: dict[str, Any]) -> Policy:
    typed = {"first": first, "second": second, "candidates": float(CANDIDATES)}
    return kinds.make("two-stage", {**typed, **of_first, **of_second})


def scores_of(policy: Policy, arms: Index) -> Any:
    alpha, beta = policy.prior
    ones = np.ones(len(arms))
    belief = Belief(
        pulls=PULLS[arms], reward_sum=CLICKS[arms], reward_squares=CLICKS[arms], alpha=alpha * ones, beta=beta * ones,
        total=PULLS.sum(),
    )  # fmt: skip
    return policy.scores(belief, arms=[NAMES[arm] for arm in arms], context={})


def outcomes(policy: Policy) -> tuple[Index, Array]:
    """Every list and slate, (n, 5), and its probability: that of the list, and of the slate given the list."""
    first, second = policy.stages
    of_list = slate.conditionals(scores_of(first, np.arange(M)), LISTS, floor=first.exploration).prod(axis=1)
    rows, joint = [], []
    for listed, chance in zip(LISTS, of_list, strict=True):
        arms = np.sort(listed)
        places = np.array(list(permutations(range(CANDIDATES), SIZE)))
        share = slate.conditionals(scores_of(second, arms), places, floor=second.exploration).prod(axis=1)
        rows += [[*listed, *arms[index]] for index in places]
        joint += (chance * share).tolist()
    return np.array(rows), np.array(joint)


def odds() -> Array:
    p = (CLICKS + 1) / (PULLS + 2)
    return p / (1 - p)


def race(weight: Array, chosen: Index, *, floor: float) -> float:
    """Probability of arms in this order, each by its weight among those left."""
    left, chance = list(range(len(weight))), 1.0
    for arm in chosen:
        chance *= floor / len(left) + (1 - floor) * weight[arm] / weight[left].sum()
        left.remove(arm)
    return chance


@pytest.mark.parametrize("pair", PAIRS)
def test_the_joints_over_everything_sum_to_one(pair: Any) -> None:
    _, joint = outcomes(policy_of(*pair))
    assert joint.sum() == pytest.approx(1, abs=1e-12)


def test_the_joints_are_those_of_enumeration() -> None:
    policy = policy_of("plackett-luce", {"first.floor": 0.2}, "plackett-luce", {"second.temperature": 0.5})
    rows, joint = outcomes(policy)
    for row, result in zip(rows, joint, strict=True):
        arms = np.sort(row[:CANDIDATES])
        places = np.searchsorted(arms, row[CANDIDATES:])
        expected = race(odds(), row[:CANDIDATES], floor=0.2) * race(odds()[arms] ** 2, places, floor=0.0)
        assert result == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_draws_pass_a_chi_square_test(pair: Any) -> None:
    """One false alarm in a million."""
    policy, n = policy_of(*pair), 30_000
    first, second = policy.stages
    seeds, ids = np.full(n, 11, np.uint64), np.arange(n)
    sampler = SlateSampler(scores_of(first, np.arange(M)), size=CANDIDATES, floor=first.exploration)
    lists = sampler.draw(seeds=seeds, decisions=ids, with_marginals=False)
    slates = slates_of(second, np.sort(lists.slates, axis=1), seeds, ids)
    rows, joint = outcomes(policy)
    digits = M ** np.arange(CANDIDATES + SIZE)
    order = np.argsort(rows @ digits)
    cell = np.searchsorted((rows @ digits)[order], np.hstack([lists.slates, slates]) @ digits)
    count, expected = np.bincount(cell, minlength=len(rows)), n * joint[order]
    assert count[expected == 0].sum() == 0
    some = expected > 0
    chi2 = ((count - expected)[some] ** 2 / expected[some]).sum()
    assert chdtrc(some.sum() - 1, chi2) > 1e-6


def slates_of(second: Policy, sets: Ids, seeds: Any, ids: Ids) -> Ids:
    """The slates of lists, (n, SIZE), all of one set together."""
    slates = np.empty((len(sets), SIZE), np.int64)
    kinds_of, which = np.unique(sets, axis=0, return_inverse=True)
    for number, arms in enumerate(kinds_of):
        rows = np.flatnonzero(which.reshape(-1) == number)
        sampler = SlateSampler(scores_of(second, arms), size=SIZE, floor=second.exploration)
        drawn = sampler.draw(seeds=ranking_seeds(seeds[rows]), decisions=ids[rows])
        slates[rows] = arms[drawn.slates]
    return slates


def test_lists_alone_are_the_slates_that_are_drawn_with_marginals() -> None:
    policy = policy_of(*PAIRS[1])
    sampler = SlateSampler(scores_of(policy.stages[0], np.arange(M)), size=CANDIDATES, floor=0.0)
    seeds, ids = np.full(50, 3, np.uint64), np.arange(50)
    lists, slates = (
        sampler.draw(seeds=seeds, decisions=ids, with_marginals=False),
        sampler.draw(seeds=seeds, decisions=ids),
    )
    assert (lists.slates == slates.slates).all()
    assert lists.propensity == pytest.approx(slates.propensity, abs=1e-15)


def test_one_row_of_statistics_holds_both_beliefs() -> None:
    features = {"second.model": "features"}
    policy = policy_of("plackett-luce", {"first.model": "features"}, "plackett-luce", features)
    first, second = policy.stages
    assert policy.width == first.width + second.width - 3
    rng = np.random.default_rng(2)
    context = rng.normal(size=(5, len(policy.design.context.names)))  # type: ignore[attr-defined]
    slots = SlotColumns(arm_id=np.arange(5), reward=rng.random(5), context=context)
    rows = policy.statistics(slots)
    for stage, columns in zip(policy.stages, policy.columns, strict=True):  # type: ignore[attr-defined]
        assert rows[:, columns] == pytest.approx(stage.statistics(slots), abs=0)
    assert policy.needed_columns == first.needed_columns | second.needed_columns


def test_parameters_are_kept_by_stage() -> None:
    policy = policy_of(
        "fixed", {"first.probabilities": {"a": 0.5, "b": 0.5}}, "lin-thompson", {"second.model": "shared"}
    )
    values = kinds.values(policy)
    assert (values["second.floor"], values["second.samples"], values["first.floor"]) == (0.01, 1000.0, 0.0)
    assert kinds.values(kinds.make("two-stage", values)) == values
    faded = kinds.make("two-stage", {"discount": 0.9})
    assert [stage.forgetting.discount for stage in faded.stages] == [0.9, 0.9]


def test_greedy_ranks_without_exploration_what_is_drawn_as_before() -> None:
    policy = policy_of(*PAIRS[0])
    assert policy.greedy().exploration == 0
    assert policy.greedy().stages[0].exploration == 0.2


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ({"first": "thomson"}, "unknown kind 'thomson'"),
        ({"first": "two-stage"}, "kind two-stage cannot be the first stage"),
        ({"second": "logged"}, "kind logged cannot be the second stage"),
        ({"second": "gradient"}, "kind gradient cannot be the second stage"),
        ({"first": "exp3"}, "kind exp3 cannot be the first stage"),
        ({"first.flor": 0.1}, "no parameter 'first.flor'"),
        ({"first.discount": 0.9}, "no parameter 'first.discount'"),
        ({"third.floor": 0.1}, "no parameter 'third.floor'"),
        ({"second.floor": 2.0}, "second stage: floor is 2"),
        ({"candidates": 0.0}, "candidates is 0"),
        ({"candidates": 2.5}, "candidates is 2.5"),
        ({"candidates": 501.0}, "candidates is 501"),
    ],
)
def test_what_cannot_be_a_stage_is_refused(typed: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        kinds.make("two-stage", typed)
