"""Slates under rules of a page: exact against enumeration of all rankings, and drawn as they are derived."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from rlrec.arrays import Array, Index
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.correlated import Correlated
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import page_layout, page_rules, rules, slate
from tests.policy.slates.test_page_layout import FIELDS, GROUPS, KEYS, laid_out

FAMILIES: dict[str, Scores] = {
    "beta": Beta(np.array([3.0, 2, 8, 1, 5, 1]), np.array([9.0, 5, 20, 1, 30, 7])),
    "gaussian": Gaussian(np.array([0.3, 0.1, -0.4, 0.2, 0.9, 0]), np.array([1, 0.5, 2, 0.1, 0.7, 1.0])),
    "gumbel": Gumbel(np.array([0.1, 1, -2, 0, 0.5, -np.inf])),
    "greedy": Point(np.array([0.1, 0.4, 0.4, 0.4, 0.2, 0.2])),
    "uniform": Point(np.zeros(6)),
}
PAGES: dict[str, tuple[Any, Any]] = {
    "pin": ({"pin": {"2": "a3"}}, None),
    "pins of both": ({"pin": {"1": "a5"}}, {"pin": {"4": "a0"}}),
    "cap": ({"most": {"shelf": 1}}, None),
    "cap of a policy": (None, {"most": {"brand": 2}}),
    "two caps": ({"most": {"brand": 3}}, {"most": {"shelf": 2}}),
    "several values": ({"most": {"tags": 1}}, None),
    "least": ({"least": {"a2": 0.1, "a5": 0.3}}, {"least": {"a2": 0.2}}),
    "least at positions": ({"least": {"a2": {"1": 0.3, "3": 0.2}}}, {"least": {"a2": 0.1, "a4": {"2": 0.5}}}),
    "groups": ({"least": {"@odd": 0.3, "a5": 0.1, "@none": 0.3}}, {"least": {"@low": 0.2}}),
    "groups with all": (
        {"pin": {"3": "a1"}, "most": {"shelf": 1}, "least": {"@odd": {"1": 0.4, "4": 0.2}}},
        {"least": {"@low": 0.25, "a3": {"2": 0.3}}},
    ),
    "all": (
        {"pin": {"3": "a1"}, "most": {"shelf": 2}, "least": {"a4": 0.1}},
        {"least": {"a0": 0.2}, "pin": {"1": "gone"}},
    ),
}


def reference(scores: Scores, request: Any, policy: Any, *, size: int, floor: float, slates: Index) -> Array:
    """The probability of each slate: the mean over all rankings of the arms of what coins and rules make of them."""
    m, total = len(scores), np.zeros(len(slates))
    rankings = np.array(list(permutations(range(m))))
    weights = slate.conditionals(scores, rankings, floor=0.0).prod(axis=1)
    pins: dict[int, int] = {}
    caps, shares = list[tuple[str, int]](), dict[tuple[str, int], float]()
    for page in (request or {}, policy or {}):
        pins |= {int(at) - 1: KEYS.index(key) for at, key in page.get("pin", {}).items() if key in KEYS}
        caps += page.get("most", {}).items()
        for name, share in page.get("least", {}).items():
            for at in range(size):
                here = share.get(str(at + 1), 0.0) if isinstance(share, dict) else share
                shares[name, at] = max(here, shares.get((name, at), 0.0))

    def values(field: str, arm: int) -> tuple[Any, ...]:
        value = FIELDS[field][arm]
        return value if isinstance(value, tuple) else () if value is None else (value,)

    for row, page_arms in enumerate(slates.tolist()):
        probability = weights.copy()
        for position, arm in enumerate(page_arms):
            if position in pins:
                probability *= pins[position] == arm
                continue
            on_page = set(page_arms[:position]) | set(pins.values())
            allowed = [
                other for other in range(m) if other not in on_page and all(
                    sum(value in values(field, shown) for shown in on_page) < limit
                    for field, limit in caps for value in values(field, other)
                )
            ]  # fmt: skip
            if arm not in allowed:
                probability *= 0
                break
            coins = list[tuple[float, float]]()  # of shares with an arm that is allowed: of any of them, of this one
            for name in {name for name, _ in shares}:
                possible = [other for other in allowed if KEYS[other] in GROUPS.get(name, [name])]
                coins += [(shares[name, position], (arm in possible) / len(possible))] if possible else []
            first = np.isin(rankings, allowed).argmax(axis=1)
            best = rankings[np.arange(len(rankings)), first] == arm
            drawn = floor / len(allowed) + (1 - floor) * best
            by_coin = sum(share for share, _ in coins)
            probability *= sum(share * of_arm for share, of_arm in coins) + (1 - by_coin) * drawn
        total[row] = probability.sum()
    return total


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_joint_probabilities_are_those_of_all_rankings(family: str, page: str, floor: float) -> None:
    scores, (request, policy) = FAMILIES[family], PAGES[page]
    slates = np.array(list(permutations(range(6), 4)))
    if page not in ("all", "groups with all") or not floor:
        slates = slates[::11]
    ruled = rules.RuledScores(scores, laid_out(request, policy), floor)
    joint = slate.conditionals(ruled, slates, floor=0.0).prod(axis=1)
    expected = reference(scores, request, policy, size=4, floor=floor, slates=slates)
    assert np.abs(joint - expected).max() < 1e-12
    if len(slates) == 360:
        assert abs(joint.sum() - 1) < 1e-12


def test_marginals_are_closed_where_pins_alone_rule() -> None:
    scores, floor = FAMILIES["beta"], (0.2, 0.0, 0.5, 0.1)
    ruled = rules.RuledScores(scores, laid_out({"pin": {"2": "a3"}}), floor)
    slates = np.array(list(permutations(range(6), 4)))
    joint = slate.conditionals(ruled, slates, floor=0.0).prod(axis=1)
    enumerated = np.array([np.bincount(slates[:, at], weights=joint, minlength=6) for at in range(4)])
    assert slate.marginals(ruled, size=4, floor=0.0) == pytest.approx(enumerated, abs=1e-11)


def test_marginals_below_the_first_open_position_are_unknown_under_caps() -> None:
    ruled = rules.RuledScores(FAMILIES["beta"], laid_out({"pin": {"1": "a3", "4": "a0"}, "most": {"shelf": 2}}), 0.1)
    marginals = slate.marginals(ruled, size=4, floor=0.0)
    assert marginals[0].tolist() == [0, 0, 0, 1, 0, 0]
    assert marginals[1].sum() == pytest.approx(1)
    assert np.isnan(marginals[2]).all()
    assert marginals[3].tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("page", ["all", "groups with all"])
@pytest.mark.parametrize("family", [*FAMILIES, "correlated"])
def test_draws_follow_their_propensities(family: str, page: str) -> None:
    """Chi-square over all slates of 3 of 6; each case alarms falsely once in 10,000 seeds."""
    scores = FAMILIES.get(family) or Correlated(np.array([0.1, 0, 0.3, 0, 0.2, 0]), np.eye(6)[:, :2] * 0.5, samples=20)
    layout = laid_out(*PAGES[page])
    sampler = rules.RuledSampler(rules.RuledScores(scores, layout, 0.1), size=3, floor=0.0)
    n = 300 if scores.samples else 20_000
    draw = sampler.draw(seeds=np.full(n, 5, np.uint64), decisions=np.arange(n))
    if scores.samples:
        for row in range(0, n, 50):
            of_decision = rules.RuledScores(scores, layout, 0.1).decision_scores(5, row)
            again = slate.conditionals(of_decision, draw.slates[row : row + 1], floor=0.0)
            assert draw.propensity[row] == pytest.approx(again[0], abs=1e-14)
        return
    slates = np.array(list(permutations(range(6), 3)))
    probability = np.exp(sampler.log_probabilities(slates))
    code = np.ravel_multi_index(tuple(slates.T), (6, 6, 6))
    counts = np.bincount(np.ravel_multi_index(tuple(draw.slates.T), (6, 6, 6)), minlength=216)[code]
    possible = probability > 0
    assert not counts[~possible].any()
    expected = n * probability[possible]
    # the rarest slates share cells of five or more
    order = np.argsort(expected)
    cell = np.minimum(np.cumsum(expected[order]) // 5, np.arange(len(order)))
    _, cell = np.unique(cell, return_inverse=True)
    wanted = np.bincount(cell, weights=expected[order])
    statistic = ((np.bincount(cell, weights=counts[possible][order]) - wanted) ** 2 / wanted).sum()
    assert chi2.sf(statistic, len(wanted) - 1) > 1e-4
    again = slate.conditionals(rules.RuledScores(scores, layout, 0.1), draw.slates[:50], floor=0.0)
    assert draw.propensity[:50] == pytest.approx(again, rel=1e-12)


def test_the_smallest_propensity_is_of_the_arms_that_the_request_allows() -> None:
    scores = Gumbel(np.zeros(6))

    def minimum(request: Any, policy: Any = None) -> list[float]:
        sampler = rules.RuledSampler(rules.RuledScores(scores, laid_out(request, policy), 0.0), size=2, floor=0.0)
        return sampler.draw(seeds=np.array([1], np.uint64), decisions=np.array([1])).minimum[0].tolist()

    assert minimum({"pin": {"1": "a0"}, "most": {"shelf": 1}}) == pytest.approx([1, 1 / 4])
    assert minimum({"pin": {"2": "a0"}}) == pytest.approx([1 / 5, 1])
    assert minimum(None, {"pin": {"2": "a0"}}) == [0, 0]
    assert minimum(None, {"pin": {"1": "a0"}, "most": {"shelf": 1}}) == [0, 0]


def test_a_page_that_is_pinned_whole_is_certain() -> None:
    layout = laid_out({"pin": {str(at + 1): key for at, key in enumerate(KEYS)}})
    layout.check(6)
    sampler = rules.RuledSampler(rules.RuledScores(FAMILIES["beta"], layout, 0.0), size=6, floor=0.0)
    sampler.prepare()
    draw = sampler.draw(seeds=np.array([1, 2], np.uint64), decisions=np.array([1, 2]))
    assert draw.slates.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert (draw.propensity == 1).all()
    assert (draw.marginal == 1).all()
    assert (draw.minimum == 1).all()


def test_nodes_reach_the_arms_that_a_cap_leaves() -> None:
    """A shelf whose arms are far above all others: below it the best of the others is decided where nodes would not
    be without the cap."""
    rng = np.random.default_rng(3)
    mean = np.r_[rng.normal(100, 1, 60), rng.normal(0, 1, 60)]
    values = ["top"] * 60 + [None] * 60
    layout = page_layout.lay_out(
        [page_rules.parse({"most": {"shelf": 1}})], [str(key) for key in range(120)], lambda _: values
    )
    for sd in (1e-3, 1.0):
        ruled = rules.RuledScores(Gaussian(mean, np.full(120, sd)), layout, 0.0)
        below = slate.remaining(ruled, np.array([int(mean.argmax())]), floor=0.0)
        alone = slate.p_first(Gaussian(mean[60:], np.full(60, sd)), floor=0.0)
        assert below[60:] == pytest.approx(alone, abs=1e-9)
        assert not below[:60].any()


def test_rows_with_logits_of_their_own_are_those_of_gumbel_scores() -> None:
    rng, layout = np.random.default_rng(1), laid_out(*PAGES["groups with all"])
    logits = rng.normal(size=(5, 6))
    draw = rules.draw_rows(logits, layout, floor=0.1, seeds=np.full(5, 9, np.uint64), decisions=np.arange(5), size=4)
    for row in range(5):
        ruled = rules.RuledScores(Gumbel(logits[row]), layout, 0.1)
        sampler = rules.RuledSampler(ruled, size=4, floor=0.0)
        alone = sampler.draw(seeds=np.array([9], np.uint64), decisions=np.array([row]))
        assert draw.slates[row].tolist() == alone.slates[0].tolist()
        assert draw.propensity[row] == pytest.approx(alone.propensity[0], rel=1e-12)
        assert draw.minimum[row] == pytest.approx(alone.minimum[0], abs=1e-15)
    logged = rules.log_rows(logits, layout, draw.slates, floor=0.1)
    assert logged.propensity == pytest.approx(draw.propensity, rel=1e-12)
