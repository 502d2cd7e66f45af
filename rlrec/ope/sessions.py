"""From visits to estimates: the fold of the session estimators, and what is reported when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rlrec.arrays import Array
from rlrec.errors import InputError
from rlrec.ope import diagnostics, intervals
from rlrec.ope.diagnostics import Weights
from rlrec.ope.estimate import Estimate, Terms, View
from rlrec.ope.intervals import UNKNOWN, Bounds, Replicates, Studentised
from rlrec.ope.moments import Moments, Steps, Summary, moments, steps
from rlrec.ope.sequential import SessionEstimator
from rlrec.ope.visits import Course, VisitBatch

# What diagnostics need, whichever estimators are asked for.
_CORE = ("rows", "weight", "mean_weight")
_SUPPORTED = 0.05  # effective sample size at a step, of the visits, from which on the log supports the target there


@dataclass(frozen=True, eq=False)
class SessionStat:
    """What a fold keeps of the visits: `stat(batch_1) + stat(batch_2)`.

    moments: sums over clusters of what a visit adds.   steps: the same at every step; None if no estimator needs it
    squares (2, horizon): sums over visits of w_t and of its square
    end, along: diagnostics of the weights at the end of visits, and of their means along them"""

    moments: Moments
    steps: Steps | None
    squares: Array
    end: Weights
    along: Weights

    def __add__(self, other: SessionStat) -> SessionStat:
        if (self.steps is None) != (other.steps is None):
            raise ValueError("statistics of different estimators do not add up")
        return SessionStat(
            self.moments + other.moments,
            None if self.steps is None or other.steps is None else self.steps + other.steps,
            self.squares + other.squares,
            self.end + other.end,
            self.along + other.along,
        )


@dataclass(frozen=True, kw_only=True)
class SessionFold:
    """The session estimators asked for, about one target.

    estimators: label -> estimator, as `ope.parse(...).sessions` gives them
    gamma: discount per step, in [0, 1]
    horizon: steps of the longest visit of the whole log, at least 1
    spanning: a cluster may come back in a later batch (users). Without it a cluster must lie whole in one batch.

    Every cluster that spans batches takes 64 bytes at most; sums at every step, where an estimator needs them
    (wpdis, wdr), 4,096 x 8 bytes a step and column.
    Raises InputError for a gamma or horizon out of range."""

    estimators: Mapping[str, SessionEstimator]
    gamma: float
    horizon: int
    spanning: bool

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise InputError(f"gamma {self.gamma:g} is not between 0 and 1", hint="0.9 is usual; 1 discounts nothing")
        if self.horizon < 1:
            raise InputError(f"horizon {self.horizon} is not 1 or more")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every column per visit that some estimator needs, once."""
        asked = [name for kind in self.estimators.values() for name in kind.columns]
        return tuple(dict.fromkeys([*_CORE, *asked]))

    @cached_property
    def by_step(self) -> tuple[str, ...]:
        """Every column per step that some estimator needs, once."""
        return tuple(dict.fromkeys(kind.by_step for kind in self.estimators.values() if kind.by_step is not None))

    def stat(self, batch: VisitBatch) -> SessionStat:
        """The statistic of one batch; an empty batch is the zero of the sum.

        Raises InputError for a visit of more steps than the horizon, and if an estimator needs a model and the batch
        has none."""
        if (longest := int(batch.length.max(initial=0))) > self.horizon:
            raise InputError(f"a visit has {longest} steps, more than the horizon of {self.horizon}")
        course = Course(batch, self.gamma)
        terms = np.column_stack([getattr(course, name) for name in self.columns])
        return SessionStat(
            moments(terms, batch.cluster, columns=self.columns, spanning=self.spanning),
            self._steps(course) if self.by_step else None,
            self._squares(course),
            _diagnosed(course, course.weight, moved=course.weighted_return, largest=course.weight),
            _diagnosed(course, course.mean_weight, moved=course.stepwise_return, largest=course.most),
        )

    def _steps(self, course: Course) -> Steps:
        columns = {name: getattr(course, name) for name in self.by_step}
        batch = course.batch
        return steps(columns, course.ratio, cluster=batch.cluster, length=batch.length, horizon=self.horizon)

    def _squares(self, course: Course) -> Array:
        """All visits as one cluster: their sums of w_t and w_t^2 at every step."""
        one = np.zeros(len(course.batch), np.int64)
        if not len(one):
            return np.zeros((2, self.horizon))
        held = [
            steps({}, weight, cluster=one, length=course.batch.length, horizon=self.horizon).sums[0, 0]
            for weight in (course.ratio, course.ratio**2)
        ]
        return np.array(held)

    def finish(
        self,
        stat: SessionStat,
        *,
        interval: str = "bootstrap-t",
        level: float = 0.95,
        cluster: str = "session",
        greedy: bool = False,
        extra_reasons: tuple[str, ...] = (),
        seed: int = 0,
        replicates: int = intervals.REPLICATES,
    ) -> list[Estimate]:
        """One estimate for each estimator, in the order asked. What is asked: as `estimate.Fold.finish`.

        Raises InputError for an interval that one of the estimators does not have, and a level outside (0, 1)."""
        intervals.check(interval, level, estimators=self.estimators)
        asked = Terms(
            interval=interval,
            level=level,
            cluster=cluster,
            greedy=greedy,
            extra_reasons=extra_reasons,
            seed=seed,
            replicates=replicates,
        )
        summary, drawn = stat.moments.summary(), None
        if interval == "bootstrap-t" and any(kind.by_step is None for kind in self.estimators.values()):
            drawn = intervals.replicates(summary, seed=seed, number=replicates)
        views = [view(stat, kind, label=label, summary=summary) for label, kind in self.estimators.items()]
        manner = "greedy" if greedy else "as served"
        estimand = f"mean return per session, {manner}, gamma {self.gamma:.12g}"
        by_step, last = _support(stat)
        return [
            replace(one.estimate(asked, drawn), estimand=estimand, ess_by_step=by_step, horizon=last) for one in views
        ]


