"""Kinds that see the context, by their formulas, on numbers small enough to work out another way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from scipy import optimize, special

from rlrec import policy as kinds
from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.policy.beliefs import solving
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.beliefs.statistics import SlotColumns
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.kinds.linear import inverse_gaps
from rlrec.policy.slates import slate

PLAIN = Design(context=Encoder.parse({"intercept": False, "fields": {"v": {"type": "vector", "length": 2}}}))
MEANT = Design(context=Encoder.parse({"fields": {"v": {"type": "vector", "length": 2}}}), arm=PLAIN.context)
KINDS = ["linucb", "lin-thompson", "logistic-thompson", "softmax", "squarecb"]
ALL = [(kind, model) for kind in KINDS for model in ("disjoint", "shared", "hybrid")]


def policy_of(kind: str, design: Design = MEANT, **parameters: Any) -> Any:
    return cast(Any, kinds.make(kind, parameters, design=design))


def believing(
    gram: Array, response: Array, *, described: Array | None = None, prior: tuple[float, float] = (0, 0)
) -> Belief:
    n = np.zeros(response.shape[:-1])
    return Belief(
        pulls=n, reward_sum=n, reward_squares=n, alpha=n + prior[0], beta=n + prior[1], total=0.0,
        moments=solving.ArmMoments(gram=gram, response=response, arm_features=described),
    )  # fmt: skip


def log(n: int, *, m: int, q: int, seed: int) -> tuple[Array, Any, Array]:
    """Contexts with an intercept, arms and clicks of n slots."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.normal(size=(n, q - 1))])
    return x, rng.integers(0, m, n), (rng.random(n) < special.expit(x @ rng.normal(size=q))).astype(float)


def learned(policy: Any, x: Array, arm: Any, clicks: Array, *, m: int, prior: tuple[float, float] = (0, 0)) -> Belief:
    sums = np.zeros((m, policy.width))
    np.add.at(sums, arm, policy.statistics(SlotColumns(arm_id=arm, reward=clicks, context=x)))
    result = solving.unpack(sums[:, 3:], x.shape[1])
    described = np.random.default_rng(1).normal(size=(m, 2))
    return believing(result.gram, result.response, described=described, prior=prior)


# -- by hand --


def test_linucb_by_hand() -> None:
    policy = policy_of("linucb", PLAIN)
    x, clicks = np.array([[1, 0], [1, 1], [0.5, -1]]), np.array([1.0, 0, 1])
    sums = policy.statistics(SlotColumns(arm_id=np.zeros(3, np.int64), reward=clicks, context=x)).sum(axis=0)
    result = solving.unpack(sums[None, 3:], 2)
    belief = believing(result.gram, result.response)
    assert policy.posterior(belief).weights == pytest.approx(np.array([[0.526316, -0.421053]]), abs=1e-6)
    assert policy.index(belief, context={"v": [1, 0.5]}) == pytest.approx([0.90628436], abs=1e-8)


def test_squarecb_by_hand() -> None:
    result = inverse_gaps(np.array([0.9, 0.7, 0.1]), gamma=10)
    assert result == pytest.approx([0.70909091, 0.2, 0.09090909], abs=1e-8)


def test_equal_bests_of_squarecb_share_what_is_left() -> None:
    result = inverse_gaps(np.array([0.9, 0.9, 0.1]), gamma=10)
    assert result == pytest.approx([(1 - 1 / 11) / 2, (1 - 1 / 11) / 2, 1 / 11], abs=1e-15)
    assert inverse_gaps(np.zeros(4), gamma=10) == pytest.approx([0.25] * 4)


def test_two_arms_of_thompson_by_the_normal_distribution() -> None:
    policy = policy_of("lin-thompson")
    x, arm, clicks = log(60, m=2, q=3, seed=2)
    scores = policy.scores_at(learned(policy, x, arm, clicks, m=2), np.array([1.0, 0.3, -0.2]))
    first = special.ndtr((scores.mean[0] - scores.mean[1]) / np.hypot(*scores.sd))
    assert slate.p_first(scores, floor=0.0) == pytest.approx([first, 1 - first], abs=1e-9)


