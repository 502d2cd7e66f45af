"""Candidates that learn from the log that they are judged on: each row by what was learned before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlrec.app.evaluation.rows.log_rows import ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.evaluation.targets.targets import Target
from rlrec.arrays import Ids
from rlrec.store.database.bulk import Columns

CELLS = 500_000  # numbers of worked-out cases that each moment remembers


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningTarget(Target):
    """A candidate as it learns. moments: the target at the times `begins` (b,), microseconds, ascending, each of which
    knows of nothing later; serving: that of the last one."""

    begins: Ids
    moments: Sequence[Target]


@dataclass(eq=False)
class LearningScorer(Scorer):
    """The probabilities of a candidate at each moment. Decisions before the first one are asked about it, too."""

    scorers: Sequence[Scorer] = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.target, LearningTarget)
        options: dict[str, Any] = {"samples": self.samples, "seed": self.seed, "replica": self.replica}
        self.scorers = [Scorer(moment, self.arms, **options) for moment in self.target.moments]

    def replicas(self, slots: Columns, logged: LoggedBatch, *, marginals: bool) -> list[Scorer]:
        replicas = [
            replace(self, replica=replica.replica) for replica in super().replicas(slots, logged, marginals=marginals)
        ]
        for replica in replicas:  # which share what was simulated
            replica.scorers = [replace(scorer, replica=replica.replica) for scorer in self.scorers]
        return [*replicas]

    def case_rows(
        self, rows: ImpressionRows, logged: LoggedBatch, *, models: bool = False, joint: bool = False,
        subset: Ids | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        assert isinstance(self.target, LearningTarget)
        subset = np.arange(len(rows)) if subset is None else subset
        moment = np.searchsorted(self.target.begins, rows.slots["at"][subset], side="right") - 1
        for number, scorer in enumerate(self.scorers):
            members = subset[np.maximum(moment, 0) == number]
            yield from scorer.case_rows(rows, logged, models=models, joint=joint, subset=members)
            if scorer.cells > CELLS:  # there are many candidates
                scorer.forget()
