"""Each kind by its formula, on numbers small enough to do by hand."""

from __future__ import annotations

from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec.app.inputs.parameters import MAX_COUNT, MIN_COUNT
from rlrec.arrays import Array
from rlrec.errors import InputError, suggest
from rlrec.policy.beliefs.base import Belief, Policy
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.slates import slate
from rlrec.records import Reward


def belief(
    pulls: list[float], reward: list[float], *, prior: tuple[float, float] = (0, 0), total: float = -1
) -> Belief:
    n, sums = np.array(pulls, float), np.array(reward, float)
    return Belief(
        pulls=n,
        reward_sum=sums,
        reward_squares=sums,
        alpha=np.full(len(n), prior[0], float),
        beta=np.full(len(n), prior[1], float),
        total=n.sum() if total < 0 else total,
    )


def reward(**changed: Any) -> Reward:
    stored: dict[str, Any] = {
        "id": 1, "name": "r", "weights": {"click": 1.0}, "window_us": 60, "default": 0.0, "clip_low": 0.0,
        "clip_high": 1.0, "learn": "served", "late": "count",
    }  # fmt: skip
    return Reward(**stored | changed)


def served(policy: Policy, stored: Belief, *, arms: str = "abc", context: dict[str, Any] | None = None) -> Array:
    return slate.p_first(policy.scores(stored, arms=list(arms), context=context or {}), floor=policy.exploration)


# -- epsilon-greedy --


def test_ties_share_probability() -> None:
    result = served(kinds.make("epsilon-greedy", {"epsilon": 0.3}), belief([10, 20, 5], [5, 10, 1]))
    assert result == pytest.approx([0.45, 0.45, 0.1], abs=1e-15)


def test_an_arm_without_pulls_has_mean_zero() -> None:
    policy = kinds.make("epsilon-greedy", {"epsilon": 0})
    assert served(policy, belief([10, 0, 5], [-1, 0, 1])).tolist() == [0, 0, 1]
    assert served(policy, belief([10, 0, 5], [-1, 0, -1])).tolist() == [0, 1, 0]


def test_a_prior_moves_the_mean() -> None:
    stored = belief([10, 0, 0], [2, 0, 0], prior=(1, 3))
    assert kinds.make("epsilon-greedy", {}).index(stored, context={}) == pytest.approx([3 / 14, 1 / 4, 1 / 4])


def test_epsilon_and_floor_are_one_mechanism() -> None:
    result = served(kinds.make("epsilon-greedy", {"epsilon": 0.1, "floor": 0.2}), belief([1, 1, 1], [1, 0, 0]))
    assert result == pytest.approx([1 - 0.28 + 0.28 / 3, 0.28 / 3, 0.28 / 3], abs=1e-15)


# -- ucb --


def test_the_index_is_mean_and_bonus() -> None:
    result = kinds.make("ucb", {"c": 2.0}).index(belief([16, 4, 1], [8, 1, 0]), context={})
    bonus = 2 * np.sqrt(np.log(22) / np.array([16, 4, 1]))
    assert result == pytest.approx(np.array([0.5, 0.25, 0]) + bonus, abs=1e-14)


def test_an_arm_never_tried_comes_first() -> None:
    policy = kinds.make("ucb", {})
    assert served(policy, belief([9, 0, 0], [9, 0, 0])).tolist() == [0, 0.5, 0.5]
    assert served(policy, belief([0, 0, 0], [0, 0, 0])) == pytest.approx([1 / 3] * 3)


def test_the_clock_of_ucb_counts_arms_that_are_not_eligible() -> None:
    result = kinds.make("ucb", {"c": 1.0}).index(belief([4, 4, 4], [0, 0, 0], total=99), context={})
    assert result == pytest.approx([np.sqrt(np.log(100) / 4)] * 3)


def test_c_zero_is_greedy() -> None:
    assert served(kinds.make("ucb", {"c": 0}), belief([4, 4, 400], [2, 1, 100])).tolist() == [1, 0, 0]


# -- thompson --


def test_the_posterior_counts_rewards_fractionally() -> None:
    scores = kinds.make("thompson", {}).scores(belief([10, 0], [2.5, 0], prior=(1, 1)), arms=["a", "b"], context={})
    assert isinstance(scores, Beta)
    assert (scores.alpha.tolist(), scores.beta.tolist()) == ([3.5, 1], [8.5, 1])


def test_the_second_arm_is_best_with_29_of_33() -> None:
    stored = belief([6, 4], [2, 3], prior=(1, 1))  # Beta(3, 5) and Beta(4, 2)
    assert served(kinds.make("thompson", {}), stored, arms="ab")[1] == pytest.approx(29 / 33, abs=1e-12)


@pytest.mark.parametrize("a", [MIN_COUNT, 0.1, 1e7, MAX_COUNT])
@pytest.mark.parametrize("b", [MIN_COUNT, 0.1, 1e7, MAX_COUNT])
@pytest.mark.parametrize("c", [1.0, 7.0, 1e5])
def test_probabilities_are_exact_for_every_prior_that_is_taken(a: float, b: float, c: float) -> None:
    scores = Beta(np.array([a, 1.0]), np.array([b, c]))
    with mpmath.workdps(50):  # Beta(1, c) is below x with probability 1 - (1 - x)^c
        lost = [mpmath.loggamma(b + c), -mpmath.loggamma(a + b + c), -mpmath.loggamma(b), mpmath.loggamma(a + b)]
        first = float(1 - mpmath.exp(sum(lost)))
    assert slate.p_first(scores, floor=0) == pytest.approx([first, 1 - first], abs=1e-9)


