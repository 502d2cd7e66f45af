"""What every registered kind of policy promises: each runs here by itself."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import permutations
from typing import Any, cast

import numpy as np
import pytest
from scipy.special import chdtrc

from rlrec import policy as kinds
from rlrec.arrays import Array, Index
from rlrec.errors import InputError
from rlrec.policy import is_contextual, learns_from_contexts
from rlrec.policy.beliefs import reward as rewards
from rlrec.policy.beliefs import solving
from rlrec.policy.beliefs.base import PRICE, Belief, Policy, probability_of_any
from rlrec.policy.beliefs.solving import ArmMoments
from rlrec.policy.beliefs.statistics import CONTEXT, CountedSlot, SlotColumns
from rlrec.policy.contexts.encoder import ContextualPolicy
from rlrec.policy.gradients import history
from rlrec.policy.kinds.two_stage import KINDS_WITHOUT_STAGE
from rlrec.policy.scores.floors import Floor, at_positions
from rlrec.policy.scores.scores import subset
from rlrec.policy.slates import slate, slate_draws
from rlrec.records import Event, Reward
from tests.policy import histories

ARMS = ["a", "b", "c", "d", "e", "f"]
SHARES = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
REQUIRED: dict[str, dict[str, Any]] = {"fixed": {"probabilities": SHARES}}  # parameters without a default
OFF: dict[str, Any] = {
    "epsilon": 0.4,
    "floor": 0.2,
    "c": 0.5,
    "discount": 0.9,
    "window": 100.0,
    "probabilities": {"f": 0.9, "e": 0.1},
    "by": {"by": "hour", "probabilities": {"9": {"a": 1.0}, "*": SHARES}},
    "model": "shared",
    "ridge": 100.0,
    "alpha": 3.0,
    "samples": 50.0,
    "rate": 0.1,
    "temperature": 0.5,
    "gamma": 40.0,
    "recency": 0.2,
    "position": {"position": "home@1", "examination": (1.0, 0.5)},
    "explore_slots": "2",
    "budget": "cost:25/day",
}
ITS_OFF: dict[tuple[str, str], Any] = {("gradient", "model"): "bilinear"}  # where a name means something else
ITS_IMPOSSIBLE: dict[tuple[str, str], list[Any]] = {}
for kind in kinds.KINDS:  # a kind's own test may say it: tests/policy/kinds/test_KIND.py
    module = f"tests.policy.kinds.test_{kind.replace('-', '_')}"
    declared = import_module(module) if find_spec(module) else None
    ITS_OFF |= {(kind, name): value for name, value in getattr(declared, "OFF", {}).items()}
    ITS_IMPOSSIBLE |= {(kind, name): values for name, values in getattr(declared, "IMPOSSIBLE", {}).items()}
TRAINS = [("gradient", "position")]  # parameters that `train-pg` alone reads
BESIDE: dict[str, dict[str, Any]] = {  # that it may matter
    "model": {"floor": 0.2}, "samples": {"model": "shared"}, "explore_slots": {"floor": 0.2},
}  # fmt: skip
IMPOSSIBLE: dict[str, list[Any]] = {
    "epsilon": [-0.1, 1.1, float("nan"), "0.1", True],
    "floor": [-0.1, 1.1, float("nan"), "0.1", True],
    "c": [-1.0, 1e300, float("inf"), float("nan"), "1", True],
    "discount": [0.0, -1.0, 1.1, float("nan"), "0.9", True],
    "window": [-1.0, 2.5, float("inf"), float("nan"), "9", True],
    "by": [""],
    "model": ["joint", "", 1.0, None],
    "ridge": [0.0, -1.0, 1e300, float("inf"), float("nan"), "1", True],
    "alpha": [-1.0, 1e300, float("inf"), float("nan"), "1", True],
    "samples": [0.0, -1.0, 2.5, 1e9, float("inf"), float("nan"), "9", True],
    "rate": [0.0, 1.0, -1.0, float("nan"), "0.1", True],
    "temperature": [0.0, -1.0, 1e300, float("inf"), float("nan"), "1", True],
    "gamma": [-1.0, 1e300, float("inf"), float("nan"), "1", True],
    "recency": [-0.1, 1.1, float("nan"), "0.7", True],
    "explore_slots": ["0", "1,1", "3;5", "501", "first", " 1", 3.0, None],
    "position": ["home@1", 1.0, True, None],  # a name without the values of its curve
    "probabilities": [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": "1"}],
    "budget": ["cost", "cost:25", "cost:0/day", "cost:-1/day", "cost:nan/day", "cost:1e400/day", "cost:2/year",
               "1cost:2/day", "a b:2/day", "cost:2/day/day", "cost:1-2/day", 25.0],
}  # fmt: skip
# what a request states of its arms, which `scored` ranks by and no other kind looks at
REQUEST: dict[str, Any] = {
    "@arms": {
        arm: {"score": score, "scores": {"other": -score}}
        for arm, score in zip(ARMS, (1, 3, 3, 2, 0, 2.5), strict=True)
    }
}
CONTEXTS: list[dict[str, Any]] = [REQUEST, {"hour": 9} | REQUEST, {"hour": 10} | REQUEST]
CORRELATED = [
    "lin-thompson shared",
    "lin-thompson hybrid",
    "logistic-thompson shared",
]  # each decision has samples of its own
SERVED = [*(kind for kind in kinds.KINDS if kinds.load(kind).can_serve), "linucb shared", "linucb hybrid", *CORRELATED]
FLOORED = [kind for kind in SERVED if kind != "two-stage"]  # which has the floors of its stages
FLOORS = [(kind, floor) for kind in FLOORED for floor in (0.01 if kind in CORRELATED else 0.0, 0.2)]
STATEFUL = [kind for kind in kinds.KINDS if kinds.load(kind).is_stateful]
FEATURES = [{"genre": genre} for genre in ["jazz", "rock", "rock", "folk", "jazz", "folk"]]
PULLS, CLICKS = np.array([20, 10, 10, 0, 5, 40]), np.array([9, 3, 3, 0, 0, 10])
SHOWN = (0.3, 0.2, 0.2, 0.1, 0.1, 0.1)  # the propensities of the arms in that log
PAGES = np.array(list(permutations(range(6), 3)), np.intp)
FALSE_ALARM = 1e-6  # of each test of frequencies; the draws are seeded, so that it alarms for ever or never

# six arms: a good one, two that are equal, one without pulls, one without a click, one often shown
REWARD = Reward(
    id=1, name="r", weights={"click": 1.0, "view": 0.25}, window_us=60, default=0.25, clip_low=0.0, clip_high=1.0,
    learn="served", late="ignore",
)  # fmt: skip


def policy_of(kind: str, **parameters: Any) -> Policy:
    kind, _, model = kind.partition(" ")
    return kinds.make(kind, ({"model": model} if model else {}) | REQUIRED.get(kind, {}) | parameters)


def belief_of(policy: Policy) -> Belief:
    """Of a log in which some hour was known of each slot; earlier ones of an arm have the clicks."""
    slots = slots_of(policy, np.repeat(np.arange(6), PULLS), CLICKS)
    statistics = policy.statistics(slots)
    sums = np.zeros((6, statistics.shape[1]))
    np.add.at(sums, slots.arm_id - 1, statistics)
    prior = np.tile(np.array(policy.prior), (6, 1))
    return Belief(
        pulls=sums[:, 0], reward_sum=sums[:, 1], reward_squares=sums[:, 2], alpha=prior[:, 0], beta=prior[:, 1],
        total=sums[:, 0].sum(), extra=sums[:, 3:], moments=moments_of(policy, sums[:, 3:]),
        parameters=trained_of(policy) if policy.is_stateful else None,
        cost=None if policy.parsed_budget is None else np.array([3.0, 0.0, 3.0, 0.0, 6.0, 0.0]),
    )  # fmt: skip


def slots_of(policy: Policy, arm: Index, clicks: Array) -> SlotColumns:
    """Slots of arms 0 to 5 (their ids are one more), as a kind is given them: the first `clicks` of an arm earn 1."""
    nth = np.array([(arm[:row] == item).sum() for row, item in enumerate(arm)])
    hours = [{"hour": int(7 * row % 24)} for row in range(len(arm))]
    return SlotColumns(
        arm_id=arm + 1, reward=(nth < clicks[arm]).astype(float), ordinal=np.arange(len(arm)) + 1,
        position=1 + arm % 3, propensity=np.array(SHOWN)[arm],
        context=policy.design.context.encode(hours) if is_contextual(policy) and policy.learns_online else None,
    )  # fmt: skip


def trained_of(policy: Any) -> tuple[dict[str, Array], Array]:
    """Parameters that differ from arm to arm, and arms of which some are described alike."""
    rng = np.random.default_rng(9)
    drawn = {name: rng.normal(size=values.shape) for name, values in policy.zero_parameters(6).items()}
    return drawn, policy.design.arm.encode(FEATURES)


def remembered(policy: Any, context: dict[str, Any]) -> Array:
    """Noiseless scores (2, 6) of six arms in two visits: one that begins, one that has seen three slots of arms 2 and
    4."""
    parameters, described = trained_of(policy)
    blobs = [b"", histories.pack(90_000_000, 3, 1.5, [(2, 3, 0.0), (4, 2, 1.0), (2, 1, 0.5)])]
    visits = history.unpack(blobs, np.array([0, 3]))
    x = policy.design.context.encode([context] * 2)
    state = policy.states(x, visits, described[visits.arm - 1])
    result: Array = policy.scores_of(parameters, state, arms=np.arange(1, 7), arm_features=described)
    return result


def moments_of(policy: Policy, packed: Array) -> ArmMoments | None:
    if not learns_from_contexts(policy):
        return None
    described = policy.design.arm.encode(FEATURES)
    return replace(solving.unpack(packed, len(policy.design.context.names)), arm_features=described)


def scores_of(policy: Policy, context: dict[str, Any] | None = None) -> Any:
    price = {} if policy.parsed_budget is None else {PRICE: 0.3}
    return policy.scores(belief_of(policy), arms=ARMS, context={**(context or REQUEST), **price})


def distribution(policy: Policy, context: dict[str, Any] | None = None) -> Array:
    return slate.p_first(scores_of(policy, context), floor=policy.exploration)


def parameters() -> list[tuple[str, str]]:
    """Without those of stages: tests/policy/kinds/test_two_stage.py tries them."""
    return [(kind, name) for kind in kinds.KINDS if kind != "two-stage" for name in kinds.parameters(kind)]


def impossible() -> list[tuple[str, str, Any]]:
    values = {pair: ITS_IMPOSSIBLE.get(pair, IMPOSSIBLE.get(pair[1], [])) for pair in parameters()}
    return [(*pair, value) for pair in values for value in values[pair]]


def off_default(kind: str, name: str) -> Policy:
    value, beside = ITS_OFF.get((kind, name), OFF.get(name)), BESIDE.get(name, {})
    return (
        policy_of(kind, **value)
        if isinstance(value, dict) and name in value
        else policy_of(kind, **beside, **{name: value})
    )


def looks(policy: Policy) -> list[Array]:
    """Two positions in each context, one where the second may have no closed form; and what may change alone: the
    share of exploration, and how it forgets."""
    share, size = policy.exploration, 1 if hasattr(policy, "design") else 2
    beside = [*at_positions(share, 3), policy.forgetting.discount, policy.forgetting.window]
    shares = [slate.marginals(scores_of(policy, context), size=size, floor=share) for context in CONTEXTS]
    if policy.is_stateful:  # and in visits that go on
        logits = [cast(Any, policy).distribution(remembered(policy, context)[1]) for context in CONTEXTS]
        shares += [slate.marginals(logit, size=1, floor=share) for logit in logits]
    return [np.append(share, beside) for share in shares]


def quick(cases: list[tuple[str, float]]) -> list[Any]:
    """The same cases; those of models that arms share are slow."""
    return [pytest.param(*case, marks=pytest.mark.slow if " " in case[0] else ()) for case in cases]


@pytest.mark.parametrize("kind", SERVED)
@pytest.mark.parametrize("context", CONTEXTS)
def test_probabilities_of_the_eligible_arms_sum_to_one(kind: str, context: dict[str, Any]) -> None:
    result = distribution(policy_of(kind), context)
    assert result.shape == (6,)
    assert result.min() >= 0
    assert result.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", SERVED)
def test_scores_of_a_request_are_read_by_kind_scored_alone(kind: str) -> None:
    policy, context = policy_of(kind), {"hour": 9}
    price = {} if policy.parsed_budget is None else {PRICE: 0.3}
    if kind == "scored":
        with pytest.raises(InputError, match="has no score"):
            policy.scores(belief_of(policy), arms=ARMS, context=context)
        return
    unstated = policy.scores(belief_of(policy), arms=ARMS, context=context | price)
    assert np.array_equal(slate.p_first(unstated, floor=policy.exploration), distribution(policy, context | REQUEST))


@pytest.mark.parametrize("kind", SERVED)
def test_one_eligible_arm_is_certain(kind: str) -> None:
    policy = policy_of(kind)
    item = np.array([3.0])
    belief = Belief(pulls=item, reward_sum=item / 3, reward_squares=item / 3, alpha=item, beta=item, total=3.0)
    scores = policy.scores(belief, arms=["a"], context=REQUEST)
    assert slate.p_first(scores, floor=policy.exploration) == pytest.approx([1.0], abs=1e-12)


def test_every_parameter_is_tried_here() -> None:
    untried = [pair for pair in parameters() if pair[1] not in OFF and pair not in ITS_OFF]
    assert untried == [], "name values in OFF and IMPOSSIBLE of tests/policy/kinds/test_KIND.py"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [pair for pair in parameters() if pair not in TRAINS])
def test_a_parameter_off_its_default_changes_something(kind: str, name: str) -> None:
    usual = looks(policy_of(kind, **BESIDE.get(name, {})))
    changes = [not np.allclose(a, b) for a, b in zip(usual, looks(off_default(kind, name)), strict=True)]
    assert any(changes)


def is_refused(kind: str, name: str, value: Any) -> bool:
    try:
        policy_of(kind, **{name: value})
    except InputError as error:
        return re.search("is|add up|needs", error.message) is not None
    return False


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, *_ in impossible()))
def test_an_impossible_parameter_is_refused(kind: str) -> None:
    tried = [(name, value) for its, name, value in impossible() if its == kind]
    assert [pair for pair in tried if not is_refused(kind, *pair)] == []


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_what_lacks_a_default_is_required(kind: str) -> None:
    lacking = [
        field.name
        for field in fields(cast(Any, kinds.load(kind)))
        if field.default is MISSING and field.default_factory is MISSING
    ]
    assert lacking == []  # parameters are stored with their defaults: a kind checks by itself what it needs


@pytest.mark.parametrize(("kind", "floor"), quick([*FLOORS, *((kind, 1.0) for kind in FLOORED)]))
def test_exploration_mixes_with_a_uniform_arm(kind: str, floor: float) -> None:
    policy = policy_of(kind, floor=floor)
    tempered = type(scores_of(policy)) is not type(scores_of(policy.greedy()))  # greedy takes the noise off, too
    without = policy_of(kind, floor=0.0) if tempered else policy.greedy()
    share = probability_of_any(getattr(policy, "epsilon", 0.0), floor)
    assert policy.exploration == pytest.approx(probability_of_any(share, without.exploration), abs=1e-15)
    assert distribution(policy) == pytest.approx(share / 6 + (1 - share) * distribution(without), abs=1e-12)


@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_visit_has_seen_changes_what_is_served(kind: str, context: dict[str, Any]) -> None:
    """And at its beginning a visit is served what the belief alone says."""
    policy: Any = policy_of(kind)
    logits = (policy.distribution(score) for score in remembered(policy, context))
    begins, goes_on = (slate.p_first(scores, floor=policy.exploration) for scores in logits)
    assert begins == pytest.approx(distribution(policy, context), abs=1e-12)
    assert goes_on.sum() == pytest.approx(1, abs=1e-12)
    assert np.abs(goes_on - begins).max() > 0.05


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_greedy_explores_no_more(kind: str) -> None:
    assert policy_of(kind).greedy().exploration == 0
    assert policy_of(kind).greedy().greedy() == policy_of(kind).greedy()


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_kind_says_when_to_use_it_and_knows_its_reward(kind: str) -> None:
    policy = policy_of(kind)
    policy.check(REWARD)
    assert 0 < len(policy.purpose) < 100
    assert policy.__doc__
    index = policy.index(belief_of(policy), context={})
    assert index is None or index.shape == (6,)


def test_the_label_of_a_log_cannot_be_drawn_from() -> None:
    assert [kind for kind in kinds.KINDS if kind not in SERVED] == ["logged"]
    with pytest.raises(InputError, match="no parameter 'floor'"):
        policy_of("logged", floor=0.1)


def test_shares_of_exploration_multiply_what_is_kept() -> None:
    assert probability_of_any() == 0
    assert probability_of_any(0.1, 0.2) == pytest.approx(1 - 0.9 * 0.8)


# -- pages --


@cache
def page(kind: str, floor: float) -> tuple[Any, Floor]:
    few = {"samples": 100.0} if kind in CORRELATED else {}
    policy = policy_of(kind, floor=floor, **few)
    return scores_of(policy), policy.exploration


@pytest.mark.parametrize(("kind", "floor"), quick(FLOORS))
def test_the_joints_of_all_pages_sum_to_one(kind: str, floor: float) -> None:
    scores, share = page(kind, floor)
    joint = slate.conditionals(scores, PAGES, floor=share).prod(axis=1)
    assert joint.sum() == pytest.approx(1, abs=1e-9)
    assert joint.min() >= 0


@pytest.mark.parametrize(("kind", "floor"), FLOORS)
def test_marginals_are_sums_of_joints(kind: str, floor: float) -> None:
    scores, share = page(kind, floor)
    joint = slate.conditionals(scores, PAGES, floor=share).prod(axis=1)
    sums = [np.bincount(PAGES[:, position], weights=joint, minlength=6) for position in range(3)]
    marginals = slate.marginals(scores, size=3, floor=share)
    closed = 1 if kind in CORRELATED else 3  # positions that have a closed form
    assert marginals[:closed] == pytest.approx(np.array(sums)[:closed], abs=1e-9)
    assert np.isnan(marginals[closed:]).all()


@pytest.mark.parametrize(("kind", "floor"), FLOORS)
def test_conditionals_are_what_remains_after_the_positions_above(kind: str, floor: float) -> None:
    scores, share = page(kind, floor)
    shown = slate.conditionals(scores, PAGES, floor=share)
    possible = np.flatnonzero(shown.prod(axis=1) > 1e-12)
    for row in possible[:: max(1, len(possible) // 10)]:
        for position in range(3):
            left = slate.remaining(scores, PAGES[row, :position], floor=share)
            assert left[PAGES[row, :position]].sum() == 0
            assert left.sum() == pytest.approx(1, abs=1e-9)
            assert left[PAGES[row, position]] == pytest.approx(shown[row, position], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "floor", "size"),
    [
        (*case, size)
        for case in FLOORS
        for size in (1, 3)
        if case[0] not in CORRELATED or (case[1] < 0.2) == (size == 3)
    ],
)
def test_frequencies_match_propensities(kind: str, floor: float, size: int) -> None:
    scores, share = page(kind, floor)
    alone = kind in CORRELATED
    n = 120 if alone else 100_000 if size == 1 else 10_000
    drawn = slate_draws.draw(scores, size=size, floor=share, seeds=np.full(n, 7, np.uint64), decisions=np.arange(n))
    pages = np.array(list(permutations(range(6), size)), np.intp)
    each = [scores.decision_scores(7, row) for row in (range(n) if alone else [0])]
    joints = np.array([slate.conditionals(item, pages, floor=share).prod(axis=1) for item in each])
    expected = n * joints.mean(axis=0)
    digits = 6 ** np.arange(size)
    _, index = np.unique(np.r_[pages @ digits, drawn.slates @ digits], return_inverse=True)
    count = np.bincount(index[len(pages) :], minlength=len(pages))[index[: len(pages)]]
    assert p_value(count, expected) > FALSE_ALARM
    page_of = np.argsort(index[: len(pages)])[index[len(pages) :]]
    logged = drawn.propensity.prod(axis=1)
    np.testing.assert_allclose(logged, joints[np.arange(n) if alone else 0, page_of], rtol=0, atol=1e-9)


def p_value(count: Index, expected: Array) -> float:
    """Of a chi-square test, cells below 10 pooled; what cannot happen must not."""
    assert count[expected < 1e-9].sum() == 0
    rare = expected < 10
    observed = np.append(count[~rare], count[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    cells = wanted > 0
    if cells.sum() < 2:
        return 1.0
    chi2 = ((observed - wanted)[cells] ** 2 / wanted[cells]).sum()
    return float(chdtrc(cells.sum() - 1, chi2))


# -- sums --


def log(n: int, *, seed: int) -> tuple[list[list[Event]], dict[str, Any]]:
    """Random events of n slots, as lists and as arrays: two kinds that count, one that does not, late ones."""
    rng = np.random.default_rng(seed)
    slot = np.sort(rng.integers(0, n, 2 * n))
    kind = rng.choice(["click", "view", "other"], 2 * n)
    value, age = rng.choice([1.0, -1.0, 0.5], 2 * n), rng.integers(0, 90, 2 * n)
    lists: list[list[Event]] = [[] for _ in range(n)]
    for row in zip(slot.tolist(), kind.tolist(), value.tolist(), age.tolist(), strict=True):
        lists[row[0]].append(Event(decision_id=1, position=1, kind=row[1], value=row[2], at=row[3], received_at=99))
    index = np.array([list(REWARD.weights).index(item) if item in REWARD.weights else -1 for item in kind])
    return lists, {"n": n, "slot": slot, "kind": index, "value": value, "age_us": age}


ONLINE = [kind for kind in kinds.KINDS if policy_of(kind).learns_online]


@pytest.mark.parametrize("kind", [kind for kind in ONLINE if CONTEXT not in policy_of(kind).needed_columns])
def test_one_slot_adds_what_arrays_add(kind: str) -> None:
    lists, arrays = log(500, seed=3)
    policy, reward = policy_of(kind), rewards.slot_rewards(REWARD, **arrays)[0]
    slots = replace(slots_of(policy, np.random.default_rng(4).integers(0, 6, 500), CLICKS), reward=reward)
    rows = zip(slots.arm_id, slots.ordinal, slots.position, slots.propensity, lists, strict=True)
    entries = [
        policy.slot_statistics(
            CountedSlot(arm, ordinal, 0, position, propensity, rewards.slot_reward(REWARD, events, served_at=0))
        )
        for arm, ordinal, position, propensity, events in rows
    ]
    assert policy.statistics(slots).shape == (500, policy.width)
    assert policy.statistics(slots) == pytest.approx(np.array(entries), abs=1e-9)


@pytest.mark.parametrize("kind", ONLINE)
def test_sums_of_two_logs_add_up_to_those_of_both(kind: str) -> None:
    policy = policy_of(kind)
    slots = slots_of(policy, np.random.default_rng(6).integers(0, 6, 400), CLICKS)
    half = np.arange(400) < 150
    parts = [policy.statistics(slots.take(rows)).sum(axis=0) for rows in (half, ~half)]
    assert len(parts[0]) == policy.width
    assert parts[0] + parts[1] == pytest.approx(policy.statistics(slots).sum(axis=0), abs=1e-9)


def members(protocol: type) -> set[str]:
    return {name for name in {*dir(protocol), *protocol.__annotations__} if not name.startswith("_")}


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_kind_has_what_its_protocol_declares(kind: str) -> None:
    policy = policy_of(kind)
    protocols: list[type] = [Policy]
    protocols += [ContextualPolicy] if is_contextual(policy) else []
    assert [name for item in protocols for name in members(item) if not hasattr(policy, name)] == []


@pytest.mark.parametrize("kind", [kind for kind in SERVED if kind not in KINDS_WITHOUT_STAGE])
def test_a_score_depends_on_other_eligible_arms_where_the_kind_says_so(kind: str) -> None:
    policy, some = policy_of(kind), np.array([1, 2, 4])
    every = belief_of(policy)
    pulls, rewards, squares, alpha, beta = (
        getattr(every, name)[some] for name in ("pulls", "reward_sum", "reward_squares", "alpha", "beta")
    )
    moments = every.moments and replace(
        every.moments, gram=every.moments.gram[some], response=every.moments.response[some], solutions={},
        arm_features=None if every.moments.arm_features is None else every.moments.arm_features[some],
        pool=replace(every.moments, solutions={}),
    )  # fmt: skip
    belief = replace(
        every, pulls=pulls, reward_sum=rewards, reward_squares=squares, alpha=alpha, beta=beta, moments=moments,
        extra=None if every.extra is None else every.extra[some],
    )  # fmt: skip
    context = {"hour": 9} | REQUEST
    alone = policy.scores(belief, arms=[ARMS[arm] for arm in some], context=context)
    among = subset(policy.scores(every, arms=ARMS, context=context), some)
    sampled = (scores.decision_scores(3, 4) for scores in (alone, among))
    first, second = (slate.p_first(scores, floor=policy.exploration) for scores in sampled)
    assert (first == pytest.approx(second, abs=1e-9)) is not policy.compares_arms
