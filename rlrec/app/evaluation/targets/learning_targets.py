"""Candidates that learn from the log that they are judged on: each row by what was learned before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.rows.log_rows import ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.evaluation.targets.targets import Target
from rlrec.arrays import Ids
from rlrec.store.database.bulk import Columns


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningTarget(Target):
    """A candidate as it learns. moments: functions that make what it serves from the times `begins` (b,) on,
    microseconds, ascending, by what was learned before; serving: the last one."""

    begins: Ids
    moments: Sequence[Callable[[], VersionDistribution]]


@dataclass(eq=False)
class LearningScorer(Scorer):
    """The probabilities of a candidate at each moment; nothing is remembered beyond a batch, as there are many."""

    target: LearningTarget
    scorers: dict[int, Scorer] = field(default_factory=dict)  # by the moment, of one batch
    logged: LoggedBatch | None = None

    def replicas(self, slots: Columns, logged: LoggedBatch, *, marginals: bool) -> list[Scorer]:
        numbers = [scorer.replica for scorer in super().replicas(slots, logged, marginals=marginals)]
        by_moment = [{key: replace(scorer, replica=n) for key, scorer in self.scorers.items()} for n in numbers]
        return [replace(self, replica=n, scorers=scorers) for n, scorers in zip(numbers, by_moment, strict=True)]

    def case_rows(
        self, rows: ImpressionRows, logged: LoggedBatch, *, models: bool = False, joint: bool = False,
        subset: Ids | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        if self.logged is not logged:
            self.logged, self.scorers = logged, {}
        subset = np.arange(len(rows)) if subset is None else subset
        moment = np.searchsorted(self.target.begins, rows.slots["at"][subset], side="right") - 1
        for number, make in enumerate(self.target.moments):
            members = subset[np.maximum(moment, 0) == number]
            if len(members) and number not in self.scorers:
                target = Target(name=self.target.name, reward=self.target.reward, serving=make())
                self.scorers[number] = Scorer(target, self.arms, self.samples, self.seed, self.replica)
            if len(members):
                yield from self.scorers[number].case_rows(rows, logged, models=models, joint=joint, subset=members)
        if not self.target.sampled:  # what was simulated is used again by the replicas
            self.scorers.clear()
