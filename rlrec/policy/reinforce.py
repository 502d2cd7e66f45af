"""REINFORCE on logged pages: what one batch says of the gradient, as sums that add up.

The gain of a decision (its return less a baseline) times the importance weight of its page moves the logits by the
score function. All of it is exact for the policy as served, floor included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from rlrec.arrays import Array, Flags, Index
from rlrec.policy.gradient import OF_ARM, Gradient, Parameters, State, scored
from rlrec.policy.plackett_luce import remaining, softmax

CELLS = 1 << 19  # scores at a time: few enough to stay near the processor, and so many that each call is worth it
HIGHEST = 700.0  # log of a weight that is cut to stay finite
BELOW, LEAST = 36.0, -43.0  # scores are raised beside one this much below the best of a chunk, and none from below the
# least: float32 has their squares then, none of them so small that a processor takes many times as long
DEEPEST = -300.0  # scores of arms shown, kept in float64, count from here on: pages may show all that is left


@dataclass(frozen=True, kw_only=True, eq=False)
class Pages:
    """Decisions on one set of arms, pages of one length.

    state: of n decisions, `row` ascending; `arm` of what they remember are places 0..m - 1 among these arms.
    places (m,): where the arms stand among those that are trained; described (m, p): their features.
    shown (n, k): places of the arms shown. log_propensity (n,) of the page; or (n, k) of each slot for itself.
    gain (n,) or (n, k): return less baseline, in the unit of the reward; raw, same shape: the return alone.
    scale (n,): what multiplies the gradient of the decision, 1 or gamma^t.
    eligible (n, m): which of the arms each may show; None: all of them."""

    state: State
    places: Index
    described: Array
    shown: Index
    log_propensity: Array
    gain: Array
    raw: Array
    scale: Array
    eligible: Flags | None = None

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

    gradient: sums over decisions. n: decisions. mass, clipped: of |weight x gain x score|, and how much of it clipping
    took. square, raw_square: squared length of each decision's gradient (or each slot's, by itself), with the gain and
    with the return in its place."""

    gradient: Parameters
    n: float = 0.0
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
    def finite(self) -> bool:
        """Whether all of it can be reckoned with."""
        return bool(np.isfinite(self.mass + self.square + self.raw_square + squared(self.gradient)))

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


def sums(policy: Gradient, parameters: Parameters, lesson: Iterable[Pages], objective: Objective) -> Sums:
    """What some pages say of the gradient. Source: Williams 1992 (REINFORCE); weights and the top-K factor after Chen
    et al. 2019; pages by the exact Plackett-Luce joint with a floor, own derivation."""
    gradient, figures = nothing(parameters).gradient, dict.fromkeys((one.name for one in fields(Sums)[1:]), 0.0)
    for pages in lesson:
        held = {name: values[pages.places] for name, values in parameters.items() if name in OF_ARM}
        effective = policy.effective({**parameters, **held}, pages.described)
        moved = _moved(policy, effective, pages, objective, figures)
        for name, values in policy.traced(*moved, described=pages.described).items():
            gradient[name][pages.places if name in OF_ARM else ...] += values
    return Sums(gradient, **figures)


