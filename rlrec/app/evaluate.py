"""Off-policy evaluation: what policies would have earned, from a log of what others served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from rlrec import ope
from rlrec.app import filters
from rlrec.app.evaluation import modelling, pages, targets
from rlrec.app.evaluation.contexts import Library
from rlrec.app.evaluation.grouping import Grouping
from rlrec.app.evaluation.loggers import Loggers
from rlrec.app.evaluation.modelling import RewardModel
from rlrec.app.evaluation.pages import CLUSTERS, Rows
from rlrec.app.evaluation.scoring import Known, Scorer
from rlrec.app.evaluation.stateful import StateScorer
from rlrec.app.evaluation.targets import Target
from rlrec.errors import InputError, suggest
from rlrec.ope import intervals
from rlrec.ope.base import LogBatch
from rlrec.ope.diagnostics import explained
from rlrec.ope.direct import RidgeSums
from rlrec.ope.estimate import ANY_REWARD, Estimate, Fold, Stat
from rlrec.policy.reward import bounds
from rlrec.records import Reward
from rlrec.store import Store, Unit, arms, bulk, reader, sessions
from rlrec.store.reader import ABSENT, Selection, Texts

__all__ = ["Request", "evaluate", "explained"]


class EmptyLog(InputError):
    """The log has nothing that a target could be judged by."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(f"empty log: {message}", hint=hint)


