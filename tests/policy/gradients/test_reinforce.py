"""The gradient of logged pages: against differences, closed forms, and fixed points known beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from itertools import permutations

import numpy as np
import pytest

from rlrec.arrays import Array, Index, matrix_product
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.contexts.features import Number, Vector
from rlrec.policy.gradients import reinforce, returns
from rlrec.policy.gradients.gradient import BILINEAR, Gradient, Parameters, State
from rlrec.policy.gradients.reinforce import GradientSums, LoggedSlates, Objective
from rlrec.policy.slates import plackett_luce

DESIGN = Design(context=Encoder([Number("hour")]), arm=Encoder([Vector("taste", 2)]))


def policy(**parameters: object) -> Gradient:
    return Gradient(design=DESIGN, **parameters)


def random_state(kind: Gradient, n: int, m: int, rng: np.random.Generator) -> State:
    each = min(m, 2)
    row = np.repeat(np.arange(n), each)
    arm = np.concatenate([rng.choice(m, each, replace=False) for _ in range(n)])
    x = rng.normal(size=(n, len(kind.names)))
    x[:, 0] = 1.0  # the constant
    return State(x, row, arm, rng.normal(size=(each * n, 4)))


def random_parameters(kind: Gradient, arms: int, rng: np.random.Generator) -> Parameters:
    return {name: 0.3 * rng.normal(size=values.shape) for name, values in kind.zero_parameters(arms).items()}


def random_pages(kind: Gradient, *, n: int = 40, m: int = 5, size: int = 1, seed: int = 1) -> LoggedSlates:
    rng = np.random.default_rng(seed)
    shown = np.array([rng.choice(m, size, replace=False) for _ in range(n)])
    gain = rng.normal(size=n)
    return LoggedSlates(
        state=random_state(kind, n, m, rng), arms=np.array([0, 2, 3, 5, 6])[:m], arm_features=rng.normal(size=(m, 3)),
        shown_arms=shown, log_propensity=-rng.uniform(0.5, 3, n), gain=gain, returns=gain + 1,
        scale=rng.uniform(0.5, 1, n),
    )  # fmt: skip


def rows_of(pages: LoggedSlates, rows: Index) -> LoggedSlates:
    cut = ("shown_arms", "log_propensity", "gain", "returns", "scale")
    return replace(pages, state=pages.state.take(rows), **{name: getattr(pages, name)[rows] for name in cut})


def score(kind: Gradient, parameters: Parameters, pages: LoggedSlates) -> Array:
    held = {name: parameters[name][pages.arms] for name in ("bias", "linear", "own")}
    arms = np.arange(len(pages.arms))
    return kind.scores_of({**parameters, **held}, pages.state, arms=arms, arm_features=pages.arm_features)


def value(kind: Gradient, parameters: Parameters, pages: LoggedSlates, *, entropy: float = 0.0) -> float:
    """What the objective adds up to: sum of scale (weight x gain + entropy)."""
    result = score(kind, parameters, pages)
    joint = plackett_luce.log_conditionals(
        result, pages.shown_arms, temperature=kind.temperature, floor=kind.exploration
    ).sum(axis=1)
    soft = plackett_luce.probabilities(result, temperature=kind.temperature, floor=0.0)
    bonus = -entropy * (soft * np.log(soft)).sum(axis=1)
    return float((pages.scale * (np.exp(joint - pages.log_propensity) * pages.gain + bonus)).sum())


def differences(kind: Gradient, parameters: Parameters, pages: LoggedSlates, *, entropy: float = 0.0) -> Parameters:
    result = {name: np.zeros_like(values) for name, values in parameters.items()}
    for name, values in parameters.items():
        for cell in np.ndindex(values.shape):
            moved = []
            for step in (1e-6, -1e-6):
                other = values.copy()
                other[cell] += step
                moved.append(value(kind, {**parameters, name: other}, pages, entropy=entropy))
            result[name][cell] = (moved[0] - moved[1]) / 2e-6
    return result


@pytest.mark.parametrize("model", ["linear", "bilinear"])
@pytest.mark.parametrize(("size", "slots"), [(1, ""), (3, ""), (3, "2")])
def test_the_gradient_equals_finite_differences(model: str, size: int, slots: str) -> None:
    kind = policy(model=model, temperature=0.7, floor=0.1, explore_slots=slots)
    pages, parameters = random_pages(kind, size=size), random_parameters(kind, 8, np.random.default_rng(2))
    gradient = reinforce.sums(kind, parameters, [pages], Objective(entropy=0.3)).gradient
    for name, slope in differences(kind, parameters, pages, entropy=0.3).items():
        assert gradient[name] == pytest.approx(slope, rel=1e-5, abs=1e-6), name


def test_sums_of_two_batches_add_up_to_those_of_both() -> None:
    kind = policy(floor=0.05)
    pages, parameters = random_pages(kind, n=60), random_parameters(kind, 8, np.random.default_rng(3))
    parts = [rows_of(pages, rows) for rows in (np.arange(25), np.arange(25, 60))]
    objective = Objective(clip=2.0, entropy=0.1)
    first, second, complete = (reinforce.sums(kind, parameters, [piece], objective) for piece in (*parts, pages))
    both = first + second
    assert all(both.gradient[name] == pytest.approx(complete.gradient[name], abs=1e-12) for name in parameters)
    assert (both.n, both.clipped_share) == (60, pytest.approx(complete.clipped_share))


@pytest.mark.parametrize("entropy", [0.0, 0.1])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_scores_of_any_size_stand_side_by_side(kind: type, entropy: float) -> None:
    """Rows whose scores lie hundreds apart give together what each gives alone, to the digits of their features."""
    item = policy()
    pages, parameters = random_pages(item), random_parameters(item, 8, np.random.default_rng(6))
    x = pages.state.x.copy()
    parameters["linear"][:, 0] = [0, 0, 0, 1, 1, 1, 1, 1]
    x[:, 0] = np.linspace(-300, 300, len(x))
    state = replace(pages.state, x=x.astype(kind), memory=pages.state.memory.astype(kind))
    pages = replace(pages, state=state, log_propensity=np.zeros(len(x)))
    objective = Objective(entropy=entropy)
    sums = reinforce.sums(item, parameters, [pages], objective)
    alone = [reinforce.sums(item, parameters, [rows_of(pages, np.array([row]))], objective) for row in range(len(x))]
    each, digits = reduce(GradientSums.__add__, alone), 1e-12 if kind is np.float64 else 1e-4
    for name, slope in each.gradient.items():
        assert sums.gradient[name] == pytest.approx(slope, abs=digits * np.abs(slope).max()), name
    assert sums.variances == pytest.approx(each.variances, rel=digits)


@dataclass
class Plain:
    """The same sums, row by row and position by position. moved (n, m): derivatives by the scores."""

    moved: Array
    mass: float = 0.0
    clipped_mass: float = 0.0
    square: float = 0.0
    raw_square: float = 0.0


def plain(kind: Gradient, parameters: Parameters, pages: LoggedSlates, objective: Objective) -> Plain:
    scores = score(kind, parameters, pages).astype(np.float64) / kind.temperature
    result = Plain(np.zeros_like(scores))
    for row, logits in enumerate(scores):
        every = np.ones(len(logits), np.bool_) if pages.eligible is None else pages.eligible[row]
        soft = np.where(every, np.exp(logits - logits[every].max()), 0)
        reported, scale, length = [], pages.scale[row], 1 + float((pages.state.x[row] ** 2).sum())
        left, slope, joint = every.copy(), np.zeros(len(logits)), 0.0
        for position, arm in enumerate(pages.shown_arms[row]):
            if objective.top_k:
                left = every.copy()
            if objective.top_k or objective.is_by_slot:
                slope, joint = np.zeros(len(logits)), 0.0
            p = np.where(left, soft, 0) / soft[left].sum()
            mixed = kind.floor / left.sum() + (1 - kind.floor) * p[arm]
            slope = slope + (1 - kind.floor) * p[arm] / mixed * (np.eye(len(p))[arm] - p)
            joint, left[arm] = joint + np.log(mixed), False
            if objective.top_k or objective.is_by_slot:
                factor = (
                    objective.top_k * (-np.expm1(joint)) ** (objective.top_k - 1) * scale if objective.top_k else scale
                )
                slot = (pages.log_propensity[row, position], pages.gain[row, position], pages.returns[row, position])
                reported.append((slope, joint, factor, *slot))
        if not objective.top_k and not objective.is_by_slot:
            reported.append((slope, joint, scale, pages.log_propensity[row], pages.gain[row], pages.returns[row]))
        for slope, joint, factor, logged, gain, raw in reported:
            weight = np.exp(joint - logged)
            retained, size = min(weight, objective.clip) * factor, np.sqrt((slope**2).sum() * length) / kind.temperature
            result.moved[row] += retained * gain * slope / kind.temperature
            result.mass += weight * factor * abs(gain) * size
            result.clipped_mass += (weight * factor - retained) * abs(gain) * size
            result.square += (retained * gain * size) ** 2
            result.raw_square += (retained * raw * size) ** 2
        p = soft / soft.sum()
        spoken = np.where(p > 0, np.log(np.maximum(p, 1e-300)), 0)
        sharp = -p * (spoken - (p * spoken).sum())
        result.moved[row] += objective.entropy * scale * sharp / kind.temperature
    return result


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("apart", [0.3, 3.0, 15.0, 60.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("size", "top", "by_slot"),
    [(1, 0, False), (2, 0, False), (5, 0, False), (1, 2, False), (3, 2, False), (2, 0, True), (5, 0, True)],
)
def test_sums_are_those_of_plain_loops(
    size: int, top: int, by_slot: bool, masked: bool, apart: float, kind: type
) -> None:
    """Of pages and of slots, with arms that some may not show, however far apart scores are; figures too."""
    item = policy(temperature=0.8, floor=0.05)
    pages, parameters = random_pages(item, n=30, m=5, size=size), random_parameters(item, 8, np.random.default_rng(7))
    parameters["bias"] = apart * np.random.default_rng(8).normal(size=8)
    if top or by_slot:
        rng = np.random.default_rng(9)
        gain = rng.normal(size=(30, size))
        pages = replace(pages, log_propensity=-rng.uniform(0.5, 3, (30, size)), gain=gain, returns=gain + 1)
    if masked:
        eligible = np.random.default_rng(10).random((30, 5)) < 0.5
        eligible[np.arange(30)[:, None], pages.shown_arms] = True
        pages = replace(pages, eligible=eligible)
    state = replace(pages.state, x=pages.state.x.astype(kind), memory=pages.state.memory.astype(kind))
    pages, digits = replace(pages, state=state), 1e-9 if kind is np.float64 else 2e-5 * max(1, apart)
    for entropy in (0.0, 0.2):
        objective = Objective(clip=3.0, entropy=entropy, top_k=top, is_by_slot=by_slot)
        sums, reported = reinforce.sums(item, parameters, [pages], objective), plain(item, parameters, pages, objective)
        slopes = reported.moved.T @ pages.state.x
        size_of = np.abs(reported.moved).sum() * 3
        assert sums.gradient["linear"][pages.arms] == pytest.approx(slopes, abs=digits * size_of)
        assert sums.mass == pytest.approx(reported.mass, rel=digits)
        assert sums.clipped_mass == pytest.approx(reported.clipped_mass, rel=digits, abs=digits * reported.mass)
        assert sums.square == pytest.approx(reported.square, rel=10 * digits)
        assert sums.raw_square == pytest.approx(reported.raw_square, rel=10 * digits)


def test_a_decision_without_a_choice_teaches_nothing() -> None:
    """To the last digit but one, in float32 too, whatever its arm's score is."""
    item = policy()
    pages, parameters = random_pages(item, m=1), random_parameters(item, 8, np.random.default_rng(11))
    state = replace(pages.state, x=pages.state.x.astype(np.float32), memory=pages.state.memory.astype(np.float32))
    for objective in (Objective(), Objective(top_k=1), Objective(entropy=0.1)):
        options = pages
        if objective.top_k:
            options = replace(
                pages,
                log_propensity=pages.log_propensity[:, None],
                gain=pages.gain[:, None],
                returns=pages.returns[:, None],
            )
        sums = reinforce.sums(item, parameters, [replace(options, state=state)], objective)
        assert all(np.abs(values).max(initial=0) < 1e-12 for values in sums.gradient.values())
        assert (sums.clipped_share, sums.variances) == (0, pytest.approx((0, 0), abs=1e-20))