def test_a_cold_softmax_is_greedy() -> None:
    x, arm, clicks = log(60, m=5, q=3, seed=3)
    cold = policy_of("softmax", temperature=1e-6)
    belief = learned(cold, x, arm, clicks, m=5)
    result = [slate.p_first(item.scores_at(belief, x[0]), floor=0.0) for item in (cold, cold.greedy())]
    assert result[0] == pytest.approx(result[1], abs=1e-12)
    assert sorted(result[1]) == [0, 0, 0, 0, 1]


# -- what stands behind the formulas --


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "model"), ALL)
@pytest.mark.parametrize("m", [3, 7])
def test_arms_nobody_has_seen_tie(kind: str, model: str, m: int) -> None:
    policy = policy_of(kind, Design(), model=model)
    nothing = np.zeros((m, 17))
    belief = believing(np.zeros((m, 17, 17)), nothing, described=np.ones((m, 17)) / 3)
    scores = policy.scores(belief, arms=["x"] * m, context={"hour": 9, "place": "north"})
    # arms of a hybrid model draw samples of their own: these tie on average
    spread = 5 / np.sqrt(scores.samples) if model == "hybrid" and scores.samples else 1e-13
    assert slate.p_first(scores, floor=0.0) == pytest.approx(np.full(m, 1 / m), abs=spread)


def test_a_shared_model_of_indicators_is_the_disjoint_one() -> None:
    x, arm, clicks = log(200, m=3, q=3, seed=4)
    apart, together = policy_of("lin-thompson"), policy_of("lin-thompson", model="shared")
    belief = learned(apart, x, arm, clicks, m=3)
    assert belief.moments is not None
    equal = replace(belief, moments=replace(belief.moments, arm_features=np.eye(3), solutions={}))
    item, other = apart.scores_at(belief, x[0]), together.scores_at(equal, x[0])
    assert other.location == pytest.approx(item.mean, abs=1e-12)
    assert other.factor @ other.factor.T == pytest.approx(np.diag(item.sd**2), abs=1e-12)


def test_shared_scores_are_those_of_one_regression_on_products() -> None:
    x, arm, clicks = log(200, m=4, q=3, seed=5)
    policy = policy_of("lin-thompson", model="shared", alpha=0.7, ridge=2.0)
    belief = learned(policy, x, arm, clicks, m=4)
    assert belief.moments is not None
    z = belief.moments.arm_features
    assert z is not None
    rows = np.einsum("np,nq->npq", z[arm], x).reshape(200, 6)
    complete = 2 * np.eye(6) + rows.T @ rows
    options = np.einsum("mp,q->mpq", z, x[7]).reshape(4, 6)
    result = policy.scores_at(belief, x[7])
    assert result.location == pytest.approx(options @ np.linalg.solve(complete, rows.T @ clicks), abs=1e-12)
    covariance = 0.49 * options @ np.linalg.solve(complete, options.T)
    assert result.factor @ result.factor.T == pytest.approx(covariance, abs=1e-12)


