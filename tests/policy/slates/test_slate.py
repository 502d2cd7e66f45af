"""Slates: every probability against an exact enumeration of the procedure, and the rules that tie them together."""

from __future__ import annotations

import itertools
import subprocess
import sys
from fractions import Fraction
from pkgutil import iter_modules

import numpy as np
import pytest

from rlrec.arrays import Array, Index
from rlrec.policy.scores import families
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates.slate import (
    conditionals,
    each_position,
    marginals,
    p_first,
    placement_probabilities,
    remaining,
    remaining_each,
)
from rlrec.policy.slates.slate_draws import draw
from tests.policy import reference

FLOORS = {"no floor": Fraction(0), "floor": Fraction(1, 5)}
WEIGHTS = [4, 1, 2, 1, 7]
EXACT: dict[str, tuple[Scores, dict[reference.Order, Fraction]]] = {
    "beta": (
        Beta(np.array([2.0, 3, 1, 2]), np.array([3.0, 1, 1, 3])),
        reference.beta_orders([2, 3, 1, 2], [3, 1, 1, 3]),
    ),
    "gumbel": (Gumbel(np.log(WEIGHTS)), reference.luce_orders(WEIGHTS)),
    "point": (
        Point(np.array([0.5, np.inf, 0.5, -np.inf, 0.5])),
        reference.point_orders([0.5, np.inf, 0.5, -np.inf, 0.5]),
    ),
    "all tied": (Point(np.zeros(4)), reference.point_orders([0.0] * 4)),
}
SIX: dict[str, Scores] = {
    "point": Point(np.array([0.2, 0.9, 0.2, np.inf, 0.2, -1.0])),
    "all tied": Point(np.full(6, np.inf)),
    "beta": Beta(np.array([1.0, 1, 3, 20, 0.5, 400]), np.array([1.0, 1, 5, 30, 0.3, 900])),
    "equal betas": Beta(np.array([1.0, 1, 1, 2, 2, 0.1]), np.array([1.0, 1, 1, 3, 3, 0.1])),
    "gaussian": Gaussian(np.array([0.0, 0.3, -0.5, 1.0, 0.9, 0.0]), np.array([1.0, 0.2, 2.0, 0.1, 0.4, 1.0])),
    "gumbel": Gumbel(np.array([0.0, 1.0, -3.0, 0.5, 0.5, 4.0])),
    "gumbel without some": Gumbel(np.array([0.0, -np.inf, 1.0, -np.inf, -np.inf, 0.2])),
}
ALL = np.array(list(itertools.permutations(range(6), 3)))

by_family = pytest.mark.parametrize("family", SIX)
floors = pytest.mark.parametrize("floor", [0.0, 0.2])


