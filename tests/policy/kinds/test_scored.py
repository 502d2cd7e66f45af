"""Kind scored, by hand: the scores of a request with a temperature, with epsilon, and with a floor."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.special import chdtrc

from rlrec import policy as kinds
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import slate
from rlrec.policy.slates.slate_draws import SlateSampler

OFF = {"temperature": 0.5, "epsilon": 0.4, "score": "other"}
IMPOSSIBLE: dict[str, list[Any]] = {"temperature": [-1.0, 1e-10, 1e300, float("inf"), float("nan"), "1", True]}
ARMS = list("abcdefgh")
SCORES = [1.7, 0.2, 1.7, -3.0, 0.9, 2.5, 0.9, 0.9]  # with ties of two and of three arms
SLATES = np.array(list(permutations(range(8), 4)), np.intp)
FALSE_ALARM = 1e-6  # of the test of frequencies; its draws are seeded


def scores_of(params: dict[str, Any], values: list[float]) -> tuple[Scores, Floor]:
    policy, nothing = kinds.make("scored", params), np.zeros(len(values))
    belief = Belief(pulls=nothing, reward_sum=nothing, reward_squares=nothing, alpha=nothing, beta=nothing, total=0.0)
    arms = ARMS[: len(values)]
    context = {"@arms": {arm: {"score": value} for arm, value in zip(arms, values, strict=True)}}
    return policy.scores(belief, arms=arms, context=context), policy.exploration


def enumerated(shown: list[int], *, temperature: float, rate: list[float]) -> float:
    """The probability of a slate, arm by arm: with the rate of the position a uniform arm of those left, else by
    softmax, or at temperature 0 a uniform one of the best."""
    left, joint = list(range(8)), 1.0
    for position, arm in enumerate(shown):
        if temperature:
            weight = {other: np.exp((SCORES[other] - 2.5) / temperature) for other in left}
        else:
            best = max(SCORES[other] for other in left)
            weight = {other: float(SCORES[other] == best) for other in left}
        joint *= rate[position] / len(left) + (1 - rate[position]) * weight[arm] / sum(weight.values())
        left.remove(arm)
    return joint


@pytest.mark.parametrize("params", [
    {"temperature": 0.5}, {"temperature": 0.7, "floor": 0.1}, {"temperature": 0.7, "epsilon": 0.2, "floor": 0.1},
    {}, {"epsilon": 0.0}, {"epsilon": 0.3, "floor": 0.2, "explore_slots": "2"},
])  # fmt: skip
def test_slates_of_four_of_eight_have_the_probabilities_of_enumeration(params: dict[str, Any]) -> None:
    """Below an arm that exploration put there, greedy slates go on with the best of those left."""
    scores, floor = scores_of(params, SCORES)
    rate = at_positions(floor, 4).tolist()
    joint = slate.conditionals(scores, SLATES, floor=floor).prod(axis=1)
    expected = [enumerated(row, temperature=params.get("temperature", 0), rate=rate) for row in SLATES.tolist()]
    assert joint == pytest.approx(expected, abs=1e-12)
    assert joint.sum() == pytest.approx(1, abs=1e-12)


def frequencies(params: dict[str, Any], n: int) -> tuple[Array, Array]:
    scores, floor = scores_of(params, SCORES)
    sampler = SlateSampler(scores, size=4, floor=floor)
    draw = sampler.draw(seeds=np.full(n, 7, np.uint64), decisions=np.arange(n))
    number = {tuple(row): index for index, row in enumerate(SLATES.tolist())}
    counts = np.bincount([number[tuple(row)] for row in draw.slates.tolist()], minlength=len(SLATES))
    return counts.astype(np.float64), slate.conditionals(scores, SLATES, floor=floor).prod(axis=1)


@pytest.mark.parametrize("params", [{"temperature": 0.7, "floor": 0.1}, {"epsilon": 0.3}])
def test_draws_are_as_frequent_as_their_propensities(params: dict[str, Any]) -> None:
    """20,000 draws, slates that are expected less than 5 times together; 1e6 in tests/benchmarks."""
    counts, joint = frequencies(params, 20_000)
    expected = 20_000 * joint
    rare = expected < 5
    observed, wanted = (np.append(values[~rare], values[rare].sum()) for values in (counts, expected))
    keep = wanted > 0
    assert observed[~keep].sum() == 0
    statistic = ((observed[keep] - wanted[keep]) ** 2 / wanted[keep]).sum()
    assert chdtrc(keep.sum() - 1, statistic) > FALSE_ALARM


def test_equal_scores_share() -> None:
    scores, floor = scores_of({"epsilon": 0.0}, [2, 5, 5, 1, 5])
    assert slate.p_first(scores, floor=floor) == pytest.approx([0, 1 / 3, 1 / 3, 0, 1 / 3], abs=1e-15)


def test_epsilon_is_0_where_a_temperature_explores() -> None:
    assert kinds.make("scored", {}).exploration == pytest.approx(0.1)
    assert kinds.make("scored", {"temperature": 0.5}).exploration == 0
    assert kinds.make("scored", {"temperature": 0.5, "epsilon": 0.2}).exploration == pytest.approx(0.2)


@pytest.mark.parametrize("largest", [1e100, 1e-300])
def test_extreme_scores_have_probabilities(largest: float) -> None:
    scores, floor = scores_of({"temperature": 1e-9}, [largest, -largest, 0.0])
    first = slate.p_first(scores, floor=floor)
    assert first.sum() == pytest.approx(1, abs=1e-12)
    assert first == pytest.approx([1, 0, 0] if largest > 1 else [1 / 3] * 3, abs=1e-12)


@pytest.mark.parametrize("added", [2.0**50, -(2.0**40)])
def test_large_scores_have_the_probabilities_of_their_differences(added: float) -> None:
    (far, floor), (near, _) = (scores_of({"temperature": 0.5}, [v + t for v in (2, 2, 0)]) for t in (added, 0.0))
    slates = np.array(list(permutations(range(3))), np.intp)
    shown = [slate.conditionals(scores, slates, floor=floor) for scores in (far, near)]
    assert shown[0] == pytest.approx(shown[1], abs=1e-12)


def test_an_arm_without_a_score_is_named() -> None:
    policy: Any = kinds.make("scored", {})
    none = np.zeros(2)
    belief = Belief(pulls=none, reward_sum=none, reward_squares=none, alpha=none, beta=none, total=0.0)
    for context in ({}, {"@arms": {"a": {"score": 1}}}, {"@arms": {"a": {"score": 1}, "b": {"features": {"x": 1}}}}):
        with pytest.raises(InputError, match="has no score"):
            policy.scores(belief, arms=["a", "b"], context=context)
    stated = {"a": {"score": 1, "scores": {"new": 2}}, "b": {"score": 3, "scores": {"old": 4}}}
    assert list(policy.request_scores(["a", "b"], {"@arms": stated})) == [1, 3]
    with pytest.raises(InputError, match="arm 'b' has no score 'new'") as refusal:
        kinds.make("scored", {"score": "new"}).scores(belief, arms=["a", "b"], context={"@arms": stated})
    assert '{"arm": "KEY", "scores": {"new": 1.7}}' in str(refusal.value.hint)
