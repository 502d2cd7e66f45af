"""Studies in beliefs: what they know of regret, and that they forget, wait and explore as the store does."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec import simulate
from rlrec.app.audiences.in_memory import RunBeliefs, Totals, design, draw_slates, study
from rlrec.arrays import Array
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.policy.kinds.linear import Linear
from rlrec.policy.scores.families.beta import Beta
from rlrec.policy.scores.families.correlated import Correlated, Sampled
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import Scores
from rlrec.policy.slates.slate import marginals, p_first
from rlrec.simulate.barista import Barista
from rlrec.simulate.shop import Shop
from tests.app.learning.test_examined import curve
from tests.benchmarks.regret import FIGURES, TWO
from tests.conftest import Run
from tests.simulate import bars, shops

NO_FEATURES = np.ones((1, 1))  # a context without features


def played(kind: str, params: dict[str, Any], name: str, inputs: dict[str, Any], *, runs: int, steps: int) -> Totals:
    return study(kinds.make(kind, params), simulate.make_audience(name, inputs), runs=runs, steps=steps, seed=1)


@pytest.mark.simulation
@pytest.mark.parametrize(("kind", "params", "name", "inputs", "steps", "regret"), [*FIGURES[:3], *FIGURES[5:7]])
def test_regret_is_what_others_found(
    kind: str, params: dict[str, Any], name: str, inputs: dict[str, Any], steps: int, regret: float
) -> None:
    """Within 10 % and three standard errors of 100 runs; of 1,000 runs, and with ten arms: `python -m tests.benchmarks
    -k regret`."""
    result = played(kind, params, name, inputs, runs=100, steps=steps).regret
    assert abs(result.mean() - regret) < 0.1 * regret + 3 * result.std(ddof=1) / 10


def test_a_study_is_its_seed() -> None:
    item, again = (played("thompson", {}, "bernoulli", TWO, runs=20, steps=50) for _ in range(2))
    assert np.array_equal(item.reward, again.reward)


def test_the_uniform_policy_regrets_the_gap_of_the_means() -> None:
    """False-alarm rate 6e-5: four standard errors."""
    result = played("uniform", {}, "bernoulli", TWO, runs=200, steps=500)
    assert abs(result.regret.mean() - 25) < 4 * 0.05 * sqrt(500 / 200)
    assert np.allclose(result.optimum, 450)


@pytest.mark.parametrize(
    "scores",
    [
        Point(np.array([1.0, 3.0, 3.0])),
        Point(np.array([np.inf, np.inf, 3.0])),
        Beta(np.array([2.0, 3.0, 1.0]), np.array([3.0, 4.0, 1.0])),
        Gaussian(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.2])),
        Gumbel(np.array([0.0, 1.0, -np.inf])),
        Sampled(np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 3.0, 3.0]]), np.arange(3)),
    ],
)
def test_arms_are_drawn_from_the_exact_distribution(scores: Scores) -> None:
    """40,000 draws, four standard errors of three arms: false-alarm rate below 2e-4 each."""
    drawn = draw_slates(scores, (40_000, 3), floors=np.array([0.1]), rng=np.random.default_rng(1))
    exact = p_first(scores, floor=0.1)
    share = np.bincount(drawn[:, 0], minlength=3) / 40_000
    assert np.all(np.abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / 40_000))


@pytest.mark.parametrize(
    "scores", [Point(np.array([1.0, 3.0, 3.0, 0.0])), Beta(np.array([2.0, 3.0, 1.0, 1.0]), np.full(4, 2.0))]
)
def test_slates_are_drawn_with_the_exact_marginals(scores: Scores) -> None:
    """40,000 draws, four standard errors of eight cells: false-alarm rate below 6e-4 each."""
    floor = (0.3, 0.1)
    drawn = draw_slates(scores, (40_000, 4), floors=np.array(floor), rng=np.random.default_rng(1))
    share = np.array([np.bincount(column, minlength=4) for column in drawn.T]) / 40_000
    exact = marginals(scores, size=2, floor=floor)
    assert np.all(np.abs(share - exact) < 4 * np.sqrt(exact * (1 - exact) / 40_000) + 1e-12)
    assert np.all(drawn[:, 0] != drawn[:, 1])


def test_pages_in_memory_earn_what_pages_of_the_store_do(run: Run) -> None:
    """Uniform pages of a position-based audience: five standard errors of 400 pages, and the same optimum."""
    run("policy", "create", "u", "--kind", "uniform")
    rates = ["simulate", "pbm", "--env", "rates=0.9,0.6,0.3", "-k", "2", "--seed", "1", "--json"]
    stored = run(*rates, "--policy", "u", "--sessions", "400", "--group", "400").json
    studied = run(*rates, "--kind", "uniform", "--ephemeral", "--runs", "400").json
    assert stored["optimum_per_session"] == pytest.approx(studied["optimum_per_session"]) == pytest.approx(1.2)
    assert abs(stored["reward_per_session"] - studied["reward_per_session"]) < 5 * (2 * 0.5 / 400) ** 0.5
    assert studied["reward_per_session"] == pytest.approx(0.9, abs=0.2)


def test_a_study_of_pages_counts_by_a_stored_curve(run_sqlite: Run, sqlite_db: str) -> None:
    curve(sqlite_db, 1.0, 0.5)
    words = ["simulate", "pbm", "--ephemeral", "--kind", "thompson", "-k", 2, "--seed", 1, "--steps", 99, "--json"]
    plain, curved = (run_sqlite(*words, *more).json for more in ([], ["--param", "position=home"]))
    assert curved["reward"] != plain["reward"]
    refused = run_sqlite(*words, "--param", "position=hom")
    assert (refused.exit_code, refused.error["error"]) == (2, "unknown position curve 'hom'")


def test_a_study_of_pages_refuses_what_it_cannot_do(run: Run) -> None:
    for words, why in ((["pbm", "--kind", "exp3"], "propensities"), (["barista", "--kind", "uniform"], "one arm")):
        refused = run("simulate", *words, "--ephemeral", "-k", "2")
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
        assert why in refused.stderr


def test_correlated_scores_move_together() -> None:
    factor = np.array([[1.0], [1.0], [-1.0]])
    scores = Correlated(np.array([0.1, 0.0, 0.0]), factor, 9)
    drawn = draw_slates(scores, (4_000, 3), floors=np.zeros(1), rng=np.random.default_rng(1))
    assert set(drawn[:, 0].tolist()) == {0, 2}


def _sums(params: dict[str, Any], late: int) -> tuple[Array, Array]:
    """Pulls and rewards of two arms after six decisions of arms 0, 1, 0, 1, ..., each rewarded."""
    beliefs = RunBeliefs(kinds.make("thompson", params), 1, ["arm0", "arm1"])
    for step in range(6):
        beliefs.add_due_rewards(step)
        beliefs.add(np.array([step % 2]), np.ones(1), NO_FEATURES, np.array([float(late)]))
    beliefs.add_due_rewards(6)
    belief = beliefs.belief()
    return belief.pulls[0], belief.reward_sum[0]


@pytest.mark.parametrize("late", [0, 2])
def test_a_discount_weighs_by_the_ordinal_of_the_decision_however_late_its_reward(late: int) -> None:
    pulls, rewards = _sums({"discount": 0.5}, late)
    weight = 0.5 ** np.arange(5, -1, -1)
    assert np.allclose(pulls, [weight[0::2].sum(), weight[1::2].sum()])
    arrived = weight[: 6 - late]
    assert np.allclose(rewards, [arrived[0::2].sum(), arrived[1::2].sum()])


@pytest.mark.parametrize(("late", "rewards"), [(0, [1.0, 2.0]), (1, [1.0, 1.0]), (3, [0.0, 0.0])])
def test_a_window_holds_the_newest_decisions_and_their_late_rewards(late: int, rewards: list[float]) -> None:
    result = _sums({"window": 3.0}, late)
    assert (result[0].tolist(), result[1].tolist()) == ([1.0, 2.0], rewards)


def test_a_window_counts_in_whole_buckets() -> None:
    beliefs = RunBeliefs(kinds.make("thompson", {"window": 100.0}), 1, ["arm0", "arm1"])  # buckets of three ordinals
    for step in range(1_000):
        beliefs.add_due_rewards(step)
        beliefs.add(np.array([0]), np.ones(1), NO_FEATURES, None)
        newest, oldest = beliefs.ordinal, Forgetting(window=100).oldest_bucket(beliefs.ordinal) * 3
        assert beliefs.belief().pulls[0, 0] == newest - max(oldest, 1) + 1
        assert np.array_equal(beliefs.belief().total, [[beliefs.belief().pulls[0, 0]]])


@pytest.mark.slow
def test_a_policy_waits_for_rewards_that_come_late() -> None:
    """One learns 500 decisions late, and regrets more by three standard errors at least."""
    slow = played("ucb", {}, "delayed", TWO | {"delay": 500.0, "shape": "fixed"}, runs=50, steps=1_000).regret
    prompt = played("ucb", {}, "delayed", TWO | {"delay": 0.0}, runs=50, steps=1_000).regret
    assert slow.mean() - prompt.mean() > 3 * np.hypot(slow.std(), prompt.std()) / sqrt(50)


@pytest.mark.parametrize("kind", ["linucb", "logistic-thompson"])
@pytest.mark.parametrize(("params", "late"), [({}, 0), ({"discount": 0.9}, 3), ({"window": 9.0}, 2)])
def test_moments_are_the_sums_of_what_was_shown(kind: str, params: dict[str, Any], late: int) -> None:
    audience, names = simulate.make_audience("contextual", {"arms": 3, "features": 2}), simulate.arm_names(3)
    policy = kinds.make(kind, params, design=design(audience, names, model=None))
    assert isinstance(policy, Linear)
    beliefs, rng = RunBeliefs(policy, 1, names), np.random.default_rng(1)
    x, arms, reward = np.insert(rng.normal(size=(20, 2)), 0, 1, axis=1), rng.integers(3, size=20), np.ones(20)
    for step in range(20):
        beliefs.add_due_rewards(step)
        beliefs.add(arms[step : step + 1], np.ones(1), x[step : step + 1], np.array([float(late)]))
    beliefs.add_due_rewards(20)
    left = policy.forgetting.discount ** np.arange(19, -1, -1) * (
        np.arange(1, 21) >= policy.forgetting.oldest_bucket(20)
    )
    reward[20 - late :] = 0
    weight, offset = policy.moment_weights(x, arms)
    selected = arms[:, None] == np.arange(3)
    moments = beliefs.belief().moments
    assert moments is not None
    assert np.allclose(moments.gram[0], np.einsum("n,na,nq,nr->aqr", left * weight, selected, x, x))
    assert np.allclose(moments.response[0], np.einsum("n,na,nq->aq", left * (reward + offset), selected, x))


@pytest.mark.simulation
@pytest.mark.parametrize("kind", ["linucb", "lin-thompson", "logistic-thompson", "softmax", "squarecb"])
def test_whoever_sees_the_context_regrets_less(kind: str) -> None:
    """Than three quarters of what Thompson without it regrets, by three standard errors."""
    blind, seeing = (_regret(name, runs=20) for name in ("thompson", kind))
    assert seeing.mean() + 3 * seeing.std() / sqrt(20) < 0.75 * blind.mean()


@pytest.mark.slow
def test_a_shared_model_tells_arms_apart_by_name() -> None:
    assert _regret("linucb", runs=20, model="shared").mean() < 0.75 * _regret("thompson", runs=20).mean()


def _regret(kind: str, *, runs: int, **params: Any) -> Array:
    audience = simulate.make_audience("contextual", {"model": "logistic"})
    observed = design(audience, simulate.arm_names(audience.arms), model=params.get("model"))
    return study(kinds.make(kind, params, design=observed), audience, runs=runs, steps=400, seed=1).regret


def test_visits_are_played_to_their_end_in_every_run() -> None:
    """False-alarm rate 6e-5 each: four standard errors of 200 runs of 50 visits."""
    bar = Barista()
    result = study(kinds.make("uniform", {}), bar, runs=200, sessions=50, seed=1)
    uniform = np.full(bar.chain.mean_rewards.shape, 1 / bar.arms)
    for values, exact in ((result.reward, bars.value(bar, uniform)), (result.decisions, bars.length(bar, uniform))):
        assert abs(values.mean() / 50 - exact) < 4 * values.std(ddof=1) / 50 / sqrt(200)
    assert np.allclose(result.optimum, 50 * 6.12)
    assert abs(result.regret.mean() - 50 * (6.12 - bars.value(bar, uniform))) < 4 * result.regret.std(ddof=1) / sqrt(
        200
    )


def test_every_visit_is_of_a_new_visitor_or_of_one_who_comes_again() -> None:
    result = study(kinds.make("uniform", {}), simulate.make_audience("choc-kale", {}), runs=50, sessions=40, seed=1)
    assert result.visitors is not None
    assert result.returners is not None
    assert np.all((result.returners > 0) & (result.returners <= result.visitors) & (result.visitors < 40))
    assert np.all(result.returners <= 40 - result.visitors)


def test_costs_are_learned_as_rewards_below_0() -> None:
    beliefs = RunBeliefs(kinds.make("epsilon-greedy", {}), 1, ["left", "right"])
    beliefs.add(np.array([1]), np.array([-1.0]), NO_FEATURES, None)
    belief = beliefs.belief()
    assert (belief.mean()[0].tolist(), belief.reward_squares[0].tolist()) == ([0, -1], [0, 1])


def test_pages_of_a_shop_are_studied_in_memory() -> None:
    """The uniform policy on pages of five: reward and returns of visitors played one by one, within four standard
    errors (seeded: false-alarm rate below 2e-4)."""
    totals = study(kinds.make("uniform", {}), simulate.make_audience("shop", {}), runs=200, sessions=20, seed=1, size=5)
    assert totals.visitors is not None
    played = shops.play(Shop(), shops.uniform, positions=5, visitors=2_000)
    per_visit = played.clicks.sum() / played.visits.sum()
    assert abs(totals.reward.mean() / 20 - per_visit) < 4 * 2.0 * sqrt(1 / 4_000 + 1 / 4_000)
    assert np.all(totals.shows.sum(axis=1) >= totals.decisions * 5)
