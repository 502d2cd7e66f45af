"""This module holds the policy that is trained for whole visits. The policy draws by a softmax over the scores of arms
in the state of a session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlrec.arrays import Array, Ids, Index, look_up, matrix_product, run_starts
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, CurvePolicy, bounded_parameter, unchecked_copy
from rlrec.policy.contexts.encoder import ContextualPolicy, EncodedRows
from rlrec.policy.contexts.features import Sparse
from rlrec.policy.scores.scores import Scores
from rlrec.records import Record

if TYPE_CHECKING:
    from rlrec.policy.gradients.history import History

Parameters = dict[str, Array]
"""Parameters of a trained policy by name: `bias` (m,), `linear` (m, d) and `own` (m, 4) belong to its m arms; `cross`
(p, d) or (p, 1), `history` (4,) and `similar` (p,) to all."""

LINEAR, BILINEAR = "linear", "bilinear"
SESSION_FEATURES = ("step", "gap", "reward", "last", "variety")  # features of every visit
MEMORY_FEATURES = ("count", "faded", "last", "earned")  # features of an arm from what the visit has shown of it
ARM_PARAMETERS, SHARED_PARAMETERS = ("bias", "linear", "own"), ("cross", "history", "similar")
MINUTE_S = 60.0
DEFAULT_RECENCY = 0.7


class State(Record, kw_only=False, eq=False):
    """A State object holds n states of sessions in the form in which a policy reads states.

    x (n, d): the features of context and session. row (e,), arm (e,), memory (e, 4): for each arm that was shown
    before in the visit, the state, the arm, and the features MEMORY_FEATURES of the arm; an arm occurs once per state.
    All numbers are scaled to about 1. words: the other features of a sparse context, in the columns that have weights
    in the policy."""

    x: Array
    row: Index
    arm: Ids
    memory: Array
    words: Sparse | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Index) -> State:
        """Return the selected states.

        rows: the indices of the states, each at most once; the result has their order. The memory of each state
        keeps its order."""
        new_rows = np.full(len(self), -1, np.intp)
        new_rows[rows] = np.arange(len(rows))
        row = new_rows[self.row]
        entries = np.flatnonzero(row >= 0)
        if (np.diff(rows) < 0).any():
            entries = entries[np.argsort(row[entries], kind="stable")]
        words = None if self.words is None else self.words[rows]
        return State(self.x[rows], row[entries], self.arm[entries], self.memory[entries], words)

    def slice_rows(self, start: int, end: int) -> State:
        """Return the states from `start` to before `end`. The array `row` must be ascending."""
        begin, stop = np.searchsorted(self.row, (start, end)).tolist()
        words = None if self.words is None else self.words[start:end]
        return State(
            self.x[start:end], self.row[begin:stop] - start, self.arm[begin:stop], self.memory[begin:stop], words
        )


class Gradient(ContextualPolicy, CurvePolicy):
    """Show arms in proportion to exp(score / temperature), by scores that `train-pg` learns for the return of a visit.

    model linear: each arm has weights on the features of context and session, and the arm's own features have
    effects, too. model bilinear: all arms share weights on the products of features of state and arm. Both models
    have a bias for each arm of the log. Both also have weights on what the visit has shown before: how often the arm
    was shown, how recently (by `recency` ^ decisions ago), what it earned, and how recently arms with the same
    features were shown. An arm that is new to the policy is scored by its features.

    If slots are trained separately (`train-pg --top-k`), their rewards are divided by the examination of their
    position, as the curve `position` states. With model linear, contexts may have up to 262144 columns, of which the
    columns that occur in the log have weights."""

    model: str = LINEAR
    temperature: float = bounded_parameter(1.0, 1e-9, 1e9)
    recency: float = bounded_parameter(DEFAULT_RECENCY, 0, 1)

    purpose: ClassVar[str] = "learns from whole visits (train-pg), where what is shown now changes later rewards"
    why_no_prior: ClassVar[str] = "it is uniform until it is trained"
    learns_online: ClassVar[bool] = False
    is_stateful: ClassVar[bool] = True
    exploration_parameters: ClassVar[tuple[str, ...]] = ("floor", "temperature")
    uses_arm_features = True
    takes_sparse: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model not in (LINEAR, BILINEAR):
            raise InputError(f"model is {self.model!r}", hint=f"it is {LINEAR} or {BILINEAR}")
        if self.is_sparse and self.model == BILINEAR:
            n_columns, hint = self.design.context.width, f"use model {LINEAR}, or hash into fewer columns"
            raise InputError(f"model is {self.model!r}, and contexts have {n_columns} columns", hint=hint)
        counts: Counter[str] = Counter(self.features)
        if taken_names := [name for name in self._context_names if counts[name] > 1]:
            message = f"a feature of contexts is named {taken_names[0]!r}, as a weight of every session is"
            raise InputError(message, hint="rename the field")

    # -- states --

    @property
    def _context_names(self) -> tuple[str, ...]:
        """Return the names of the context features in a state. For sparse contexts, the result has only the
        intercept."""
        context = self.design.context
        return ("1",) * context.intercept if context.is_sparse else context.names

    @property
    def context_columns(self) -> Index:
        """Return the indices of the weights of context features among all weights of a state. For sparse contexts,
        these include the weights of words."""
        n, n_words = len(self._context_names), len(self.design.columns)
        return np.r_[:n, len(self.names) : len(self.names) + n_words]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the features of a state, (d,). A policy for sparse contexts has weights of these
        features, followed by the weights of words."""
        similar_names = (f"{statistic}:{name}" for statistic in ("shown", "faded") for name in self.design.arm.names)
        return (*self._context_names, *(f"session:{name}" for name in SESSION_FEATURES), *similar_names)

    @property
    def _faded_columns(self) -> slice:
        """Return the columns of a state that hold the faded sums of arm features. In a faded sum, arms that were shown
        longer ago weigh less."""
        return slice(len(self.names) - len(self.design.arm.names), len(self.names))

    def states(self, context: EncodedRows, history: History, arm_features: Array) -> State:
        """Return n states from the contexts and the histories of n decisions.

        context (n, q): the encoded contexts; arm_features (e, p): the features of the arm of each history entry."""
        n, rows, words = len(history), history.rows, None
        if self.is_sparse:
            words = context.select_columns(self.design.columns)
            context = np.ones((n, len(self._context_names)))
        fade: Array = np.power(self.recency, history.ago - 1.0)
        # features of the arms remembered
        row, arm, memory = arm_memory(history, fade)
        # features of the visit
        last_reward = np.bincount(rows, weights=np.where(history.ago == 1, history.slot_reward, 0.0), minlength=n)
        n_distinct_arms = np.bincount(row, minlength=n)
        session = np.column_stack([
            np.log1p(history.step), np.arcsinh(history.gap_s / MINUTE_S), np.arcsinh(history.reward),
            np.arcsinh(last_reward), np.log1p(n_distinct_arms),
        ])  # fmt: skip
        # sums of the features of the arms shown, and the same faded
        shown_sums, faded_sums = (_feature_sums(rows, arm_features, weight, n) for weight in (np.ones(len(rows)), fade))
        x = np.hstack([context, session, np.sign(shown_sums) * np.log1p(np.abs(shown_sums)), faded_sums])
        return State(x, row, arm, memory, words)

    # -- scores --

    def zero_parameters(self, arms: int) -> Parameters:
        """Return parameters for this number of arms. All parameters are 0, so that every arm has the same score."""
        d, p, h = len(self.names) + len(self.design.columns), len(self.design.arm.names), len(MEMORY_FEATURES)
        arm_shapes = {"bias": (arms,), "linear": (arms, d if self.model == LINEAR else 0), "own": (arms, h)}
        shared_shapes = {"cross": (p, d if self.model == BILINEAR else 1), "history": (h,), "similar": (p,)}
        return {name: np.zeros(shape) for name, shape in (arm_shapes | shared_shapes).items()}

    def with_columns(self, columns: Ids, parameters: Parameters) -> tuple[Gradient, Parameters]:
        """Return a policy and parameters that also have weights for these columns of sparse contexts. New weights are
        0."""
        d, old_columns = len(self.names), self.design.columns
        columns = np.union1d(old_columns, columns)
        linear = np.zeros((len(parameters["linear"]), d + len(columns)))
        linear[:, :d] = parameters["linear"][:, :d]
        linear[:, d + np.searchsorted(columns, old_columns)] = parameters["linear"][:, d:]
        policy = unchecked_copy(self, design=replace(self.design, columns=columns))
        return policy, {**parameters, "linear": linear}

    def pack(self, parameters: Parameters, arms: Ids) -> tuple[list[tuple[int, bytes]], dict[str, Any]]:
        """Return the parameters of m arms in their stored form. This is a list with the id and the 5 + d packed doubles
        of each arm, and the parameters that all arms share, as JSON.

        arms (m,): the id of each arm."""
        rows = np.hstack([parameters["bias"][:, None], parameters["linear"], parameters["own"]]).astype("<f8")
        weights = sorted(zip(arms.tolist(), map(np.ndarray.tobytes, rows), strict=True))
        return weights, {name: parameters[name].tolist() for name in SHARED_PARAMETERS}

    def unpack(self, weights: Iterable[tuple[int, bytes]], lists: Mapping[str, Any]) -> Parameters:
        """Return the parameters from the result of `pack`.

        weights: the id and the packed doubles of each arm, in order of id; lists: the shared parameters by name. A
        shared parameter that is missing is 0."""
        zeros = self.zero_parameters(0)
        d = zeros["linear"].shape[1]
        shared_values = {
            name: np.array(lists[name], np.float64).reshape(zeros[name].shape) if name in lists else zeros[name]
            for name in SHARED_PARAMETERS
        }
        rows = np.frombuffer(b"".join(blob for _, blob in weights), "<f8").reshape(-1, 1 + d + len(MEMORY_FEATURES))
        return {"bias": rows[:, 0], "linear": rows[:, 1 : 1 + d], "own": rows[:, 1 + d :], **shared_values}

    def arm_weights(self, parameters: Parameters, arm_features: Array) -> tuple[Array, Array, Array]:
        """Combine the parameters with the features of m arms. Return the effective parameters of each arm: the weights
        of the features of a state, (m, d), the bias, (m,), and the weights of the features MEMORY_FEATURES of the arm,
        (m, 4).

        arm_features (m, p): the features of each arm."""
        crossed_weights = arm_features @ parameters["cross"]
        is_bilinear = self.model == BILINEAR
        weights = crossed_weights if is_bilinear else parameters["linear"].copy()
        weights[:, self._faded_columns] += arm_features * parameters["similar"]
        bias = parameters["bias"] if is_bilinear else parameters["bias"] + crossed_weights[:, 0]
        return weights, bias, parameters["history"] + parameters["own"]

    def parameter_gradient(self, weights: Array, bias: Array, memory: Array, *, arm_features: Array) -> Parameters:
        """Return the gradient with respect to the parameters, from the gradients with respect to the results of
        `arm_weights`.

        weights (m, d), bias (m,), memory (m, 4): the given gradients; arm_features (m, p): the features of each arm."""
        is_bilinear = self.model == BILINEAR
        return {
            "bias": bias,
            "linear": weights[:, :0] if is_bilinear else weights,
            "own": memory,
            "cross": arm_features.T @ (weights if is_bilinear else bias[:, None]),
            "history": memory.sum(axis=0),
            "similar": (arm_features * weights[:, self._faded_columns]).sum(axis=0),
        }

    def scores_of(self, parameters: Parameters, state: State, *, arms: Ids, arm_features: Array) -> Array:
        """Return the noiseless score of each of m arms in n states, (n, m).

        arms (m,): the ids of the arms, ascending; arm_features (m, p): the features of each arm."""
        return score_states(self.arm_weights(parameters, arm_features), restrict_memory(state, arms))

    def distribution(self, score: Array) -> Scores:
        """Return the distribution of the noisy scores.

        score (..., m): the noiseless score of each arm."""
        from rlrec.policy.scores.families.gumbel import Gumbel
        from rlrec.policy.scores.families.point import Point

        return Gumbel(score / self.temperature) if self.temperature else Point(score)

    # -- the beginning of a visit --

    def index_at(self, belief: Belief, x: EncodedRows) -> Array:
        """Return the noiseless score of each arm at the beginning of a visit, (..., m).

        x (..., q): the encoded contexts."""
        weights, bias, _ = self._belief_weights(belief)
        if not self.is_sparse:
            return x @ weights[:, : x.shape[-1]].T + bias
        intercept_score = weights[:, : len(self._context_names)].sum(axis=1)
        score = bias + intercept_score + x.select_columns(self.design.columns).times(weights[:, len(self.names) :].T)
        return score[0] if x.is_single else score

    def _belief_weights(self, belief: Belief) -> tuple[Array, Array, Array]:
        """Return the result of `arm_weights` for the parameters in the belief. Before training all parameters are 0."""
        if belief.parameters is not None:
            return self.arm_weights(*belief.parameters)
        arms = belief.pulls.shape[-1]
        return self.arm_weights(self.zero_parameters(arms), np.zeros((arms, len(self.design.arm.names))))

    def scores_at(self, belief: Belief, x: EncodedRows) -> Scores:
        return self.distribution(self.index_at(belief, x))

    def column_weights(self, belief: Belief, columns: Index) -> Array:
        weights = self._belief_weights(belief)[0][:, len(self.names) :]
        return weights[:, np.searchsorted(self.design.columns, columns)].T

    def weights(self, belief: Belief) -> Array:
        """Return the weight of each of `features` in each arm's score, (m, d + 5): the bias, the d features of a state,
        and the four features MEMORY_FEATURES of the arm."""
        weights, bias, memory = self._belief_weights(belief)
        return np.column_stack([bias, weights[:, : len(self.names)], memory])

    def interval(self, belief: Belief, *, context: Mapping[str, Any], z: float) -> tuple[Array, Array, Array]:
        """Return three arrays of NaN, (m,), since the scores are not rewards."""
        unknown_scores = np.full(len(belief.pulls), np.nan)
        return unknown_scores, unknown_scores, unknown_scores

    @property
    def features(self) -> tuple[str, ...]:
        return ("bias", *self.names, *(f"own:{name}" for name in MEMORY_FEATURES))