@pytest.mark.parametrize("model", ["linear", "bilinear"])
def test_what_all_arms_have_in_common_is_not_moved(model: str) -> None:
    """By a feature that all arms have alike, as those of a catalogue without features: in float32 too."""
    item = policy(model=model)
    pages, parameters = random_pages(item, n=500), random_parameters(item, 8, np.random.default_rng(12))
    x, memory = (piece.astype(np.float32) for piece in (pages.state.x, pages.state.memory))
    equal = replace(pages, state=replace(pages.state, x=x, memory=memory), arm_features=np.full((5, 3), 0.5))
    for objective in (Objective(), Objective(entropy=0.1)):
        gradient = reinforce.sums(item, parameters, [equal], objective).gradient
        assert np.abs(gradient["cross"]).max() < 1e-10
        assert np.abs(gradient["similar"]).max() < 1e-10
        assert np.abs(gradient["bias"]).max() > 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("entropy", [0.0, 0.1])
@pytest.mark.parametrize("apart", [100.0, 1e4, 1e30])
def test_pages_that_show_all_that_is_left_stay_finite(apart: float, entropy: float) -> None:
    """However unlikely the last of them have become."""
    item = policy()
    pages, parameters = random_pages(item, size=5), random_parameters(item, 8, np.random.default_rng(13))
    parameters["bias"] = -apart * np.arange(8.0)
    x, memory = (piece.astype(np.float32) for piece in (pages.state.x, pages.state.memory))
    eligible = np.random.default_rng(14).random((40, 5)) < 0.5
    eligible[np.arange(40)[:, None], pages.shown_arms[:, :2]] = True
    for page in (pages, replace(pages, shown_arms=pages.shown_arms[:, :2], eligible=eligible)):
        page = replace(page, state=replace(pages.state, x=x, memory=memory))
        sums = reinforce.sums(item, parameters, [page], Objective(entropy=entropy))
        assert all(np.isfinite(values).all() for values in sums.gradient.values())
        assert np.isfinite([sums.mass, sums.clipped_mass, sums.square, sums.raw_square]).all()


