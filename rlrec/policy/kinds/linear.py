"""This module holds the kinds that read the context. All of them fit a linear model of the reward or of the logit of
the reward; the kinds differ in how they explore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import log
from typing import Any, ClassVar

import numpy as np

from rlrec.arrays import Array, Ids, Index, distinct_rows
from rlrec.errors import InputError
from rlrec.policy.beliefs import solving
from rlrec.policy.beliefs.base import Belief, OnlineLearner, bounded_parameter, check_number
from rlrec.policy.beliefs.solving import ArmMoments, pack_each, packed_width
from rlrec.policy.beliefs.statistics import CONTEXT, SlotColumns, count_slots
from rlrec.policy.contexts import marginal
from rlrec.policy.contexts.encoder import ContextualPolicy, EncodedRows
from rlrec.policy.scores.families.correlated import Correlated
from rlrec.policy.scores.families.gaussian import Gaussian
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.scores import Scores

DISJOINT, SHARED, HYBRID = "disjoint", "shared", "hybrid"
DEFAULT_FLOOR = 0.01  # default for a policy whose propensities are fractions of samples
MAX_SAMPLES = 100_000

# smallest standard deviations: above 0, so that arms tie fairly in a context without features; and relative to the
# scores, since doubles cannot represent smaller ones beside them
_MIN_SD, _MIN_RELATIVE_SD = 1e-12, 1e-15


class Linear(ContextualPolicy, OnlineLearner):
    """Linear is the base class of kinds in whose model the mean reward is linear in the features of the context.

    model disjoint: each arm has separate weights. A prior given for an arm counts as observations of the arm's
    intercept, and as nothing where the contexts have no intercept. model shared: all arms have one set of weights,
    on the products of features of the context and of the arm, so that a new arm starts from similar arms; priors of
    single arms are ignored. model hybrid: each arm has, in addition to the shared weights, separate weights, which
    hold what the features of the arm do not tell; priors of single arms are ignored, too. ridge is the prior
    precision of every weight."""

    model: str = DISJOINT
    ridge: float = bounded_parameter(1.0, 1e-9, 1e9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in (DISJOINT, SHARED, HYBRID):
            raise InputError(f"model is {self.model!r}", hint=f"it is {DISJOINT}, {SHARED} or {HYBRID}")
        q, p = self.design.context.width, self.design.arm.width
        if self.uses_arm_features and q * p > solving.MAX_SHARED_WEIGHTS:
            hint = f"the limit is {solving.MAX_SHARED_WEIGHTS}: declare fewer features, or hash into fewer columns"
            raise InputError(f"a {self.model} model of {q} context and {p} arm features has {q * p} weights", hint=hint)
        if self.is_sparse and self.window:
            hint = "beliefs of so many columns forget by a discount"
            raise InputError(f"window is {self.window:g}, and features have {q} columns", hint=hint)

    @property
    def needed_columns(self) -> frozenset[str]:
        return super().needed_columns | {CONTEXT}

    @property
    def features(self) -> tuple[str, ...]:
        return self.design.context.names

    @property
    def uses_arm_features(self) -> bool:
        return self.model != DISJOINT

    def moment_weights(self, x: Array, arms: Ids) -> tuple[Array, Array]:
        """Return the weights and the offsets, (n,), with which slots enter the moments of their arms. The gram matrix
        of an arm grows by weight x x', and the response by (reward + offset) x.

        x (n, q): the features of the contexts; arms (n,): the ids of the arms."""
        return np.ones(len(x)), np.zeros(len(x))

    @property
    def width(self) -> int:
        return 4 if self.is_sparse else 3 + packed_width(self.design.context.width)

    def statistics(self, slots: SlotColumns) -> Array:
        reward, pulls = self.rewards_and_pulls(slots.reward, slots.position)
        counted_slots = replace(slots, reward=reward)
        if self.is_sparse:
            prediction = np.zeros(len(slots)) if slots.prediction is None else slots.prediction
            return count_slots(counted_slots, (pulls * prediction)[:, None], pulls=pulls)
        if slots.context is None:  # the caller needs only counts
            return count_slots(counted_slots, pulls=pulls)
        weight, offset = self.moment_weights(slots.context, slots.arm_id)
        moments = pack_each(slots.context, weight=pulls * weight, response=reward + pulls * offset)
        return count_slots(counted_slots, moments, pulls=pulls)

    def column_statistics(self, slots: SlotColumns, row: Index, value: Array) -> Array:
        """Return the three numbers that each entry of a sparse context adds to the sums of its arm and column, (e, 3).

        row (e,): the slot of each entry; value (e,): the value of each entry."""
        reward, pulls = self.rewards_and_pulls(slots.reward, slots.position)
        if slots.prediction is not None:
            reward = reward - pulls * slots.prediction
        return marginal.column_sums(value, pulls=pulls[row], reward=reward[row])

    def posterior(
        self, belief: Belief
    ) -> solving.DisjointPosterior | solving.SharedPosterior | solving.HybridPosterior:
        """Return the posterior of the weights. The posterior is computed once and cached with the moments of the
        belief."""
        shape, q = belief.pulls.shape, self.design.context.width
        moments = belief.moments or ArmMoments(gram=np.zeros((*shape, q, q)), response=np.zeros((*shape, q)))
        cache_key = type(self), self.model, self.ridge, self._prior_mean, belief.alpha.tobytes(), belief.beta.tobytes()
        if cache_key not in moments.solutions:
            solve = self._solve_shared if self.uses_arm_features else self._solve_disjoint
            moments.solutions[cache_key] = solve(belief, moments)
        return moments.solutions[cache_key]

    def index_at(self, belief: Belief, x: EncodedRows) -> Array:
        if not self.is_sparse:
            return self.posterior(belief).mean(x)
        columns = np.unique(x.column)
        column_score = x.select_columns(columns).times(self.column_weights(belief, columns))
        score = self._intercept_weight(belief, self.ridge) + column_score
        return score[0] if x.is_single else score

    def column_weights(self, belief: Belief, columns: Index) -> Array:
        """Return the weight of each of these columns of sparse contexts in each arm's score, (c, m)."""
        if belief.read_column_sums is None:
            return np.zeros((len(columns), len(belief.pulls)))
        sums = belief.read_column_sums(columns)
        intercepts = self._intercept_weight(belief, 0.0)
        return marginal.weights(sums[..., :3], intercepts, ridge=self.ridge, anchor=sums[..., 3])

    def _intercept_weight(self, belief: Belief, ridge: float) -> Array:
        """Return the weight of each arm's intercept in a model of sparse contexts, (m,). The weight is 0 if contexts
        have no intercept.

        The weight is the mean over the arm's slots of the reward minus the prediction of the anchor (the model of
        --from-log). The mean is shrunk by `ridge` pulls of reward 0."""
        mean, weight = np.zeros(len(belief.pulls)), belief.weight + ridge
        if not self.design.context.intercept:
            return mean
        prediction_sum = 0.0 if belief.extra is None else belief.extra[:, 0]
        return np.divide(belief.reward_sum + belief.alpha - prediction_sum, weight, out=mean, where=weight > 0)

    def weights(self, belief: Belief) -> Array:
        return self.posterior(belief).by_arm

    def interval(self, belief: Belief, *, context: Mapping[str, Any], z: float) -> tuple[Array, Array, Array]:
        """Return three arrays (m,) for a context: the posterior mean of each arm, the value z posterior standard
        deviations below the mean, and the value z standard deviations above the mean."""
        x = self.encode(context)
        if self.is_sparse:  # without pairs of columns the error is not known
            unknown_scores = np.full(len(belief.pulls), np.nan)
            return self.index_at(belief, x), unknown_scores, unknown_scores
        posterior = self.posterior(belief)
        mean, spread = posterior.mean(x), z * self._noise * posterior.deviation(x)
        return self._inverse_link(mean), self._inverse_link(mean - spread), self._inverse_link(mean + spread)

    @property
    def _noise(self) -> float:
        """Return the standard deviation of a reward around its mean. For rewards in [0, 1] the deviation is at most
        1/2."""
        return 0.5

    def _inverse_link(self, mean: Array) -> Array:
        """Return the mean reward that corresponds to a mean of the linear model, in the same shape."""
        return mean

    @property
    def _prior_mean(self) -> float:
        """Return the prior mean of the intercept."""
        return 0.0

    def _prior(self, alpha: Array, beta: Array) -> tuple[Array, Array]:
        """Return the precision and the response of the intercept that correspond to the pseudo-counts alpha and beta of
        each arm."""
        return alpha + beta, alpha

    def _solve_disjoint(self, belief: Belief, moments: ArmMoments) -> solving.DisjointPosterior:
        # A and b of LinUCB, with the prior on the weight of the intercept
        a = moments.gram + self.ridge * np.eye(moments.gram.shape[-1])
        b = np.broadcast_to(moments.response, a.shape[:-1]).copy()
        if self.design.context.intercept:
            precision, response = self._prior(belief.alpha, belief.beta)
            a[..., 0, 0] += precision
            b[..., 0] += response + self.ridge * self._prior_mean
        return solving.DisjointPosterior(*solving.solve(a, b))

    def _solve_shared(self, belief: Belief, moments: ArmMoments) -> solving.SharedPosterior | solving.HybridPosterior:
        arm_features, pool = moments.arm_features, moments.pool or moments
        if arm_features is None:  # the arms have no features
            arm_features = np.repeat(self.design.arm.encode([{}]), belief.pulls.shape[-1], axis=0)
            pool = replace(moments, arm_features=arm_features)
        # all eligible sets share the weights that follow from the pool
        cache_key = type(self), self.model, self.ridge, self._prior_mean
        if cache_key not in pool.solutions:
            intercept = self.design.context.intercept and self.design.arm.intercept
            response = self.ridge * self._prior_mean if intercept else 0.0
            shared_moments = pool if self.model == SHARED else solving.shared_moments(pool, ridge=self.ridge)
            pool.solutions[cache_key] = solving.solve_shared(shared_moments, ridge=self.ridge, response=response)
        weights, root = pool.solutions[cache_key]
        if self.model == SHARED:
            return solving.SharedPosterior(weights, root, *distinct_rows(arm_features))
        return self._solve_terms(weights, root, arm_features, moments)

    def _solve_terms(
        self, weights: Array, root: Array, arm_features: Array, moments: ArmMoments
    ) -> solving.HybridPosterior:
        # arms with equal data are solved once, so that they are bitwise equal
        m, q = moments.response.shape[-2:]
        totals = np.concatenate([moments.gram.reshape(*moments.response.shape[:-1], q * q), moments.response], axis=-1)
        terms, arm_data = moments.terms, [arm_features, np.moveaxis(totals, -2, 0).reshape(m, -1)]
        if terms is not None:
            arm_data += [sums.reshape(m, -1) for sums in (terms.gram, terms.response, terms.cross)]
        _, first_arms, row = np.unique(np.hstack(arm_data), axis=0, return_index=True, return_inverse=True)
        rows = arm_features[first_arms]
        gram = moments.gram[..., first_arms, :, :]
        response = moments.response[..., first_arms, :]
        # a ridge regression around the shared weights
        shared_weights = (rows[:, :, None] * weights[..., None, :, :]).sum(axis=-2)
        if terms is None:
            solution = solving.solve(gram + self.ridge * np.eye(q), response + self.ridge * shared_weights)
            return solving.HybridPosterior(solution[0], root, solution[1], self.ridge, rows, row.reshape(-1))
        cross = terms.cross[first_arms]
        solution = solving.solve(
            terms.gram[first_arms] + self.ridge * np.eye(q), terms.response[first_arms] - cross @ weights.ravel()
        )
        return solving.StatedHybridPosterior(
            shared_weights + solution[0], root, solution[1], self.ridge, rows, row.reshape(-1), cross
        )


