"""A policy that is trained for whole visits: softmax over scores of arms in the state of a session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from rlrec.arrays import Array, Ids, Index
from rlrec.errors import InputError
from rlrec.policy.base import Belief, between, fraction
from rlrec.policy.design import Design
from rlrec.policy.families.gumbel import Gumbel
from rlrec.policy.families.point import Point
from rlrec.policy.forgetting import Forgetting
from rlrec.policy.scores import Scores
from rlrec.policy.statistics import Counts
from rlrec.records import Reward

if TYPE_CHECKING:
    from rlrec.policy.history import History

Parameters = dict[str, Array]
"""Of a trained policy, by name: `bias` (m,), `linear` (m, d) and `own` (m, 4) belong to its m arms; `cross` (p, d) or
(p, 1), `history` (4,) and `similar` (p,) to all."""

LINEAR, BILINEAR = "linear", "bilinear"
SESSION = ("step", "gap", "reward", "last", "variety")  # what is known of any visit
OWN = ("count", "faded", "last", "earned")  # what is known of an arm in the visit so far
OF_ARM, OF_ALL = ("bias", "linear", "own"), ("cross", "history", "similar")
MINUTE = 60.0
RECENCY = 0.7


@dataclass(frozen=True, eq=False)
class State:
    """n states as a policy reads them.

    x (n, d): features of context and session. row (e,), arm (e,), own (e, 4): arms shown before in the visit, each
    once a row, and what is known of them (OWN). All without unit: squeezed to the size of 1."""

    x: Array
    row: Index
    arm: Ids
    own: Array

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Index) -> State:
        """Some of them, in that order; each at most once. What each remembers stays in its order, row by row."""
        place = np.full(len(self), -1, np.intp)
        place[rows] = np.arange(len(rows))
        row = place[self.row]
        kept = np.flatnonzero(row >= 0)
        if (np.diff(rows) < 0).any():
            kept = kept[np.argsort(row[kept], kind="stable")]
        return State(self.x[rows], row[kept], self.arm[kept], self.own[kept])

    def between(self, start: int, end: int) -> State:
        """Those from `start` to before `end`; `row` has to ascend."""
        low, high = np.searchsorted(self.row, (start, end)).tolist()
        return State(self.x[start:end], self.row[low:high] - start, self.arm[low:high], self.own[low:high])


@dataclass(frozen=True, kw_only=True)
class Gradient(Counts):
    """Arms in proportion to exp(score / temperature), by scores that `train-pg` learns for the return of a visit.

    model linear: weights per arm on features of context and session, and effects of the arm's own features. model
    bilinear: weights on the products of features of state and arm, for all arms. Either has a bias for each arm it has
    seen, and weights on what the visit has seen of the arm itself (how often, how recently by `recency` ^ decisions
    ago, what it earned) and of arms with its features. An arm it has never seen is scored by its features.
    """

    model: str = LINEAR
    temperature: float = 1.0
    recency: float = RECENCY
    floor: float = 0.0
    design: Design = field(default_factory=Design, compare=False, repr=False)

    purpose: ClassVar[str] = "learns from whole visits (train-pg): what is shown now changes what is liked later"
    prior: ClassVar[tuple[float, float]] = (0.0, 0.0)
    served: ClassVar[bool] = True
    online: ClassVar[bool] = False
    contextual: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    described: ClassVar[bool] = True
    expands: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.model not in (LINEAR, BILINEAR):
            raise InputError(f"model is {self.model!r}", hint=f"it is {LINEAR} or {BILINEAR}")
        between("temperature", self.temperature, 1e-9, 1e9)
        fraction("recency", self.recency)
        fraction("floor", self.floor)
        features = Counter(self.features)
        if taken := [name for name in self.design.context.names if features[name] > 1]:
            raise InputError(
                f"a feature of contexts is named {taken[0]!r}, as a weight of every session is", hint="rename the field"
            )

    @property
    def forgetting(self) -> Forgetting:
        return Forgetting(1.0, 0.0)

    @property
    def exploration(self) -> float:
        return self.floor

    @property
    def reads(self) -> tuple[str, ...]:
        return self.design.context.reads

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    def check(self, reward: Reward) -> None:
        """Any reward will do."""

    def greedy(self) -> Self:
        """The arm with the best score: temperature 0."""
        made = copy(self)
        object.__setattr__(made, "floor", 0.0)
        object.__setattr__(made, "temperature", 0.0)
        return made

    # -- states --

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features of a state, (d,)."""
        arm = self.design.arm.names
        told = (f"{how}:{name}" for how in ("shown", "faded") for name in arm)
        return (*self.design.context.names, *(f"session:{name}" for name in SESSION), *told)

    @property
    def _faded(self) -> slice:
        """Where the faded counts of features of arms stand among the features of a state."""
        return slice(len(self.names) - len(self.design.arm.names), None)

    def states(self, context: Array, history: History, described: Array) -> State:
        """States by their encoded context (n, q) and history; described (e, p): features of the arms remembered."""
        n, rows = len(history), history.rows
        faded: Array = np.power(self.recency, history.ago - 1.0)
        row, arm, own = own_of(history, faded)
        last = np.bincount(rows, weights=np.where(history.ago == 1, history.earned, 0.0), minlength=n)
        variety = np.bincount(row, minlength=n)
        session = np.column_stack([
            np.log1p(history.step), np.arcsinh(history.gap_s / MINUTE), np.arcsinh(history.reward), np.arcsinh(last),
            np.log1p(variety),
        ])  # fmt: skip
        shown, fading = (_counted(rows, described, one, n) for one in (np.ones(len(rows), np.float64), faded))
        return State(np.hstack([context, session, np.sign(shown) * np.log1p(np.abs(shown)), fading]), row, arm, own)

    # -- scores --

    def nothing(self, arms: int) -> Parameters:
        """Parameters that know nothing: every arm is as good as any other."""
        d, p, own = len(self.names), len(self.design.arm.names), len(OWN)
        each = {"bias": (arms,), "linear": (arms, d if self.model == LINEAR else 0), "own": (arms, own)}
        both = {"cross": (p, d if self.model == BILINEAR else 1), "history": (own,), "similar": (p,)}
        return {name: np.zeros(shape) for name, shape in (each | both).items()}

    def packed(self, parameters: Parameters) -> tuple[Array, dict[str, Any]]:
        """Parameters as they are stored: a row for each arm, (m, 5 + d), and the others as JSON."""
        rows = np.hstack([parameters["bias"][:, None], parameters["linear"], parameters["own"]])
        return rows, {name: parameters[name].tolist() for name in OF_ALL}

    def unpacked(self, rows: Array, both: Mapping[str, Any]) -> Parameters:
        """Parameters that were `packed`; those that `both` lacks know nothing."""
        none = self.nothing(0)
        wide = none["linear"].shape[1]
        shared = {
            name: np.array(both[name], np.float64).reshape(none[name].shape) if name in both else none[name]
            for name in OF_ALL
        }
        rows = rows.reshape(-1, 1 + wide + len(OWN))
        return {"bias": rows[:, 0], "linear": rows[:, 1 : 1 + wide], "own": rows[:, 1 + wide :], **shared}

    def effective(self, parameters: Parameters, described: Array) -> tuple[Array, Array, Array]:
        """What the parameters of m arms come to, given their features (m, p): weights of a state (m, d), bias (m,) and
        weights of what is known of the arm (m, 4)."""
        crossed = described @ parameters["cross"]
        bilinear = self.model == BILINEAR
        weights = crossed if bilinear else parameters["linear"].copy()
        weights[:, self._faded] += described * parameters["similar"]
        bias = parameters["bias"] if bilinear else parameters["bias"] + crossed[:, 0]
        return weights, bias, parameters["history"] + parameters["own"]

    def traced(self, weights: Array, bias: Array, own: Array, *, described: Array) -> Parameters:
        """The gradient of the parameters, from those of `effective`: its transpose."""
        bilinear = self.model == BILINEAR
        return {
            "bias": bias,
            "linear": weights[:, :0] if bilinear else weights,
            "own": own,
            "cross": described.T @ (weights if bilinear else bias[:, None]),
            "history": own.sum(axis=0),
            "similar": (described * weights[:, self._faded]).sum(axis=0),
        }

    def scores_of(self, parameters: Parameters, state: State, *, arms: Ids, described: Array) -> Array:
        """Noiseless score of m arms in n states, (n, m). arms (m,): ascending ids; described (m, p): their features."""
        return scored(self.effective(parameters, described), placed(state, arms))

    def noisy(self, score: Array) -> Scores:
        """The distribution that scores (..., m) make."""
        return Gumbel(score / self.temperature) if self.temperature else Point(score)

    # -- a visit that begins --

    def encode(self, context: Mapping[str, Any] | None) -> Array:
        """Features of a context, (q,)."""
        return np.asarray(self.design.context.encode([context or {}])[0])

    def index_at(self, belief: Belief, x: Array) -> Array:
        """Noiseless scores at the beginning of a visit in contexts x (..., q), (..., m)."""
        if belief.trained is None:
            return np.zeros((*x.shape[:-1], belief.pulls.shape[-1]))
        parameters, described = belief.trained
        weights, bias, _ = self.effective(parameters, described)
        found: Array = x @ weights[:, : x.shape[-1]].T + bias
        return found

    def scores_at(self, belief: Belief, x: Array) -> Scores:
        return self.noisy(self.index_at(belief, x))

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        return self.index_at(belief, self.encode(context))

    def scores(self, belief: Belief, *, arms: Sequence[str], context: Mapping[str, Any]) -> Scores:
        return self.scores_at(belief, self.encode(context))

    def weights(self, belief: Belief) -> Array:
        """What each arm's score takes of each of `features`, (m, d + 5)."""
        if belief.trained is None:
            return np.zeros((len(belief.pulls), len(self.features)))
        weights, bias, own = self.effective(*belief.trained)
        return np.column_stack([bias, weights, own])

    def interval(self, belief: Belief, *, context: Mapping[str, Any], z: float) -> tuple[Array, Array, Array]:
        """NaN: its scores are no rewards."""
        unknown = np.full(len(belief.pulls), np.nan)
        return unknown, unknown, unknown

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the columns of `weights`."""
        return ("bias", *self.names, *(f"own:{name}" for name in OWN))


def placed(state: State, arms: Ids) -> State:
    """States that remember none but these arms, ascending ids (m,), by their places among them."""
    place = np.minimum(np.searchsorted(arms, state.arm), len(arms) - 1)
    known = arms[place] == state.arm
    return State(state.x, state.row[known], place[known], state.own[known])


def scored(effective: tuple[Array, Array, Array], state: State) -> Array:
    """Noiseless score of m arms in n states, (n, m), by what `Gradient.effective` gives; arms of the states are places
    among the m."""
    weights, bias, own = (part.astype(state.x.dtype, copy=False) for part in effective)
    found: Array = state.x @ weights.T
    if bias.any():
        found += bias
    cells = state.row * len(weights) + state.arm  # in one row of all: half the time
    found.reshape(-1)[cells] += np.einsum("eh,eh->e", state.own, own.take(state.arm, axis=0))
    return found


def by_row(rows: Index, arm: Ids) -> Index:
    """The order of entries by row, which ascend already, and then by arm: a sort of one key takes a quarter of two."""
    width = int(arm.max(initial=0)) + 1
    if len(rows) and (int(rows[-1]) + 1) * width < 2**63:
        return np.argsort(rows * width + arm, kind="stable")
    return np.lexsort((arm, rows))


def own_of(history: History, faded: Array) -> tuple[Index, Ids, Array]:
    """What n decisions know of each arm that they remember: row (e,) ascending, arm (e,), and OWN (e, 4).

    faded (entries,): what is left of each entry of the history, recency ^ (ago - 1)."""
    rows = history.rows
    order = by_row(rows, history.arm)
    row, arm = rows[order], history.arm[order]
    first = np.flatnonzero(np.r_[True, (row[1:] != row[:-1]) | (arm[1:] != arm[:-1])][: len(row)])
    if not len(first):
        return np.empty(0, np.intp), np.empty(0, np.int64), np.empty((0, len(OWN)))
    fading = faded[order]
    columns = (np.ones(len(row)), fading, history.ago[order] == 1, fading * history.earned[order])
    count, recent, last, earned = np.add.reduceat(np.column_stack(columns), first, axis=0).T
    return row[first], arm[first], np.column_stack([np.log1p(count), recent, last > 0, np.arcsinh(earned)])


def _counted(rows: Index, described: Array, weights: Array, n: int) -> Array:
    """Sums of features of the arms that each state remembers, (n, p)."""
    total = np.zeros((n, described.shape[1]))
    if len(rows):
        first = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
        total[rows[first]] = np.add.reduceat(described * weights[:, None], first, axis=0)
    return total