def test_pages_of_all_arms_have_probabilities_that_sum_to_one() -> None:
    scores, orders = np.random.default_rng(4).normal(size=4), np.array(list(permutations(range(4), 3)))
    many = np.repeat(scores[None], len(orders), axis=0)
    for temperature, floor in ((0.5, 0.0), (1.0, 0.3), (0.0, 0.2)):
        joint = plackett_luce.log_conditionals(many, orders, temperature=temperature, floor=floor).sum(axis=1)
        assert np.exp(joint).sum() == pytest.approx(1, abs=1e-12)


def test_a_baseline_changes_the_noise_and_not_the_gradient() -> None:
    kind = policy()
    rng = np.random.default_rng(5)
    n, parameters = 20_000, kind.zero_parameters(5)
    state = State(np.ones((n, len(kind.names))), np.empty(0, np.intp), np.empty(0, np.int64), np.empty((0, 4)))
    shown = rng.integers(0, 5, (n, 1))
    raw = 10 + shown[:, 0] + rng.normal(size=n)
    pages = LoggedSlates(
        state=state, arms=np.arange(5), arm_features=np.zeros((5, 3)), shown_arms=shown, gain=raw - 12, returns=raw,
        log_propensity=np.full(n, -np.log(5)), scale=np.ones(n),
    )  # fmt: skip
    sums = reinforce.sums(kind, parameters, [pages], Objective())
    with_baseline, without = sums.variances
    assert sums.mean["bias"] == pytest.approx(0.2 * (np.arange(5) - 2), abs=0.05)  # 9 standard errors: never by chance
    assert with_baseline < 0.05 * without