@pytest.mark.parametrize(
    "changed", [{"clip_low": None, "clip_high": None}, {"clip_high": 2.0}, {"clip_low": -1.0}, {"default": 1.5}]
)
def test_a_reward_that_may_leave_the_unit_interval_is_refused_by_who_counts_on_it(changed: dict[str, Any]) -> None:
    for kind in ("thompson", "logistic-thompson", "plackett-luce", "exp3"):
        kinds.make(kind, {}).check(reward())
        with pytest.raises(InputError, match=r"may leave \[0, 1\]"):
            kinds.make(kind, {}).check(reward(**changed))
    for kind in ("epsilon-greedy", "ucb", "uniform"):
        kinds.make(kind, {}).check(reward(**changed))


# -- fixed --

TABLE = {"a": 0.5, "b": 0.3, "x": 0.2}


def fixed(**parameters: Any) -> Policy:
    return kinds.make("fixed", parameters)


def test_fixed_serves_what_it_was_given_among_the_eligible() -> None:
    nothing = belief([0] * 3, [0] * 3)
    assert served(fixed(probabilities=TABLE), nothing, arms="abx") == pytest.approx([0.5, 0.3, 0.2], abs=1e-15)
    assert served(fixed(probabilities=TABLE), nothing, arms="abz") == pytest.approx([0.625, 0.375, 0], abs=1e-15)
    assert served(fixed(probabilities=TABLE), nothing, arms="uvz") == pytest.approx([1 / 3] * 3, abs=1e-15)


def test_later_positions_renormalise() -> None:
    scores = fixed(probabilities=TABLE).scores(belief([0] * 4, [0] * 4), arms=list("abxz"), context={})
    assert slate.remaining(scores, np.array([0]), floor=0) == pytest.approx([0, 0.6, 0.4, 0], abs=1e-15)
    assert slate.remaining(scores, np.array([0, 1, 2]), floor=0) == pytest.approx([0, 0, 0, 1], abs=1e-15)


@pytest.mark.parametrize(
    ("value", "arm"),
    [("9", 0), (9, 0), (9.0, 0), (2.5, 1), (True, 2), ("true", 2), (10, 3), (None, 3), (1e6, 4), (False, 3)],
)
def test_values_of_a_context_are_named_as_in_json(value: Any, arm: int) -> None:
    names = {"9": "a", "2.5": "b", "true": "c", "*": "d", "1000000": "e", "null": "a", "None": "a", "1e+06": "a"}
    policy = fixed(by="hour", probabilities={name: {item: 1.0} for name, item in names.items()})
    result = served(policy, belief([0] * 5, [0] * 5), arms="abcde", context={"hour": value})
    assert result.argmax() == arm
    assert policy.fields_read == ("hour",)


def test_a_context_without_the_field_has_the_row_for_any_value() -> None:
    policy = fixed(by="hour", probabilities={"9": {"a": 1.0}, "*": {"b": 1.0}})
    assert served(policy, belief([0] * 3, [0] * 3)).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("context", "what"), [({"hour": 7}, "hour='7'"), ({}, "a context without 'hour'")])
def test_a_value_without_probabilities_is_refused(context: dict[str, Any], what: str) -> None:
    policy = fixed(by="hour", probabilities={"9": {"a": 1.0}})
    with pytest.raises(InputError, match="no probabilities for") as caught:
        served(policy, belief([0] * 3, [0] * 3), context=context)
    assert what in caught.value.message


@pytest.mark.parametrize("parameters", [{}, {"probabilities": {"a": 0.5}}, {"probabilities": {"a": 2.0, "b": -1.0}}])
def test_probabilities_that_are_none_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        fixed(**parameters)


# -- the registry --


def test_near_names_are_suggested() -> None:
    with pytest.raises(InputError) as kind:
        kinds.load("tompson")
    with pytest.raises(InputError) as parameter:
        kinds.make("epsilon-greedy", {"epsilom": 0.1})
    assert kind.value.hint == "did you mean thompson or lin-thompson?"
    assert parameter.value.hint == "did you mean epsilon?"


def test_near_names_are_looked_for_where_that_is_quick() -> None:
    """Not for words longer than any name; among many names, for those that begin as the word does."""
    many = [f"arm-{number}" for number in range(2000)]
    assert suggest("home" * 60, ["home" * 60 + "s"]) is None
    assert suggest("ahome", ["home", *many]) is None
    assert suggest("hoome", ["home", *many]) == "did you mean home?"


def test_the_contract_names_the_defaults() -> None:
    assert kinds.make("epsilon-greedy", {}) == kinds.make("epsilon-greedy", {"epsilon": 0.1, "floor": 0.0})
    assert kinds.make("ucb", {}) == kinds.make("ucb", {"c": 1.4142135623730951, "floor": 0.0})
    assert kinds.make("thompson", {}).prior == (1, 1)
