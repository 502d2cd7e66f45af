"""Effects of arms on pages of 2 of 5 arms, against all 20 slates and against drawn logs."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import Array, Ids
from rlrec.ope.sums.exposures import N_BASELINE, ExposureRegression, Exposures, std_errors
from tests.ope.pages import EFFECT, EXAMINATION, SLATES, chances, looks

STRENGTH = np.array([5.0, 4.0, 3.0, 2.0, 1.0])  # of a Plackett-Luce logger


def regression(
    exposure: Array, outcome: Array, *, weight: Array | None = None, people: Ids | None = None
) -> ExposureRegression:
    root = np.ones(len(outcome)) if weight is None else np.sqrt(weight)
    sums = ExposureRegression.zeros(exposure.shape[1], outcomes=1)
    add(
        sums, pages(exposure), outcome * root, factor=root, people=np.arange(len(outcome)) if people is None else people
    )
    return sums


def pages(exposure: Array) -> Exposures:
    """Exposures (n, k) of pages that show every arm, and expected their own less."""
    n, k = exposure.shape
    row, arm = np.divmod(np.arange(n * k), k)
    return Exposures(row, arm, np.ones(n * k), 1 - exposure, np.arange(n))


def add(sums: ExposureRegression, exposures: Exposures, outcome: Array, *, factor: Array, people: Ids) -> None:
    baseline = np.zeros((len(outcome), N_BASELINE))
    baseline[:, 0] = factor
    digests = np.random.default_rng(5).integers(-(2**62), 2**62, 100_000)
    sums.add_rows(baseline, exposures, outcome[:, None], factor=factor, cluster=digests[people])


def drawn(rng: np.random.Generator, n: int, *, persons: int) -> tuple[Array, Array, Ids]:
    """Exposures and outcomes of pages with a trend and noise that is larger in every third one; persons differ."""
    slates = SLATES[rng.choice(20, n, p=chances(STRENGTH))]
    people = np.arange(n) % persons
    noise = (
        0.6 * rng.normal(size=n) * np.where(np.arange(n) % 3 == 0, 1.5, 1.0) + 0.3 * rng.normal(size=persons)[people]
    )
    outcome = 0.4 + looks(slates) @ EFFECT + 0.3 * np.sin(np.arange(n) / n * 6) + noise
    return looks(slates) - chances(STRENGTH) @ looks(SLATES), outcome, people


def test_all_slates_give_the_effects_to_the_last_digits() -> None:
    """Only differences between arms are identified."""
    exposure = looks(SLATES) - chances(STRENGTH) @ looks(SLATES)
    sums = regression(exposure, 0.4 + looks(SLATES) @ EFFECT, weight=1e3 * chances(STRENGTH))
    effect = sums.effects[:, 0]
    assert effect - effect[0] == pytest.approx(EFFECT - EFFECT[0], abs=1e-12)
    assert sums.is_varying.all()


def test_batches_add_up() -> None:
    exposure, outcome, people = drawn(np.random.default_rng(0), 900, persons=300)
    half = np.arange(900) < 400
    direct = regression(exposure, outcome, people=people)
    first, second = (regression(exposure[rows], outcome[rows], people=people[rows]) for rows in (half, ~half))
    added = first + second
    assert added.effects == pytest.approx(direct.effects, rel=1e-9)
    assert added.influences == pytest.approx(direct.influences, rel=1e-9, abs=1e-12)


def test_errors_are_those_of_persons() -> None:
    """200 logs of 400 persons: the contrast of the last arm with the first one is .55; fewer than 178 or more than 198
    of 200 intervals of 95 % that hold it are a false alarm of less than 1 in 500."""
    rng, held, errors, contrasts = np.random.default_rng(1), 0, [], []
    for _ in range(200):
        exposure, outcome, people = drawn(rng, 1_200, persons=400)
        sums = regression(exposure, outcome, people=people)
        influence = sums.influences[:, 4, 0] - sums.influences[:, 0, 0]
        error = float(std_errors(influence, columns=sums.n_regressed))
        contrast = float(sums.effects[4, 0] - sums.effects[0, 0])
        held += abs(contrast - 0.55) <= 1.96 * error
        errors.append(error)
        contrasts.append(contrast)
    assert 178 <= held <= 198
    assert np.mean(errors) == pytest.approx(np.std(contrasts), rel=0.15)
    assert np.mean(contrasts) == pytest.approx(0.55, abs=4 * np.std(contrasts) / 200**0.5)


def test_an_arm_that_never_varied_is_named() -> None:
    slates = np.tile(SLATES[(SLATES != 4).all(axis=1)], (40, 1))
    never = np.where(np.arange(5) == 4, 0.0, STRENGTH)
    sums = regression(looks(slates) - chances(never) @ looks(SLATES), looks(slates) @ EFFECT)
    assert sums.is_varying.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("arms", [5, 150])
def test_an_arm_that_one_person_alone_was_shown_is_not_told(arms: int) -> None:
    """Whatever that person did would be its effect, without any error."""
    rng, n = np.random.default_rng(7), 1_500
    arm = np.r_[arms - 1, rng.integers(arms - 1, size=n - 1)]  # the first page alone might show the last one
    expected = np.array([np.full(arms, 1 / arms), np.r_[np.full(arms - 1, 1 / (arms - 1)), 0.0]])
    exposures = Exposures(np.arange(n), arm, np.ones(n), expected, np.minimum(np.arange(n), 1))
    sums = ExposureRegression.zeros(arms, outcomes=1)
    add(sums, exposures, rng.normal(size=n), factor=np.ones(n), people=np.arange(n) // 2)
    assert sums.is_varying.tolist() == [*[True] * (arms - 1), False]


def test_few_persons_have_no_errors() -> None:
    exposure, outcome, people = drawn(np.random.default_rng(2), 60, persons=15)
    sums = regression(exposure, outcome, people=people)
    assert np.isnan(std_errors(sums.influences, columns=sums.n_regressed)).all()


def test_many_arms_are_regressed_on_one_by_one() -> None:
    """One slot of 150 arms drawn evenly: an arm by itself has the effect that all together give, up to what their mean
    adds; of 150 intervals, fewer than 130 that hold the truth are a false alarm of 1 in 3,000."""
    rng, n, arms = np.random.default_rng(3), 22_500, 150
    effect = 0.2 * rng.normal(size=arms)
    arm = rng.integers(arms, size=n)
    exposure = np.full((n, arms), -1 / arms)
    exposure[np.arange(n), arm] += 1
    sums = regression(exposure, effect[arm] + rng.normal(size=n) + 5)
    error = std_errors(sums.influences[:, :, 0], columns=sums.n_regressed)
    truth = effect - effect.mean()
    assert sums.square.shape[2] == N_BASELINE + 1
    assert (np.abs(sums.effects[:, 0] - truth) <= 1.96 * error).sum() >= 130
    assert np.corrcoef(sums.effects[:, 0], truth)[0, 1] > 0.9


@pytest.mark.parametrize("arms", [5, 150])
def test_what_was_shown_and_what_was_expected_add_up_to_the_sums_of_rows(arms: int) -> None:
    """Pages and visits, whose looks are given slot by slot and whose expectations draw by draw, against plain rows;
    visits of the same draws have one expectation, in whichever order."""
    rng, n, visits = np.random.default_rng(4), 600, 200
    expected = rng.dirichlet(np.ones(arms), 4)
    draw, arm = rng.integers(4, size=n), rng.integers(arms, size=(n, 2))
    exposures = Exposures(np.repeat(np.arange(n), 2), arm.ravel(), np.tile(EXAMINATION, n), expected, draw)
    dense = -expected[draw]
    for position in (0, 1):
        np.add.at(dense, (np.arange(n), arm[:, position]), EXAMINATION[position])
    assert exposures.dense_looks == pytest.approx(dense, abs=1e-15)
    shown, awaited = exposures.totals(np.arange(n) % 3)
    assert shown - awaited == pytest.approx((np.arange(n) % 3) @ dense, abs=1e-9)
    visit = np.sort(np.r_[np.arange(visits), rng.integers(visits, size=n - visits)])
    by_visit = np.add.reduceat(dense, np.searchsorted(visit, np.arange(visits)))
    together = exposures.merge_rows(visit)
    assert together.dense_looks == pytest.approx(by_visit, abs=1e-12)
    assert len(together.expected_looks) < visits
    third = np.arange(0, visits, 3)
    for rows, plain in ((exposures, dense), (together.take(third), by_visit[third])):
        sums, direct = (ExposureRegression.zeros(arms, outcomes=1) for _ in range(2))
        outcome, factor = rng.normal(size=len(rows)), rng.uniform(0.5, 2, len(rows))
        people = np.arange(len(rows)) // 2
        add(sums, rows, outcome, factor=factor, people=people)
        add(direct, pages(plain), outcome, factor=factor, people=people)
        assert sums.cross == pytest.approx(direct.cross, abs=1e-11)
        assert sums.square == pytest.approx(direct.square, abs=1e-11)


def test_exposures_of_a_draw_that_is_not_known_are_not_known() -> None:
    exposures = Exposures(np.arange(2), np.zeros(2, np.int64), np.ones(2), np.full((1, 3), 1 / 3), np.array([0, -1]))
    assert np.isnan(exposures.dense_looks).all(axis=1).tolist() == [False, True]
    assert len(exposures.take(np.array([0])).row) == 1
