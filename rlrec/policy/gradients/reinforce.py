"""This module computes REINFORCE gradients on logged slates. The gradient of a batch is kept as sums that can be added.

The gradient with respect to the logits is the gain of a decision (its return minus a baseline), times the importance
weight of the slate, times the score function. The results are exact for the policy as served, with its floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

import numpy as np

from rlrec.arrays import Array, Flags, Index, matrix_product
from rlrec.policy.gradients.gradient import ARM_PARAMETERS, Gradient, Parameters, State, score_states
from rlrec.policy.scores.floors import at_positions
from rlrec.records import Record, Sums

MAX_CELLS = 1 << 19  # scores at a time: few enough for the processor's cache, enough to make each call worthwhile
MAX_LOG_WEIGHT = 700.0  # log of a weight at which it is cut to stay finite
# exp of scores is taken relative to SCORE_SHIFT below the best score of a chunk, and lower scores count as MIN_SCORE.
# float32 can then hold the squares, and none is a slow denormal number.
SCORE_SHIFT, MIN_SCORE = 36.0, -43.0
MIN_SHOWN_SCORE = -300.0  # smallest score of arms shown, in float64, since slates may show all arms that are left


class LoggedSlates(Record, eq=False):
    """A LoggedSlates object holds n decisions that have the same m arms and slates of the same length.

    state: the states of the decisions, `row` ascending; an `arm` that a state remembers is an index 0..m - 1. arms
    (m,): the index of each arm among all trained arms; arm_features (m, p): the features of each arm. shown_arms (n,
    k): the arms shown, as indices 0..m - 1. log_propensity (n,) or (n, k): the logarithm of the probability of the
    slate, or of each slot separately. gain (n,) or (n, k): the return minus the baseline, in the unit of the reward;
    returns, in the shape of gain: the returns. scale (n,): the factor of the decision's gradient, which is gamma^t
    or 1, times the weight of the decision's logger. eligible (n, m): which of the arms each decision may show (None:
    all arms)."""

    state: State
    arms: Index
    arm_features: Array
    shown_arms: Index
    log_propensity: Array
    gain: Array
    returns: Array
    scale: Array
    eligible: Flags | None = None

    def __len__(self) -> int:
        return len(self.shown_arms)


class Objective(Record):
    """An Objective defines what training maximises: the mean over decisions of weight x gain, plus entropy x the
    entropy of position 1.

    clip: the largest importance weight; uses_weights: whether importance weights are used (False: as if the policy
    had logged the slates itself). top_k: 0 for slates by their exact joint probability; K > 0 for every slot
    separately, as one of K arms that are drawn with replacement (Chen et al. 2019). is_by_slot: whether every slot has
    its own gain, and its own weight given the slots above."""

    clip: float = np.inf
    entropy: float = 0.0
    uses_weights: bool = True
    top_k: int = 0
    is_by_slot: bool = False


class GradientSums(Sums):
    """A GradientSums object holds the sums of a batch; `sums(a) + sums(b)` are the sums of both batches.

    gradient: the sum of the gradients of the decisions; n: the number of decisions. mass: the sum of |weight x gain
    x score|; clipped_mass: the part of mass that clipping removed. square, raw_square: the sum of the squared length of
    each decision's gradient (or of each slot's gradient, if slots are separate), computed with the gain and with the
    return."""

    gradient: Parameters
    n: float = 0.0
    mass: float = 0.0
    clipped_mass: float = 0.0
    square: float = 0.0
    raw_square: float = 0.0

    @property
    def mean(self) -> Parameters:
        """Return the gradient of the objective, which is the mean gradient of a decision."""
        return {name: values / max(self.n, 1.0) for name, values in self.gradient.items()}

    @property
    def is_finite(self) -> bool:
        """Tell whether no sum has overflowed."""
        return bool(np.isfinite(self.mass + self.square + self.raw_square + squared_length(self.gradient)))

    @property
    def clipped_share(self) -> float:
        """Return the fraction of the sum of |weight x gain x score| that clipping removed."""
        return self.clipped_mass / self.mass if self.mass else 0.0

    @property
    def variances(self) -> tuple[float, float]:
        """Return two variances of a decision's gradient (the traces of the covariance): with the baseline and without
        it.

        The mean gradient is the same with and without the baseline."""
        n = max(self.n, 1.0)
        mean = squared_length(self.gradient) / n**2
        return self.square / n - mean, self.raw_square / n - mean


def squared_length(parameters: Parameters) -> float:
    """Return the squared length of the vector of all parameters."""
    return float(sum((values**2).sum() for values in parameters.values()))


def zero_sums(parameters: Parameters) -> GradientSums:
    """Return sums over no decisions, with a zero gradient in the shape of `parameters`."""
    return GradientSums({name: np.zeros_like(values) for name, values in parameters.items()})


def sums(policy: Gradient, parameters: Parameters, batch: Iterable[LoggedSlates], objective: Objective) -> GradientSums:
    """Return the sums that give the gradient of the objective on a batch.

    batch: the decisions, grouped into slates with the same arms. Source: Williams 1992 (REINFORCE); weights and
    top-K factor by Chen et al. 2019; slates by the exact Plackett-Luce joint with a floor, own derivation."""
    figures = dict.fromkeys((field.name for field in fields(GradientSums)[1:]), 0.0)
    pairs = ((slates, [slates.gain]) for slates in batch)
    (gradient,) = gradients(policy, parameters, pairs, objective, number=1, figures=figures)
    return GradientSums(gradient, **figures)


def gradients(
    policy: Gradient, parameters: Parameters, batch: Iterable[tuple[LoggedSlates, Sequence[Array]]],
    objective: Objective, *, number: int, figures: dict[str, float] | None = None,
) -> list[Parameters]:  # fmt: skip
    """Return `number` gradients of a batch. Each gradient is computed with separate gains, which replace the gains of
    the slates.

    batch: slates, and for each gradient the gains of these slates; figures: the sums of `GradientSums` by name, to
    which the sums of the batch are added in place (None: they are not computed)."""
    totals = [zero_sums(parameters).gradient for _ in range(number)]
    for slates, gains in batch:
        arm_parameters = {name: values[slates.arms] for name, values in parameters.items() if name in ARM_PARAMETERS}
        arm_weights = policy.arm_weights({**parameters, **arm_parameters}, slates.arm_features)
        gradients_by_gain = _effective_gradients(policy, arm_weights, slates, gains, objective, figures)
        for total, gradient in zip(totals, gradients_by_gain, strict=True):
            for name, values in policy.parameter_gradient(*gradient, arm_features=slates.arm_features).items():
                total[name][slates.arms if name in ARM_PARAMETERS else ...] += values
    return totals


def _effective_gradients(
    policy: Gradient, arm_weights: tuple[Array, Array, Array], slates: LoggedSlates, gains: Sequence[Array],
    objective: Objective, figures: dict[str, float] | None,
) -> list[tuple[Array, Array, Array]]:  # fmt: skip
    """Return a tuple of gradients for each array of gains: the gradients with respect to the weights, the biases and
    the memory weights that `Gradient.arm_weights` returns. The decisions are processed in chunks.

    arm_weights: the result of `Gradient.arm_weights`; gains: for each gradient the gains of the slates; figures:
    sums of `GradientSums` by name, to which the sums of the slates are added in place (None: they are not computed)."""
    weights, bias, history = arm_weights
    if policy.design.context.intercept:  # the feature that is 1 in every state can hold the biases
        weights[:, 0] += bias
        bias = np.zeros_like(bias)
    arm_weights = _subtract_mean(weights, bias, history)
    totals = [tuple(np.zeros(values.shape) for values in arm_weights) for _ in gains]
    step = max(1, MAX_CELLS // len(slates.arms))
    for start in range(0, len(slates), step):
        rows = slice(start, start + step)
        chunk = _SlateChunk(policy, arm_weights, slates, rows, objective)
        scores = chunk.score_slots() if objective.top_k else chunk.score_slates()
        if figures is not None:
            figures |= {name: figures[name] + value for name, value in chunk.figures(scores).items()}
        for number, (total, gain) in enumerate(zip(totals, gains, strict=True), 1):
            score_gradient = chunk.score_gradient(
                scores, gain[rows].reshape(len(gain[rows]), -1), is_last=number == len(gains)
            )
            for values, increment in zip(total, chunk.weight_gradients(score_gradient), strict=True):
                values += increment
    return [_subtract_mean(*total) for total in totals]


def _subtract_mean(weights: Array, bias: Array, history: Array) -> tuple[Array, Array, Array]:
    """Return the results of `Gradient.arm_weights`, or gradients with respect to them, with the mean over arms
    subtracted from the weights and the biases.

    The mean changes no probability. If it were kept, steps would follow rounding errors, and the scores of all arms
    in a state would drift."""
    return weights - weights.mean(axis=0), bias - bias.mean(), history


class SlateScores(Record, kw_only=False, eq=False):
    """A SlateScores object holds the score functions (derivatives of the log probability) of n slates. Arrays (n, c)
    have one column for whole slates, or one column for each of k separate slots.

    weight (n, c): the clipped importance weight times the decision's scale (and the top-K factor); excess (n, c):
    what clipping removed from the weight; square (n, c): the squared length of the derivative with respect to the
    logits. share (n, k), spread (n, k): the derivative for a position is `share` for the arm shown there, and
    -spread x exp(score) for every arm that is left there. is_joint: whether arms shown above a position are no
    longer left at this position."""

    weight: Array
    excess: Array
    square: Array
    spread: Array
    share: Array
    is_joint: bool


class _SlateChunk:
    """A _SlateChunk holds the exponentials of the scores of m arms in n decisions, and computes gradients from them.

    Only a few numbers per row are computed position by position: the arms left at a position are all arms except the
    arms shown above it. The arms shown are kept separately, in float64, so that the sums over the arms left add
    positive numbers and subtract nothing. shown_exp (n, k): the exponentials for the arms shown. other_exp (n, m):
    the exponentials for the other arms, 0 where an arm was shown or is not eligible. other_sum (n,), other_squares
    (n,): the sum of `other_exp`, and of its squares. total (n,): the sum over all arms."""

    def __init__(
        self, policy: Gradient, arm_weights: tuple[Array, Array, Array], slates: LoggedSlates, rows: slice,
        objective: Objective,
    ) -> None:  # fmt: skip
        self.temperature, self.floor, self.objective = policy.temperature, policy.exploration, objective
        self.state = slates.state.slice_rows(rows.start, rows.stop)
        self.shown_arms, self.log_propensity = slates.shown_arms[rows], slates.log_propensity[rows]
        self.eligible = eligible = None if slates.eligible is None else slates.eligible[rows]
        columns = slates.gain[rows], slates.returns[rows], slates.scale[rows]
        self.gain, self.returns, self.scale = (values.reshape(len(values), -1) for values in columns)
        m = len(slates.arms)
        self.n_words = arm_weights[0].shape[1] - self.state.x.shape[1]
        self.cells = self.state.row * m + self.state.arm
        self.shown_cells = self.shown_arms + (np.arange(len(self.shown_arms)) * m)[:, None]
        self.n_eligible = np.full((len(self.shown_arms), 1), m) if eligible is None else eligible.sum(1, keepdims=True)
        self._exponentiate(arm_weights)

    def _exponentiate(self, arm_weights: tuple[Array, Array, Array]) -> None:
        """Compute the exponentials of all scores, relative to the best score of the chunk. This saves a pass over the
        scores.

        A row that lies too far below the best score of the chunk is computed relative to the best score of the row.
        The score of an arm that was not shown counts as at least MIN_SCORE, which changes no digit. The logits are
        needed afterwards only for the entropy."""
        # all rows relative to the best score of the chunk
        logits = self._logits(arm_weights, self.state)
        logits -= logits.max() - SCORE_SHIFT
        shown_logits = logits.reshape(-1)[self.shown_cells].astype(np.float64)
        lowest = logits.min()
        other_exp = self._exponentials(logits, self.eligible)
        ones = np.ones(other_exp.shape[1], other_exp.dtype)
        # rows that lie too far below it
        if lowest < 0 and len(tiny_rows := np.flatnonzero(matrix_product(other_exp, ones) < 1)):
            tiny_logits = self._logits(arm_weights, self.state.take(tiny_rows))
            eligible = None if self.eligible is None else self.eligible[tiny_rows]
            if eligible is not None:
                tiny_logits[~eligible] = -np.inf
            tiny_logits -= tiny_logits.max(axis=1, keepdims=True)
            shown_logits[tiny_rows] = np.take_along_axis(tiny_logits, self.shown_arms[tiny_rows], axis=1)
            other_exp[tiny_rows] = self._exponentials(tiny_logits, eligible)
            if self.objective.entropy:
                logits[tiny_rows] = tiny_logits
        # the arms shown apart from the others
        other_exp.reshape(-1)[self.shown_cells] = 0
        self.shown_logits = np.maximum(shown_logits, MIN_SHOWN_SCORE)
        self.logits, self.other_exp, self.shown_exp = logits, other_exp, np.exp(self.shown_logits)
        self.other_sum = matrix_product(other_exp, ones).astype(np.float64)
        self.other_squares = np.einsum("nm,nm->n", other_exp, other_exp).astype(np.float64)
        self.total = self.other_sum + _row_sums(self.shown_exp)

    def _exponentials(self, logits: Array, eligible: Flags | None) -> Array:
        if logits.min() < MIN_SCORE:  # the check takes less time than clipping
            np.maximum(logits, MIN_SCORE, out=logits)
        exponentials: Array = np.exp(logits, out=None if self.objective.entropy else logits)
        if eligible is not None:
            exponentials *= eligible
        return exponentials

    def _logits(self, arm_weights: tuple[Array, Array, Array], state: State) -> Array:
        logits = score_states(arm_weights, state)
        if self.temperature != 1.0:
            logits /= self.temperature
        return logits

    def score_slots(self) -> SlateScores:
        """Return the score functions of separate slots. The probability of an arm does not depend on the arms above
        it."""
        terms, row_total, top_k = self.shown_exp, self.total[:, None], self.objective.top_k
        log_probability, share = self._mix_floor(
            terms / row_total, n_left=self.n_eligible, floors=at_positions(self.floor, 1)
        )
        # weights, and the derivative of the probability that one of K draws shows the arm
        probability = np.minimum(np.exp(log_probability), 1 - 1e-16)
        factor = top_k * np.exp((top_k - 1) * np.log1p(-probability)) * self.scale
        weight, excess = _clip_weights(log_probability - self.log_propensity, self.objective)
        # squared length of the derivative by the logits
        other_shown_squares = (terms**2).sum(axis=1, keepdims=True) - terms**2 if terms.shape[1] > 1 else 0.0
        squares = self.other_squares[:, None] + np.maximum(other_shown_squares, 0.0)
        square = share**2 * ((1 - terms / row_total) ** 2 + squares / row_total**2)
        return SlateScores(weight * factor, excess * factor, square, share / row_total, share, is_joint=False)

    def score_slates(self) -> SlateScores:
        """Return the score functions of slates by their joint probability, which is the softmax of the arms left,
        position by position. With `is_by_slot`, every slot has a separate column."""
        tail_exp = _cumulative_sums(self.shown_exp[:, ::-1])[:, ::-1]  # the arm of a position, and those shown below it
        left_total = self.other_sum[:, None] + tail_exp
        n_left = self.n_eligible - np.arange(self.shown_arms.shape[1])
        floors = at_positions(self.floor, n_left.shape[1])
        log_probability, share = self._mix_floor(self.shown_exp / left_total, n_left=n_left, floors=floors)
        if self.objective.is_by_slot:
            weight, excess = _clip_weights(log_probability - self.log_propensity, self.objective)
            # squared length of the derivative by the logits, slot by slot; the arms shown below are still left
            squares = np.zeros(self.shown_exp.shape)
            squares[:, :-1] = _cumulative_sums(self.shown_exp[:, :0:-1] ** 2)[:, ::-1]
            squares += self.other_squares[:, None]
            spread = share / left_total
            square = (share - self.shown_exp * spread) ** 2 + spread**2 * squares
            return SlateScores(weight * self.scale, excess * self.scale, square, spread, share, is_joint=True)
        weight, excess = _clip_weights(_row_sums(log_probability) - self.log_propensity, self.objective)
        # squared length of the derivative by the logits; an arm shown at a position is left at all positions down to it
        spread = share / left_total
        spread_sum = _cumulative_sums(spread)
        other_square = spread_sum[:, -1] ** 2 * self.other_squares
        square = other_square + _row_sums((share - self.shown_exp * spread_sum) ** 2)
        weight, excess = weight[:, None] * self.scale, excess[:, None] * self.scale
        return SlateScores(weight, excess, square[:, None], spread, share, is_joint=True)

    def _mix_floor(self, softmax: Array, *, n_left: Index, floors: Array) -> tuple[Array, Array]:
        """Return two arrays (n, k): the logarithm of the probability of each arm, with the floor, and the derivative of
        this logarithm with respect to the logarithm of the softmax.

        softmax (n, k): the probability of each arm without the floor; n_left: the number of arms left at each
        position; floors (k,): the floor at each position."""
        probability = np.maximum(floors / n_left + (1 - floors) * softmax, 1e-300)
        return np.log(probability), (1 - floors) * softmax / probability

    def score_gradient(self, scores: SlateScores, gain: Array, *, is_last: bool) -> Array:
        """Return the derivative of the objective with respect to the score of each arm in each decision, (n, m).

        gain (n, c): the gains; is_last: whether this call is the last, which may overwrite `other_exp`."""
        # for the arms shown
        weight = scores.weight * gain / self.temperature
        spread, dtype = weight * scores.spread, self.other_exp.dtype
        total_spread = _row_sums(spread)[:, None]
        spread_sum = _cumulative_sums(spread) if scores.is_joint else total_spread  # below its slot an arm is not left
        shown_derivative = weight * scores.share - self.shown_exp * spread_sum
        # for the others, in the memory of their exponentials
        derivative = self.other_exp if is_last else self.other_exp.copy()
        entropy_gradient = self._entropy_gradient() if self.objective.entropy else None
        limit = float(np.finfo(dtype).max) / 1e3  # beyond it, all other arms were shown or are not eligible
        derivative *= -np.clip(total_spread, -limit, limit).astype(dtype)
        if entropy_gradient:
            derivative += entropy_gradient[0]
            shown_derivative += entropy_gradient[1]
        derivative.reshape(-1)[self.shown_cells] = shown_derivative.astype(dtype)  # no arm occurs twice on a slate
        return derivative

    def _entropy_gradient(self) -> tuple[Array, Array]:
        """Return the derivative of the entropy term with respect to the scores. The first array, (n, m), is for the
        arms that were not shown, and the second array, (n, k), for the arms shown."""
        dtype, gradient = self.other_exp.dtype, self.other_exp * self.logits
        weighted_logits = gradient.sum(axis=1, dtype=np.float64) + (self.shown_exp * self.shown_logits).sum(axis=1)
        mean = -weighted_logits / self.total  # entropy minus the log of the total
        factor = self.objective.entropy * self.scale[:, 0] / (self.temperature * self.total)
        gradient += self.other_exp * mean.astype(dtype)[:, None]
        gradient *= -factor.astype(dtype)[:, None]
        return gradient, -factor[:, None] * self.shown_exp * (self.shown_logits + mean[:, None])

    def weight_gradients(self, score_gradient: Array) -> tuple[Array, Array, Array]:
        """Return the gradients with respect to the results of `Gradient.arm_weights`, in their shapes.

        score_gradient (n, m): the derivatives with respect to the scores."""
        m, memory_gradient = score_gradient.shape[1], score_gradient.reshape(-1)[self.cells]
        by_weights = matrix_product(score_gradient.T, self.state.x)
        if self.n_words:
            words = self.state.words
            by_word = (
                np.zeros((self.n_words, m)) if words is None else words.transposed_product(score_gradient, self.n_words)
            )
            by_weights = np.hstack([by_weights, by_word.T])
        arm, memory = self.state.arm, self.state.memory
        by_memory = [np.bincount(arm, weights=memory_gradient * column, minlength=m) for column in memory.T]
        return (
            by_weights,
            matrix_product(np.ones(len(score_gradient), score_gradient.dtype), score_gradient),
            np.column_stack(by_memory),
        )

    def figures(self, scores: SlateScores) -> dict[str, float]:
        """Return the sums of the chunk, except the gradient, by the names of the fields of `GradientSums`."""
        x = self.state.x
        feature_squares = 1.0 + np.einsum("nd,nd->n", x, x).astype(np.float64)[:, None]
        if (words := self.state.words) is not None:
            feature_squares[:, 0] += np.bincount(words.row, words.value.astype(np.float64) ** 2, len(x))
        square, weight = scores.square * feature_squares / self.temperature**2, scores.weight
        gradient_length = np.abs(self.gain) * np.sqrt(square)
        return {
            "n": float(len(x)),
            "mass": float(((weight + scores.excess) * gradient_length).sum()),
            "clipped_mass": float((scores.excess * gradient_length).sum()),
            "square": float(((weight * self.gain) ** 2 * square).sum()),
            "raw_square": float(((weight * self.returns) ** 2 * square).sum()),
        }


def _cumulative_sums(values: Array) -> Array:
    """Return the cumulative sums over positions, (n, k). A single column is returned without a copy."""
    return np.cumsum(values, axis=1) if values.shape[1] > 1 else values


def _row_sums(values: Array) -> Array:
    """Return the sum of each row, (n,). A single column is returned without a copy."""
    return values.sum(axis=1) if values.shape[1] > 1 else values[:, 0]


def _clip_weights(log_ratio: Array, objective: Objective) -> tuple[Array, Array]:
    """Return the clipped importance weights, and what clipping removed from each weight, both in the shape of
    `log_ratio`.

    log_ratio: the logarithm of the policy's probability over the logged probability."""
    if not objective.uses_weights:
        return np.ones_like(log_ratio), np.zeros_like(log_ratio)
    weight = np.exp(np.minimum(log_ratio, MAX_LOG_WEIGHT))
    clipped_weight = np.minimum(weight, objective.clip)
    return clipped_weight, weight - clipped_weight
