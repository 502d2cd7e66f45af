"""Plackett-Luce slates: the distribution by known figures, and its gradient."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from rlrec.arrays import Array, Index
from rlrec.policy.gradients import reinforce
from rlrec.policy.gradients.gradient import Gradient, State
from rlrec.policy.gradients.reinforce import LoggedSlates, Objective
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.slates import plackett_luce, slate

WEIGHTS, VALUES, EXAMINATION = np.array([4.0, 3, 2, 1]), np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 0.5])
PAGES = np.array(list(permutations(range(4), 2)))


def score_functions(scores: Array, pages: Index) -> Array:
    """The gradient of the log probability of each page by the scores, as `train-pg` computes it, (pages, 4)."""
    kind, m = Gradient(), len(scores)
    parameters = {**kind.zero_parameters(m), "bias": scores}
    x = np.zeros((1, len(kind.names)))
    x[:, 0] = 1.0
    none = np.zeros(0, np.int64)
    result = []
    for page in pages:
        log_propensity = plackett_luce.log_conditionals(scores[None], page[None], temperature=1.0, floor=0.0).sum(
            axis=1
        )
        logged = LoggedSlates(
            state=State(x, none, none, np.zeros((0, 4))), arms=np.arange(m),
            arm_features=np.zeros((m, len(kind.design.arm.names))), shown_arms=page[None],
            log_propensity=log_propensity, gain=np.ones(1), returns=np.ones(1), scale=np.ones(1),
        )  # fmt: skip
        gradient = reinforce.sums(kind, parameters, [logged], Objective()).gradient
        result.append(gradient["linear"][:, 0])
    return np.array(result)


def test_the_log_probability_of_a_slate_and_its_gradient() -> None:
    scores, page = np.array([1, 0.5, -0.2, 0]), np.array([[2, 0]])
    conditional = slate.conditionals(Gumbel(scores), page, floor=0.0)
    assert np.log(conditional).sum() == pytest.approx(-2.7025153, abs=1e-7)
    assert score_functions(scores, page)[0] == pytest.approx([0.054076, -0.573732, 0.867642, -0.347986], abs=1e-6)


def test_marginals_of_the_second_position() -> None:
    marginals = slate.marginals(Gumbel(np.log(WEIGHTS)), size=2, floor=0.0)
    assert marginals[1] == pytest.approx([0.31587302, 0.30833333, 0.24126984, 0.13452381], abs=1e-8)


def page_value(scores: Array) -> float:
    """Mean page reward where it is a sum of position weight times value of the arm."""
    joint = slate.conditionals(Gumbel(scores), PAGES, floor=0.0).prod(axis=1)
    return float(joint @ (EXAMINATION * VALUES[PAGES]).sum(axis=1))


def test_the_mean_score_function_is_the_gradient_of_the_page_value() -> None:
    """PL-Rank is an estimate of this mean (Oosterhuis 2021): reward x gradient of the log probability, over all
    pages."""
    scores = np.log(WEIGHTS)
    joint = slate.conditionals(Gumbel(scores), PAGES, floor=0.0).prod(axis=1)
    gradient = (joint * (EXAMINATION * VALUES[PAGES]).sum(axis=1)) @ score_functions(scores, PAGES)
    steps = 1e-6 * np.eye(4)
    differences = [(page_value(scores + step) - page_value(scores - step)) / 2e-6 for step in steps]
    assert page_value(scores) == pytest.approx(0.309722222, abs=1e-9)
    assert gradient == pytest.approx([-0.04460538, -0.00827546, 0.02342152, 0.02945933], abs=1e-8)
    assert gradient == pytest.approx(differences, abs=1e-8)
