"""Estimators per slate on the complete log of all 12 ordered slates of 2 of 4 arms."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from rlrec import ope
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope.checks.verdicts import explain_reasons
from rlrec.ope.estimators import pseudo_inverse
from rlrec.ope.units.fold import FLAT_CURVE, PositionCurve
from rlrec.ope.units.slates import Pbm
from tests.benchmarks import coverage
from tests.ope.paging import (
    ATTRACTION,
    EXAMINATION,
    LOGGER,
    RIGHT,
    SLATES,
    TARGET,
    UNIFORM,
    WRONG,
    Rewards,
    by_position,
    cascade,
    complete,
    drawn,
    fold,
    from_below,
    judged,
    marginals,
    steps,
    truth,
    value,
)

LOGGERS = {"plackett-luce": LOGGER, "uniform": UNIFORM}
EXACT = {
    by_position: ("sips", "iips", "rips", "pi", "cascade-dr", "pbm:home", "interpol:1:home"),
    cascade: ("sips", "rips", "cascade-dr"),
    from_below: ("sips",),
}
BIASED = {cascade: ("iips", "pi", "pbm:home"), from_below: ("iips", "rips", "cascade-dr", "pi", "pbm:home")}


def weights(name: str, logger: Array) -> Array:
    """Weight of the reward of every slot of the 12 slates, (12, 2), from the formula, position by position."""
    target, logged = marginals(TARGET), marginals(logger)
    ratio = np.cumprod(steps(TARGET) / steps(logger), axis=1)
    if name in ("sips", "rips", "cascade-dr"):
        return np.asarray(ratio if name != "sips" else ratio[:, [1, 1]], np.float64)
    if name == "iips":
        return np.asarray((target / logged)[[0, 1], SLATES], np.float64)
    if name == "pbm:home":
        return np.asarray(((EXAMINATION @ target) / (EXAMINATION @ logged))[SLATES], np.float64)
    # pi: least squares of the page reward on arms at positions, weighed by the logger
    shown = np.zeros((12, 8))
    shown[np.arange(12)[:, None], np.array([0, 4]) + SLATES] = 1
    pairs = shown.T @ (steps(logger).prod(axis=1)[:, None] * shown)
    of_slate = shown @ np.linalg.lstsq(pairs, target.ravel(), rcond=1e-10)[0]
    return np.stack([of_slate, of_slate], axis=1)


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("rewards", EXACT)
def test_exact_where_the_assumption_holds(rewards: Rewards, logger: str) -> None:
    batch = complete(rewards, LOGGERS[logger])
    for name in EXACT[rewards]:
        assert value(batch, name) == pytest.approx(truth(rewards), abs=1e-12), name


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("rewards", BIASED)
def test_bias_is_that_of_an_enumeration_elsewhere(rewards: Rewards, logger: str) -> None:
    batch, chance = complete(rewards, LOGGERS[logger]), steps(LOGGERS[logger]).prod(axis=1)
    for name in BIASED[rewards]:
        expected = float(chance @ (weights(name, LOGGERS[logger]) * rewards(SLATES)).sum(axis=1))
        assert value(batch, name) == pytest.approx(expected, abs=1e-12), name
        assert abs(expected - truth(rewards)) > 1e-3, name


def test_self_normalised_forms_are_exact_on_the_complete_log() -> None:
    batch = complete(by_position)
    for name in ("sn-sips", "sn-iips", "sn-rips", "sn-pi", "sn-pbm:home", "sn-interpol:1:home"):
        assert value(batch, name) == pytest.approx(truth(by_position), abs=1e-12), name


def test_pbm_rests_on_its_curve() -> None:
    batch = complete(by_position)
    assert value(batch, "pbm:home", RIGHT) == pytest.approx(0.3097222222, abs=5e-11)
    assert value(batch, "pbm:home", WRONG) == pytest.approx(0.309166915, abs=5e-10)
    assert value(complete(by_position, UNIFORM), "pbm:home", FLAT_CURVE) == pytest.approx(0.314583333, abs=5e-10)


def test_a_row_names_its_curve_and_its_age() -> None:
    curve = replace(RIGHT, age_days=3.5)
    pbm, iips, interpol = judged(complete(by_position), "pbm:home,iips,interpol", curve)
    assert (pbm.curve, pbm.curve_age_days, pbm.reasons) == ("home@1", 3.5, ("independent-slots", "position-model"))
    assert (iips.curve, iips.curve_age_days, "position-model" in iips.reasons) == (None, None, False)
    assert (interpol.curve, "position-model" in interpol.reasons) == (None, True)


def test_a_table_explains_which_curve_an_estimate_rests_on() -> None:
    rows = judged(complete(by_position), "pbm:home,interpol", replace(RIGHT, age_days=3.5))
    assert explain_reasons([asdict(row) for row in rows])[-1:] == [
        "position-model: right where position curve home@1 is, 3.5 days old; right where positions within the window "
        "are examined alike"
    ]


def test_a_curve_that_ends_above_the_page_is_refused() -> None:
    with pytest.raises(InputError, match="home@3 ends at position 1, and slates have 2"):
        value(complete(by_position), "pbm:home", PositionCurve(name="home@3", examination=(1.0,)))


def test_windows_lie_between_iips_and_pbm() -> None:
    """Within a window of the page interpol is pbm, whatever the curve."""
    batch = complete(cascade)
    assert value(batch, "interpol:1:home") == pytest.approx(value(batch, "pbm:home"), abs=1e-12)
    assert value(batch, "interpol:5") == pytest.approx(value(batch, "pbm:home", FLAT_CURVE), abs=1e-12)


def test_windows_of_three_positions_by_hand() -> None:
    batch = complete(by_position)
    table = {"target_at": np.array([[0.5, 0.3, 0.2]] * 3), "logged_at": np.array([[0.2, 0.2, 0.6]] * 3)}
    three = replace(
        batch, start=np.array([0, 3]), reward=np.array([1.0, 2.0, 4.0]), page=np.zeros(1), cluster=np.zeros(1),
        log_ratio=np.zeros(3), largest=None, marginal_ratio=None, largest_marginal=None, additive=None, predicted=None,
        expected=None, **table,
    )  # fmt: skip
    curve = PositionCurve(name="home@1", examination=(1.0, 0.5, 0.25))
    # examined: target .5 .15 .05, logger .2 .1 .15; windows of each position: .3, .45, .25
    ratio = [0.5 / 0.3, 0.15 / 0.45, 0.05 / 0.25]
    by_hand = 1 * (ratio[0] + ratio[1]) + 2 * sum(ratio) + 4 * (ratio[1] + ratio[2])
    assert value(three, "interpol:1:home", curve) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("name", ["sips", "rips", "cascade-dr", "pi"])
def test_page_events_are_weighed_by_the_slate(name: str) -> None:
    assert value(complete(by_position, page=0.25), name) == pytest.approx(truth(by_position), abs=1e-12)


def test_page_events_are_weighed_by_the_slate_beside_slots() -> None:
    for name in ("iips", "pbm:home"):
        assert value(complete(cascade, page=1.0), name) == pytest.approx(truth(cascade), abs=1e-12)


def test_rewards_of_the_page_have_the_sample_size_of_whole_slates() -> None:
    """What page events earn is weighed by the slate, in every estimator."""
    batch = complete(by_position, page=1.0)
    sips, iips, rips, pbm = judged(batch, "sips,iips,rips,pbm:home", interval="normal")
    for row in (iips, rips, pbm):
        assert (row.ess, row.max_weight) == pytest.approx((sips.ess, sips.max_weight), rel=1e-9)
    apart = judged(complete(by_position, page=0.01), "sips,iips", interval="normal")
    assert apart[1].ess > 1.5 * apart[0].ess


def test_page_events_that_were_served_are_judged_by_the_slate_where_its_weights_collapse() -> None:
    """Of a target that shows a logged slate far too seldom they are a small share of the estimate for that alone."""
    batch = complete(by_position, page=0.5)
    collapsed = replace(batch, log_ratio=batch.log_ratio + np.tile([0.0, np.log(0.02)], len(batch)))
    sips, *others = judged(collapsed, "sips,rips,sn-rips,cascade-dr,iips", interval="normal")
    assert (sips.mean_weight, sips.verdict) == (pytest.approx(0.02), "insufficient")
    for row in others:
        assert (row.ess, row.mean_weight, row.max_weight) == (sips.ess, sips.mean_weight, sips.max_weight)
        assert (row.verdict, "mean-weight" in row.reasons) == ("insufficient", True)


def test_the_mean_weight_of_page_events_is_that_of_whole_slates() -> None:
    batch = complete(by_position, page=1.0)
    thin = replace(batch, log_ratio=batch.log_ratio + np.tile([0.0, np.log(0.9)], len(batch)))
    sips, *others = judged(thin, "sips,rips,iips", interval="normal")
    assert [row.mean_weight for row in others] == [sips.mean_weight] * 2 == [pytest.approx(0.9)] * 2


def test_pi_of_a_uniform_logger_has_a_closed_form() -> None:
    generator = np.random.default_rng(3)
    for size, arms in ((1, 4), (2, 4), (3, 5), (3, 6), (4, 4)):
        drawn = pseudo_inverse.slates(size, arms)
        of_target = generator.dirichlet(np.ones(len(drawn)))
        shares = np.zeros((size, arms))
        np.add.at(shares, (np.arange(size), drawn), of_target[:, None])
        inverse = pseudo_inverse.coefficients(drawn, np.full(len(drawn), 1 / len(drawn)), shares)
        closed = pseudo_inverse.uniform_weights(
            shares[np.arange(size), drawn], shares.sum(axis=0)[drawn], size=np.array(size), arms=np.array(arms)
        )
        np.testing.assert_allclose(closed.sum(axis=1), inverse[np.arange(size), drawn].sum(axis=1), atol=1e-12)


def test_what_is_not_known_leaves_the_slate_out() -> None:
    batch = complete(by_position)
    holed = batch.marginal_ratio.copy() if batch.marginal_ratio is not None else np.empty(0)
    holed[[0, 5]] = np.nan
    iips, rips = judged(replace(batch, marginal_ratio=holed), "iips,rips")
    assert (iips.n, iips.left_out, rips.n, rips.left_out) == (5038, 2, 5040, 0)
    assert "no-marginal" in iips.reasons


def test_pi_estimates_nothing_from_a_selection_of_pages() -> None:
    """Those that it can weigh are those of a logger that knew nothing, say."""
    batch = complete(by_position)
    additive = np.where(np.arange(len(batch.reward)) < 10, np.nan, batch.additive)
    for row in judged(replace(batch, additive=additive), "pi,sn-pi"):
        assert (row.value, row.lower, row.n, row.left_out, row.verdict) == (None, None, 0, 5, "insufficient")
        assert row.reasons == ("no-pairs",)
        assert explain_reasons([asdict(row)])[0].startswith(
            "no-pairs: nothing is estimated: pi cannot weigh some pages"
        )


def test_intervals_are_clustered() -> None:
    """Every slate twice in the same cluster: the estimate and its error are those of the log itself."""
    batch = complete(by_position)
    once, twice = batch, batch.take(np.repeat(np.arange(len(batch)), 2))
    (single,), (double,) = judged(once, "rips"), judged(twice, "rips")
    assert double.n == 2 * single.n
    assert double.clusters == single.clusters
    assert double.std_error == pytest.approx(single.std_error, rel=1e-12)


def test_a_model_of_what_is_left_takes_noise_out() -> None:
    batch = complete(by_position)
    rips, corrected = judged(batch, "rips,cascade-dr", interval="normal")
    assert corrected.std_error is not None
    assert rips.std_error is not None
    assert corrected.std_error < 0.7 * rips.std_error


def test_estimates_that_a_log_refutes_are_said_to_be() -> None:
    """Readers who leave after a click: slots are not independent, which rips does not take them to be."""
    for rewards, refuted in ((by_position, False), (cascade, True)):
        batch = complete(rewards)
        many = batch.take(np.tile(np.arange(len(batch)), 20))
        many = replace(many, cluster=np.arange(len(many)) // 3)
        iips, pbm, rips = judged(many, "iips,pbm:home,rips", interval="normal")
        assert ["refuted" in row.reasons for row in (iips, pbm, rips)] == [refuted, refuted, False]
        assert iips.verdict == ("weak" if refuted else "ok")
        (alone,) = judged(many, "iips", interval="normal")
        assert (alone.verdict, alone.reasons) == ("ok", ("independent-slots",))


def test_another_estimator_changes_none() -> None:
    batch = complete(cascade)
    names = [*ope.GROUPS["slate"], "pbm:home"]
    for estimate in judged(batch, ",".join(names), replicates=299):
        (alone,) = judged(batch, estimate.estimator, replicates=299)
        assert (alone.value, alone.lower, alone.upper) == pytest.approx(
            (estimate.value, estimate.lower, estimate.upper), rel=1e-9
        )


def test_the_largest_weight_is_bounded_where_the_logger_has_a_floor() -> None:
    batch = complete(by_position)
    for name in ("iips", "pbm:home", "interpol:1:home"):
        weighing, _ = fold(name).row_sums(batch).weights.values()
        assert weighing.largest <= weighing.bound < np.inf, name


def test_a_product_over_slots_is_no_bound() -> None:
    """The tail of the weights is looked at instead (k_hat)."""
    for name in ("sips", "rips"):
        weighing, _ = fold(name).row_sums(complete(by_position)).weights.values()
        assert weighing.bound == np.inf, name


def test_a_batch_lacks_what_an_estimator_needs() -> None:
    batch = replace(
        complete(by_position), target_at=None, additive=None, marginal_ratio=None, predicted=None, expected=None
    )
    for name in ("pbm:home", "interpol", "pi", "iips", "cascade-dr"):
        with pytest.raises(InputError, match="need"):
            value(batch, name)


@pytest.mark.parametrize("rewards", [by_position, cascade])
def test_sums_of_slots_are_never_more_than_assumed(rewards: Rewards) -> None:
    """The best linear test of page rewards finds a cascade in 30,000 pages by 2.3 standard errors alone."""
    rows = judged(drawn(rewards, 0, pages=3_000), "pi,sn-pi,iips")
    assert ["sum-of-slots" in row.reasons for row in rows] == [True, True, False]
    assert {row.verdict for row in rows[:2]} <= {"weak", "insufficient"}


def test_the_shape_of_a_curve_is_no_parameter() -> None:
    assert ope.estimator("pbm:home") == Pbm(curve="home")
    with pytest.raises(InputError, match="takes one"):
        ope.parse("pbm:home:2")


def test_attraction_is_what_the_vectors_say() -> None:
    assert marginals(TARGET)[1].round(8).tolist() == [0.31587302, 0.30833333, 0.24126984, 0.13452381]
    assert ATTRACTION @ marginals(TARGET)[0] + ATTRACTION @ marginals(TARGET)[1] / 2 == pytest.approx(0.3097222222)


def test_pages_that_never_earned_less_than_nothing_have_no_bound_below_it() -> None:
    """A few heavy pages with rare clicks: the widened interval would reach below."""
    (world,) = (world for world in coverage.pages() if world.name == "pages, up to 150, rare")
    for estimate in coverage.estimates(world.batch(400, np.random.default_rng(3))):
        if estimate.estimator.startswith("sn-") and estimate.lower is not None:
            assert estimate.lower >= 0
            assert estimate.lift_lower is None or estimate.lift_lower >= -1