def restrict_memory(state: State, arms: Ids) -> State:
    """Return a copy of the state whose memory holds only the given arms. Each remembered arm is replaced by its index
    in `arms`.

    arms (m,): the ids of the arms, ascending."""
    index, is_selected = look_up(arms, state.arm)
    return State(state.x, state.row[is_selected], index[is_selected], state.memory[is_selected], state.words)


def score_states(arm_weights: tuple[Array, Array, Array], state: State) -> Array:
    """Return the noiseless score of each of m arms in n states, (n, m).

    arm_weights: the result of `Gradient.arm_weights`; state: the states, whose remembered arms are indices among the m
    arms."""
    weights, bias, memory = (values.astype(state.x.dtype, copy=False) for values in arm_weights)
    d = state.x.shape[1]
    score = matrix_product(state.x, weights[:, :d].T)
    if state.words is not None:
        score += state.words.times(weights[:, d:].T)
    if bias.any():
        score += bias
    score_cells = state.row * len(weights) + state.arm  # as one flat index, which takes half the time
    np.add.at(score.reshape(-1), score_cells, np.einsum("eh,eh->e", state.memory, memory.take(state.arm, axis=0)))
    return score


def order_by_row(rows: Index, arm: Ids) -> Index:
    """Return the indices that sort entries by row and then by arm, (e,).

    rows (e,): the row of each entry, already ascending; arm (e,): the arm of each entry. Sorting by one combined key
    takes a quarter of the time of two keys."""
    n_arms = int(arm.max(initial=0)) + 1
    if len(rows) and (int(rows[-1]) + 1) * n_arms < 2**63:
        return np.argsort(rows * n_arms + arm, kind="stable")
    return np.lexsort((arm, rows))


