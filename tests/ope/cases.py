"""Logs small enough to reckon by hand, and logs drawn from a known truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlrec import ope
from rlrec.ope.sums.base import LogBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import ImpressionFold

# w = 2, 1/2, 3/2, 0 and rewards 1, 1, 0, 3; q of the arm shown 1/2, 1/4, 1/2, 2; mean q of the target 3/4, 1/2, 1/2, 1.
HAND = LogBatch(
    reward=np.array([1.0, 1.0, 0.0, 3.0]),
    propensity=np.array([0.25, 0.5, 0.5, 0.5]),
    target=np.array([0.5, 0.25, 0.75, 0.0]),
    cluster=np.array([1, 1, 2, 3]),
    predicted=np.array([0.5, 0.25, 0.5, 2.0]),
    expected=np.array([0.75, 0.5, 0.5, 1.0]),
)

# Ten rows in two contexts g, five each, of three arms; the target and the model q depend on g.
_ARM = np.array([0, 1, 2, 0, 1, 2, 0, 0, 1, 2])
_G = np.repeat([0, 1], 5)
_TARGET = np.array([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3]])
_Q = np.array([[0.6, 0.4, 0.5], [0.5, 0.7, 0.2]])
TEN = LogBatch(
    reward=np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]),
    propensity=np.array([0.5, 0.3, 0.2, 0.5, 0.3, 0.2, 0.6, 0.6, 0.25, 0.15]),
    target=_TARGET[_G, _ARM],
    cluster=np.arange(10),
    predicted=_Q[_G, _ARM],
    expected=(_TARGET * _Q).sum(axis=1)[_G],
)


def drawn(seed: int, *, sessions: int = 300, spread: float = 1.0) -> tuple[LogBatch, float]:
    """A log of a uniform logger over five arms, sessions of 1 to 6 rows with an effect of their own, and the truth."""
    generator = np.random.default_rng(seed)
    target = np.array([0.5, 0.3, 0.1, 0.05, 0.05])
    worth = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    cluster = np.repeat(np.arange(sessions), generator.integers(1, 7, sessions))
    mood = 1 + spread * generator.choice([-1, 1], sessions)[cluster] / 1.0
    arm = generator.integers(0, 5, len(cluster))
    reward = (generator.random(len(cluster)) < worth[arm] * mood).astype(np.float64)
    batch = LogBatch(
        reward=reward,
        propensity=np.full(len(arm), 0.2),
        target=target[arm],
        cluster=cluster,
        predicted=worth[arm],
        expected=np.full(len(arm), target @ worth),
        largest=np.full(len(arm), 2.5),
        unsupported=np.zeros(len(arm)),
    )
    return batch, float(target @ worth)


def judged(batch: LogBatch, names: str, **options: object) -> list[Estimate]:
    """Estimates of one batch."""
    fold = ImpressionFold(estimators=ope.parse(names).impressions, spans_batches=False)
    return fold.finish(fold.row_sums(batch), FinishOptions(**options))


def parts(batch: LogBatch, sizes: Sequence[int]) -> list[LogBatch]:
    """The batch cut into pieces of these numbers of rows; the last takes the rest."""
    which = np.searchsorted(np.cumsum(sizes), np.arange(len(batch)), side="right")
    return [batch.take(which == piece) for piece in range(len(sizes) + 1)]
