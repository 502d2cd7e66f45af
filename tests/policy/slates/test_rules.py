"""Slates under rules of a page: exact against enumeration of all rankings, and drawn as they are derived."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from rlrec.arrays import Array, Index
from rlrec.errors import InputError
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.correlated import Correlated
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates import page_rules, rules, slate

KEYS = [f"a{number}" for number in range(6)]
FIELDS: dict[str, list[Any]] = {
    "shelf": ["x", "x", "y", "y", None, None],
    "brand": ["p", "q", "p", "q", "p", "q"],
    "tags": [("t", "u"), ("u",), None, ("t",), None, None],
}
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
    "all": (
        {"pin": {"3": "a1"}, "most": {"shelf": 2}, "least": {"a4": 0.1}},
        {"least": {"a0": 0.2}, "pin": {"1": "gone"}},
    ),
}


def laid_out(request: Any, policy: Any = None) -> rules.PageLayout:
    pages = [page_rules.parse(policy, owner="policy")] if policy is not None else []
    pages += [page_rules.parse(request)] if request is not None else []
    return rules.lay_out(pages, KEYS, FIELDS.get)


def reference(scores: Scores, request: Any, policy: Any, *, size: int, floor: float, slates: Index) -> Array:
    """The probability of each slate: the mean over all rankings of the arms of what coins and rules make of them."""
    m, total = len(scores), np.zeros(len(slates))
    rankings = np.array(list(permutations(range(m))))
    weights = slate.conditionals(scores, rankings, floor=0.0).prod(axis=1)
    pins: dict[int, int] = {}
    caps, least = list[tuple[str, int]](), dict[int, float]()
    for page in (request or {}, policy or {}):
        pins |= {int(at) - 1: KEYS.index(key) for at, key in page.get("pin", {}).items() if key in KEYS}
        caps += page.get("most", {}).items()
        for key, share in page.get("least", {}).items():
            least[KEYS.index(key)] = max(share, least.get(KEYS.index(key), 0))

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
            by_coin = sum(least.get(other, 0) for other in allowed)
            first = np.isin(rankings, allowed).argmax(axis=1)
            best = rankings[np.arange(len(rankings)), first] == arm
            drawn = floor / len(allowed) + (1 - floor) * best
            probability *= least.get(arm, 0) + (1 - by_coin) * drawn
        total[row] = probability.sum()
    return total


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_joint_probabilities_are_those_of_all_rankings(family: str, page: str, floor: float) -> None:
    scores, (request, policy) = FAMILIES[family], PAGES[page]
    slates = np.array(list(permutations(range(6), 4)))
    if page != "all":
        slates = slates[::5]
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


@pytest.mark.parametrize("family", [*FAMILIES, "correlated"])
def test_draws_follow_their_propensities(family: str) -> None:
    """Chi-square over all slates of 3 of 6; each case alarms falsely once in 10,000 seeds."""
    scores = FAMILIES.get(family) or Correlated(np.array([0.1, 0, 0.3, 0, 0.2, 0]), np.eye(6)[:, :2] * 0.5, samples=20)
    layout = laid_out(*PAGES["all"])
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


@pytest.mark.parametrize(
    ("request_rules", "policy", "message"),
    [
        ({"pin": {"1": "a0"}}, {"pin": {"1": "a1"}}, "pin 1=a0 of the request contradicts pin 1=a1 of the policy"),
        ({"pin": {"1": "a0"}}, {"pin": {"2": "a0"}}, "pin 1=a0 of the request contradicts pin 2=a0 of the policy"),
        ({"pin": {"1": "a0", "2": "a1"}}, {"most": {"shelf": 1}}, "contradict most shelf=1 of the policy"),
        (
            {"least": {"a0": 0.6}},
            {"least": {"a1": 0.6}},
            "of the policy and least a0=0.6 of the request add up to 1.2",
        ),
        ({"pin": {"1": "a0"}, "least": {"a1": 0.1}}, {"most": {"shelf": 1}}, "least a1=0.1 of the request contradicts"),
        ({"most": {"shelf.x": 1}}, None, "no eligible arm has 'shelf.x'"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(request_rules: Any, policy: Any, message: str) -> None:
    fields = FIELDS | {"shelf.x": [None] * 6}
    pages = [page_rules.parse(policy, owner="policy")] if policy else []
    with pytest.raises(InputError) as refusal:
        rules.lay_out([*pages, page_rules.parse(request_rules)], KEYS, lambda field: fields[field])
    assert message in refusal.value.message


@pytest.mark.parametrize(
    ("request_rules", "size", "position"),
    [
        ({"most": {"shelf": 1}}, 4, 0),
        ({"most": {"shelf": 1}}, 5, 5),
        ({"most": {"brand": 1}}, 2, 0),
        ({"most": {"brand": 1}}, 3, 3),
        ({"most": {"brand": 1, "shelf": 1}}, 2, 0),
        ({"most": {"tags": 1}}, 5, 5),  # t and u are used up by the first arm alone
        ({"most": {"brand": 1}, "pin": {"1": "a0", "2": "a1"}}, 3, 3),
    ],
)
def test_rules_that_may_leave_no_arm_are_refused(request_rules: Any, size: int, position: int) -> None:
    layout = laid_out(request_rules)
    if not position:
        layout.check(size)
        return
    with pytest.raises(InputError, match=f"may leave no arm for position {position} of {size}"):
        layout.check(size)


def shelved(shelves: Sequence[Any], **request: Any) -> rules.PageLayout:
    """The rules of a request over arms on these shelves, by number."""
    keys = [str(number) for number in range(len(shelves))]
    return rules.lay_out([page_rules.parse(request)], keys, lambda field: [row[int(field)] for row in shelves])


@pytest.mark.parametrize(
    ("shelves", "limit", "pins", "room"),
    [
        ([(number % 12,) for number in range(60)], 2, {}, 24),
        ([(number % 12,) for number in range(60)], 2, {"1": "0", "2": "12", "7": "1"}, 24),
        ([(number % 40 if number % 41 else None,) for number in range(400)], 2, {"3": "0"}, 90),
    ],
)
def test_a_cap_has_room_up_to_its_limits(shelves: Any, limit: int, pins: Any, room: int) -> None:
    """Ten arms of the last row have no shelf."""
    layout = shelved(shelves, most={"0": limit}, pin=pins)
    layout.check(room)
    with pytest.raises(InputError, match=f"may leave no arm for position {room + 1} of {room + 9}"):
        layout.check(room + 9)


def test_room_under_two_caps_is_that_of_all_ways_or_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        shelves = [(int(a), tuple(range(int(b)))) for a, b in rng.integers(0, 4, (8, 2))]
        layout = shelved(shelves, most={"0": int(rng.integers(1, 3)), "1": int(rng.integers(1, 5))})
        members = np.bincount(layout.cell, minlength=len(layout.uses))
        room, is_exact = layout._search(members, range(8))
        assert is_exact
        assert layout._count_sure(8) == (room, True)
        with monkeypatch.context() as patched:
            patched.setattr(rules, "_PREFIXES", 0)
            n_sure, is_exact = layout._count_sure(8)
        assert n_sure == room if is_exact else n_sure <= room


def test_room_that_is_not_known_is_called_so() -> None:
    layout = shelved([(number % 12, number % 7) for number in range(84)], most={"0": 2, "1": 3})
    with pytest.raises(InputError, match=r"leave an arm for 1\d positions; whether for all 21 is not known"):
        layout.check(21)


def test_a_pin_below_the_page_is_refused() -> None:
    with pytest.raises(InputError, match="pin 4=a0 of the request, and the page has 3 positions"):
        laid_out({"pin": {"4": "a0"}}).check(3)


def test_nodes_reach_the_arms_that_a_cap_leaves() -> None:
    """A shelf whose arms are far above all others: below it the best of the others is decided where nodes would not
    be without the cap."""
    rng = np.random.default_rng(3)
    mean = np.r_[rng.normal(100, 1, 60), rng.normal(0, 1, 60)]
    values = ["top"] * 60 + [None] * 60
    layout = rules.lay_out(
        [page_rules.parse({"most": {"shelf": 1}})], [str(key) for key in range(120)], lambda _: values
    )
    for sd in (1e-3, 1.0):
        ruled = rules.RuledScores(Gaussian(mean, np.full(120, sd)), layout, 0.0)
        below = slate.remaining(ruled, np.array([int(mean.argmax())]), floor=0.0)
        alone = slate.first(Gaussian(mean[60:], np.full(60, sd)), floor=0.0)
        assert below[60:] == pytest.approx(alone, abs=1e-9)
        assert not below[:60].any()


def test_rows_with_logits_of_their_own_are_those_of_gumbel_scores() -> None:
    rng, layout = np.random.default_rng(1), laid_out(*PAGES["all"])
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
