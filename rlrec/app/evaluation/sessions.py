"""Estimates per session: every visit that is over is a row, weighed by all that was shown in it.

What visits are usable is the same for training: `visits.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlrec.app.evaluation import log_rows
from rlrec.app.evaluation import request as asking
from rlrec.app.evaluation.contexts import Contexts
from rlrec.app.evaluation.log_rows import Rows
from rlrec.app.evaluation.probabilities import Known, Scorer
from rlrec.app.evaluation.request import Asked, EmptyLog, View
from rlrec.app.evaluation.targets import Target
from rlrec.app.evaluation.visit_values import Decisions, Fitting, Shown, Values
from rlrec.app.log import ended_visits
from rlrec.app.log.ended_visits import Cutoff, Told, Visits
from rlrec.arrays import Array, Flags, Ids
from rlrec.errors import InputError
from rlrec.ope.estimate import Estimate, FinishOptions
from rlrec.ope.sequential import SessionEstimator
from rlrec.ope.sessions import SessionFold, SessionPartial
from rlrec.ope.visits import VisitBatch
from rlrec.policy.gradient import RECENCY, memory_of
from rlrec.store import reader
from rlrec.store.reader import ContextTexts


@dataclass(eq=False, kw_only=True)
class _View(View[SessionPartial]):
    """told: what became of the visits that were not used."""

    told: Told = field(default_factory=Told)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Visits as the targets of a view are asked about them. rows: of each page the lowest slot."""

    visits: Visits
    rows: Rows
    known: Known
    decisions: Decisions | None


