"""REINFORCE on logged pages: what one batch says of the gradient, as sums that add up; and the steps that follow it.

The gain of a decision (its return less a baseline) times the importance weight of its page moves the logits by the
score function. All of it is exact for the policy as served, floor included."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from rlrec.policy.gradient import Gradient, Parameters, State
from rlrec.policy.plackett_luce import remaining, softmax
from rlrec.policy.scores import Array, Index

CHUNK = 4096  # decisions at a time: what is worked out of them stays near the processor
HIGHEST = 700.0  # log of a weight that is cut to stay finite


@dataclass(frozen=True, kw_only=True, eq=False)
class Pages:
    """Decisions on one eligible set, pages of one length.

    state: of n decisions; `arm` of what they remember are places 0..m - 1 among the eligible arms.
    places (m,): where the eligible arms stand among those that are trained; described (m, p): their features.
    shown (n, k): places of the arms shown. log_propensity (n,) of the page; or (n, k) of each slot for itself.
    gain (n,) or (n, k): return less baseline, in the unit of the reward; raw, same shape: the return alone.
    scale (n,): what multiplies the gradient of the decision, 1 or gamma^t."""

    state: State
    places: Index
    described: Array
    shown: Index
    log_propensity: Array
    gain: Array
    raw: Array
    scale: Array

    def __len__(self) -> int:
        return len(self.shown)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is climbed: the mean over decisions of weight x gain, and entropy x the entropy of position 1.

    clip: the largest importance weight; corrected: whether there are weights at all (False: as if the log were the
    policy's own). top: 0 for pages by their exact joint probability; K > 0 for every slot by itself, as one of K that
    are drawn with replacement (Chen et al. 2019)."""

    clip: float = np.inf
    entropy: float = 0.0
    corrected: bool = True
    top: int = 0


@dataclass(frozen=True, eq=False)
class Sums:
    """The fold of a batch: `sums(a) + sums(b)` is that of both.

    gradient: sums over decisions. n: decisions. entropy: of position 1 in nats. mass, clipped: of |weight x gain x
    score|, and how much of it clipping took. square, raw_square: squared length of each decision's gradient (or each
    slot's, by itself), with the gain and with the return in its place."""

    gradient: Parameters
    n: float = 0.0
    entropy: float = 0.0
    mass: float = 0.0
    clipped: float = 0.0
    square: float = 0.0
    raw_square: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        figures = {one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)[1:]}
        return Sums(added(self.gradient, other.gradient), **figures)

    @property
    def mean(self) -> Parameters:
        """The gradient of the objective."""
        return {name: values / max(self.n, 1.0) for name, values in self.gradient.items()}

    @property
    def clipped_share(self) -> float:
        return self.clipped / self.mass if self.mass else 0.0

    @property
    def variances(self) -> tuple[float, float]:
        """Variance of a decision's gradient (its trace), with the baseline and without one: on average the gradient is
        the same."""
        n = max(self.n, 1.0)
        mean = squared(self.gradient) / n**2
        return self.square / n - mean, self.raw_square / n - mean


def added(one: Parameters, other: Parameters) -> Parameters:
    return {name: values + other[name] for name, values in one.items()}


def squared(parameters: Parameters) -> float:
    """Squared length."""
    return float(sum((values**2).sum() for values in parameters.values()))


def nothing(parameters: Parameters) -> Sums:
    """The sums of no decision."""
    return Sums({name: np.zeros_like(values) for name, values in parameters.items()})


def sums(policy: Gradient, parameters: Parameters, pages: Pages, objective: Objective) -> Sums:
    """What some pages say of the gradient. Source: Williams 1992 (REINFORCE); weights and the top-K factor after Chen
    et al. 2019; pages by the exact Plackett-Luce joint with a floor, own derivation."""
    held = {name: values[pages.places] for name, values in parameters.items() if name in ("bias", "linear", "own")}
    effective = policy.effective({**parameters, **held}, pages.described)
    whole = _Whole(effective)
    order = np.argsort(pages.state.row, kind="stable")
    ends = np.searchsorted(pages.state.row[order], np.arange(0, len(pages) + CHUNK, CHUNK))
    for part, start in enumerate(range(0, len(pages), CHUNK)):
        entries = order[ends[part] : ends[part + 1]]
        whole.take(_Part(policy, effective, pages, slice(start, start + CHUNK), entries), objective)
    return whole.finish(policy, parameters, pages)


class _Whole:
    """Sums over chunks, by the arms of the pages."""

    def __init__(self, effective: tuple[Array, Array, Array]) -> None:
        weights, bias, own = effective
        self.moved = np.zeros(weights.shape), np.zeros(bias.shape), np.zeros(own.shape)
        self.figures = dict.fromkeys(("n", "entropy", "mass", "clipped", "square", "raw_square"), 0.0)

    def take(self, part: _Part, objective: Objective) -> None:
        scored = part.scored(objective)
        moved = part.summed(scored)
        if objective.entropy:
            moved = moved + objective.entropy * part.scale[:, None] * part.sharpening()
        for sums, more in zip(self.moved, part.traced(moved), strict=True):
            sums += more
        for name, value in part.figures(scored).items():
            self.figures[name] += value

    def finish(self, policy: Gradient, parameters: Parameters, pages: Pages) -> Sums:
        return Sums(_spread(policy.traced(*self.moved, described=pages.described), parameters, pages), **self.figures)


