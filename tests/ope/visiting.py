"""Visits small enough to enumerate, drawn from a known truth, or of any shape; and estimates by plain loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from rlrec import ope
from rlrec.arrays import Array
from rlrec.ope.comparisons.comparison import Comparison, compare
from rlrec.ope.sums.visits import VisitBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import RowSums
from rlrec.ope.units.sessions import SessionFold

# Two states, two arms. From either state arm 0 leaves with chance 1/2, arm 1 with 1/4; else the state is 0 or 1 evenly.
LOGGER = np.array([[0.5, 0.5], [0.25, 0.75]])
TARGET = np.array([[0.25, 0.75], [0.75, 0.25]])
LEAVES = np.array([0.5, 0.25])
REWARD = np.array([[1.0, 0.0], [0.5, 2.0]])
LONGEST = 3
Path = list[tuple[int, int]]


def _paths(state: int, left: int) -> list[tuple[float, Path]]:
    """Everything that can happen from a state: its chance under the logger, and the steps."""
    paths = []
    for arm in range(2):
        p, step = LOGGER[state, arm], (state, arm)
        ends = 1.0 if left == 1 else LEAVES[arm]
        paths.append((p * ends, [step]))
        if ends < 1:
            for then in range(2):
                paths += [(p * (1 - ends) / 2 * q, [step, *later]) for q, later in _paths(then, left - 1)]
    return paths


def value(gamma: float, state: int = 0, left: int = LONGEST) -> float:
    """The target's mean return from a state, by dynamic programming."""
    if not left:
        return 0.0
    on = [0.0 if left == 1 else 1 - LEAVES[arm] for arm in range(2)]
    later = sum(value(gamma, then, left - 1) / 2 for then in range(2)) if left > 1 else 0.0
    return float(sum(TARGET[state, arm] * (REWARD[state, arm] + gamma * on[arm] * later) for arm in range(2)))


def complete(*, model: bool = True) -> VisitBatch:
    """The log in which every visit that can happen stands as often as it is likely, with a wrong model that agrees
    with itself: its mean over the target's arms is `expected`."""
    paths = _paths(0, LONGEST)
    times = [round(4096 * p) for p, _ in paths]
    assert all(abs(4096 * p - n) < 1e-9 for (p, _), n in zip(paths, times, strict=True))
    visits = [steps for (_, steps), n in zip(paths, times, strict=True) for _ in range(n)]
    state, arm = np.array([step for steps in visits for step in steps]).T
    start = np.r_[0, np.cumsum([len(steps) for steps in visits])]
    believed = np.array([[0.3, 1.1], [2.0, -0.4]])
    return VisitBatch(
        start=start,
        reward=REWARD[state, arm],
        log_ratio=np.log(TARGET / LOGGER)[state, arm],
        cluster=np.arange(len(visits)) // 2,
        predicted=believed[state, arm] if model else None,
        expected=(TARGET * believed).sum(axis=1)[state] if model else None,
        largest=np.log((TARGET / LOGGER).max(axis=1))[state],
    )


def ragged(seed: int, *, visits: int = 60, longest: int = 7, users: int = 25, spread: float = 0.5) -> VisitBatch:
    """Visits of any shape: ratios, rewards and values that have nothing to do with each other."""
    generator = np.random.default_rng(seed)
    start = np.r_[0, np.cumsum(generator.integers(1, longest + 1, visits))]
    n = start[-1]
    logs = generator.normal(-(spread**2) / 2, spread, n)
    return VisitBatch(
        start=start,
        reward=generator.normal(1, 1, n) * (generator.random(n) < 0.7),
        log_ratio=np.where(generator.random(n) < 0.03, -np.inf, logs),
        cluster=generator.integers(0, users, visits) * 7919 - 40_000,
        predicted=generator.normal(1, 1, n),
        expected=generator.normal(1, 1, n),
    )


