"""What one evaluation was asked for, and what its parts have in common: both are over one snapshot of the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from rlrec.app.evaluation import targets
from rlrec.app.evaluation.contexts import Library
from rlrec.app.evaluation.groups import Grouping
from rlrec.app.evaluation.loggers import Loggers
from rlrec.app.evaluation.probabilities import Scorer
from rlrec.app.evaluation.state_probabilities import StateScorer
from rlrec.app.evaluation.targets import Target
from rlrec.arrays import Ids
from rlrec.errors import InputError
from rlrec.records import Reward
from rlrec.store import Unit, arms, sessions
from rlrec.store.bulk import Columns
from rlrec.store.reader import ABSENT, Selection


class EmptyLog(InputError):
    """The log has nothing that a target could be judged by."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(f"empty log: {message}", hint=hint)


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
    gamma: float = 1.0
    by: str | None = None
    greedy: bool = False
    reward_model: str | None = None
    reward_model_by: str | None = None
    seed: int = 0


class Asked:
    """The targets, and how they are judged.

    by: the unit that was randomised; spanning: whether one may come back in another batch of the log. encode: whether
    the features of contexts are wanted."""

    def __init__(self, unit: Unit, request: Request, selection: Selection, *, encode: bool) -> None:
        self.unit, self.request, self.selection = unit, request, selection
        self.targets = targets.resolve(unit, request.targets, reward=request.reward, greedy=request.greedy)
        self.keys = {arm.id: arm.key for arm in arms.every(unit)}
        self.arms: Ids = np.array(sorted(self.keys), np.int64)
        self.rank: Ids = np.argsort(np.argsort([self.keys[arm] for arm in self.arms.tolist()]))
        users = request.cluster in (None, "user")
        self.spanning = users and sessions.any_user(unit)
        self.by = "user" if self.spanning else "session" if users else str(request.cluster)
        self.loggers = Loggers(unit)
        self.grouping = Grouping(unit, request.by, keys=self.keys, loggers=self.loggers)
        read = {name for target in self.targets for name in target.reads}
        fields = read | {name for name in (self.grouping.field, request.reward_model_by) if name is not None}
        self.library = Library(unit, fields=fields, encode=encode)
        self._named_users = False

    def met(self, slots: Columns) -> None:
        """Rows were used: if they have users, it is these that were randomised."""
        self._named_users |= self.by == "user" and bool((slots["user_id"] != ABSENT).any())

    @property
    def cluster(self) -> str:
        """The unit that was randomised, as it is reported."""
        return "user" if self._named_users else "session" if self.by == "user" else self.by

    def nothing(self, what: str) -> EmptyLog:
        """Nothing is selected."""
        hint = "widen --log" if self.request.log else "serve with `rlrec recommend`, or bring in a log: import-log"
        return EmptyLog(f"no {what} is selected", hint=hint)


class Sums(Protocol):
    """What a fold keeps."""

    def __add__(self, other: Self) -> Self: ...


S = TypeVar("S", bound=Sums)
Place = tuple[int, Any]  # of a target in its view, and a group


@dataclass(eq=False, kw_only=True)
class View(Generic[S]):
    """Targets that are judged on the same rows with the same reward, and what was counted on the way.

    own: the policy of an imported log, which only its own rows tell of. used: rows that were; dropped: of others than
    that policy. Of each target and group: its statistic, whether rows taught it, rows that it is blind to."""

    reward: Reward
    own: int | None
    scorers: list[Scorer] = field(default_factory=list)
    used: int = 0
    dropped: int = 0
    stats: dict[Place, S] = field(default_factory=dict)
    learned: set[Place] = field(default_factory=set)
    blind: Counter[Place] = field(default_factory=Counter)

    def add(self, place: Place, stat: S) -> None:
        before = self.stats.get(place)
        self.stats[place] = stat if before is None else before + stat

    def reasons(self, place: Place) -> dict[str, bool]:
        """Whether each reason holds that estimators cannot know."""
        dropped = self.dropped > 0
        return {"in-sample": place in self.learned, "no-propensity": dropped, "no-state": self.blind[place] > 0}

    def named(self, target: Target) -> int | None:
        """The place of a target; None where it has none here."""
        return next((place for place, scorer in enumerate(self.scorers) if scorer.target is target), None)


V = TypeVar("V", bound=View[Any])


def views(asked: Asked, made: type[V]) -> list[V]:
    """The targets by what they are judged on."""
    found: dict[tuple[int, int | None], V] = {}
    for target in asked.targets:
        own = target.policy_id if target.serving is None else None
        view = found.setdefault((target.reward.id, own), made(reward=target.reward, own=own))
        view.scorers.append(StateScorer(target) if target.stateful else Scorer(target))
    return list(found.values())


def found_in(views: Sequence[V], target: Target) -> tuple[V, int]:
    """The view of a target, and its place there."""
    return next((view, place) for view in views if (place := view.named(target)) is not None)