def arm_memory(history: History, fade: Array) -> tuple[Index, Ids, Array]:
    """Return what n decisions remember of the arms shown before, with one entry for each decision and arm: the
    decision, (e,), ascending; the arm, (e,); the features MEMORY_FEATURES of the arm, (e, 4).

    fade (entries,): the weight of each entry of the history, recency ^ (ago - 1)."""
    rows = history.rows
    order = order_by_row(rows, history.arm)
    row, arm = rows[order], history.arm[order]
    starts = run_starts(row, arm)
    if not len(starts):
        return np.empty(0, np.intp), np.empty(0, np.int64), np.empty((0, len(MEMORY_FEATURES)))
    sorted_fade, is_previous_decision, count = fade[order], history.ago[order] == 1, np.diff(starts, append=len(row))
    faded_count, reward = (
        np.add.reduceat(column, starts) for column in (sorted_fade, sorted_fade * history.slot_reward[order])
    )
    was_last = np.logical_or.reduceat(is_previous_decision, starts)
    return row[starts], arm[starts], np.column_stack([np.log1p(count), faded_count, was_last, np.arcsinh(reward)])


def _feature_sums(rows: Index, arm_features: Array, weights: Array, n: int) -> Array:
    """Return the weighted sum of the features of the arms that each of n states remembers, (n, p).

    rows (e,): the state of each entry of the history, ascending; arm_features (e, p): the features of the entry's arm;
    weights (e,): the weight of each entry."""
    feature_sums = np.zeros((n, arm_features.shape[1]))
    if len(rows):
        starts = run_starts(rows)
        feature_sums[rows[starts]] = np.add.reduceat(arm_features * weights[:, None], starts, axis=0)
    return feature_sums