def test_hybrid_scores_are_those_of_one_regression_on_all_weights() -> None:
    """The normal equations of shared weights and those of every arm, solved as one; one arm was never shown."""
    x, arm, clicks = log(60, m=4, q=3, seed=5)
    policy = policy_of("lin-thompson", model="hybrid", alpha=0.7, ridge=2.0)
    belief = learned(policy, x, arm, clicks, m=5)
    assert belief.moments is not None
    z = belief.moments.arm_features
    assert z is not None

    def regressors(arms: Any, contexts: Array) -> Array:
        shared = np.einsum("np,nq->npq", z[arms], contexts).reshape(len(arms), 6)
        terms = np.einsum("na,nq->naq", np.eye(5)[arms], contexts).reshape(len(arms), 15)
        return np.hstack([shared, terms])

    rows, options = regressors(arm, x), regressors(np.arange(5), np.tile(x[7], (5, 1)))
    complete = 2 * np.eye(21) + rows.T @ rows
    mean, covariance = (
        options @ np.linalg.solve(complete, rows.T @ clicks),
        options @ np.linalg.solve(complete, options.T),
    )
    scores = policy.scores_at(belief, x[7])
    assert scores.location == pytest.approx(mean, abs=1e-12)
    assert 0.49 * covariance == pytest.approx(scores.factor @ scores.factor.T + np.diag(scores.arm_noise**2), abs=1e-12)
    optimist = policy_of("linucb", model="hybrid", alpha=0.7, ridge=2.0)
    index = mean + 0.7 * np.sqrt(np.diag(covariance))
    assert optimist.index_at(belief, x[7]) == pytest.approx(index, abs=1e-12)


def test_hybrid_samples_have_the_covariance_of_the_scores() -> None:
    """20,000 samples: a covariance is off by 5 standard errors in one of 10^5 runs."""
    x, arm, clicks = log(60, m=4, q=3, seed=5)
    policy = policy_of("lin-thompson", model="hybrid", samples=20_000)
    scores = policy.scores_at(learned(policy, x, arm, clicks, m=4), x[7])
    covariance = scores.factor @ scores.factor.T + np.diag(scores.arm_noise**2)
    samples = scores.decision_scores(3, 17).values
    pages = scores.simulate_pages(20_000, 1, np.random.default_rng(2))[0]
    for values in (samples, pages, scores.noise((20_000, 4), np.random.default_rng(1))):
        error = 5 * np.sqrt(2) * covariance.diagonal().max() / np.sqrt(20_000)
        assert np.cov(values.T) == pytest.approx(covariance, abs=error)
        assert values.mean(axis=0) == pytest.approx(scores.location, abs=error)


def earned_by_model(seed: int) -> dict[str, float]:
    """What the best by the means of each model earns of the best of 388 arms, after 40 slots of each."""
    rng, m = np.random.default_rng(seed), 388
    z, n = np.column_stack([np.ones(m), rng.normal(size=(m, 4))]), 40 * m
    rates = special.expit(z @ rng.normal(size=5) * 0.3 + rng.normal(size=m) - 2)
    x, arm = np.column_stack([np.ones(n), rng.normal(size=(n, 2))]), np.tile(np.arange(m), 40)
    clicks = (rng.random(n) < rates[arm]).astype(float)
    design, earned = replace(MEANT, arm=Encoder.parse({"fields": {"z": {"type": "vector", "length": 4}}})), {}
    for model in ("shared", "hybrid"):
        policy = policy_of("linucb", design, model=model, alpha=0.0)
        belief = learned(policy, x, arm, clicks, m=m)
        assert belief.moments is not None
        belief = replace(belief, moments=replace(belief.moments, arm_features=z))
        earned[model] = rates[policy.index_at(belief, np.array([1.0, 0, 0])).argmax()] / rates.max()
    return earned


@pytest.mark.slow
def test_the_best_of_many_arms_is_looked_for_where_features_do_not_tell_it() -> None:
    worlds = [earned_by_model(seed) for seed in range(10)]
    mean = {model: np.mean([world[model] for world in worlds]) for model in worlds[0]}
    assert mean["hybrid"] > 0.85
    assert mean["shared"] < 0.65