CHOSEN = "snips"  # what may be asked of rows that are picked by the arm the logger chose


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `evaluate` is asked for. log: a filter; cluster None: the user where one is known, else the session."""

    targets: Sequence[str]
    estimators: str | None = None
    interval: str = "bootstrap-t"
    level: float = 0.95
    cluster: str | None = None
    log: str | None = None
    reward: str | None = None
    by: str | None = None
    greedy: bool = False
    reward_model: str | None = None
    reward_model_by: str | None = None
    seed: int = 0


def evaluate(store: Store, request: Request) -> list[dict[str, Any]]:
    """An estimate for every target, group and estimator, from one snapshot of the log.

    Raises InputError for unknown names, an interval that an estimator does not have, and an empty log."""
    fold = _fold(request)
    with store.read() as unit, bulk.alongside(unit):
        return _Evaluation(unit, request, fold, filters.selection(unit, request.log)).answer()


def judged(unit: Unit, request: Request, selection: Selection) -> list[dict[str, Any]]:
    """The same on decisions that no filter can name, inside a unit. Raises EmptyLog where none of them can be used."""
    return _Evaluation(unit, request, _fold(request), selection).answer()


def _fold(request: Request) -> Fold:
    usual = CHOSEN if request.by == "arm" else ope.DEFAULT
    asked = ope.parse(request.estimators or usual)
    if asked.sessions:
        raise InputError(f"{', '.join(asked.sessions)}: estimates per session are not made here", hint="use impression")
    fold = Fold(estimators=asked.impressions, spanning=False)
    _check(request, fold)
    return fold


def _check(request: Request, fold: Fold) -> None:
    intervals.check(request.interval, request.level, estimators=dict(fold.estimators))
    if request.cluster is not None and request.cluster not in CLUSTERS:
        hint = suggest(request.cluster, list(CLUSTERS)) or f"one of {', '.join(CLUSTERS)}"
        raise InputError(f"unknown cluster {request.cluster!r}", hint=hint)
    if request.by == "arm":
        _check_chosen(request.interval, fold)
    if request.reward_model is not None and not _modelled(fold):
        raise InputError("--reward-model is given, and no estimator uses one", hint="add dr or dm to --estimator")
    if request.reward_model_by is not None and request.reward_model is None:
        raise InputError("--reward-model-by names a field for --reward-model", hint="give --reward-model FILE too")


def _check_chosen(interval: str, fold: Fold) -> None:
    """Rows picked by what was chosen have a mean weight other than 1: only self-normalised estimates mean something."""
    unfit = next((name for name, kind in fold.estimators.items() if not kind.self_normalised), None)
    if unfit is not None:
        raise InputError(f"{unfit} means nothing by arm, which the logger chose", hint=f"use --estimator {CHOSEN}")
    if interval == "cressie-read":  # it takes the mean weight to be 1
        raise InputError("interval cressie-read does not exist by arm", hint="use --interval bootstrap-t")


def _modelled(fold: Fold) -> bool:
    return any(kind.modelled for kind in fold.estimators.values())


@dataclass(eq=False)
class _View:
    """Targets that are judged on the same rows with the same reward, and what was counted on the way.

    own: the policy of an imported log, which only its own rows tell of."""

    reward: Reward
    own: bool
    scorers: list[Scorer]
    seen: int = 0
    used: int = 0
    immature: int = 0
    dropped: int = 0
    stats: dict[tuple[int, Any], Stat] = field(default_factory=dict)
    learned: set[tuple[int, Any]] = field(default_factory=set)
    blind: Counter[tuple[int, Any]] = field(default_factory=Counter)

    def add(self, place: int, group: Any, stat: Stat) -> None:
        before = self.stats.get((place, group))
        self.stats[place, group] = stat if before is None else before + stat


class _Evaluation:
    """One run over one snapshot."""

    def __init__(self, unit: Unit, request: Request, fold: Fold, selection: Selection) -> None:
        self.unit, self.request = unit, request
        self.targets = targets.resolve(unit, request.targets, reward=request.reward, greedy=request.greedy)
        self.selection = selection
        self.keys = {arm.id: arm.key for arm in arms.every(unit)}
        self.arms = np.array(sorted(self.keys), np.int64)
        users = request.cluster in (None, "user")
        self.spanning = users and sessions.any_user(unit)
        self.by = "user" if self.spanning else "session" if users else str(request.cluster)
        self.fold = replace(fold, spanning=self.spanning)
        self.named_users = False
        self.loggers = Loggers(unit)
        self.grouping = Grouping(unit, request.by, keys=self.keys, loggers=self.loggers)
        self.views = list(self._views())
        read = {name for view in self.views for scorer in view.scorers for name in scorer.target.reads}
        fields = read | {name for name in (self.grouping.field, request.reward_model_by) if name is not None}
        self.library = Library(unit, fields=fields, encode=_modelled(fold) and request.reward_model is None)

    def _views(self) -> Iterator[_View]:
        views: dict[tuple[int, int | None], _View] = {}
        for target in self.targets:
            own = target.serving is None
            key = target.reward.id, target.policy_id if own else None
            view = views.setdefault(key, _View(reward=target.reward, own=own, scorers=[]))
            view.scorers.append(StateScorer(target) if target.stateful else Scorer(target))
        return iter(views.values())

    def answer(self) -> list[dict[str, Any]]:
        models = self._models() if _modelled(self.fold) else {}
        for view, rows, texts in self._log():
            self._take_in(view, rows, models.get(view.reward.id), texts)
        for view in self.views:
            if not view.used:
                raise self._empty(view)
        self.grouping.check(self.library.names)
        return [row for target in self.targets for row in self._report(target)]

    # -- over the log --

    def _log(self, *, fitted: bool = False) -> Iterator[tuple[_View, Rows, Texts | None]]:
        """Each batch as each view sees it, and the contexts that came with it; fitted: what a reward model needs, with
        the rows that a view does not judge its target by."""
        columns = [*(pages.FITTED if fitted else self._columns), *(["user_id"] if self.spanning else [])]
        for batch in reader.batches(self.unit, self.selection, columns=columns, wanted=self.library.wanted):
            standing = pages.page(batch.slots)
            cluster = pages.clusters(batch.slots, standing, self.by)
            for view in self.views:
                rows, immature = pages.rows(batch, view.reward, standing, now=self.unit.now, cluster=cluster)
                mine = rows if fitted else view.scorers[0].rows(rows)
                if not fitted:
                    view.seen, view.immature = view.seen + len(batch), view.immature + immature
                view.dropped += len(rows) - len(mine)
                yield view, mine, batch.contexts

    @property
    def _columns(self) -> list[str]:
        """What is read of the log to judge the targets by it."""
        states = any(target.stateful for target in self.targets)
        split = any(lesson.split for target in self.targets for lesson in target.lessons)
        return [*pages.JUDGED, *(pages.STATES if states else []), *(["split"] if split else [])]

    def _models(self) -> Mapping[int, RewardModel]:
        """A reward model per reward definition: the one given, or one fitted in a first pass."""
        path = self.request.reward_model
        if path is not None:
            given = modelling.tabled(path, by=self.request.reward_model_by, arms=self.arms, keys=self.keys)
            return {view.reward.id: given for view in self.views}
        fitting = modelling.fitting(self.arms, positions=reader.longest(self.unit, self.selection))
        definitions = {view.reward.id: view.reward for view in self.views}
        judges = {view.reward.id: view for view in self.views}
        sums: dict[int, RidgeSums] = {}
        for view, rows, texts in self._log(fitted=True):
            if judges[view.reward.id] is view and len(rows):
                stat = fitting.stat(rows, self.library.of(rows.slots["context_id"], texts))
                sums[view.reward.id] = sums[view.reward.id] + stat if view.reward.id in sums else stat
        return {key: fitting.finish(stat, definitions[key]) for key, stat in sums.items()}

    def _take_in(self, view: _View, rows: Rows, model: RewardModel | None, texts: Texts | None) -> None:
        if not len(rows):
            return
        view.used += len(rows)
        self.named_users |= self.by == "user" and bool((rows.slots["user_id"] != ABSENT).any())
        known = self._known(rows, model, texts)
        groups = list(self.grouping.split(rows, known.contexts))
        for place, scorer in enumerate(view.scorers):
            taught = [lesson.rows(rows.slots) for lesson in scorer.target.lessons]
            learned = np.logical_or.reduce(taught) if taught else np.zeros(len(rows), np.bool_)
            batch, blind = scorer.batch(self.unit, rows, known), scorer.blind(rows.slots)
            for group, chosen in groups:
                part: LogBatch = batch if chosen is None else batch.where(chosen)
                if blind is not None:
                    hidden = blind if chosen is None else blind[chosen]
                    view.blind[place, group] += int(hidden.sum())
                    part = part.where(~hidden)
                view.add(place, group, self.fold.stat(part))
                if (learned if chosen is None else learned[chosen]).any():
                    view.learned.add((place, group))

    def _known(self, rows: Rows, model: RewardModel | None, texts: Texts | None) -> Known:
        self.loggers.known(rows.slots["version_id"])
        logged = self.loggers.describe(rows)
        read = self.loggers.reads(rows, logged.unclear)
        contexts = self.library.of(rows.slots["context_id"], texts, fields=read)
        valued = None if model is None else model.rows(rows, contexts)
        return Known(contexts, logged, self.loggers, self.keys, self.arms, valued)

    # -- answers --

    def _report(self, target: Target) -> Iterator[dict[str, Any]]:
        view, place = next(
            (view, place) for view in self.views for place, scorer in enumerate(view.scorers) if scorer.target is target
        )
        for group in self.grouping.ordered():
            stat = view.stats.get((place, group))
            if stat is None:
                continue
            for estimate in self._finished(view, place, group, stat):
                yield self._row(target, estimate, group)

    def _finished(self, view: _View, place: int, group: Any, stat: Stat) -> list[Estimate]:
        request, blind = self.request, view.blind[place, group]
        said = {
            "in-sample": (place, group) in view.learned, "no-propensity": view.dropped, "no-state": blind,
            "logging-states": view.scorers[place].target.stateful,
        }  # fmt: skip
        made = self.fold.finish(
            stat,
            interval=request.interval,
            level=request.level,
            cluster="user" if self.named_users else "session" if self.by == "user" else self.by,
            reward_range=bounds(view.reward) or ANY_REWARD,
            greedy=request.greedy,
            extra_reasons=tuple(reason for reason, true in said.items() if true),
            chosen=request.by == "arm",
            seed=request.seed,
        )
        return [replace(estimate, left_out=estimate.left_out + view.dropped + blind) for estimate in made]

    def _row(self, target: Target, estimate: Estimate, group: Any) -> dict[str, Any]:
        found = {"target": target.name, "version": target.number, **asdict(estimate)}
        found["reasons"] = list(estimate.reasons)
        found["reward"] = target.reward.name
        if self.request.by is not None:
            found |= {"by": self.request.by, "group": self.grouping.labels[group]}
        return found

    def _empty(self, view: _View) -> EmptyLog:
        if view.immature:
            minutes = view.reward.window_us / 60e6
            return EmptyLog(
                f"none of the {view.immature} impressions selected is mature",
                hint=f"a decision counts when the window of reward {view.reward.name}, {minutes:g} minutes, is over",
            )
        if view.own:
            name = view.scorers[0].target.name
            return EmptyLog(f"no impression of policy {name!r} is selected", hint="widen --log")
        if view.seen:
            return EmptyLog("every impression selected is censored", hint="widen --log, or --uncensor")
        hint = "widen --log" if self.request.log else "serve with `rlrec recommend`, or bring in a log: import-log"
        return EmptyLog("no impression is selected", hint=hint)
