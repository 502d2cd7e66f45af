"""Pages of rankers whose clicks follow a known model."""

from __future__ import annotations

import numpy as np

from rlrec.arrays import Array
from rlrec.ope.checks.positions import PositionRows
from rlrec.policy.scores.families.gumbel import Gumbel
from rlrec.policy.slates import slate

CURVE = 1 / np.arange(1, 6)


def ranked(seed: int, *, pages: int, contexts: int = 1, arms: int = 50, noise: float = 0.3, model: str = "pbm",
           curve: Array = CURVE, share: float = 1.0) -> PositionRows:  # fmt: skip
    """Pages that show good arms above, as a ranker with noise does; ten pages a user.

    Relevance is Beta(0.7, 3) of arm and (hidden) context. model: dcm goes on after half of the clicks. share: by which
    the attraction of all arms is multiplied."""
    generator, size, drawn = np.random.default_rng(seed), len(curve), []
    for _ in range(contexts):
        relevance = np.clip(generator.beta(0.7, 3, arms), 1e-6, 1 - 1e-6)
        logit = np.log(relevance / (1 - relevance)) / noise
        shown = np.argsort(-(logit + generator.gumbel(size=(pages // contexts, arms))), axis=1)[:, :size]
        marginals = slate.marginals(Gumbel(logit), size=size, floor=0.0)
        drawn.append((shown, share * relevance[shown], marginals[:, shown].transpose(1, 2, 0)))
    shown, attraction, marginals = (np.concatenate(each) for each in zip(*drawn, strict=True))
    order = generator.permutation(len(shown))
    shown, attraction, marginals = shown[order], attraction[order], marginals[order]
    liked = generator.random(shown.shape) < attraction
    if model == "pbm":
        click = liked & (generator.random(shown.shape) < curve)
    else:
        stops = liked & (generator.random(shown.shape) < (1.0 if model == "cascade" else 0.5))
        click = liked & (np.cumsum(stops, axis=1) - stops == 0)
    n = len(shown)
    users = generator.integers(0, 2**62, n // 10 + 1)
    return PositionRows(
        page=np.repeat(np.arange(n), size),
        arm=shown.ravel(),
        position=np.tile(np.arange(1, size + 1), n),
        reward=click.ravel().astype(np.float64),
        cluster=np.repeat(users[np.arange(n) // 10], size),
        count=np.ones(n * size),
        marginals=marginals.reshape(-1, size),
    )


def take(rows: PositionRows, which: Array) -> PositionRows:
    return PositionRows(**{name: column[which] for name, column in vars(rows).items()})
