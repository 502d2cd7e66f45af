"""The kind `gradient`: what it reads of a visit, its scores by hand, and pages drawn with logits of their own."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.special import chdtrc

from rlrec.arrays import Array, Ids, Index
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.contexts.features import Number
from rlrec.policy.gradients import history
from rlrec.policy.gradients.gradient import BILINEAR, Gradient, Parameters, State, order_by_row
from rlrec.policy.gradients.history import History
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.slates import slate, slate_draws
from rlrec.policy.slates.slate_draws import Draw
from tests.policy import histories

DESIGN = Design(context=Encoder([Number("hour")]), arm=Encoder([Number("price")]))
PRICE = {2: 10.0, 3: -2.0, 5: 0.5}  # of arms by id
ARMS = np.array([2, 3, 5])
DESCRIBED = np.array([[1.0, PRICE[arm]] for arm in ARMS.tolist()])  # an intercept, and the price
FALSE_ALARM = 1e-6  # of each test of frequencies; the draws are seeded, so that it alarms for ever or never


def policy(**parameters: object) -> Gradient:
    return Gradient(design=DESIGN, **parameters)


def visits() -> History:
    """A visit that begins; one that has shown arm 2 three steps ago and one ago, and arm 3 two ago."""
    blobs = [b"", histories.pack(120_000_000, 3, 4.0, [(2, 3, 0.25), (3, 2, 3.0), (2, 1, 0.75)])]
    return history.unpack(blobs, np.array([0, 3]))


def states(kind: Gradient) -> State:
    result = visits()
    described = np.array([[1.0, PRICE[arm]] for arm in result.arm.tolist()])
    return kind.states(kind.design.context.encode([{"hour": 7}, {"hour": 9}]), result, described)


def random_parameters(kind: Gradient, arms: int = 3, seed: int = 1) -> Parameters:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=values.shape) for name, values in kind.zero_parameters(arms).items()}


# -- states --


def test_features_of_context_and_session_by_hand() -> None:
    kind = policy(recency=0.5)
    first, second = (dict(zip(kind.names, row, strict=True)) for row in states(kind).x.tolist())
    assert {name: value for name, value in first.items() if value} == {"1": 1, "hour": 7}
    expected = {
        "1": 1, "hour": 9, "session:step": np.log(4), "session:gap": np.arcsinh(2),
        "session:reward": np.arcsinh(4), "session:last": np.arcsinh(0.75), "session:variety": np.log(3),
        "shown:1": np.log(4), "shown:price": np.log(1 + 18),
        "faded:1": 0.25 + 0.5 + 1, "faded:price": 10 * (0.25 + 1) - 2 * 0.5,
    }  # fmt: skip
    assert second == pytest.approx(expected)
    assert list(second) == list(expected)


def test_features_of_the_arms_seen_by_hand() -> None:
    """How often, how recently, whether just now, and what they earned, faded."""
    result = states(policy(recency=0.5))
    assert (result.row.tolist(), result.arm.tolist()) == ([1, 1], [2, 3])
    assert result.memory[0] == pytest.approx([np.log(3), 0.25 + 1, 1, np.arcsinh(0.25 * 0.25 + 0.75)])
    assert result.memory[1] == pytest.approx([np.log(2), 0.5, 0, np.arcsinh(0.5 * 3)])


@pytest.mark.parametrize(("recency", "faded"), [(1.0, [2, 1]), (0.0, [1, 0])])
def test_recency_1_forgets_nothing_and_0_all_but_the_last(recency: float, faded: list[float]) -> None:
    assert states(policy(recency=recency)).memory[:, 1].tolist() == faded


def test_an_arm_twice_on_the_page_before_was_shown_last_once() -> None:
    blob = histories.pack(0, 2, 2.0, [(2, 1, 1.0), (2, 1, 1.0)])
    result = policy().states(np.zeros((1, 2)), history.unpack([blob], np.array([1])), np.ones((2, 2)))
    assert result.memory.tolist() == [pytest.approx([np.log(3), 2, 1, np.arcsinh(2)])]


def test_states_of_visits_that_begin_know_of_no_arm() -> None:
    result = policy().states(np.ones((4, 2)), History.empty(4), np.zeros((0, 2)))
    assert len(result) == 4
    assert (len(result.row), result.memory.shape) == (0, (0, 4))
    assert not result.x[:, 2:].any()


def test_states_do_not_depend_on_those_beside_them() -> None:
    kind, result = policy(), visits()
    described = np.array([[1.0, PRICE[arm]] for arm in result.arm.tolist()])
    alone = kind.states(np.ones((1, 2)), result.take(np.array([1])), described)
    beside = kind.states(np.ones((2, 2)), result, described).take(np.array([1]))
    for name in ("x", "row", "arm", "memory"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(beside, name))


@pytest.mark.parametrize("rows", [[1, 0], [1], [0], []])
def test_states_can_be_taken_in_any_order(rows: list[int]) -> None:
    kind, complete = policy(), states(policy())
    taken = complete.take(np.array(rows, np.intp))
    parameters = random_parameters(kind)
    score = kind.scores_of(parameters, complete, arms=ARMS, arm_features=DESCRIBED)
    assert len(taken) == len(rows)
    assert kind.scores_of(parameters, taken, arms=ARMS, arm_features=DESCRIBED) == pytest.approx(score[rows])


# -- scores --


def by_hand(kind: Gradient, parameters: Parameters, state: State, row: int, index: int) -> float:
    """The score of one arm in one state, term by term."""
    x, z, p = state.x[row], DESCRIBED[index], DESCRIBED.shape[1]
    faded = x[-p:]
    total = float(parameters["bias"][index] + (z * parameters["similar"]) @ faded)
    if kind.model == BILINEAR:
        total += float(z @ parameters["cross"] @ x)
    else:
        total += float(parameters["linear"][index] @ x + z @ parameters["cross"][:, 0])
    for its, arm, separate in zip(state.row.tolist(), state.arm.tolist(), state.memory, strict=True):
        if (its, arm) == (row, ARMS[index]):
            total += float(separate @ (parameters["history"] + parameters["own"][index]))
    return total


@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_scores_are_sums_of_their_terms(model: str) -> None:
    kind, state = policy(model=model), states(policy(model=model))
    parameters = random_parameters(kind)
    scores_of = kind.scores_of(parameters, state, arms=ARMS, arm_features=DESCRIBED)
    expected = [[by_hand(kind, parameters, state, row, number) for number in range(3)] for row in range(2)]
    assert scores_of == pytest.approx(np.array(expected))


@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_arms_seen_but_not_eligible_have_no_score(model: str) -> None:
    kind = policy(model=model)
    parameters, state = random_parameters(kind), states(kind)
    scores_of = kind.scores_of(parameters, state, arms=ARMS, arm_features=DESCRIBED)
    retained = {
        name: values[1:] if name in ("bias", "linear", "own") else values for name, values in parameters.items()
    }
    assert kind.scores_of(retained, state, arms=ARMS[1:], arm_features=DESCRIBED[1:]) == pytest.approx(scores_of[:, 1:])


@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_an_arm_never_trained_is_scored_by_its_features(model: str) -> None:
    """Two of them that are described alike score alike, and differently from one that is not."""
    kind = policy(model=model)
    parameters = random_parameters(kind)
    for name in ("bias", "linear", "own"):
        parameters[name] = np.zeros_like(parameters[name])
    described = np.array([[1.0, 4.0], [1.0, 4.0], [1.0, -4.0]])
    beginning = states(kind).take(np.array([0]))
    equal, again, other = kind.scores_of(parameters, beginning, arms=np.array([7, 8, 9]), arm_features=described)[0]
    assert equal == again != other


@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_parameters_packed_and_unpacked_are_the_same(model: str) -> None:
    kind = policy(model=model)
    parameters = random_parameters(kind, 4)
    weights, both = kind.pack(parameters, np.array([2, 3, 5, 8]))
    assert [(arm, len(packed)) for arm, packed in weights] == [
        (arm, 8 * (1 + parameters["linear"].shape[1] + 4)) for arm in (2, 3, 5, 8)
    ]
    result = kind.unpack(weights, both)
    assert result.keys() == parameters.keys()
    for name, values in parameters.items():
        np.testing.assert_array_equal(result[name], values)


@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_nothing_stored_is_nothing_known(model: str) -> None:
    kind = policy(model=model)
    result, nothing = kind.unpack([], {}), kind.zero_parameters(0)
    assert {name: values.shape for name, values in result.items()} == {
        name: values.shape for name, values in nothing.items()
    }


@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_weights_by_name_make_the_score(model: str) -> None:
    """Of `weights` and `features`, as `policy show` has them."""
    kind, state = policy(model=model), states(policy(model=model))
    parameters, none = random_parameters(kind), np.zeros(3)
    belief = Belief(
        pulls=none, reward_sum=none, reward_squares=none, alpha=none, beta=none, total=0.0,
        parameters=(parameters, DESCRIBED),
    )  # fmt: skip
    weights = kind.weights(belief)
    assert weights.shape == (3, len(kind.features))
    separate = np.array([*(state.memory[state.arm == arm][0] for arm in (2, 3)), np.zeros(4)])
    reported = np.column_stack([np.ones(3), np.tile(state.x[1], (3, 1)), separate])
    score = kind.scores_of(parameters, state, arms=ARMS, arm_features=DESCRIBED)[1]
    assert (weights * reported).sum(axis=1) == pytest.approx(score)
    assert len(set(kind.features)) == len(kind.features)


# -- what is served --


def test_greedy_is_the_best_score_and_equal_bests_share() -> None:
    kind = policy(temperature=3.0, floor=0.3).greedy()
    chance = slate.p_first(kind.distribution(np.array([0.1, 0.7, 0.7, -9.0])), floor=kind.exploration)
    assert chance.tolist() == [0, 0.5, 0.5, 0]


def test_temperature_divides_the_scores() -> None:
    score = np.array([0.0, 1.0, 3.0])
    chance = slate.p_first(policy(temperature=2.0).distribution(score), floor=0.0)
    assert chance == pytest.approx(np.exp(score / 2) / np.exp(score / 2).sum())


def words(n: int) -> dict[str, Ids]:
    return {"seeds": np.full(n, 11, np.uint64), "decisions": np.arange(n)}


def logits(n: int, m: int) -> Array:
    """Three kinds of decisions in turn."""
    rng = np.random.default_rng(8)
    return rng.normal(size=(3, m))[np.arange(n) % 3]


def p_value(count: Index, expected: Array) -> float:
    """Of a chi-square test, cells with fewer than 10 expected taken together."""
    usual = expected >= 10
    observed, wanted = (np.append(cells[usual], cells[~usual].sum()) for cells in (count, expected))
    chi2 = float(((observed - wanted) ** 2 / np.maximum(wanted, 1)).sum())
    return float(chdtrc(int(usual.sum()) - int(usual.all()), chi2))


@pytest.mark.slow
@pytest.mark.parametrize("floor", [0.0, 0.2])
@pytest.mark.parametrize("size", [1, 3])
def test_frequencies_match_propensities(size: int, floor: float) -> None:
    """A chi-square for each of three decisions; each is wrong by chance once in a million seeds."""
    n, pages = 30_000, np.array(list(permutations(range(5), size)), np.intp)
    each = logits(n, 5)
    drawn = slate_draws.draw_each(each, size=size, floor=floor, **words(n))
    digits = 5 ** np.arange(size)
    for which in range(3):
        joint = slate.conditionals(Gumbel(each[which]), pages, floor=floor).prod(axis=1)
        code = drawn.slates[which::3] @ digits
        count = np.bincount(code, minlength=5**size)[pages @ digits]
        assert p_value(count, n / 3 * joint) > FALSE_ALARM
        index = dict(zip((pages @ digits).tolist(), joint.tolist(), strict=True))
        logged = drawn.propensity[which::3].prod(axis=1)
        assert logged == pytest.approx(np.array([index[item] for item in code.tolist()]), abs=1e-12)


def assert_same(result: Draw, expected: Draw) -> None:
    """Slates to the last one; probabilities as far as doubles go; marginals at the top."""
    np.testing.assert_array_equal(result.slates, expected.slates)
    for name in ("propensity", "minimum"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    assert result.marginal[:, 0] == pytest.approx(expected.marginal[:, 0], abs=1e-12)
    assert np.isnan(result.marginal[:, 1:]).all()


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("size", [1, 3])
def test_equal_logits_are_drawn_as_pages_of_one_belief(size: int, floor: float) -> None:
    item, n = np.array([0.3, -1.0, 2.0, 0.3, 0.0]), 2_000
    expected = slate_draws.SlateSampler(Gumbel(item), size=size, floor=floor).draw(**words(n))
    assert_same(slate_draws.draw_each(np.tile(item, (n, 1)), size=size, floor=floor, **words(n)), expected)


@pytest.mark.parametrize("size", [1, 3])
def test_what_is_logged_of_a_page_is_what_was_drawn(size: int) -> None:
    drawn = slate_draws.draw_each(logits(300, 5), size=size, floor=0.1, **words(300))
    assert_same(slate_draws.log_each(logits(300, 5), drawn.slates, floor=0.1), drawn)


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_the_only_arm_left_is_certain(floor: float) -> None:
    drawn = slate_draws.draw_each(np.array([[5.0], [-5.0]]), size=1, floor=floor, **words(2))
    assert drawn.propensity.tolist() == drawn.minimum.tolist() == [[1.0], [1.0]]
    complete = slate_draws.draw_each(logits(20, 3), size=3, floor=floor, **words(20))
    assert (complete.propensity[:, 2] == 1.0).all()


@pytest.mark.parametrize("largest", [5, 2**40, 2**62])
def test_entries_go_by_row_and_arm(largest: int) -> None:
    """However large the ids of arms."""
    rng = np.random.default_rng(1)
    rows, arm = np.sort(rng.integers(0, 2**16, 500)), rng.integers(1, largest, 500)
    assert order_by_row(rows, arm).tolist() == np.lexsort((arm, rows)).tolist()
    assert order_by_row(rows[:0], arm[:0]).tolist() == []
