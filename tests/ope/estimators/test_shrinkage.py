"""Shrunk effects against a published example and against worlds whose effects were drawn."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.ope.estimators.shrinkage import (
    ShrunkEffects,
    add_effects,
    draw_errors,
    draw_lines,
    event_rates,
    joint_rates,
    shrink,
    shrink_cells,
)

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


def worlds(slope: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """40 times 50 effects that spread by .3 around a line in the first of two predictors, their estimates with errors
    from .5 to 2, and these predictors."""
    rng, drawn = np.random.default_rng(1), []
    for _ in range(40):
        error, predictors = rng.uniform(0.5, 2, 50), rng.normal(size=(50, 2)) * [3.0, 0.1] + 7
        effect = slope * (predictors[:, 0] - 7) / 3 + 0.3 * rng.normal(size=50)
        drawn.append((effect, effect + error * rng.normal(size=50), error, predictors))
    return drawn


@pytest.mark.parametrize(("slope", "most"), [(0.0, 1.1), (0.5, 0.75), (2.0, 0.25)])
def test_what_predicts_effects_brings_posteriors_nearer(slope: float, most: float) -> None:
    """most: squared distance from the effects, as a share of that without predictors: nothing is lost where they tell
    nothing. At least .91 within the interval of 95 %: .93 to .95 are, and less than .91 are in 1 of 1,000."""
    every = np.ones(50, np.bool_)
    held, far, further = 0, 0.0, 0.0
    for effect, estimate, error, predictors in worlds(slope):
        shrunk, plain = shrink(estimate, error, every, predictors), shrink(estimate, error, every)
        held += int((np.abs(shrunk.mean - effect) <= 1.96 * shrunk.sd).sum())
        far += float(np.square(shrunk.mean - effect).sum())
        further += float(np.square(plain.mean - effect).sum())
    assert held >= 0.91 * 2_000
    assert far <= most * further


def test_an_arm_without_effects_may_be_like_any_other() -> None:
    """The prior beside predictors holds the effects of 95 % of all arms, wherever their predictors are."""
    held = 0
    for effect, estimate, error, predictors in worlds(2.0):
        shrunk = shrink(estimate, error, np.ones(50, np.bool_), predictors)
        held += int((np.abs(effect - shrunk.prior_mean) <= 1.96 * shrunk.prior_sd).sum())
    assert 0.92 * 2_000 <= held <= 0.98 * 2_000


def test_predictors_that_do_not_vary_change_nothing_but_the_grid() -> None:
    constant = shrink(SCHOOLS, ERRORS, EVERY, np.full((8, 2), 0.3))
    assert constant.mean.tolist() == shrink(SCHOOLS, ERRORS, EVERY).mean.tolist()


def test_rates_of_events_are_shrunk_and_those_that_differ_most_come_first() -> None:
    rng = np.random.default_rng(2)
    looks, usable = rng.uniform(5, 100, 40), np.ones(40, np.bool_)
    click, buy = rng.uniform(0.1, 0.6, 40), rng.uniform(0.02, 0.08, 40)
    counts = {"buy": rng.poisson(looks * buy), "click": rng.poisson(looks * click), "view": looks}
    events = {kind: np.column_stack([number, number]).astype(np.float64) for kind, number in counts.items()}
    rates = event_rates(events, looks, usable)
    assert [*rates] == ["click", "buy"]  # each look has its view
    for truth, kind in ((click, "click"), (buy, "buy")):
        raw = counts[kind] / looks
        assert np.square(rates[kind] - truth).sum() < 0.9 * np.square(raw - truth).sum()


def test_few_arms_or_no_events_predict_nothing() -> None:
    looks, usable = np.full(15, 100.0), np.ones(15, np.bool_)
    events = {kind: np.column_stack([np.arange(15.0) * 5] * 2) for kind in ("click", "buy")}
    assert len(event_rates(events, looks, usable)) == 1
    assert event_rates({kind: sums[:7] for kind, sums in events.items()}, looks[:7], usable[:7]) == {}
    assert event_rates({"click": np.zeros((15, 2))}, looks, usable) == {}
    assert event_rates({}, np.zeros(15), usable) == {}


@pytest.mark.parametrize(("spread", "least", "most"), [(0.0, 0.0, 0.15), (2.0, 0.6, 1.0)])
def test_cells_are_drawn_towards_their_arm_as_far_as_they_are_alike(spread: float, least: float, most: float) -> None:
    """least, most: of the way from the arm to the cell's own estimate, on average of 20 worlds of 2 cells of 30 arms;
    and posteriors are nearer to the truth than the estimates and, where cells differ, than the arm."""
    rng, way, far, raw, plain = np.random.default_rng(4), 0.0, 0.0, 0.0, 0.0
    usable, nothing = np.ones((2, 30), np.bool_), np.zeros((60, 0))
    for _ in range(20):
        arm = ShrunkEffects(rng.normal(size=30), np.full(30, 0.1), 0.0, 1.0)
        truth = arm.mean + spread * rng.normal(size=(2, 30))
        estimate = truth + rng.normal(size=(2, 30))
        cells = shrink_cells(arm, estimate, np.ones((2, 30)), usable, nothing)
        mean = np.array([cell.mean for cell in cells])
        way += float(((mean - arm.mean) * (estimate - arm.mean)).sum() / np.square(estimate - arm.mean).sum()) / 20
        far, raw = far + np.square(mean - truth).sum(), raw + np.square(estimate - truth).sum()
        plain += np.square(arm.mean - truth).sum()
        assert min(cell.sd.min() for cell in cells) >= 0.1
        assert {(cell.prior_mean, cell.prior_sd) for cell in cells} == {(0.0, 1.0)}
    assert least <= way <= most
    assert far < 0.95 * raw
    assert far < 0.5 * plain or not spread


def test_a_cell_without_looks_has_the_arm_and_the_doubt_of_cells() -> None:
    rng = np.random.default_rng(5)
    arm = ShrunkEffects(rng.normal(size=30), np.full(30, 0.1), 0.0, 1.0)
    estimate, usable = arm.mean + 2 * rng.normal(size=(2, 30)), np.ones((2, 30), np.bool_)
    usable[1] = False
    _, unseen = shrink_cells(arm, estimate, np.ones((2, 30)), usable, np.zeros((60, 0)))
    assert unseen.mean - arm.mean == pytest.approx(unseen.mean[0] - arm.mean[0])
    assert 1 < unseen.sd.min() < 4


def test_sums_of_effects() -> None:
    first, second = shrink(SCHOOLS, ERRORS, EVERY), shrink(-SCHOOLS, ERRORS, EVERY)
    total = add_effects([first, second], (1.0, 2.0))
    assert total.mean == pytest.approx(-first.mean)
    assert total.sd == pytest.approx(np.hypot(first.sd, 2 * second.sd))
    assert total.prior_sd == pytest.approx(5**0.5 * first.prior_sd)
    assert (
        total.prior_mean == pytest.approx(first.prior_mean + 2 * second.prior_mean) == pytest.approx(-first.prior_mean)
    )


def test_lines_hold_the_slopes() -> None:
    """60 sets of 50 arms whose rates have errors and go together: of 120 intervals of 95 %, fewer than 104 that hold
    the slope are a false alarm of 1 in 10,000."""
    rng, slopes, held = np.random.default_rng(3), np.array([-0.1, 1.5]), 0
    for _ in range(60):
        looks, click = rng.gamma(1, 200, 50) + 20, rng.uniform(0.1, 0.6, 50)
        buy = click * np.where(rng.random(50) < 0.2, 0, 0.2) * rng.uniform(0.7, 1.3, 50)
        counts = np.column_stack([rng.poisson(looks * click), rng.poisson(looks * buy)]).astype(np.float64)
        rates, _ = joint_rates(counts, np.diag(counts.sum(axis=0)), looks)
        effect, error = np.column_stack([click, buy]) @ slopes, 0.03 * np.sqrt(np.median(looks) / looks)
        effect = effect + 0.02 * rng.normal(size=50)
        estimate = effect + error * rng.normal(size=50)
        draws = draw_lines(estimate, error, rates, draws=500, rng=rng)
        lower, upper = np.quantile(draws.slopes, [0.025, 0.975], axis=0)
        held += int(((lower <= slopes) & (slopes <= upper)).sum())
        closer = np.square(draws.effects.mean(axis=0) - effect).sum() < np.square(estimate - effect).sum()
        assert closer
    assert held >= 104


def test_rates_that_go_together_help_each_other() -> None:
    """Purchases are rare and follow clicks: the joint rate of them is nearer to the truth than that of each alone."""
    rng = np.random.default_rng(4)
    looks, click = np.full(60, 300.0), rng.uniform(0.1, 0.6, 60)
    counts = np.column_stack([rng.poisson(looks * click), rng.poisson(looks * click * 0.1)]).astype(np.float64)
    events = {kind: np.column_stack([column, column]) for kind, column in zip(("click", "buy"), counts.T, strict=True)}
    alone = event_rates(events, looks, np.ones(60, np.bool_))["buy"]
    rates, covariance = joint_rates(counts, np.diag(counts.sum(axis=0)), looks)
    assert np.square(rates[:, 1] - 0.1 * click).sum() < 0.7 * np.square(alone - 0.1 * click).sum()
    # the truth lies as far off as draws of the error say, in both kinds: 2.5 standard errors of 60 squares
    errors = draw_errors(covariance, draws=400, rng=rng)
    shares = np.square(rates - np.column_stack([click, 0.1 * click])).mean(axis=0) / np.square(errors).mean(axis=(0, 1))
    assert (np.abs(shares - 1) < 2.5 * (2 / 60) ** 0.5).all()