def _diagnosed(course: Course, weight: Array, *, moved: Array, largest: Array) -> Weights:
    batch = course.batch
    return diagnostics.weighed(
        weight,
        moved=moved,
        not_default=course.rewarded,
        largest=float(largest.max(initial=0.0)),
        bound=float(course.bound.max(initial=0.0)),
        unsupported=batch.unsupported,
        left_out=batch.left_out,
    )


def _support(stat: SessionStat) -> tuple[tuple[float, ...], int | None]:
    """Effective sample size over visits at every step, and the first step at which it is too small."""
    total, squares = stat.squares
    ess = np.divide(total**2, squares, out=np.zeros(len(total)), where=squares > 0)
    short = np.flatnonzero(ess < _SUPPORTED * stat.end.rows)
    return tuple(ess.tolist()), int(short[0]) if len(short) else None


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionView(View):
    """One session estimator's side of the sums."""

    kind: SessionEstimator
    steps: Steps | None

    @property
    def weighing(self) -> str:
        return self.kind.weighing

    @cached_property
    def units(self) -> Array:
        """The estimator's columns per cluster or block, (m, d): what its error and bootstrap are made from."""
        narrow = self.summary.units[:, self.at]
        if self.kind.by_step is None or self.steps is None:
            return narrow
        sums = self.steps.sums
        return np.column_stack([narrow, sums[:, self.steps.columns.index(self.kind.by_step)], sums[:, -1]])

    def resampled(self, *, seed: int, number: int) -> Studentised:
        """Value, error and bootstrap of an estimate that has columns per step."""
        return intervals.studentised(self.kind, self.units, seed=seed, number=number)

    def estimated(self) -> tuple[float, float]:
        if self.kind.by_step is None:
            return super().estimated()
        found = self.resampled(seed=0, number=0)
        return found.value, found.error

    def bounds(self, asked: Terms, drawn: Replicates | None) -> Bounds:
        if self.kind.by_step is None:
            return super().bounds(asked, drawn)
        value, error = self.value
        if not np.isfinite(value) or not np.isfinite(error):
            return UNKNOWN
        if asked.interval == "normal":
            return intervals.normal(value, error, asked.level)
        return self.resampled(seed=asked.seed, number=asked.replicates).bounds(asked.level)


def view(stat: SessionStat, kind: SessionEstimator, *, label: str, summary: Summary) -> SessionView:
    """The estimator's side of a statistic, whose moments were summed up."""
    weights = stat.end if kind.weighing == "weight" else stat.along
    return SessionView(summary=summary, weights=weights, kind=kind, label=label, steps=stat.steps)