# -- the toy of Chen et al. 2019: ten items, logged in proportion to 11 - i --

ITEMS = np.arange(1, 11)
LOGGED = (11 - ITEMS) / 55


def climbed(reward: Array, logged: Array, objective: Objective, *, steps: int = 1_500, rate: float = 0.1) -> Array:
    """Where the climb ends on the log in which every item stands as often as it is likely."""
    kind, m = policy(), len(reward)
    x = np.zeros((m, len(kind.names)))
    x[:, 0] = 1.0  # of all features, the constant
    nobody = State(x, np.empty(0, np.intp), np.empty(0, np.int64), np.empty((0, 4)))
    shape = (m, 1) if objective.top_k else (m,)
    pages = LoggedSlates(
        state=nobody, arms=np.arange(m), arm_features=np.zeros((m, 3)), shown_arms=np.arange(m)[:, None],
        log_propensity=np.log(logged).reshape(shape), gain=reward.reshape(shape), returns=reward.reshape(shape),
        scale=logged * m,
    )  # fmt: skip
    # Adam (Kingma & Ba 2015, algorithm 1)
    parameters, mean, square = (kind.zero_parameters(m) for _ in range(3))
    for step in range(1, steps + 1):
        for name, gradient in reinforce.sums(kind, parameters, [pages], objective).mean.items():
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.999 * square[name] + 0.001 * gradient**2
            unit = np.sqrt(square[name] / (1 - 0.999**step)) + 1e-8
            parameters[name] = parameters[name] + rate / (1 + 10 * step / steps) * mean[name] / (1 - 0.9**step) / unit
    score = kind.scores_of(parameters, nobody, arms=np.arange(m), arm_features=pages.arm_features)
    return plackett_luce.probabilities(score[:1], temperature=1.0, floor=0.0)[0]


