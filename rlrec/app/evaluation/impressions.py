"""Estimates per impression: every slot that was shown is a row, weighed by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlrec.app.evaluation import log_rows, reward_models
from rlrec.app.evaluation import request as asking
from rlrec.app.evaluation.log_rows import Rows
from rlrec.app.evaluation.probabilities import Known
from rlrec.app.evaluation.request import Asked, EmptyLog, View
from rlrec.app.evaluation.reward_models import RewardModel
from rlrec.app.evaluation.targets import Target
from rlrec.ope.base import ImpressionEstimator
from rlrec.ope.direct import RidgeSums
from rlrec.ope.estimate import ANY_REWARD, Estimate, FinishOptions
from rlrec.ope.impressions import ImpressionFold, ImpressionPartial
from rlrec.policy.reward import bounds
from rlrec.store import reader
from rlrec.store.reader import ContextTexts


@dataclass(eq=False, kw_only=True)
class _View(View[ImpressionPartial]):
    """seen: rows selected; immature: those that are too young."""

    seen: int = 0
    immature: int = 0


class Impressions:
    """The estimators per impression, over the log."""

    def __init__(self, asked: Asked, estimators: Mapping[str, ImpressionEstimator]) -> None:
        self.asked, self.unit = asked, asked.unit
        self.fold = ImpressionFold(estimators=estimators, spanning=asked.spanning)
        self.views = asking.views(asked, _View)

    def run(self) -> None:
        """Read the log. Raises EmptyLog where a target has nothing to be judged by."""
        modelled = any(kind.modelled for kind in self.fold.estimators.values())
        models = self._models() if modelled else {}
        for view, rows, texts in self._log():
            self._take_in(view, rows, models.get(view.reward.id), texts)
        for view in self.views:
            if not view.used:
                raise self._empty(view)

    # -- over the log --

    def _log(self, *, fitted: bool = False) -> Iterator[tuple[_View, Rows, ContextTexts | None]]:
        """Each batch as each view sees it, and the contexts that came with it; fitted: what a reward model needs, with
        the rows that a view does not judge its target by."""
        asked = self.asked
        columns = {*(log_rows.FITTED if fitted else self._columns), *log_rows.CLUSTERS[asked.by]}
        for batch in reader.batches(self.unit, asked.selection, columns=columns, wanted=asked.library.wanted):
            standing = log_rows.page(batch.slots)
            cluster = log_rows.clusters(batch.slots, asked.by, depth=standing.depth)
            for view in self.views:
                rows, immature = log_rows.rows(batch, view.reward, standing, now=self.unit.now, cluster=cluster)
                mine = rows if fitted else view.scorers[0].rows(rows)
                if not fitted:
                    view.seen, view.immature = view.seen + len(batch), view.immature + immature
                view.dropped += len(rows) - len(mine)
                yield view, mine, batch.contexts

    @property
    def _columns(self) -> list[str]:
        """What is read of the log to judge the targets by it."""
        targets = self.asked.targets
        states = log_rows.STATES if any(target.stateful for target in targets) else ()
        sampled = log_rows.CLUSTERS["row"] if any(target.sampled for target in targets) else ()
        split = any(lesson.split for target in targets for lesson in target.lessons)
        return [*log_rows.JUDGED, *states, *sampled, *(["split"] if split else [])]

    def _models(self) -> Mapping[int, RewardModel]:
        """A reward model per reward definition: the one given, or one fitted in a first pass."""
        asked, path = self.asked, self.asked.request.reward_model
        if path is not None:
            given = reward_models.tabled(path, by=asked.request.reward_model_by, arms=asked.arms, keys=asked.keys)
            return {view.reward.id: given for view in self.views}
        fitting = reward_models.fitting(asked.arms, asked.rank, positions=reader.longest(self.unit, asked.selection))
        definitions = {view.reward.id: view.reward for view in self.views}
        judges = {view.reward.id: view for view in self.views}
        sums: dict[int, RidgeSums] = {}
        for view, rows, texts in self._log(fitted=True):
            if judges[view.reward.id] is view and len(rows):
                stat = fitting.stat(rows, asked.library.of(rows.slots["context_id"], texts))
                sums[view.reward.id] = sums[view.reward.id] + stat if view.reward.id in sums else stat
        return {key: fitting.finish(stat, definitions[key]) for key, stat in sums.items()}

    def _take_in(self, view: _View, rows: Rows, model: RewardModel | None, texts: ContextTexts | None) -> None:
        if not len(rows):
            return
        view.used += len(rows)
        self.asked.met(rows.slots)
        known = self._known(rows, model, texts)
        groups = list(self.asked.grouping.split(rows.slots, known.contexts))
        for place, scorer in enumerate(view.scorers):
            learned = scorer.target.taught_by(rows.slots)
            batch, blind = scorer.batch(self.unit, rows, known), scorer.blind(rows.slots)
            for group, chosen in groups:
                part = batch if chosen is None else batch.where(chosen)
                if blind is not None:
                    hidden = blind if chosen is None else blind[chosen]
                    view.blind[place, group] += int(hidden.sum())
                    part = part.where(~hidden)
                view.add((place, group), self.fold.partial(part))
                if (learned if chosen is None else learned[chosen]).any():
                    view.learned.add((place, group))

    def _known(self, rows: Rows, model: RewardModel | None, texts: ContextTexts | None) -> Known:
        asked, loggers = self.asked, self.asked.loggers
        loggers.known(rows.slots["version_id"])
        logged = loggers.describe(rows)
        read = loggers.reads(rows, logged.unclear)
        contexts = asked.library.of(rows.slots["context_id"], texts, fields=read)
        valued = None if model is None else model.rows(rows, contexts)
        return Known(contexts, logged, loggers, asked.keys, asked.arms, asked.rank, valued)

    # -- answers --

    def estimates(self, target: Target, group: Any) -> list[Estimate]:
        """Of a target on a group; none where nothing of the group was selected."""
        view, place = asking.found_in(self.views, target)
        stat, request = view.stats.get((place, group)), self.asked.request
        if stat is None:
            return []
        said = view.reasons((place, group)) | {"logging-states": target.stateful}
        made = self.fold.finish(
            stat,
            FinishOptions(
                interval=request.interval,
                level=request.level,
                cluster=self.asked.cluster,
                reward_range=bounds(view.reward) or ANY_REWARD,
                greedy=request.greedy,
                extra_reasons=tuple(reason for reason, true in said.items() if true),
                chosen=request.by == "arm",
                seed=request.seed,
            ),
        )
        more = view.dropped + view.blind[place, group]
        return [replace(estimate, left_out=estimate.left_out + more) for estimate in made]

    def _empty(self, view: _View) -> EmptyLog:
        if view.immature:
            minutes = view.reward.window_us / 60e6
            return EmptyLog(
                f"none of the {view.immature} impressions selected is mature",
                hint=f"a decision counts when the window of reward {view.reward.name}, {minutes:g} minutes, is over",
            )
        if view.own is not None:
            name = view.scorers[0].target.name
            return EmptyLog(f"no impression of policy {name!r} is selected", hint="widen --log")
        if view.seen:
            return EmptyLog("every impression selected is censored", hint="widen --log, or --uncensor")
        return self.asked.nothing("impression")
