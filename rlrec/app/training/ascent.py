"""The climb: epochs over sets of visits, and the best of them by what a part of the log says that taught none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.training.array_file import Sets
from rlrec.app.training.blocks import blocks
from rlrec.app.training.dataset import Part, Rows
from rlrec.app.training.holdout_value import Judge
from rlrec.arrays import Array, Ids
from rlrec.errors import RlrecError
from rlrec.policy import baseline, reinforce, returns
from rlrec.policy.adam import Adam
from rlrec.policy.baseline import ValueSums
from rlrec.policy.gradient import Gradient, Parameters, State
from rlrec.policy.reinforce import Objective, Pages

TRAIN, TUNE, GATE = 0, 1, 2
Z = 2.0  # standard errors below the gain lies the bound by which epochs are compared: the surer one wins
LEAST = 100  # effective visits for tuning that an epoch must have: a gate refuses to judge by less than half of them


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to climb. discounted: gamma^t multiplies the gradient at step t. batch: visits of a set, which is a step of
    Adam, which `lr` is the size of. clip_weight: the largest importance weight; None: weights as they are. top_k: 0 for
    pages by their exact probability.

    patience: epochs without a better one after which it ends. kl_stop: mean KL(start || now) at which it ends.
    shaping: potential of a state, as weights of its features by name."""

    gamma: float = 1.0
    baseline: str = "value"
    epochs: int = 60
    lr: float = 0.005
    entropy: float = 0.0
    clip_weight: float | None = 20.0
    top_k: int = 0
    discounted: bool = True
    kl_stop: float | None = None
    patience: int = 20
    batch: int = 500
    shaping: Mapping[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> Objective:
        clip = np.inf if self.clip_weight is None else self.clip_weight
        return Objective(clip=clip, entropy=self.entropy, top=self.top_k)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A point of the learning curve. value: of the policy then, and gain: what it is above the start, both on the part
    for tuning, with bounds; entropy and kl in nats, there; variance of the gradient with the baseline and without."""

    epoch: int
    value: float | None
    gain: float | None
    lower: float | None
    upper: float | None
    ess: float | None
    entropy: float | None
    kl: float | None
    clipped: float
    variance: float
    variance_without_baseline: float

    @property
    def rank(self) -> tuple[bool, float]:
        """How good it is: what the log can tell of comes first, then the lower bound of the gain."""
        return (self.ess or 0.0) >= LEAST, -np.inf if self.lower is None else self.lower


@dataclass(frozen=True, eq=False, kw_only=True)
class Climbed:
    """Where the climb led: the parameters of the best epoch (0: where it began), and how it went."""

    parameters: Parameters
    best: int
    curve: list[Epoch]
    promising: bool

    @property
    def chosen(self) -> Epoch | None:
        """The point of the curve that is the best one; None where it is where the climb began."""
        return self.curve[self.best - 1] if self.best else None


class Climber:
    """One training on the visits that teach."""

    def __init__(self, train: Part, policy: Gradient, options: Options) -> None:
        self.policy, self.options = policy, options
        self._potential = self._weights(options.shaping)
        self._prepare(train)
        self._lessons = Lessons()
        for rows in train.sets():
            self._lessons.add(self.pages(rows))

    def close(self) -> None:
        """Give back what the lessons took of the disk."""
        self._lessons.close()

    def _weights(self, shaping: Mapping[str, float]) -> Array:
        return np.array([shaping.get(name, 0.0) for name in self.policy.names])

    def _prepare(self, train: Part) -> None:
        """What baselines need to know of the whole log that teaches."""
        total, count = 0.0, 0
        sums: ValueSums | None = None
        if self.options.baseline in ("mean", "value"):
            for rows in train.sets():
                gained = self._returns(rows)
                total, count = total + float(gained.sum()), count + len(gained)
                if self.options.baseline == "value":
                    more = baseline.value_sums(rows.x.astype(np.float64), gained, self._fold(rows))
                    sums = more if sums is None else sums + more
        self._mean = total / max(1, count)
        self._value = None if sums is None else baseline.fitted(sums)

    def pages(self, rows: Rows) -> Iterator[Pages]:
        """What some visits teach, whatever the parameters are."""
        gained = self._returns(rows)
        step = returns.steps(rows.start)
        scale: Array = np.power(self.options.gamma, step) if self.options.discounted else np.ones(len(step))
        return grouped(rows, gained - self._baseline(rows, gained), gained, scale, slots=bool(self.options.top_k))

    def _fold(self, rows: Rows) -> Ids:
        """Which half the cluster of each decision belongs to."""
        half = (rows.cluster.view(np.uint64) >> np.uint64(8)) % np.uint64(baseline.FOLDS)
        return np.repeat(half.astype(np.int64), rows.length)

    def _returns(self, rows: Rows) -> Array:
        found = returns.discounted(rows.reward, rows.start, gamma=self.options.gamma)
        return returns.shaped(found, rows.x @ self._potential) if self._potential.any() else found

    def _baseline(self, rows: Rows, gained: Array) -> Array:
        if self._value is not None:
            return baseline.values(rows.x, self._fold(rows), self._value)
        if self.options.baseline == "rloo":
            return baseline.leave_one_out(gained, returns.steps(rows.start))
        return np.full(len(gained), self._mean)

    # -- epochs --

    def climb(
        self, start: Parameters, judge: Judge | None, *, progress: Callable[[Epoch], None] | None = None
    ) -> Climbed:
        """Climb from some parameters. judge: of the part for tuning; None: there is none, and the last epoch counts."""
        now, adam = start, Adam.start(start)
        best, rank, chosen, curve = 0, (False, -np.inf), start, list[Epoch]()
        for epoch in range(1, self.options.epochs + 1):
            now, adam, sums = self._epoch(now, adam)
            point = self._point(epoch, now, sums, judge)
            curve.append(point)
            if progress is not None:
                progress(point)
            if point.kl is not None and self.options.kl_stop is not None and point.kl > self.options.kl_stop:
                break
            its = point.rank if judge is not None else (True, float(epoch))
            if its > rank:
                best, rank, chosen = epoch, its, now
            elif epoch - best >= self.options.patience:
                break
        return Climbed(parameters=chosen, best=best, curve=curve, promising=rank > (True, 0.0))

    def _epoch(self, now: Parameters, adam: Adam) -> tuple[Parameters, Adam, reinforce.Sums]:
        total = reinforce.nothing(now)
        for lesson in self._lessons:
            found = reinforce.sums(self.policy, now, lesson, self.options.objective)
            del lesson  # before the next one is mapped
            if not found.finite:
                raise RlrecError("the climb left all numbers behind", hint=f"--lr {self.options.lr:g} is too large")
            now, adam = adam.step(now, found.mean, rate=self.options.lr)
            total = total + found
        return now, adam, total

    def _point(self, epoch: int, now: Parameters, sums: reinforce.Sums, judge: Judge | None) -> Epoch:
        variance, without = sums.variances
        told: dict[str, Any] = dict.fromkeys(("value", "gain", "lower", "upper", "ess", "entropy", "kl"))
        if judge is not None:
            told = judge.point(now, z=Z)
        return Epoch(
            epoch=epoch, clipped=sums.clipped_share, variance=variance, variance_without_baseline=without, **told
        )


STATE = ("x", "row", "arm", "own")
PAGES = ("places", "described", "shown", "log_propensity", "gain", "raw", "scale")


class Lessons:
    """What sets of visits teach, as it is folded in every epoch: worked out once, and kept on disk."""

    def __init__(self) -> None:
        self._sets = Sets()

    def __iter__(self) -> Iterator[list[Pages]]:
        for number in range(len(self._sets)):
            yield [_pages(group) for group in self._sets.read(number)]

    def close(self) -> None:
        """Let the file go."""
        self._sets.close()

    def add(self, lesson: Iterable[Pages]) -> None:
        """One more."""
        self._sets.add([_arrays(pages) for pages in lesson])


def _arrays(pages: Pages) -> dict[str, npt.NDArray[Any]]:
    found = {name: getattr(pages.state, name) for name in STATE} | {name: getattr(pages, name) for name in PAGES}
    allowed = np.zeros((len(pages), 0), np.bool_) if pages.eligible is None else pages.eligible
    return found | {"eligible": np.packbits(allowed, axis=1)}


def _pages(found: dict[str, npt.NDArray[Any]]) -> Pages:
    state, packed = State(*(found[name] for name in STATE)), found["eligible"]
    allowed = np.unpackbits(packed, axis=1, count=len(found["places"])).view(np.bool_) if packed.size else None
    return Pages(state=state, eligible=allowed, **{name: found[name] for name in PAGES})


def grouped(rows: Rows, gain: Array, raw: Array, scale: Array, *, slots: bool = False) -> Iterator[Pages]:
    """Decisions as the fold takes them. slots: every slot for itself: it earns its own reward, and what comes after its
    page."""
    for block in blocks(rows):
        mine = block.rows
        at = rows.first[mine][:, None] + np.arange(block.shown.shape[1])
        slot = rows.earned[at] - rows.reward[mine][:, None] if slots else None
        yield Pages(
            state=block.state,
            places=block.places,
            described=block.described,
            shown=block.shown,
            log_propensity=rows.log_propensity[mine] if slot is None else rows.logged[at],
            gain=gain[mine] if slot is None else gain[mine][:, None] + slot,
            raw=raw[mine] if slot is None else raw[mine][:, None] + slot,
            scale=scale[mine],
            eligible=block.eligible,
        )