def by_loops(batch: VisitBatch, gamma: float) -> dict[str, float]:
    """The six estimates as their papers have them, number by number."""
    start = batch.start.tolist()
    visits = [range(low, high) for low, high in pairwise(start)]
    longest, n = max(map(len, visits)), len(visits)
    rho, r = [math.exp(x) for x in batch.log_ratio.tolist()], batch.reward.tolist()
    q, v = batch.predicted.tolist(), batch.expected.tolist()
    w = []  # of every visit at every step, constant after its end
    for rows in visits:
        weight, of_visit = 1.0, []
        for t in range(longest):
            weight *= rho[rows[t]] if t < len(rows) else 1.0
            of_visit.append(weight)
        w.append(of_visit)
    totals = [math.fsum(of_visit[t] for of_visit in w) for t in range(longest)]
    returns = [math.fsum(gamma**t * r[row] for t, row in enumerate(rows)) for rows in visits]
    ended = [of_visit[-1] for of_visit in w]
    values = {
        "tis": math.fsum(a * b for a, b in zip(ended, returns, strict=True)) / n,
        "wis": math.fsum(a * b for a, b in zip(ended, returns, strict=True)) / math.fsum(ended),
        "pdis": math.fsum(gamma**t * w[i][t] * r[row] for i, rows in enumerate(visits) for t, row in enumerate(rows))
        / n,
        "wpdis": 0.0,
        "wdr": 0.0,
        "dr-rl": 0.0,
    }
    for rows in visits:
        back = 0.0
        for row in reversed(rows):
            back = v[row] + rho[row] * (r[row] + gamma * back - q[row])
        values["dr-rl"] += back / n
    for i, rows in enumerate(visits):
        for t, row in enumerate(rows):
            share, before = w[i][t] / totals[t], w[i][t - 1] / totals[t - 1] if t else 1 / n
            values["wpdis"] += gamma**t * share * r[row]
            values["wdr"] += gamma**t * (share * (r[row] - q[row]) + before * v[row])
    return values


def folded(
    batch: VisitBatch, names: str = "session", *, gamma: float = 0.9, spans_batches: bool = True
) -> tuple[SessionFold, RowSums]:
    """The fold and the statistic of one batch."""
    horizon = int(batch.length.max(initial=1))
    fold = SessionFold(estimators=ope.parse(names).sessions, gamma=gamma, horizon=horizon, spans_batches=spans_batches)
    return fold, fold.row_sums(batch)


def difference(
    fold: SessionFold, partial: RowSums, baseline: RowSums, *, name: str = "wdr", **options: object
) -> Comparison:
    """One partial of a fold less another one, by an estimator of it. options: of `compare`."""
    ends = [
        estimator_fold
        for side in (partial, baseline)
        for estimator_fold in fold.estimator_folds(side)
        if estimator_fold.label == name
    ]
    return compare(*ends, **options)


def judged(
    batch: VisitBatch, names: str = "session", *, gamma: float = 0.9, spans_batches: bool = True, **options: object
) -> list[Estimate]:
    """Estimates of one batch."""
    fold, partial = folded(batch, names, gamma=gamma, spans_batches=spans_batches)
    return fold.finish(partial, FinishOptions(**options))


def walks(
    seed: int, targets: list[list[float]], *, visits: int = 4000, users: int = 4000, steps: int = 6
) -> tuple[list[VisitBatch], list[float]]:
    """A log of a uniform logger on three arms, as each target (probabilities of the arms) sees it, and the targets'
    true undiscounted returns. Visits last 1 to `steps` decisions; a user has a mood; arms pay 10, 20 and 30 % of the
    time. The model knows the worth of arms, and nothing of moods."""
    generator = np.random.default_rng(seed)
    length = generator.integers(1, steps + 1, visits)
    start = np.r_[0, np.cumsum(length)]
    arm = generator.integers(0, 3, start[-1])
    cluster = np.arange(visits) % users
    mood = np.repeat(1 + 0.5 * generator.choice([-1, 1], users)[cluster], length)
    worth = np.array([0.1, 0.2, 0.3])
    reward = (generator.random(start[-1]) < worth[arm] * mood).astype(np.float64)
    left = np.repeat(start[1:], length) - np.arange(start[-1])  # decisions from this one on
    means = [float(np.array(target) @ worth) for target in targets]
    batches = [
        VisitBatch(
            start=start,
            reward=reward,
            log_ratio=np.log(3 * np.array(target))[arm],
            cluster=cluster,
            predicted=worth[arm] + (left - 1) * mean,
            expected=left * mean,
            largest=np.full(len(arm), np.log(3 * max(target))),
            unsupported=np.zeros(len(arm)),
        )
        for target, mean in zip(targets, means, strict=True)
    ]
    return batches, [(1 + steps) / 2 * mean for mean in means]


def held(batch: VisitBatch) -> Array:
    """w_t of every visit at every step, (s, longest), by loops."""
    longest = int(batch.length.max())
    table = np.empty((len(batch), longest))
    for i, (low, high) in enumerate(zip(batch.start, batch.start[1:], strict=False)):
        w = np.cumprod(np.exp(batch.log_ratio[low:high]))
        table[i] = np.r_[w, np.full(longest - len(w), w[-1])]
    return table