def _moved(
    policy: Gradient, effective: tuple[Array, Array, Array], pages: Pages, objective: Objective,
    figures: dict[str, float],
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Gradients of what `Gradient.effective` gives, chunk by chunk; the figures are added up."""
    weights, bias, own = effective
    if policy.design.context.intercept:  # what is 1 in every state takes the biases along
        weights[:, 0] += bias
        bias = np.zeros_like(bias)
    effective = _centred(weights, bias, own)
    weights, bias, own = (np.zeros(part.shape) for part in effective)
    step = max(1, CELLS // len(pages.places))
    for start in range(0, len(pages), step):
        part = _Part(policy, effective, pages, slice(start, start + step), objective)
        scored = part.slots() if objective.top else part.pages()
        for name, value in part.figures(scored).items():
            figures[name] += value
        for sums, more in zip((weights, bias, own), part.traced(part.moved(scored)), strict=True):
            sums += more
    return _centred(weights, bias, own)


def _centred(weights: Array, bias: Array, own: Array) -> tuple[Array, Array, Array]:
    """What `Gradient.effective` gives, or its gradient, without what all arms have in common: no probability hangs on
    it. What rounding leaves of it, Adam would take for a slope, however small: the scores of whole states would drift
    away."""
    return weights - weights.mean(axis=0), bias - bias.mean(), own


@dataclass(frozen=True, eq=False)
class Scored:
    """How pages, or slots by themselves, score: c columns of them, (n, c) each.

    weight: of the importance, cut, times what multiplies it; lost: what was cut. square: squared length of the
    derivative of the log probability by the logits.
    spread (n, k), share (n, k): that derivative is, for the arm shown at a position, its share; and for every arm that
    is left there -spread x its raised score. joint: whether arms shown above are not left."""

    weight: Array
    lost: Array
    square: Array
    spread: Array
    share: Array
    joint: bool


class _Part:
    """A chunk of pages: the raised scores of the arms, exp of them beside one another, and what follows from them.

    Nothing but a few numbers a row is worked out by position: the arms left at one differ from all arms by those shown
    above it alone. These are kept apart, in float64: what is left is a sum of positive numbers, never a difference.

    best (n, k): raised scores of the arms shown. raised (n, m): those of the others; 0 where one was shown, or is not
    eligible. rest (n,): their sum; squares (n,): that of their squares. total (n,): of all."""

    def __init__(
        self, policy: Gradient, effective: tuple[Array, Array, Array], pages: Pages, rows: slice, objective: Objective
    ) -> None:
        self.temperature, self.floor, self.objective = policy.temperature, policy.floor, objective
        self.state = pages.state.between(rows.start, rows.stop)
        self.shown, self.log_propensity = pages.shown[rows], pages.log_propensity[rows]
        self.eligible = None if pages.eligible is None else pages.eligible[rows]
        gain, raw = pages.gain[rows], pages.raw[rows]
        self.gain, self.raw, self.scale = (one.reshape(len(one), -1) for one in (gain, raw, pages.scale[rows]))
        m = len(pages.places)
        self.cells = self.state.row * m + self.state.arm
        self.at = self.shown + (np.arange(len(self.shown)) * m)[:, None]
        self.many = np.full((len(self.shown), 1), m) if self.eligible is None else self.eligible.sum(1, keepdims=True)
        self._raise(effective)

    def _raise(self, effective: tuple[Array, Array, Array]) -> None:
        """All rows beside one score, which spares a pass; those that are too far below it beside their own best.

        An arm that was not shown counts for e^LEAST of its row at least, of which no digit shows. Without entropy to
        climb, nobody needs the logits afterwards."""
        logits = self._logits(effective, self.state)
        logits -= logits.max() - BELOW
        level = logits.reshape(-1)[self.at].astype(np.float64)
        raised = self._exp(logits, self.eligible)
        ones = np.ones(raised.shape[1], raised.dtype)
        far = np.flatnonzero(raised @ ones < 1)
        if len(far):
            again = self._logits(effective, self.state.take(far))
            allowed = None if self.eligible is None else self.eligible[far]
            if allowed is not None:
                again[~allowed] = -np.inf
            again -= again.max(axis=1, keepdims=True)
            level[far] = np.take_along_axis(again, self.shown[far], axis=1)
            raised[far] = self._exp(again, allowed)
            if self.objective.entropy:
                logits[far] = again
        raised.reshape(-1)[self.at] = 0
        level = np.maximum(level, DEEPEST)
        self.logits, self.level, self.raised, self.best = logits, level, raised, np.exp(level)
        self.rest = (raised @ ones).astype(np.float64)
        self.squares = np.einsum("nm,nm->n", raised, raised).astype(np.float64)
        self.total = self.rest + self.best.sum(axis=1)

    def _exp(self, logits: Array, eligible: Flags | None) -> Array:
        if logits.min() < LEAST:  # to look takes less than to raise
            np.maximum(logits, LEAST, out=logits)
        found: Array = np.exp(logits, out=None if self.objective.entropy else logits)
        if eligible is not None:
            found *= eligible
        return found

    def _logits(self, effective: tuple[Array, Array, Array], state: State) -> Array:
        logits = scored(effective, state)
        if self.temperature != 1.0:
            logits /= self.temperature
        return logits

    def slots(self) -> Scored:
        """Each slot by itself."""
        best, total, top = self.best, self.total[:, None], self.objective.top
        log_chance, share = self._mixed(best / total, left=self.many)
        chance = np.minimum(np.exp(log_chance), 1 - 1e-16)
        factor = top * np.exp((top - 1) * np.log1p(-chance)) * self.scale
        weight, lost = _cut(log_chance - self.log_propensity, self.objective)
        others = (best**2).sum(axis=1, keepdims=True) - best**2 if best.shape[1] > 1 else 0.0
        square = share**2 * ((1 - best / total) ** 2 + (self.squares[:, None] + np.maximum(others, 0.0)) / total**2)
        return Scored(weight * factor, lost * factor, square, share / total, share, joint=False)

    def pages(self) -> Scored:
        """Pages by their joint probability: the softmax of the arms left, position by position."""
        below = _running(self.best[:, ::-1])[:, ::-1]  # the arm of a position, and those shown below it
        total = self.rest[:, None] + below
        log_chance, share = self._mixed(self.best / total, left=self.many - np.arange(self.shown.shape[1]))
        weight, lost = _cut(log_chance.sum(axis=1) - self.log_propensity, self.objective)
        spread = share / total
        reached = _running(spread)  # of an arm shown at a position: it is left down to there
        square = reached[:, -1] ** 2 * self.squares + ((share - self.best * reached) ** 2).sum(axis=1)
        scale = self.scale
        return Scored(weight[:, None] * scale, lost[:, None] * scale, square[:, None], spread, share, joint=True)

    def _mixed(self, best: Array, *, left: Index) -> tuple[Array, Array]:
        """Log of the probability of arms by their share of the softmax, (n, k), and the part of its derivative that
        the softmax has."""
        mixed = np.maximum(self.floor / left + (1 - self.floor) * best, 1e-300)
        return np.log(mixed), (1 - self.floor) * best / mixed

    def moved(self, scored: Scored) -> Array:
        """Derivative of the objective by the scores of each decision, (n, m); the raised scores are used up."""
        weight = scored.weight * self.gain / self.temperature
        spread, kind = weight * scored.spread, self.raised.dtype
        every = spread.sum(axis=1, keepdims=True)
        down = _running(spread) if scored.joint else every  # below an arm it is not left
        at_shown = weight * scored.share - self.best * down
        found = self.raised
        sharpened = self._sharpened() if self.objective.entropy else None
        most = float(np.finfo(kind).max) / 1e3  # where it is more, all other arms were shown, or are not eligible
        found *= -np.clip(every, -most, most).astype(kind)
        if sharpened:
            found += sharpened[0]
            at_shown += sharpened[1]
        found.reshape(-1)[self.at] = at_shown.astype(kind)  # no arm twice on a page
        return found

    def _sharpened(self) -> tuple[Array, Array]:
        """What entropy adds to the derivative by the scores: of the arms that were not shown, (n, m), and of those that
        were, (n, k)."""
        kind, sharp = self.raised.dtype, self.raised * self.logits
        told = sharp.sum(axis=1, dtype=np.float64) + (self.best * self.level).sum(axis=1)
        over = -told / self.total  # entropy less the log of the total
        worth = self.objective.entropy * self.scale[:, 0] / (self.temperature * self.total)
        sharp += self.raised * over.astype(kind)[:, None]
        sharp *= -worth.astype(kind)[:, None]
        return sharp, -worth[:, None] * self.best * (self.level + over[:, None])

    def traced(self, moved: Array) -> tuple[Array, Array, Array]:
        """Gradients of what `Gradient.effective` gives, from derivatives (n, m) by the scores."""
        m, known = moved.shape[1], moved.reshape(-1)[self.cells]
        own = [np.bincount(self.state.arm, weights=known * column, minlength=m) for column in self.state.own.T]
        return moved.T @ self.state.x, np.ones(len(moved), moved.dtype) @ moved, np.column_stack(own)

    def figures(self, scored: Scored) -> dict[str, float]:
        x = self.state.x
        size = 1.0 + np.einsum("nd,nd->n", x, x).astype(np.float64)[:, None]
        square, weight = scored.square * size / self.temperature**2, scored.weight
        length = np.abs(self.gain) * np.sqrt(square)
        return {
            "n": float(len(x)),
            "mass": float(((weight + scored.lost) * length).sum()),
            "clipped": float((scored.lost * length).sum()),
            "square": float(((weight * self.gain) ** 2 * square).sum()),
            "raw_square": float(((weight * self.raw) ** 2 * square).sum()),
        }


def _running(values: Array) -> Array:
    """Sums of (n, k) from position to position; of a single one, without a pass."""
    return np.cumsum(values, axis=1) if values.shape[1] > 1 else values


def _cut(log_ratio: Array, objective: Objective) -> tuple[Array, Array]:
    """Importance weights, and what clipping takes of them."""
    if not objective.corrected:
        return np.ones(len(log_ratio)), np.zeros(len(log_ratio))
    weight = np.exp(np.minimum(log_ratio, HIGHEST))
    kept = np.minimum(weight, objective.clip)
    return kept, weight - kept


def log_joint(score: Array, shown: Index, eligible: Flags | None = None, *, temperature: float, floor: float) -> Array:
    """Log of the probability of pages, (n,), by scores (n, m) of arms; shown (n, k) places; eligible (n, m): those that
    each may show, None: all.

    temperature 0: the best score, equal bests share. Source: own derivation (Plackett-Luce with a floor: at every
    position the softmax of the arms left)."""
    rows, found, many = np.arange(len(shown)), np.zeros(len(shown)), _many(score, eligible)
    allowed = score if eligible is None else np.where(eligible, score, -np.inf)
    for position, chance in enumerate(remaining(allowed, shown, temperature=temperature)):
        left = many - position
        best = chance[rows, shown[:, position]]
        with np.errstate(divide="ignore"):
            found += np.where(left > 1, np.log(floor / left + (1 - floor) * best), 0.0)  # the only arm left is certain
        if (left == 1).all():
            break
    return found


def chances(score: Array, eligible: Flags | None = None, *, temperature: float, floor: float) -> Array:
    """Probability of each arm at position 1, (n, m), by scores (n, m); rows sum to 1. eligible (n, m): the arms that
    have one, None: all."""
    found = softmax(score if eligible is None else np.where(eligible, score, -np.inf), temperature=temperature)
    if floor:
        found *= 1 - floor
        share = (floor / _many(score, eligible)).astype(found.dtype)[:, None]
        found += share if eligible is None else share * eligible
    return found


def _many(score: Array, eligible: Flags | None) -> Index:
    """How many arms each row may show, (n,)."""
    return np.full(len(score), score.shape[1]) if eligible is None else eligible.sum(axis=1)


def divergence(old: Array, new: Array) -> Array:
    """KL(old || new) of distributions over arms, (n,) in nats, both (n, m)."""
    ratio = np.log(np.maximum(old, 1e-30)) - np.log(np.maximum(new, 1e-30))
    found: Array = np.einsum("nm,nm->n", old, ratio)
    return found
