"""Many cases on one table: the same probabilities as each on a table of its own."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import slate


def cases(family: str, *, broad: float) -> list[Scores]:
    """Thirty cases of six of fifteen arms, some of which are equal."""
    rng = np.random.default_rng(4)
    pulls = 10 ** rng.uniform(0, broad, 15).round(1)
    rate = rng.beta(1, 5, 15).round(2) + 0.01
    chosen = [rng.choice(15, 6, replace=False) for _ in range(30)]
    if family == "gumbel":
        return [Gumbel(np.log(rate[arms]) * broad) for arms in chosen]
    if family == "beta":
        return [Beta((1 + pulls * rate)[arms], (1 + pulls * (1 - rate))[arms]) for arms in chosen]
    return [Gaussian(rate[arms], (1 / np.sqrt(pulls))[arms]) for arms in chosen]


@pytest.mark.parametrize("family", ["beta", "gaussian", "gumbel"])
@pytest.mark.parametrize("broad", [1.0, 5.0])
@pytest.mark.parametrize("floor", [0.0, (0.1, 0.3, 0.0)])
def test_marginals_of_many_cases_are_those_of_each(family: str, broad: float, floor: float | tuple[float, ...]) -> None:
    many = cases(family, broad=broad)
    together = slate.marginals_each(many, size=3, floor=floor)
    each = [slate.marginals(scores, size=3, floor=floor) for scores in many]
    assert np.array(together) == pytest.approx(np.array(each), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("family", ["beta", "gaussian", "gumbel"])
@pytest.mark.parametrize("floor", [0.0, (0.1, 0.3, 0.0)])
def test_conditionals_of_many_cases_are_those_of_each(family: str, floor: float | tuple[float, ...]) -> None:
    many, rng = cases(family, broad=3.0), np.random.default_rng(5)
    case = rng.integers(30, size=90)
    slates = np.array([rng.choice(6, 3, replace=False) for _ in case])
    together = slate.conditionals_each(many, case, slates, floor=floor)
    each = [
        slate.conditionals(many[number], shown[None], floor=floor)[0]
        for number, shown in zip(case, slates, strict=True)
    ]
    likely = np.array(each).prod(axis=1) > 1e-9  # below a rarer prefix fewer digits are right
    assert together[likely] == pytest.approx(np.array(each)[likely], rel=1e-6, abs=1e-11)