@pytest.mark.slow
def test_without_correction_the_logger_shines_through() -> None:
    result = climbed(ITEMS.astype(float), LOGGED, Objective(uses_weights=False))
    assert result == pytest.approx(ITEMS * LOGGED / (ITEMS * LOGGED).sum(), abs=1e-3)


@pytest.mark.slow
def test_with_correction_the_best_item_wins() -> None:
    assert climbed(ITEMS.astype(float), LOGGED, Objective())[-1] > 0.999


@pytest.mark.slow
def test_clipping_moves_the_optimum() -> None:
    result = climbed(ITEMS.astype(float), LOGGED, Objective(clip=float(np.exp(3))))
    assert result[-2:] == pytest.approx([0.594, 0.406], abs=1e-3)


@pytest.mark.slow
def test_two_of_a_page_are_two_items() -> None:
    result = climbed(np.array([10.0, 9.0, *[1.0] * 8]), np.full(10, 0.1), Objective(top_k=2))
    assert result[:2] == pytest.approx([10 / 19, 9 / 19], abs=1e-3)


# -- returns --


def test_returns_are_sums_of_what_came_later() -> None:
    reward, start = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), np.array([0, 3, 4, 6])
    assert returns.discount_rewards(reward, start, gamma=0.5).tolist() == [3.0, 4.0, 4.0, 8.0, 32.0, 32.0]
    assert returns.discount_rewards(reward, start, gamma=0.0).tolist() == reward.tolist()
    assert returns.steps(start).tolist() == [0, 1, 2, 0, 0, 1]


def test_shaped_returns_are_returns_of_shaped_rewards() -> None:
    rng, start, gamma = np.random.default_rng(6), np.array([0, 4, 5, 9]), 0.8
    reward, potential = rng.normal(size=9), rng.normal(size=9)
    following = np.append(potential[1:], 0.0)
    following[start[1:] - 1] = 0.0
    shaped = returns.discount_rewards(reward + gamma * following - potential, start, gamma=gamma)
    expected = returns.shape_returns(returns.discount_rewards(reward, start, gamma=gamma), potential)
    assert shaped == pytest.approx(expected, abs=1e-12)


def test_models_differ_in_what_is_shared() -> None:
    assert policy().zero_parameters(3)["linear"].shape == (3, len(policy().names))
    assert policy(model=BILINEAR).zero_parameters(3)["linear"].shape == (3, 0)


@pytest.mark.parametrize("size", [1, 3])
def test_divergences_of_slots_are_those_of_every_arm_in_turn(size: int) -> None:
    """Chi-squared: the variance of the weights; KL: the mean logarithm of the ratio."""
    rng, floor = np.random.default_rng(5), 0.1
    ours, theirs = rng.normal(size=(2, 6, 5))
    shown = np.array([rng.permutation(5)[:size] for _ in range(6)])
    eligible = np.ones((6, 5), np.bool_)
    eligible[0] = np.isin(np.arange(5), [*shown[0], *np.setdiff1d(np.arange(5), shown[0])[:1]])
    options = {"temperature": 1.0, "floor": floor}
    squares, logarithms = np.zeros((2, *shown.shape))
    for position in range(size):
        for arm in range(5):  # every arm that may stand at this position, given those above
            rows = np.flatnonzero(eligible[:, arm] & ~(shown[:, :position] == arm).any(axis=1))
            slates = np.column_stack([shown[rows, :position], np.full(len(rows), arm)])
            log_new, log_old = (
                plackett_luce.log_conditionals(each[rows], slates, eligible[rows], **options)[:, position]
                for each in (ours, theirs)
            )
            squares[rows, position] += np.exp(2 * log_new - log_old)
            logarithms[rows, position] += np.exp(log_old) * (log_old - log_new)
    scores = ours, theirs, shown, eligible
    np.testing.assert_allclose(plackett_luce.chi_squares(*scores, **options), squares - 1, atol=1e-12)
    np.testing.assert_allclose(plackett_luce.divergences(*scores, **options), logarithms, atol=1e-12)


def test_products_of_float32_do_not_warn() -> None:
    """Sums of five columns over 70 rows warned now and then, by remains of other products in memory (OpenBLAS 0.3.31);
    their values were right. Here infinity times 0 stands for such remains. (Warnings are errors in tests.)"""
    assert np.isnan(matrix_product(np.array([[np.inf, 1.0]], np.float32), np.array([0.0, 1.0], np.float32))).all()