class LinUcb(Linear):
    """Show the arm with the largest mean + alpha sqrt(x' A^-1 x) in the context x. Arms with equal bounds are equally
    likely.

    A is the ridge plus the sum of xx' over the slots of the arm. With floor 0 the log can judge no other policy.
    Source: Li et al. 2010, LinUCB with disjoint models and with hybrid models (algorithm 2, on products of features
    of context and arm); the shared model is the hybrid model without the separate weights of arms."""

    alpha: float = bounded_parameter(1.0, 0, 1e6)

    purpose: ClassVar[str] = "ucb that reads the context; without a floor, its log cannot evaluate others"

    def scores_at(self, belief: Belief, x: Array) -> Scores:
        return Point(self.index_at(belief, x))

    def index_at(self, belief: Belief, x: EncodedRows) -> Array:
        if not self.alpha:
            return super().index_at(belief, x)
        posterior = self.posterior(belief)
        return posterior.mean(x) + self.alpha * posterior.deviation(x)


class LinThompson(Linear):
    """Show each arm with the probability that its mean is the best, under a normal posterior of the weights.

    Standard deviations are alpha sqrt(x' A^-1 x); alpha is the noise of a reward. Disjoint models have exact
    propensities in closed form. In shared and hybrid models the scores of arms are correlated. There every decision
    draws `samples` samples of its own, and the propensities are fractions of these samples; such a model needs a
    floor, 0.01 unless another floor is typed. Source: own derivation (the posterior of a linear model with normal
    noise)."""

    alpha: float = bounded_parameter(0.5, 1e-6, 1e6)
    samples: float = bounded_parameter(1000.0, 1, MAX_SAMPLES)

    purpose: ClassVar[str] = "explores in contexts that it hardly knows; the default if rewards depend on the context"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples != int(self.samples):
            raise InputError(f"samples is {self.samples:g}", hint="it is a whole number")
        samples = f"and a {self.model} model serves fractions of samples"
        if self.uses_arm_features and self.explore_slots:
            hint = "leave it out: positions without a floor could never judge rare arms"
            raise InputError(f"explore_slots is {self.explore_slots!r}, {samples}", hint=hint)
        if self.uses_arm_features and self.floor <= 0:
            hint = f"give it a floor above 0 (default {DEFAULT_FLOOR:g}), or rare arms cannot be evaluated from its log"
            raise InputError(f"floor is {self.floor:g}, {samples}", hint=hint)

    @classmethod
    def implied_defaults(cls, typed_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"floor": DEFAULT_FLOOR} if typed_parameters.get("model") in (SHARED, HYBRID) else {}

    @property
    def _noise(self) -> float:
        return self.alpha

    def scores_at(self, belief: Belief, x: Array) -> Scores:
        posterior = self.posterior(belief)
        mean = posterior.mean(x)
        if isinstance(posterior, solving.SharedPosterior):
            return Correlated(mean, self.alpha * posterior.factor(x), int(self.samples))
        if isinstance(posterior, solving.HybridPosterior):
            noise = self.alpha * posterior.term_deviation(x)
            return Correlated(mean, self.alpha * posterior.factor(x), int(self.samples), noise)
        sd = self.alpha * posterior.deviation(x)
        magnitude = (np.abs(mean) + sd).max(axis=-1, initial=0.0, keepdims=True)
        return Gaussian(mean, np.maximum(sd, np.maximum(_MIN_SD, _MIN_RELATIVE_SD * magnitude)))