def test_a_new_arm_starts_from_those_that_are_like_it() -> None:
    x, arm, clicks = log(200, m=3, q=3, seed=6)
    policy = policy_of("linucb", model="shared")
    belief = learned(policy, x, arm, clicks, m=3)
    assert belief.moments is not None
    z = belief.moments.arm_features
    assert z is not None
    new = believing(np.zeros((2, 3, 3)), np.zeros((2, 3)), described=z[[1, 1]])
    assert new.moments is not None
    new = replace(new, moments=replace(new.moments, pool=belief.moments))
    expected = policy.index_at(belief, x[0])[1]
    assert policy.index_at(new, x[0]) == pytest.approx([expected, expected], abs=1e-13)


@pytest.mark.parametrize("model", ["disjoint", "shared"])
@pytest.mark.parametrize("prior", [(0.0, 0.0), (2.0, 3.0)])
def test_repeating_the_fold_leads_to_the_best_weights(model: str, prior: tuple[float, float]) -> None:
    """Anchors moved to the solution are Newton's method: it ends at the penalised likelihood's maximum."""
    x, arm, clicks = log(300, m=2, q=3, seed=7)
    design, belief = replace(MEANT, arm=Encoder.parse({})), believing(np.zeros((2, 3, 3)), np.zeros((2, 3)))
    for _ in range(8):
        policy = policy_of("logistic-thompson", design, model=model, rate=0.2, ridge=1.5)
        belief = learned(policy, x, arm, clicks, m=2, prior=prior)
        assert belief.moments is not None
        belief = replace(belief, moments=replace(belief.moments, arm_features=np.ones((2, 1))))
        weights = policy.posterior(belief).weights.reshape(-1, 3)
        design = replace(design, anchor=dict(enumerate(np.broadcast_to(weights, (2, 3)))))

    def loss(w: Array, selected: Any, counts: bool) -> float:
        logit = x[selected] @ w
        start = np.array([special.logit(0.2), 0, 0])
        pseudo = 1.2 * (w[0] - np.log(2 / 3)) ** 2 if counts and prior[0] else 0.0
        fit = np.logaddexp(0, logit).sum() - clicks[selected] @ logit
        return float(fit + (1.5 * ((w - start) ** 2).sum() + pseudo) / 2)

    for row, selected in enumerate([arm == 0, arm == 1] if model == "disjoint" else [arm >= 0]):
        best = optimize.minimize(loss, np.zeros(3), args=(selected, model == "disjoint"), tol=1e-12).x
        assert weights[row] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("kind", ["lin-thompson", "logistic-thompson"])
def test_what_two_logs_add_is_what_both_add(kind: str) -> None:
    x, arm, clicks = log(100, m=3, q=3, seed=8)
    policy = policy_of(kind, replace(MEANT, anchor={1: np.array([0.3, -1.0, 0.5])}))

    def sums(rows: slice) -> Array:
        belief = learned(policy, x[rows], arm[rows], clicks[rows], m=3).moments
        assert belief is not None
        return np.concatenate([belief.gram.ravel(), belief.response.ravel()])

    parts = sums(slice(0, 30)) + sums(slice(30, None))
    assert parts == pytest.approx(sums(slice(None)), abs=1e-11)


# -- many beliefs at once --


@pytest.mark.parametrize(("kind", "model"), ALL)
def test_many_beliefs_at_once_are_each_by_itself(kind: str, model: str) -> None:
    policy = policy_of(kind, model=model)
    runs = [learned(policy, *log(40, m=3, q=3, seed=seed), m=3) for seed in range(5)]
    x = np.random.default_rng(9).normal(size=(5, 3))
    result = [cast(Any, run.moments) for run in runs]
    both = believing(
        np.array([row.gram for row in result]),
        np.array([row.response for row in result]),
        described=result[0].arm_features,
    )
    together = policy.scores_at(both, x)
    for row, run in enumerate(runs):
        alone = policy.scores_at(run, x[row])
        assert policy.index_at(both, x)[row] == pytest.approx(policy.index_at(run, x[row]), abs=1e-12)
        for item, other in zip(arrays(together), arrays(alone), strict=True):
            assert item[row] == pytest.approx(other, abs=1e-10)