def _spread(gradient: Parameters, parameters: Parameters, pages: Pages) -> Parameters:
    """Gradients by the arms of the pages as gradients of all arms."""
    found = {}
    for name, values in gradient.items():
        if name in ("bias", "linear", "own"):
            found[name] = np.zeros_like(parameters[name])
            found[name][pages.places] = values
        else:
            found[name] = values
    return found


@dataclass(frozen=True, eq=False)
class Scored:
    """How pages score, one entry of a list a slot (or one for the page): moved (n, m) derivative of the log
    probability by the logits; weight (n,) of the importance, cut, times what multiplies it; lost (n,): what was cut."""

    moved: list[Array]
    weight: list[Array]
    lost: list[Array]


class _Part:
    """A chunk of pages: its softmax, and what follows from it."""

    def __init__(
        self, policy: Gradient, effective: tuple[Array, Array, Array], pages: Pages, rows: slice, entries: Index
    ) -> None:
        weights, bias, own = (part.astype(pages.state.x.dtype, copy=False) for part in effective)
        state = pages.state
        self.temperature, self.floor, self.x = policy.temperature, policy.floor, state.x[rows]
        self.row, self.place, self.own = state.row[entries] - rows.start, state.arm[entries], state.own[entries]
        self.shown, self.log_propensity = pages.shown[rows], pages.log_propensity[rows]
        self.gain, self.raw, self.scale = pages.gain[rows], pages.raw[rows], pages.scale[rows]
        logits = self.x @ weights.T
        logits += bias
        if len(self.row):
            np.add.at(logits, (self.row, self.place), (self.own * own[self.place]).sum(axis=1).astype(logits.dtype))
        if self.temperature != 1.0:
            logits /= self.temperature
        logits -= logits.max(axis=1, keepdims=True)
        self.chance = np.exp(logits)
        total = self.chance.sum(axis=1, keepdims=True)
        self.chance /= total
        self.log_total = np.log(total[:, 0])
        self.logits = logits
        self.entropy = self.log_total - np.einsum("nm,nm->n", self.chance, logits)

    def sharpening(self) -> Array:
        """Derivative of the entropy by the scores, (n, m)."""
        log_chance = self.logits - self.log_total[:, None]
        found: Array = -self.chance * (log_chance + self.entropy[:, None]) / self.temperature
        return found

    def scored(self, objective: Objective) -> Scored:
        return self._slots(objective) if objective.top else self._pages(objective)

    def _slots(self, objective: Objective) -> Scored:
        """Each slot by itself."""
        scored, top = Scored([], [], []), objective.top
        for position in range(self.shown.shape[1]):
            moved, log_chance = _step(self.chance, self.shown[:, position], self.floor)
            chance = np.exp(log_chance)
            factor = top * np.exp((top - 1) * np.log1p(-np.minimum(chance, 1 - 1e-16)))
            weight, lost = _cut(log_chance - self.log_propensity[:, position], objective)
            scored.moved.append(moved / self.temperature)
            scored.weight.append(weight * factor * self.scale)
            scored.lost.append(lost * factor * self.scale)
        return scored

    def _pages(self, objective: Objective) -> Scored:
        """Pages by their joint probability: the softmax of the arms left, position by position."""
        left, log_joint, moved = self.chance, np.zeros(len(self.shown)), None
        rows = np.arange(len(self.shown))
        for position in range(self.shown.shape[1]):
            if position:
                left = left.copy()
                left[rows, self.shown[:, position - 1]] = 0.0
                total = left.sum(axis=1, keepdims=True)
                np.divide(left, total, out=left, where=total > 0)
            step, log_chance = _step(left, self.shown[:, position], self.floor, gone=position)
            log_joint += log_chance
            moved = step if moved is None else moved + step
        assert moved is not None
        weight, lost = _cut(log_joint - self.log_propensity, objective)
        return Scored([moved / self.temperature], [weight * self.scale], [lost * self.scale])

    def summed(self, scored: Scored) -> Array:
        """Derivative of the objective by the scores of each decision, (n, m)."""
        gains = [self.gain] if self.gain.ndim == 1 else list(self.gain.T)
        total = np.zeros_like(self.chance)
        for moved, weight, gain in zip(scored.moved, scored.weight, gains, strict=True):
            total += (weight * gain).astype(moved.dtype)[:, None] * moved
        return total

    def traced(self, moved: Array) -> tuple[Array, Array, Array]:
        """Gradients of what `Gradient.effective` gives, from derivatives (n, m) by the scores."""
        moved = moved.astype(self.x.dtype, copy=False)
        own = np.zeros((moved.shape[1], self.own.shape[1]))
        if len(self.row):
            np.add.at(own, self.place, moved[self.row, self.place][:, None] * self.own)
        return moved.T @ self.x, moved.sum(axis=0, dtype=np.float64), own

    def figures(self, scored: Scored) -> dict[str, float]:
        size = 1.0 + np.einsum("nd,nd->n", self.x, self.x)
        found = dict.fromkeys(("mass", "clipped", "square", "raw_square"), 0.0)
        gains, raws = ([one] if one.ndim == 1 else list(one.T) for one in (self.gain, self.raw))
        for moved, weight, lost, gain, raw in zip(scored.moved, scored.weight, scored.lost, gains, raws, strict=True):
            square = np.einsum("nm,nm->n", moved, moved).astype(np.float64) * size
            length = np.abs(gain) * np.sqrt(square)
            found["mass"] += float(((weight + lost) * length).sum())
            found["clipped"] += float((lost * length).sum())
            found["square"] += float(((weight * gain) ** 2 * square).sum())
            found["raw_square"] += float(((weight * raw) ** 2 * square).sum())
        return found | {"n": float(len(self.x)), "entropy": float(self.entropy.sum(dtype=np.float64))}