class Sessions:
    """The estimators per session, over the log."""

    def __init__(self, asked: Asked, estimators: Mapping[str, SessionEstimator]) -> None:
        self.asked, self.unit = asked, asked.unit
        horizon = reader.steps(self.unit, asked.selection)
        if horizon > ended_visits.LONGEST:
            raise InputError(
                f"a session of {horizon:,} decisions is longer than the {ended_visits.LONGEST:,} that can be judged",
                hint="estimate per impression, or leave it out by --log",
            )
        self.fold = SessionFold(
            estimators=estimators, gamma=asked.request.gamma, horizon=max(1, horizon), spanning=asked.spanning
        )
        self.modelled = any(kind.modelled for kind in estimators.values())
        self.views = asking.views(asked, _View)
        self.cutoffs = {view.reward.id: Cutoff.of(self.unit, view.reward) for view in self.views}

    def run(self) -> None:
        """Read the log. Raises EmptyLog where a target has nothing to be judged by."""
        models = self._models() if self.modelled else {}
        for view, found, told, texts in self._log(self.views):
            mine = self._own(view, found)
            view.dropped += len(found) - len(mine)
            view.told += told
            if len(mine):
                self._take_in(view, mine, models.get(view.reward.id), texts)
        for view in self.views:
            if not view.used:
                raise self._empty(view)

    # -- over the log --

    def _log(self, views: list[_View]) -> Iterator[tuple[_View, Visits, Told, ContextTexts | None]]:
        """The usable visits of each batch as each view sees them, what became of the others, and the contexts."""
        wanted, selection = self.asked.library.wanted, self.asked.selection
        for batch in reader.batches(self.unit, selection, columns=ended_visits.READ, wanted=wanted, visits=True):
            for view in views:
                yield view, *ended_visits.whole(batch, view.reward, self.cutoffs[view.reward.id]), batch.contexts

    @staticmethod
    def _own(view: _View, found: Visits) -> Visits:
        """The visits that can say anything of the targets: for the policy of an imported log those that are its own."""
        if view.own is None or not len(found):
            return found
        return found.take(np.logical_and.reduceat(found.once("policy_id") == view.own, found.start[:-1]))

    def _models(self) -> Mapping[int, Values]:
        """A model of returns per reward definition, fitted in a first pass."""
        first = list({view.reward.id: view for view in self.views}.values())
        sums: dict[int, Fitting] = {}
        for view, found, _, texts in self._log(first):
            if len(found):
                decisions = self._decisions(found, self._contexts(found, texts))
                stat = Fitting.of(decisions, found.reward, gamma=self.fold.gamma, arms=len(self.asked.arms))
                sums[view.reward.id] = sums[view.reward.id] + stat if view.reward.id in sums else stat
        return {key: stat.finish() for key, stat in sums.items()}

    def _contexts(self, found: Visits, texts: ContextTexts | None) -> Contexts:
        return self.asked.library.of(found.once("context_id"), texts)

    def _cluster(self, found: Visits) -> Ids:
        """The unit that each visit belongs to, (s,)."""
        slots = {name: found.each(name) for name in log_rows.CLUSTERS[self.asked.by]}
        return log_rows.clusters(slots, self.asked.by, depth=np.zeros(len(found), np.int64))

    def _decisions(self, found: Visits, contexts: Contexts) -> Decisions:
        """As the model of returns sees them: an arm is known by what the visit has seen of it."""
        arms, rank, histories = self.asked.arms, self.asked.rank, found.histories()
        row, arm, own = memory_of(histories, np.power(RECENCY, histories.ago - 1.0))
        return Decisions(
            start=found.start,
            cluster=self._cluster(found),
            top=rank[np.searchsorted(arms, found.slots["arm_id"][found.first[:-1]])],
            x=contexts.encoded[contexts.code],
            row=row,
            arm=rank[np.searchsorted(arms, arm)],
            own=own,
        )

    def _take_in(self, view: _View, found: Visits, model: Values | None, texts: ContextTexts | None) -> None:
        view.used += len(found)
        self.asked.met(found.slots)
        contexts = self._contexts(found, texts)
        batch = _Batch(found, *self._asked_about(found, contexts), self._decisions(found, contexts) if model else None)
        slots = {name: found.each(name) for name in found.slots}
        groups = list(self.asked.grouping.split(slots, contexts.take(found.start[:-1])))
        for place, scorer in enumerate(view.scorers):
            whole, blind = self._batch(batch, scorer, model), self._blind(found, scorer)
            learned = np.logical_or.reduceat(_once(found, scorer.target.taught_by(found.slots)), found.start[:-1])
            for group, chosen in groups:
                mine = np.arange(len(found)) if chosen is None else chosen
                kept = mine[~blind[mine]]
                view.blind[place, group] += len(mine) - len(kept)
                view.add((place, group), self.fold.partial(whole.where(kept)))
                if learned[kept].any():
                    view.learned.add((place, group))

    def _asked_about(self, found: Visits, contexts: Contexts) -> tuple[Rows, Known]:
        rows, asked = lowest(found, np.repeat(self._cluster(found), np.diff(found.start))), self.asked
        asked.loggers.known(rows.slots["version_id"])
        logged = asked.loggers.describe(rows)
        return rows, Known(contexts, logged, asked.loggers, asked.keys, asked.arms, asked.rank, None)

    @staticmethod
    def _blind(found: Visits, scorer: Scorer) -> Flags:
        """The visits that a target cannot be asked about."""
        blind = scorer.blind(found.slots)
        if blind is None:
            return np.zeros(len(found), np.bool_)
        some: Flags = np.logical_or.reduceat(_once(found, blind), found.start[:-1])
        return some

    def _batch(self, batch: _Batch, scorer: Scorer, model: Values | None) -> VisitBatch:
        """The visits as one batch for the estimators per session."""
        found, decisions = batch.visits, batch.decisions
        log_page, lowest = np.full(len(found.reward), -np.inf), found.lowest
        unsupported = np.where(np.isnan(lowest), np.nan, 0.0)
        expected = predicted = None
        if model is not None and decisions is not None:
            predicted = model.predicted(decisions)
        if scorer.target.serving is None:  # what it showed is a sample of itself
            log_page, lowest, unsupported = found.once("log_propensity"), np.zeros(len(lowest)), np.zeros(len(lowest))
            expected = predicted
        elif model is not None and decisions is not None:
            expected = model.expected(decisions, self._filled(batch, scorer, log_page, shares=True))
        else:
            for _ in self._filled(batch, scorer, log_page, shares=False):
                pass
        return VisitBatch(
            start=found.start, reward=found.reward, log_ratio=log_page - found.once("log_propensity"),
            cluster=batch.rows.cluster[found.start[:-1]], predicted=predicted, expected=expected, largest=-lowest,
            unsupported=unsupported, default=found.default,
        )  # fmt: skip

    def _filled(self, batch: _Batch, scorer: Scorer, log_page: Array, *, shares: bool) -> Iterator[Shown]:
        """What a target makes of the pages; their probabilities are written on the way."""
        for shown in scorer.pages(self.unit, batch.rows, batch.known, shares=shares):
            log_page[shown.rows] = shown.log_page
            yield shown

    # -- answers --

    def estimates(self, target: Target, group: Any) -> list[Estimate]:
        """Of a target on a group; none where nothing of the group was selected."""
        view, place = asking.found_in(self.views, target)
        stat, request = view.stats.get((place, group)), self.asked.request
        if stat is None:
            return []
        said = view.reasons((place, group))
        said["no-propensity"] |= view.told.left_out > 0
        made = self.fold.finish(
            stat,
            FinishOptions(
                interval=request.interval,
                level=request.level,
                cluster=self.asked.cluster,
                greedy=request.greedy,
                extra_reasons=tuple(reason for reason, true in said.items() if true),
                seed=request.seed,
            ),
        )
        more = view.told.left_out + view.dropped + view.blind[place, group]
        return [replace(estimate, left_out=estimate.left_out + more) for estimate in made]

    def _empty(self, view: _View) -> EmptyLog:
        told, cutoff = view.told, self.cutoffs[view.reward.id]
        if told.waiting:
            idle, window = cutoff.timeout_us / 60e6, cutoff.window_us / 60e6
            return EmptyLog(
                f"none of the {told.waiting} sessions selected is over, or their reward windows are not",
                hint=f"one ends by `rlrec session end`, or {idle:g} minutes after its last decision; the window of "
                f"reward {view.reward.name} is {window:g} minutes",
            )
        if view.dropped:
            name = view.scorers[0].target.name
            return EmptyLog(f"no whole session of policy {name!r} is selected", hint="widen --log")
        if told.silent:
            return EmptyLog(
                f"none of the {told.left_out} sessions selected has propensities for whole pages",
                hint="judge by what `rlrec recommend` served, or by an import that says how likely each page was",
            )
        if told.left_out:
            return EmptyLog(
                f"none of the {told.left_out} sessions selected is whole: --log cuts them, or a slot is censored",
                hint="widen --log, or --uncensor",
            )
        return self.asked.nothing("session")


def lowest(found: Visits, cluster: Ids) -> Rows:
    """Of each page its lowest slot, (n,), as the row that stands for the page: a weight is that of the page down to it,
    and nothing is asked of other positions. cluster (n,)."""
    last, n = found.first[1:] - 1, len(found.reward)
    slots = {name: column[last] for name, column in found.slots.items()}
    return Rows(
        slots=slots | {"marginal": np.full(n, np.nan), "size": np.ones(n, np.int64)},
        reward=found.reward,
        default=found.default,
        cluster=cluster,
        shown=found.slots["arm_id"],
        start=found.first[:-1],
        depth=np.diff(found.first) - 1,
        whole=np.zeros(n, np.bool_),
        prefix=np.ones(n),
        lowest=np.full(n, np.nan),
    )


def _once(found: Visits, flags: Flags) -> Flags:
    """Flags of slots that a decision has once, by decision."""
    return flags[found.first[:-1]]