def seeds(n: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return np.full(n, 2**40 + 9, np.uint64), np.arange(n)


def shares(slates: Index, joint: Array, arms: int) -> Array:
    """Probability that each arm stands at each position, by adding up slates, (k, arms)."""
    return np.array([np.bincount(slates[:, p], weights=joint, minlength=arms) for p in range(slates.shape[1])])


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("floor", FLOORS)
def test_joints_equal_the_procedure_played_through(family: str, floor: str) -> None:
    scores, orders = EXACT[family]
    exact = reference.pages(orders, 3, FLOORS[floor])
    slates = np.array(list(itertools.permutations(range(len(scores)), 3)))
    joint = conditionals(scores, slates, floor=float(FLOORS[floor])).prod(axis=1)
    assert joint == pytest.approx(np.array([float(exact.get(tuple(s), 0)) for s in slates.tolist()]), abs=1e-14)


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("floor", FLOORS)
def test_marginals_equal_the_procedure_played_through(family: str, floor: str) -> None:
    scores, orders = EXACT[family]
    exact = reference.pages(orders, 3, FLOORS[floor])
    joint = np.array([float(chance) for chance in exact.values()])
    expected = shares(np.array(list(exact)), joint, len(scores))
    assert marginals(scores, size=3, floor=float(FLOORS[floor])) == pytest.approx(expected, abs=1e-13)


def test_three_normals_around_zero_stand_in_order_with_an_arcsine() -> None:
    sd = np.array([1.0, 0.5, 3.0])
    slates = np.array(list(itertools.permutations(range(3), 2)))
    s = sd[np.column_stack([slates, 3 - slates.sum(axis=1)])] ** 2
    correlation = -s[:, 1] / np.sqrt((s[:, 0] + s[:, 1]) * (s[:, 1] + s[:, 2]))
    joint = conditionals(Gaussian(np.zeros(3), sd), slates, floor=0.0).prod(axis=1)
    assert joint == pytest.approx(0.25 + np.arcsin(correlation) / (2 * np.pi), abs=1e-14)


@by_family
@floors
def test_joints_of_all_slates_sum_to_one(family: str, floor: float) -> None:
    assert conditionals(SIX[family], ALL, floor=floor).prod(axis=1).sum() == pytest.approx(1, abs=1e-11)


@by_family
@floors
def test_marginals_are_sums_of_joints(family: str, floor: float) -> None:
    joint = conditionals(SIX[family], ALL, floor=floor).prod(axis=1)
    assert marginals(SIX[family], size=3, floor=floor) == pytest.approx(shares(ALL, joint, 6), abs=1e-11)


@by_family
@floors
def test_first_is_the_first_marginal(family: str, floor: float) -> None:
    expected = marginals(SIX[family], size=3, floor=floor)[0]
    assert p_first(SIX[family], floor=floor) == pytest.approx(expected, abs=1e-12)


@by_family
@floors
def test_remaining_is_the_conditional_of_every_next_arm(family: str, floor: float) -> None:
    chance = conditionals(SIX[family], ALL, floor=floor)
    possible = chance[:, :2].min(axis=1) > 1e-9
    for slate, expected in zip(ALL[possible][::17], chance[possible][::17], strict=True):
        result = [remaining(SIX[family], slate[:p], floor=floor)[slate[p]] for p in range(3)]
        assert result == pytest.approx(expected, abs=1e-10)


@by_family
@floors
def test_remaining_sums_to_one_and_leaves_out_what_was_shown(family: str, floor: float) -> None:
    for slate in ALL[::11]:
        chance = remaining(SIX[family], slate, floor=floor)
        assert chance.sum() == pytest.approx(1, abs=1e-11)
        assert not chance[slate].any()


@by_family
@pytest.mark.parametrize("floor", [0.0, 0.2, (0.3, 0.0)])
def test_many_prefixes_are_answered_at_once(family: str, floor: float | tuple[float, ...]) -> None:
    for size in range(4):
        prefixes = ALL[::41, :size]
        expected = [remaining(SIX[family], prefix, floor=floor) for prefix in prefixes]
        assert remaining_each(SIX[family], prefixes, floor=floor) == pytest.approx(np.array(expected), abs=1e-14)


@by_family
@pytest.mark.parametrize("floor", [0.0, 0.2, (0.3, 0.0, 0.1)])
def test_arms_left_at_each_position_are_those_below_the_slate_above(
    family: str, floor: float | tuple[float, ...]
) -> None:
    slates = ALL[::37]
    case = np.zeros(len(slates), np.intp)
    for rows, position, probability, above in each_position([SIX[family]], case, slates, floor=floor):
        expected = [remaining(SIX[family], prefix, floor=floor) for prefix in slates[rows, :position]]
        assert probability[above] == pytest.approx(np.array(expected), abs=1e-14)


@by_family
@floors
def test_a_draw_logs_its_own_probabilities(family: str, floor: float) -> None:
    drawn = draw(SIX[family], size=3, floor=floor, seeds=seeds(300)[0], decisions=seeds(300)[1])
    table = marginals(SIX[family], size=3, floor=floor)
    assert drawn.propensity == pytest.approx(conditionals(SIX[family], drawn.slates, floor=floor), abs=1e-14)
    assert drawn.marginal == pytest.approx(table[np.arange(3), drawn.slates], abs=1e-14)
    assert not drawn.is_rounded.any()


@by_family
@floors
def test_minimum_is_the_least_of_the_arms_left(family: str, floor: float) -> None:
    drawn = draw(SIX[family], size=3, floor=floor, seeds=seeds(8)[0], decisions=seeds(8)[1])
    for slate, minimum in zip(drawn.slates, drawn.minimum, strict=True):
        left = [np.delete(remaining(SIX[family], slate[:p], floor=floor), slate[:p]).min() for p in range(3)]
        assert minimum == pytest.approx(left, abs=1e-12)


@by_family
def test_a_floor_of_one_is_uniform(family: str) -> None:
    assert conditionals(SIX[family], ALL, floor=1.0) == pytest.approx(np.tile([1 / 6, 1 / 5, 1 / 4], (120, 1)))
    assert marginals(SIX[family], size=3, floor=1.0) == pytest.approx(1 / 6, abs=1e-12)


@by_family
@floors
def test_all_arms_may_be_ranked_and_the_last_is_certain(family: str, floor: float) -> None:
    drawn = draw(SIX[family], size=6, floor=floor, seeds=seeds(50)[0], decisions=seeds(50)[1])
    assert (np.sort(drawn.slates, axis=1) == np.arange(6)).all()
    assert (drawn.propensity[:, -1] == 1).all()
    assert marginals(SIX[family], size=6, floor=floor).sum(axis=0) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(
    "scores",
    [
        Point(np.array([np.inf])),
        Beta(np.ones(1), np.ones(1)),
        Gaussian(np.zeros(1), np.ones(1)),
        Gumbel(np.array([-np.inf])),
    ],
)
def test_one_arm_is_certain(scores: Scores) -> None:
    drawn = draw(scores, size=1, floor=0.1, seeds=seeds(3)[0], decisions=seeds(3)[1])
    assert p_first(scores, floor=0.1) == pytest.approx([1.0], abs=1e-14)
    assert (drawn.propensity == 1).all()
    assert (drawn.minimum == 1).all()


def test_greedy_ties_share_and_move_up() -> None:
    scores = Point(np.array([1.0, 3.0, 3.0, 2.0]))
    assert p_first(scores, floor=0.0) == pytest.approx([0, 0.5, 0.5, 0])
    assert remaining(scores, np.array([1]), floor=0.0) == pytest.approx([0, 0, 1, 0])
    assert marginals(scores, size=3, floor=0.0) == pytest.approx(
        np.array([[0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    )


def test_logits_without_a_finite_one_tie() -> None:
    scores = Gumbel(np.full(4, -np.inf))
    assert p_first(scores, floor=0.0) == pytest.approx(0.25)
    assert marginals(scores, size=4, floor=0.0) == pytest.approx(0.25)


def test_far_logits_keep_their_ratio() -> None:
    """After the favourites are shown, two arms far below them still split by their weights."""
    scores = Gumbel(np.array([0.0, -2000.0, -2000.0 + np.log(3)]))
    assert remaining(scores, np.array([0]), floor=0.0) == pytest.approx([0, 0.25, 0.75])


@pytest.mark.parametrize("size", [2, 10, 50])
def test_pages_of_equal_arms_are_uniform(size: int) -> None:
    """A page of many near-equal arms is as improbable as it is exact: no digit may go lost on the way."""
    scores = Beta(np.full(1000, 51.0), np.full(1000, 951.0))
    expected = 1 / (1000 - np.arange(size))
    assert conditionals(scores, np.arange(size)[None], floor=0.0)[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_more_nodes_move_no_page(floor: float) -> None:
    rng = np.random.default_rng(11)
    share = 0.05 + rng.uniform(-3e-4, 3e-4, 100)
    total = np.where(rng.random(100) < 0.2, 30, 1e6)
    scores = Beta(total * share, total * (1 - share))
    drawn = draw(scores, size=10, floor=floor, seeds=seeds(100)[0], decisions=seeds(100)[1])
    order = reference.refined_order(scores, positions=10, refinement=2)
    finer, _ = order.conditionals(drawn.slates, floor=floor, with_minimum=False)
    expected = floor / (100 - np.arange(10)) + (1 - floor) * finer
    assert drawn.propensity == pytest.approx(expected, rel=1e-9)


def test_a_page_that_cannot_be_starts_anew() -> None:
    """The arm left for last by 100 standard deviations comes first: what follows is still a distribution."""
    scores = Beta(np.array([1e4, 2e4, 3e4]), np.array([9e4, 8e4, 7e4]))
    chance = conditionals(scores, np.array([[0, 1, 2]]), floor=0.0)
    assert chance[0] == pytest.approx([0, 0, 1], abs=1e-15)
    assert remaining(scores, np.array([0]), floor=0.0) == pytest.approx([0, 0, 1], abs=1e-12)


def test_a_floor_pick_of_a_bad_arm_says_nothing_about_the_rest() -> None:
    scores = Beta(np.array([1e3, 30.0, 20.0]), np.array([9e5, 70.0, 80.0]))
    alone = p_first(Beta(scores.alpha[1:], scores.beta[1:]), floor=0.1)
    assert remaining(scores, np.array([0]), floor=0.1)[1:] == pytest.approx(alone, abs=1e-11)


def test_an_arm_drawn_against_all_odds_is_flagged() -> None:
    """No seed draws such an arm: the rounding is asked for directly."""
    from rlrec.policy.slates.slate_draws import MIN_PROBABILITY, logged_draw

    drawn = logged_draw(np.array([[0, 1]]), np.array([[0.0, 1.1]]), np.array([[0.0, 0.5]]), np.zeros((1, 2)))
    assert drawn.is_rounded.tolist() == [[True, False]]
    assert drawn.propensity.tolist() == [[MIN_PROBABILITY, 1.0]]
    assert drawn.marginal.tolist() == [[MIN_PROBABILITY, 0.5]]


@pytest.mark.parametrize("floor", [0.0, 0.3, 1.0])
def test_every_position_gets_some_rank(floor: float) -> None:
    """Of 6 arms, ranks 1..4 and two beyond fill position p with certainty."""
    chance, beyond = placement_probabilities(4, 6, floor=floor)
    assert chance.sum(axis=1) + 2 * beyond == pytest.approx(1)


def test_placement_of_a_rank_by_hand() -> None:
    chance, beyond = placement_probabilities(2, 3, floor=0.3)
    first_best = 0.7 + 0.1
    assert chance[0] == pytest.approx([first_best, 0.1])
    assert chance[1] == pytest.approx([0.2 * 0.85, 0.8 * 0.85 + 0.1 * 0.15])
    assert beyond == pytest.approx([0.1, 0.9 * 0.15])


def test_scores_load_no_scipy() -> None:
    modules = [
        "rlrec.policy.slates.slate",
        *(f"{families.__name__}.{item.name}" for item in iter_modules(families.__path__)),
    ]
    code = f"import sys, {', '.join(modules)}; sys.exit(any(name.startswith('scipy') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
