"""Effects of arms on pages of 2 of 5 arms, against all 20 slates and against drawn logs (`methods` 9.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.arrays import Array, Ids
from rlrec.ope.units.effects import EffectBatch, EffectFold, Effects
from rlrec.ope.units.estimate import Estimate, FinishOptions
from tests.ope.pages import EFFECT, EXAMINATION, SLATES, chances, looks

LOGGER, TARGET = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([1.0, 1.0, 2.0, 3.0, 9.0])  # strengths of Plackett-Luce


def batch(slates: Ids, earned: Array, logger: Array, target: Array, **columns: Any) -> EffectBatch:
    """Pages of a logger and a target of such strengths."""
    logged, wanted = (chances(strength) @ looks(SLATES) for strength in (logger, target))
    columns = {"reward": earned, "remaining": earned, "cluster": np.arange(len(slates)), **columns}
    columns["expectation"], change = (np.tile(row, (len(slates), 1)) for row in (logged, wanted - logged))
    exposure = looks(slates) - logged
    return EffectBatch(exposure=exposure, change=change, looks=np.full(len(slates), EXAMINATION.sum()), **columns)


def estimate(*batches: EffectBatch, **options: Any) -> Estimate:
    fold = EffectFold(estimators={"effects": Effects()}, spans_batches=True, arms=5)
    partial, *others = map(fold.row_sums, batches)
    for other in others:
        partial = partial + other
    (row,) = fold.finish(partial, FinishOptions(**{"interval": "normal", **options}))
    return row


def additive(slates: Ids) -> Array:
    return np.asarray(0.4 + looks(slates) @ EFFECT)


def complete(earned: Array, target: Array = TARGET) -> EffectBatch:
    """All slates, each as often as the logger shows it."""
    return batch(SLATES, earned, LOGGER, target, count=chances(LOGGER) * 1e6)


def test_all_slates_give_the_value_of_a_target_where_effects_add_up() -> None:
    assert estimate(complete(additive(SLATES))).value == pytest.approx(chances(TARGET) @ additive(SLATES), abs=1e-12)


def test_what_does_not_add_up_is_right_to_first_order_alone() -> None:
    """A pair that pleases together: the part of it that no sum of arms has is missed."""
    pleases = additive(SLATES) + 0.5 * np.isin(SLATES, (0, 4)).all(axis=1)
    row, truth = estimate(complete(pleases)), chances(TARGET) @ pleases
    assert abs(float(row.value or 0) - truth) > 0.01
    assert "first-order" in row.reasons


def test_the_logger_itself_earns_what_was_logged() -> None:
    row = estimate(complete(additive(SLATES), LOGGER), interval="bootstrap-t")
    assert row.value == pytest.approx(chances(LOGGER) @ additive(SLATES), abs=1e-12)
    assert (row.lift, row.lift_lower, row.lift_upper, row.unsupported) == (0, 0, 0, 0)


def test_an_arm_that_never_varied_is_unsupported() -> None:
    slates = SLATES[(SLATES != 4).all(axis=1)]
    never = np.where(np.arange(5) == 4, 0.0, LOGGER)
    row = estimate(batch(np.tile(slates, (20, 1)), np.tile(additive(slates), 20), never, TARGET))
    assert (row.verdict, "unsupported" in row.reasons) == ("insufficient", True)
    assert row.unsupported == pytest.approx((chances(TARGET) @ looks(SLATES))[4] / 1.5, rel=1e-6)


def test_effective_pages_are_those_of_the_target_or_looks_at_the_arms_that_it_shows_more() -> None:
    """Logs of equally likely pages, in which a target shows the first arms alone. One of two arms: half of the pages,
    as by weights of 2. Two of four arms: variances of looks are 1/4, covariances -1/12, so 300 pages tell as much as
    100 looks at what the target shows more."""
    for arms, slates, ess in ((2, [[0], [1]], 150), (4, [[a, b] for a in range(4) for b in range(a)], 100)):
        shown = np.zeros((len(slates), arms))
        np.put_along_axis(shown, np.array(slates), 1.0, axis=1)
        exposure = np.tile(shown - shown.mean(axis=0), (300 // len(slates), 1))
        wanted = np.arange(arms) < len(slates[0])
        fold = EffectFold(estimators={"effects": Effects()}, spans_batches=True, arms=arms)
        pages = EffectBatch(
            exposure=exposure, expectation=np.tile(shown.mean(axis=0), (300, 1)),
            change=np.tile(wanted - shown.mean(axis=0), (300, 1)), cluster=np.arange(300),
            looks=np.full(300, float(len(slates[0]))), reward=exposure[:, 0], remaining=exposure[:, 0],
        )  # fmt: skip
        (row,) = fold.finish(fold.row_sums(pages), FinishOptions(interval="normal"))
        assert row.ess == pytest.approx(ess)


def drawn(rng: np.random.Generator, n: int) -> EffectBatch:
    """Pages with a trend and noise that is larger in every third one, three pages of each person."""
    slates = SLATES[rng.choice(20, n, p=chances(LOGGER))]
    noise = 0.6 * rng.normal(size=n) * np.where(np.arange(n) % 3 == 0, 1.5, 1.0) + np.repeat(rng.normal(size=n // 3), 3)
    trend = 0.3 * np.sin(np.arange(n) / n * 6)
    return batch(slates, additive(slates) + trend + noise, LOGGER, TARGET, cluster=np.repeat(np.arange(n // 3), 3))


def test_batches_add_up() -> None:
    pages = drawn(np.random.default_rng(0), 900)
    halves = pages.take(np.arange(0, 300)), pages.take(np.arange(300, 900))
    direct, added = estimate(pages), estimate(*halves)
    for name in ("value", "std_error", "lower", "upper", "ess", "lift", "mean_weight"):
        assert getattr(added, name) == pytest.approx(getattr(direct, name), rel=1e-9), name
    assert (added.n, added.clusters, added.verdict) == (900, 300, "weak")  # never ok: whether effects add up is open


@pytest.mark.simulation
def test_intervals_hold_what_the_target_earns() -> None:
    """200 logs of 300 persons: fewer than 178 intervals of 95 % that hold it are a false alarm of 1 in 2,000."""
    rng, truth = np.random.default_rng(1), chances(TARGET) @ additive(SLATES)
    trend = 0.3 * np.sin(np.arange(900) / 900 * 6).mean()
    rows = [estimate(drawn(rng, 900), interval=("normal", "bootstrap-t")[number % 2]) for number in range(200)]
    values = np.array([row.value for row in rows], np.float64)
    assert sum(float(row.lower or 0) <= truth + trend <= float(row.upper or 0) for row in rows) >= 178
    assert np.mean([row.std_error for row in rows]) == pytest.approx(values.std(), rel=0.2)


def test_arms_that_are_hardly_shown_are_not_judged() -> None:
    """50 arms that do nothing, of which a logger shows a few to people of each of three languages, who earn more or
    less; a target shows all evenly. In 20 logs every value lies within .5 of the truth (by 29 did one, where arms that
    were hardly shown were judged, too, and 8 intervals held it), and at least 17 intervals of 95 % hold it. The logs
    are fixed."""
    rng, arms, n = np.random.default_rng(3), 50, 1_500
    errors, held = list[float](), 0
    for _ in range(20):
        chance, draw = 0.95 * rng.dirichlet(np.full(arms, 0.2), 3) + 0.05 / arms, rng.integers(3, size=n)
        shown = np.eye(arms)[(rng.random(n)[:, None] > chance[draw].cumsum(axis=1)).sum(axis=1).clip(max=arms - 1)]
        earned = 4.0 * (rng.random(n) < np.array([0.2, 0.4, 0.65])[draw])
        pages = EffectBatch(
            exposure=shown - chance[draw], expectation=chance[draw], change=1 / arms - chance[draw], looks=np.ones(n),
            reward=earned, remaining=earned, cluster=np.arange(n),
        )  # fmt: skip
        fold = EffectFold(estimators={"effects": Effects()}, spans_batches=False, arms=arms)
        (row,) = fold.finish(fold.row_sums(pages), FinishOptions())
        truth = 4 * np.array([0.2, 0.4, 0.65])[draw].mean()
        errors.append(float(row.value or 0) - truth)
        held += float(row.lower or 0) <= truth <= float(row.upper or 0)
    assert np.abs(errors).max() < 0.5
    assert held >= 17


def test_a_page_that_is_not_known_is_left_out() -> None:
    pages = drawn(np.random.default_rng(2), 300)
    change = pages.change.copy()
    change[:3] = np.nan
    row = estimate(EffectBatch(**{**pages.columns(), "change": change}))
    assert (row.n, row.left_out, "no-marginal" in row.reasons) == (297, 3, True)
