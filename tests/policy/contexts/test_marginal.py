"""Linear models of sparse contexts, against plain loops; and which kinds take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.contexts import marginal
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.contexts.features import merge
from rlrec.policy.contexts.marginal import Anchor
from rlrec.policy.kinds.linear import Linear, Softmax, inverse_gaps
from rlrec.policy.scores.families.gumbel import Gumbel

WORDS = Encoder.parse({"fields": {"words": {"list": [], "hash": 1 << 18}}})
SENTENCES: list[dict[str, Any]] = [{"words": ["tea", "milk"]}, {"words": []}, {"words": ["milk", "rum", "ice"]}]


def belief_of(arms: int, *, seed: int = 1) -> tuple[Belief, np.ndarray[Any, Any]]:
    """A belief with random sums on all columns and weights in its anchor, and these, (2^18, m, 4)."""
    generator = np.random.default_rng(seed)
    sums = generator.random((1 << 18) * arms * 4).reshape(-1, arms, 4)
    pulls, zero = np.arange(1.0, arms + 1), np.zeros(arms)
    return Belief(
        pulls=pulls, reward_sum=pulls / 3, reward_squares=pulls, alpha=zero, beta=zero, total=1.0,
        extra=np.full((arms, 1), 0.25), read_column_sums=lambda columns: sums[columns - 1],
    ), sums  # fmt: skip


@pytest.mark.parametrize("kind", ["softmax", "squarecb"])
def test_each_weight_is_a_regression_on_its_column(kind: str) -> None:
    policy = kinds.make(kind, {"ridge": 2.0}, design=Design(context=WORDS))
    assert isinstance(policy, Linear)
    belief, sums = belief_of(4)
    scores = policy.index_at(belief, WORDS.encode_sparse(SENTENCES))
    mean = (belief.reward_sum - 0.25) / belief.pulls
    for sentence, of_arms in zip(SENTENCES, scores, strict=True):
        expected = (belief.reward_sum - 0.25) / (belief.pulls + 2.0)
        x = WORDS.encode_sparse([sentence])
        for column, value in zip(x.column, x.value, strict=True):
            squares, response, total, anchor = sums[column - 1].T
            expected = expected + value * (response - mean * total + anchor * squares) / (squares + 2.0)
        np.testing.assert_allclose(of_arms, expected, rtol=1e-13)


def test_a_context_is_scored_as_it_is_among_others() -> None:
    policy, (belief, _) = Softmax(design=Design(context=WORDS)), belief_of(3)
    together = policy.index_at(belief, WORDS.encode_sparse(SENTENCES))
    alone = [policy.index(belief, context=sentence) for sentence in SENTENCES]
    np.testing.assert_array_equal(np.array(alone), together)


def test_distributions_are_those_of_the_kinds() -> None:
    belief, _ = belief_of(3)
    square = kinds.make("squarecb", {"gamma": 7.0}, design=Design(context=WORDS))
    scores = square.scores(belief, arms=["a", "b", "c"], context=SENTENCES[0])
    assert isinstance(scores, Gumbel)
    mean = square.index(belief, context=SENTENCES[0])
    assert mean is not None
    np.testing.assert_allclose(scores.best_of_each(), inverse_gaps(mean, gamma=7.0), rtol=1e-12)
    greedy = square.greedy().index(belief, context=SENTENCES[0])
    np.testing.assert_array_equal(greedy, mean)


@pytest.mark.parametrize("kind", ["linucb", "lin-thompson", "logistic-thompson", "plackett-luce", "two-stage"])
def test_kinds_that_learn_how_columns_vary_together_hold_128(kind: str) -> None:
    typed = {"model": "features"} if kind == "plackett-luce" else {}
    with pytest.raises(InputError, match=f"262145 columns, and {kind} holds 128") as refused:
        kinds.make(kind, typed, design=Design(context=WORDS))
    assert "softmax, squarecb" in str(refused.value.hint)


def test_what_sparse_contexts_do_not_go_with_is_refused() -> None:
    design = Design(context=WORDS)
    with pytest.raises(InputError, match="shared model"):
        kinds.make("softmax", {"model": "shared"}, design=design)
    with pytest.raises(InputError, match="window"):
        kinds.make("softmax", {"window": 100.0}, design=design)
    with pytest.raises(InputError, match="bilinear"):
        kinds.make("gradient", {"model": "bilinear"}, design=design)
    with pytest.raises(InputError, match="features of arms have 262145 columns"):
        kinds.make("softmax", {}, design=Design(arm=WORDS))


@pytest.mark.parametrize("intercept", [True, False])
def test_a_fit_solves_the_regression_on_all_columns_together(intercept: bool) -> None:
    """And a belief that has seen the same slots stays there."""
    rng = np.random.default_rng(5)
    dense = rng.integers(-1, 2, (200, 30)) * rng.integers(0, 2, (200, 30)).astype(np.float64)
    pulls, reward, row, column = rng.random(200), rng.random(200), *np.nonzero(dense)
    x = merge(200, row, column, dense[row, column])
    anchor = Anchor.from_packed([(7, marginal.fit(x, pulls=pulls, reward=reward, ridge=3.0, intercept=intercept))])
    fitted = anchor.weights_at(np.arange(30), np.full(30, 7))
    # the normal equations, with a column of ones that has no penalty
    ones = np.column_stack([dense, np.full(200, float(intercept))])
    penalty = np.diag([*[3.0] * 30, float(not intercept)])
    expected = np.linalg.solve(ones.T @ (pulls[:, None] * ones) + penalty, ones.T @ reward)
    np.testing.assert_allclose(fitted, expected[:30], atol=1e-8)
    # the sums around the fit
    predicted = anchor.predict_rewards(x, np.arange(200), np.full(200, 7))
    left = reward - pulls * predicted
    sums = np.zeros((30, 1, 3))
    np.add.at(sums[:, 0], column, marginal.column_sums(dense[row, column], pulls=pulls[row], reward=left[row]))
    mean = np.array([left.sum() / pulls.sum() if intercept else 0.0])
    weights = marginal.weights(sums, mean, ridge=3.0, anchor=fitted[:, None])
    np.testing.assert_allclose(weights[:, 0], expected[:30], atol=1e-8)
