"""This module has targets that learn from the log on which they are evaluated. Each row is evaluated with what the
target had learned before the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from rlrec.app.distributions import past_beliefs
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.rows.log_rows import ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.evaluation.targets.targets import Target
from rlrec.arrays import Array, Flags, Ids
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.ope.estimators.weighting import crammed_weights
from rlrec.ope.sums.base import LogBatch
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from rlrec.times import format_time

N_BLOCKS = 20  # stretches of the log; no later rows could evaluate what a policy learned in the last one


def time_blocks(unit: Unit, selection: Selection, n_blocks: int) -> list[Selection]:
    """Divide the selected decisions by time, in blocks with about equal numbers of decisions. Decisions of one time
    stay together, so that there may be fewer blocks. Raise CheckFailed if there are fewer than half of `n_blocks`."""
    extent = selected.extent(unit, selection)
    start_times = {
        selected.newest_at(unit, selection, -(-extent.decisions * n_later // n_blocks))
        for n_later in range(1, n_blocks)
    }
    begins = sorted(at for at in start_times if at is not None and at > extent.first_at)
    if len(begins) + 1 < n_blocks / 2 or extent.decisions < n_blocks:
        hint = "take in more of the log: what came first teaches, and what came later judges"
        cause = "too many have the same time" if extent.decisions >= n_blocks else "they are too few"
        raise CheckFailed(
            f"{quantity(extent.decisions, 'decision')} make no {n_blocks} stretches of time: {cause}", hint=hint
        )
    limits = [selection.since, *begins, selection.until]
    return [replace(selection, since=start, until=end) for start, end in pairwise(limits)]


class LearningTarget(Target, eq=False):
    """A LearningTarget is a candidate that learns from the log in b steps.

    begins (b,): the time at which each step begins, in microseconds, ascending; moments: for each step, a function
    that returns the candidate's distribution, with what it had learned before the step; serving: the last of these
    distributions."""

    begins: Ids
    moments: Sequence[Callable[[], VersionDistribution]]
    learns: ClassVar[bool] = True


@dataclass(eq=False)
class LearningScorer(Scorer):
    """A LearningScorer computes the probabilities of a candidate at each step of learning. They are stored for one
    batch only, since the steps are many. scorers: the scorer of each step; batch: the batch of these scorers."""

    target: LearningTarget
    scorers: dict[int, Scorer] = field(default_factory=dict)  # by moment, for one batch
    batch: LoggedBatch | None = None

    def replicas(self, slots: Columns, batch: LoggedBatch, *, marginals: bool) -> list[Scorer]:
        numbers = [scorer.replica for scorer in super().replicas(slots, batch, marginals=marginals)]
        by_moment = [{key: replace(scorer, replica=n) for key, scorer in self.scorers.items()} for n in numbers]
        return [replace(self, replica=n, scorers=scorers) for n, scorers in zip(numbers, by_moment, strict=True)]

    def case_rows(
        self, rows: ImpressionRows, batch: LoggedBatch, *, models: bool = False, joint: bool = False,
        subset: Ids | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        if self.batch is not batch:
            self.batch, self.scorers = batch, {}
        subset = np.arange(len(rows)) if subset is None else subset
        moment = np.searchsorted(self.target.begins, rows.slots["at"][subset], side="right") - 1
        for number, make in enumerate(self.target.moments):
            members = subset[np.maximum(moment, 0) == number]
            if len(members) and number not in self.scorers:
                target = Target(
                    name=self.target.name, reward=self.target.reward, serving=make(), arm_lists=self.target.arm_lists
                )
                self.scorers[number] = Scorer(target, self.arms, self.samples, self.seed, self.replica)
            if len(members):
                yield from self.scorers[number].case_rows(rows, batch, models=models, joint=joint, subset=members)
        if not self.target.is_sampled:  # simulated pages are used again by the replicas
            self.scorers.clear()


# -- a policy that learns while it serves --


class CrammedTarget(Target, eq=False):
    """A CrammedTarget is a version that learned from its own decisions in b steps. begins (b,): the time at which each
    step begins, in microseconds, ascending; serving: the distribution in the last step; steps: the version as a target
    in each step; counts (b,): the weight of each step in the rows that come later."""

    begins: Ids
    steps: Sequence[Target]
    counts: Array
    learns: ClassVar[bool] = True

    def taught_by(self, slots: Columns) -> Flags:
        """Return False for each row, (n,): no row counts as a row that the target learned from, since each step is
        evaluated only on later rows."""
        return np.zeros(len(slots["decision_id"]), np.bool_)


@dataclass(eq=False)
class CramScorer(Scorer):
    """A CramScorer computes the probabilities of a version that learned from its own decisions, and the weights of the
    steps in which it learned."""

    target: CrammedTarget

    def log_batch(self, rows: ImpressionRows, batch: LoggedBatch, values: Any) -> LogBatch:
        def weights(step: Target) -> Array:
            # kept for one batch only, since there are many
            scorer = Scorer(step, self.arms, self.samples, self.seed)
            scorer.describe(batch)
            return scorer.log_batch(rows, batch, None).weight

        target, at = self.target, rows.slots["at"]
        is_later = (at >= begin for begin in target.begins)
        cram_weights = crammed_weights(map(weights, target.steps), is_later, target.counts)
        return replace(super().log_batch(rows, batch, values), crammed=cram_weights)


def scorer_type(target: Target) -> type[Scorer]:
    """Return the scorer class for a target that learns."""
    return LearningScorer if isinstance(target, LearningTarget) else CramScorer


def cram_target(unit: Unit, target: Target, selection: Selection, *, greedy: bool) -> Target:
    """Split a target into the steps in which it learned from the selected decisions. If the target has learned nothing
    while serving, return it unchanged. Raise InputError if the target began with what it had learned from this log, or
    if it draws lists of candidates. greedy: whether the target is evaluated without exploration."""
    if target.serving is None or not target.serving.version.learning or not target.lessons:
        return target
    version, (_, *initial_lessons) = target.serving.version, target.lessons
    for lesson in initial_lessons:
        taught_selection = replace(selection, last_id=lesson.selection.last_id)
        if (extent := selected.extent(unit, taught_selection)).decisions:
            since = f"--log since={format_time(extent.last_at + 1)} takes decisions after those"
            hint = f"{since}; `rlrec sweep` lets a kind learn anew, and judges that"
            raise InputError(f"{version.reference} began with what it learned from decisions of this log", hint=hint)
    if target.draws_candidates:
        raise InputError("cram has no weights of lists of candidates", hint="use --estimator snips")
    mature_selection = replace(selection, until=min(selection.until or unit.now, unit.now - target.reward.window_us))
    blocks = time_blocks(unit, mature_selection, N_BLOCKS)
    begin_at = selected.extent(unit, mature_selection).first_at
    begin_times = np.array([begin_at, *(block.since for block in blocks[1:])])
    sizes = [selected.extent(unit, block).decisions for block in blocks]
    counts = sum(sizes) / np.cumsum(sizes[::-1])[::-1]
    # what it had learned by then: the last change that an earlier decision used
    belief_points = [policies.belief_at(unit, version.policy.id, begin) for begin in begin_times.tolist()]
    seq, ordinal = np.maximum(belief_points, (version.seq, version.ordinal)).T
    moments = past_beliefs.moments(unit, version, seq, ordinal, greedy=greedy)
    distributions = [(distribution, int(row)) for rows, distribution in moments for row in rows]
    steps = [replace(target, serving=distribution, seq=int(seq[row])) for distribution, row in distributions]
    options = {entry.name: getattr(target, entry.name) for entry in fields(Target)} | {"serving": steps[-1].serving}
    return CrammedTarget(**options, begins=begin_times, steps=steps, counts=counts)
