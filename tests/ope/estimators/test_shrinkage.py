"""Shrunk effects against a published example and against worlds whose effects were drawn."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.ope.estimators.shrinkage import add_effects, shrink

# Eight schools (Rubin 1981): effects, standard errors, and the posterior means with flat priors of mean and spread that
# long runs of samplers report.
SCHOOLS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
POSTERIOR = np.array([11.4, 8.0, 6.2, 7.7, 5.1, 6.1, 10.6, 8.5])
EVERY = np.ones(8, np.bool_)


def test_eight_schools() -> None:
    shrunk = shrink(SCHOOLS, ERRORS, EVERY)
    assert shrunk.mean == pytest.approx(POSTERIOR, abs=0.4)
    assert 7.5 < shrunk.prior_mean < 8.5
    assert shrunk.sd == pytest.approx([8.3, 6.3, 7.8, 6.5, 6.3, 6.8, 6.8, 7.9], abs=0.7)


def test_an_arm_that_cannot_be_used_has_the_prior() -> None:
    usable = EVERY.copy()
    usable[2] = False
    shrunk, others = shrink(SCHOOLS, ERRORS, usable), shrink(SCHOOLS[usable], ERRORS[usable], EVERY[usable])
    assert (shrunk.mean[2], shrunk.sd[2]) == (others.prior_mean, others.prior_sd)
    assert shrunk.mean[usable].tolist() == others.mean.tolist()


@pytest.mark.parametrize("error", [0.0, np.nan])
def test_effects_without_errors_are_none(error: float) -> None:
    shrunk = shrink(SCHOOLS, np.full(8, error), EVERY)
    assert (shrunk.mean.any(), shrunk.sd.any(), shrunk.prior_sd) == (False, False, 0.0)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_posteriors_hold_the_effects(spread: float) -> None:
    """2,000 effects with errors from .5 to 2: at least .93 within the interval of 95 %, and never wider than alone.
    A share below .93 where .95 are expected is a false alarm of 1 in 20,000."""
    rng = np.random.default_rng(0)
    held, closer = 0, 0
    for _ in range(40):
        error = rng.uniform(0.5, 2, 50)
        effect = spread * rng.normal(size=50)
        estimate = effect + error * rng.normal(size=50)
        shrunk = shrink(estimate, error, np.ones(50, np.bool_))
        held += int((np.abs(shrunk.mean - effect) <= 1.96 * shrunk.sd).sum())
        closer += np.square(shrunk.mean - effect).sum() < np.square(estimate - effect).sum()
    assert held >= 0.93 * 2_000
    assert closer >= 36


def test_sums_of_effects() -> None:
    first, second = shrink(SCHOOLS, ERRORS, EVERY), shrink(-SCHOOLS, ERRORS, EVERY)
    total = add_effects([first, second], (1.0, 2.0))
    assert total.mean == pytest.approx(-first.mean)
    assert total.sd == pytest.approx(np.hypot(first.sd, 2 * second.sd))
    assert total.prior_sd == pytest.approx(5**0.5 * first.prior_sd)
