from __future__ import annotations

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.simulate.clicks import Bernoulli


def test_each_arm_is_clicked_at_its_rate_in_every_position() -> None:
    """False-alarm rate about 1e-4: four standard errors of two counts, seeded."""
    audience = Bernoulli(rates=(0.3, 0.05))
    audience.reset(20_000, np.random.default_rng(1))
    _, reward, *_ = audience.step(np.tile([1, 0], (20_000, 1)))
    expected = 20_000 * np.array([0.05, 0.3])
    assert np.all(np.abs(reward.sum(axis=0) - expected) < 4 * np.sqrt(expected))


def test_what_is_expected_and_best_is_known() -> None:
    audience = Bernoulli(rates=(0.1, 0.3, 0.2))
    audience.reset(2, np.random.default_rng(1))
    *_, item = audience.step(np.array([0, 1]))
    *_, page = audience.step(np.array([[0, 2], [1, 0]]))
    assert (item["expected"].tolist(), item["optimum"].tolist()) == ([0.1, 0.3], [0.3, 0.3])
    assert (page["expected"].tolist(), page["optimum"].tolist()) == ([[0.1, 0.2], [0.3, 0.1]], [0.5, 0.5])


def test_a_sure_arm_is_always_clicked_and_an_impossible_one_never() -> None:
    audience = Bernoulli(rates=(1.0, 0.0))
    audience.reset(3, np.random.default_rng(1))
    assert audience.step(np.array([0, 1, 0]))[1].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("rates", [(0.5,), (), (0.5, 1.5), (-0.1, 0.5), (0.5, float("nan"))])
def test_what_is_no_rate_is_refused(rates: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        Bernoulli(rates=rates)