class LogisticThompson(LinThompson):
    """Draw by Thompson sampling for clicks. The logit of the mean is linear, and its posterior is Laplace's
    approximation.

    The model is fitted by one Newton step from fixed weights, so that every slot adds a fixed number to sums. At
    first these are the weights of the prior, with intercept logit(rate). Rebuilding the policy takes the next step,
    from the weights to which the last step led. Source: own derivation (iteratively reweighted least squares)."""

    alpha: float = bounded_parameter(1.0, 1e-6, 1e6)
    rate: float = 0.5

    purpose: ClassVar[str] = "Thompson sampling for clicks that depend on the context"
    why_unit_rewards: ClassVar[str] = "logistic-thompson takes it for a probability"
    expands_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("rate", self.rate)
        if not 0 < self.rate < 1:
            raise InputError(f"rate is {self.rate:g}", hint="it must be above 0 and below 1")
        super().__post_init__()

    def moment_weights(self, x: Array, arms: Ids) -> tuple[Array, Array]:
        # click probability p under the weights that the model is expanded around
        distinct_arms, arm_index = np.unique(arms, return_inverse=True)
        anchors = [self.design.anchor.get(arm, self._prior_weights) for arm in distinct_arms.tolist()]
        logit = (x * np.array(anchors).reshape(-1, x.shape[1])[arm_index.reshape(-1)]).sum(axis=1)
        click_probability = _logistic(logit)
        # Newton's weight p (1 - p), and the working response
        weight = click_probability * _logistic(-logit)
        return weight, weight * logit - click_probability

    def index_at(self, belief: Belief, x: Array) -> Array:
        """Return the probability of a click on each arm, (..., m)."""
        return _logistic(super().index_at(belief, x))

    def _inverse_link(self, mean: Array) -> Array:
        return _logistic(mean)

    @property
    def _prior_mean(self) -> float:
        return log(self.rate / (1 - self.rate))

    @property
    def _prior_weights(self) -> Array:
        """Return the prior mean of the weights, (q,), which is the same for every arm."""
        weights = np.zeros(self.design.context.width)
        if self.design.context.intercept:
            weights[0] = self._prior_mean
        return weights

    def _prior(self, alpha: Array, beta: Array) -> tuple[Array, Array]:
        """Return the precision and the response of each arm's intercept for the Beta(alpha, beta) prior of the click
        rate. They define the normal distribution that has the mode, and the curvature at the mode, of the prior of the
        logit."""
        is_proper = (alpha > 0) & (beta > 0)
        safe_alpha, safe_beta = np.where(is_proper, alpha, 1.0), np.where(is_proper, beta, 1.0)
        precision = np.where(is_proper, safe_alpha * safe_beta / (safe_alpha + safe_beta), 0.0)
        return precision, precision * np.log(safe_alpha / safe_beta)


