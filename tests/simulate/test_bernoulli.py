from __future__ import annotations

import numpy as np

from rlrec.simulate.bernoulli import Bernoulli


def test_each_arm_is_clicked_at_its_rate() -> None:
    """False-alarm rate about 6e-5: four standard errors, seeded."""
    audience = Bernoulli(rates={"a": 0.3, "b": 0.05})
    clicks = audience.clicks([["a", "b"]] * 20_000, rng=np.random.default_rng(1))
    count = np.bincount([position for _, position in clicks], minlength=3)[1:]
    expected = 20_000 * np.array([0.3, 0.05])
    assert np.all(np.abs(count - expected) < 4 * np.sqrt(expected))


def test_an_arm_without_a_rate_is_never_clicked_and_a_sure_one_always() -> None:
    audience = Bernoulli(rates={"sure": 1.0})
    clicks = audience.clicks([["new", "sure"], ["sure"], []], rng=np.random.default_rng(1))
    assert clicks == [(0, 2), (1, 1)]


def test_the_mean_is_the_uniform_policys() -> None:
    assert Bernoulli(rates={"a": 0.1, "b": 0.3}).mean() == 0.2