def arrays(scores: Any) -> list[Array]:
    return [value for value in vars(scores).values() if isinstance(value, np.ndarray)]


def test_contexts_of_one_belief_are_asked_at_once() -> None:
    policy = policy_of("linucb")
    x, arm, clicks = log(40, m=3, q=3, seed=10)
    belief = learned(policy, x, arm, clicks, m=3)
    result = policy.index_at(belief, x)
    assert result.shape == (40, 3)
    assert result[7] == pytest.approx(policy.index_at(belief, x[7]), abs=1e-14)
    assert policy.posterior(belief) is policy.posterior(belief)  # solved once


# -- what is odd --


@pytest.mark.parametrize(("kind", "model"), ALL)
@pytest.mark.parametrize("left", [-1e-8, 1e16])
def test_what_is_left_of_forgotten_sums_does_no_harm(kind: str, model: str, left: float) -> None:
    gram = left * np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    belief = believing(np.tile(gram, (3, 1, 1)), np.zeros((3, 3)), described=np.eye(3)[:, :2])
    policy = policy_of(kind, model=model, ridge=1e-9)
    result = slate.p_first(policy.scores_at(belief, np.array([1.0, 2.0, -1.0])), floor=policy.floor)
    assert result.min() >= 0
    assert result.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("kind", "model"), ALL)
def test_a_context_without_features_is_served_fairly(kind: str, model: str) -> None:
    policy = policy_of(kind, PLAIN, model=model)
    belief = believing(np.tile(np.eye(2), (3, 1, 1)), np.ones((3, 2)), described=np.ones((3, 17)))
    result = slate.p_first(policy.scores(belief, arms=["a", "b", "c"], context={}), floor=policy.floor)
    assert result == pytest.approx([1 / 3] * 3, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_of_any_size_are_served(kind: str) -> None:
    """Where a mean is 1e20 doubles tell no score apart that is less than 1e4 away."""
    policy = policy_of(kind)
    belief = believing(np.tile(np.eye(3), (3, 1, 1)), np.array([[1e20, 0, 0], [-1e20, 0, 0], [0, 0, 0]]))
    scores = policy.scores_at(belief, np.array([1.0, 0.0, 0.0]))
    assert slate.p_first(scores, floor=0.0) == pytest.approx([1, 0, 0], abs=1e-9)


def test_a_prior_counts_at_the_intercept_where_there_is_one() -> None:
    empty = np.zeros((2, 3, 3)), np.zeros((2, 3))
    belief = believing(*empty, prior=(2.0, 5.0))
    assert policy_of("softmax").index(belief, context={}) == pytest.approx([2 / 8] * 2, abs=1e-12)
    assert policy_of("logistic-thompson").index(believing(*empty), context={}) == pytest.approx([0.5] * 2)
    assert policy_of("logistic-thompson", rate=0.1).index(believing(*empty)) == pytest.approx([0.1] * 2)
    bare = believing(np.zeros((2, 2, 2)), np.zeros((2, 2)), prior=(2.0, 5.0))
    assert policy_of("softmax", PLAIN).index(bare, context={"v": [1, 1]}).tolist() == [0, 0]


def test_shares_of_samples_need_a_floor() -> None:
    assert policy_of("lin-thompson").floor == 0
    for kind in ("lin-thompson", "logistic-thompson"):
        shared = policy_of(kind, model="shared")
        assert (shared.floor, shared.greedy().floor) == (0.01, 0)
        with pytest.raises(InputError, match="floor is 0"):
            policy_of(kind, model="shared", floor=0.0)
    assert policy_of("linucb", model="shared").floor == 0


def test_a_shared_model_has_a_largest_size() -> None:
    broad = Encoder.parse({"fields": {"v": {"type": "vector", "length": 30}}})
    with pytest.raises(InputError, match="31 context and 17 arm features has 527 weights"):
        policy_of("linucb", Design(context=broad), model="shared")