class Softmax(Linear):
    """Show arms in proportion to exp(mean / temperature), which is Boltzmann exploration over the linear model.

    If contexts have more than 128 columns (262144 at most), each weight is fitted by itself, around the weights that
    --from-log fits together (model disjoint). Source: own derivation."""

    temperature: float = bounded_parameter(0.1, 1e-9, 1e9)

    purpose: ClassVar[str] = "shows every arm, but more often those that are predicted to earn more"
    takes_sparse: ClassVar[bool] = True
    exploration_parameters: ClassVar[tuple[str, ...]] = ("floor", "temperature")

    def scores_at(self, belief: Belief, x: Array) -> Scores:
        mean = self.index_at(belief, x)
        return Gumbel(mean / self.temperature) if self.temperature else Point(mean)


class SquareCb(Linear):
    """Show every arm but the best with probability 1 / (K + gamma (best mean - its mean)), where K is the number of
    arms. The best arm gets the remaining probability.

    Arms with equal best means are equally likely. If contexts have more than 128 columns (262144 at most), each
    weight is fitted by itself, around the weights that --from-log fits together (model disjoint). Source: Foster &
    Rakhlin 2020 (inverse gap weighting)."""

    gamma: float = bounded_parameter(10.0, 0, 1e9)

    purpose: ClassVar[str] = "propensities are exact, cheap and never 0, so that its log can evaluate others"
    compares_arms: ClassVar[bool] = True
    takes_sparse: ClassVar[bool] = True

    def scores_at(self, belief: Belief, x: Array) -> Scores:
        return Gumbel(np.log(inverse_gaps(self.index_at(belief, x), gamma=self.gamma)))

    def greedy(self) -> LinUcb:  # type: ignore[override]  # with an endless gamma it is the best mean
        return LinUcb(
            alpha=0.0, discount=self.discount, window=self.window, model=self.model, ridge=self.ridge,
            design=self.design,
        )  # fmt: skip


def inverse_gaps(mean: Array, *, gamma: float) -> Array:
    """Return the probabilities of SquareCB, in the shape of `mean`. The probabilities of the arms add up to 1.

    mean (..., m): the mean of each arm, in the unit of the reward; gamma: the parameter of SquareCB. Source: Foster
    & Rakhlin 2020; sharing the remaining probability among equal best arms is our addition."""
    best_mean = mean.max(axis=-1, keepdims=True)
    is_best = mean == best_mean
    gap_probability = np.where(is_best, 0.0, 1.0 / (mean.shape[-1] + gamma * (best_mean - mean)))
    best_probability = (1.0 - gap_probability.sum(axis=-1, keepdims=True)) / is_best.sum(axis=-1, keepdims=True)
    return np.where(is_best, best_probability, gap_probability)


def _logistic(logit: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * logit))