def _step(chance: Array, shown: Index, floor: float, *, gone: int = 0) -> tuple[Array, Array]:
    """Derivative by the logits of the log probability of an arm, (n, m), and that log probability, (n,).

    chance (n, m): softmax of the arms left; gone: how many are not."""
    rows, left = np.arange(len(shown)), chance.shape[1] - gone
    best = chance[rows, shown].astype(np.float64)
    mixed = np.maximum(floor / left + (1 - floor) * best, 1e-300)
    share = ((1 - floor) * best / mixed).astype(chance.dtype)
    moved = chance * -share[:, None]
    moved[rows, shown] += share
    return moved, np.log(mixed)


def _cut(log_ratio: Array, objective: Objective) -> tuple[Array, Array]:
    """Importance weights, and what clipping takes of them."""
    if not objective.corrected:
        return np.ones(len(log_ratio)), np.zeros(len(log_ratio))
    weight = np.exp(np.minimum(log_ratio, HIGHEST))
    kept = np.minimum(weight, objective.clip)
    return kept, weight - kept


def log_joint(score: Array, shown: Index, *, temperature: float, floor: float) -> Array:
    """Log of the probability of pages, (n,), by scores (n, m) of the eligible arms; shown (n, k) places.

    temperature 0: the best score, equal bests share. Source: own derivation (Plackett-Luce with a floor: at every
    position the softmax of the arms left)."""
    rows, found, m = np.arange(len(shown)), np.zeros(len(shown)), score.shape[1]
    for position, chance in enumerate(remaining(score, shown, temperature=temperature)):
        if position < m - 1:  # the only arm left is certain
            best = chance[rows, shown[:, position]]
            with np.errstate(divide="ignore"):
                found += np.log(floor / (m - position) + (1 - floor) * best)
    return found


def chances(score: Array, *, temperature: float, floor: float) -> Array:
    """Probability of each arm at position 1, (n, m), by scores (n, m); rows sum to 1."""
    found: Array = (1 - floor) * softmax(score, temperature=temperature) + floor / score.shape[1]
    return found


def divergence(old: Array, new: Array) -> Array:
    """KL(old || new) of distributions over arms, (n,) in nats, both (n, m)."""
    ratio = np.log(np.maximum(old, 1e-300)) - np.log(np.maximum(new, 1e-300))
    found: Array = np.einsum("nm,nm->n", old, ratio)
    return found


@dataclass(frozen=True, eq=False)
class Adam:
    """Where the climb stands. Source: Kingma & Ba 2015, algorithm 1 (ascent)."""

    first: Parameters
    second: Parameters
    count: int = 0

    @classmethod
    def start(cls, parameters: Parameters) -> Adam:
        zero = {name: np.zeros_like(values) for name, values in parameters.items()}
        return cls(zero, zero)

    def step(
        self, parameters: Parameters, gradient: Parameters, *, rate: float, b1: float = 0.9, b2: float = 0.999
    ) -> tuple[Parameters, Adam]:
        """Parameters one step up, and where the climb stands then."""
        count = self.count + 1
        first = {name: b1 * old + (1 - b1) * gradient[name] for name, old in self.first.items()}
        second = {name: b2 * old + (1 - b2) * gradient[name] ** 2 for name, old in self.second.items()}
        moved = {
            name: values + rate * (first[name] / (1 - b1**count)) / (np.sqrt(second[name] / (1 - b2**count)) + 1e-8)
            for name, values in parameters.items()
        }
        return moved, replace(self, first=first, second=second, count=count)
