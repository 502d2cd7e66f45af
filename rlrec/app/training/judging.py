"""What the log says of parameters: estimates and paired differences on visits that have not taught them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rlrec import ope
from rlrec.app.designs import Ids
from rlrec.app.training.spool import Case, Rows, Spool
from rlrec.ope.base import distinct
from rlrec.ope.direct import Model, Ridge
from rlrec.ope.estimate import Estimate
from rlrec.ope.paired import Difference, difference
from rlrec.ope.sessions import SessionFold, SessionStat
from rlrec.ope.visits import VisitBatch
from rlrec.policy import reinforce, returns
from rlrec.policy.gradient import Gradient, Parameters, State
from rlrec.policy.scores import Array

ESTIMATOR = "wdr"
STEPS = 32  # steps with a value of their own; later ones share the last one's
VISITS = 2_000  # that are read at a time
FEW = 50  # replicates of an interval that nobody looks at


@dataclass(frozen=True, eq=False)
class Values:
    """A model of the discounted return from a decision on, by its state and the arm on top of its page.

    It is fitted on the visits that teach, by halves and fifths of their clusters, and need not be right: it takes
    noise out of estimates, and no wrong model brings bias in."""

    ridge: Ridge
    model: Model

    @classmethod
    def fitted(cls, spool: Spool, visits: Ids, *, gamma: float, arms: int) -> Self:
        """By the visits given."""
        ridge, total = None, None
        for one in spool.sets(visits, size=VISITS):
            rows = spool.read(one)
            if ridge is None:
                ridge = Ridge(arms=arms, positions=STEPS, features=rows.x.shape[1] + rows.own.shape[1])
            gained = returns.discounted(rows.reward, rows.start, gamma=gamma)
            told = ridge.stat(
                gained, _top(rows, spool.cases), position=_step(rows), cluster=_cluster(rows),
                context=np.hstack([rows.x, _own(rows)]),
            )  # fmt: skip
            total = told if total is None else total + told
        assert ridge is not None
        assert total is not None
        return cls(ridge, ridge.finish(total))

    def predicted(self, rows: Rows, cases: list[Case]) -> Array:
        """Value of the pages shown, (n,)."""
        offset, fold = self._offset(rows, _own(rows))
        return self.model.predicted(_top(rows, cases), fold=fold, offset=offset)

    def _offset(self, rows: Rows, own: Array) -> tuple[Array, Ids]:
        fold = self.ridge.fold(_cluster(rows))
        return self.model.offset(fold, _step(rows), context=np.hstack([rows.x, own])), fold

    def expected(self, rows: Rows, cases: list[Case], chance: Callable[[Case, Ids], Array]) -> Array:
        """Mean value under a policy, (n,). chance(case, rows): its probabilities at position 1, (rows, m)."""
        own, effect = np.zeros((len(rows.case), rows.own.shape[1])), np.zeros(len(rows.case))
        fold, entry = self.ridge.fold(_cluster(rows)), rows.state()
        order = np.searchsorted(entry.row, np.arange(len(rows.case) + 1))
        for number, mine in _by_case(rows):
            share = chance(cases[number], mine)
            effects = self.model.effects[:, cases[number].places]
            effect[mine] = (share @ effects.T)[np.arange(len(mine)), fold[mine]]
            counts = np.diff(order)[mine]
            inside = np.repeat(order[mine] - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
            within = np.repeat(np.arange(len(mine)), counts)
            np.add.at(own, entry.row[inside], share[within, entry.arm[inside]][:, None] * entry.own[inside])
        return effect + self._offset(rows, own)[0]


def _by_case(rows: Rows) -> Iterator[tuple[int, Ids]]:
    """The cases of some rows, and the decisions of each."""
    kinds, which = distinct(rows.case)
    for kind, row in enumerate(kinds.tolist()):
        yield int(rows.case[row]), np.flatnonzero(which == kind)


def _top(rows: Rows, cases: list[Case]) -> Ids:
    """The arm on top of each page, among those that are trained."""
    place, found = rows.shown[rows.first[:-1]], np.empty(len(rows.case), np.int64)
    for number, mine in _by_case(rows):
        found[mine] = cases[number].places[place[mine]]
    return found


def _own(rows: Rows) -> Array:
    """What each decision knew of the arm on top of its page, (n, 4)."""
    state, place = rows.state(), rows.shown[rows.first[:-1]]
    found, mine = np.zeros((len(rows.case), rows.own.shape[1])), state.arm == place[state.row]
    found[state.row[mine]] = state.own[mine]
    return found


def _step(rows: Rows) -> Ids:
    return np.minimum(returns.steps(rows.start) + 1, STEPS)


def _cluster(rows: Rows) -> Ids:
    return np.repeat(rows.cluster, rows.length)


class Judge:
    """What some visits say of parameters, beside those that they are held against."""

    def __init__(
        self, spool: Spool, policy: Gradient, visits: Ids, against: Parameters, *, gamma: float, values: Values
    ) -> None:
        self.spool, self.policy, self.visits, self.against, self.values = spool, policy, visits, against, values
        horizon = int(spool.index()[3][visits].max(initial=1))
        cluster = spool.index()[2][visits]
        spanning = len(np.unique(cluster)) < len(cluster)
        asked = ope.parse(ESTIMATOR).sessions
        self.fold = SessionFold(estimators=asked, gamma=gamma, horizon=horizon, spanning=spanning)
        self._known = self._stat(against)

    def point(self, parameters: Parameters, *, z: float) -> dict[str, Any]:
        """A point of the learning curve, with a lower and an upper bound of the gain z standard errors away."""
        stat, entropy, kl = self._told(parameters)
        estimate, gain = self._estimate(stat), self._difference(stat, alpha=0.025, replicates=FEW)
        error = gain.std_error
        return {
            "value": estimate.value, "gain": gain.value, "ess": estimate.ess, "entropy": entropy, "kl": kl,
            "lower": None if error is None or gain.value is None else gain.value - z * error,
            "upper": None if error is None or gain.value is None else gain.value + z * error,
        }  # fmt: skip

    def judged(self, parameters: Parameters, *, alpha: float) -> tuple[Estimate, Estimate, Difference]:
        """The estimates of the parameters and of what they are held against, and of what they are above it: its lower
        bound is wrong with probability alpha."""
        stat = self._stat(parameters)
        return self._estimate(stat), self._estimate(self._known), self._difference(stat, alpha=alpha)

    def _difference(self, stat: SessionStat, **asked: Any) -> Difference:
        return difference(stat, self._known, estimator=self.fold.estimators[ESTIMATOR], **asked)

    def _estimate(self, stat: SessionStat) -> Estimate:
        return self.fold.finish(stat, interval="normal")[0]

    def _stat(self, parameters: Parameters) -> SessionStat:
        return self._told(parameters)[0]

    def _told(self, parameters: Parameters) -> tuple[SessionStat, float, float]:
        """The fold over the visits, mean entropy, and mean KL(against || parameters), in nats."""
        total, sums = None, np.zeros(3)
        for one in self.spool.sets(self.visits, size=VISITS):
            rows = self.spool.read(one)
            batch, more = self._batch(rows, parameters)
            told = self.fold.stat(batch)
            total, sums = told if total is None else total + told, sums + more
        assert total is not None
        return total, float(sums[1] / sums[0]), float(sums[2] / sums[0])

    def _batch(self, rows: Rows, parameters: Parameters) -> tuple[VisitBatch, Array]:
        """Visits as the parameters see them; and decisions, entropy and KL, added up."""
        n, state, sums = len(rows.case), rows.state(), np.zeros(3)
        log_joint, first = np.empty(n), rows.first
        known: dict[int, Array] = {}
        for number, mine in _by_case(rows):
            case, part = self.spool.cases[number], state if len(mine) == n else state.take(mine)
            score = self._score(parameters, case, part)
            known[number] = chance = reinforce.chances(score, **self._served)
            old = reinforce.chances(self._score(self.against, case, part), **self._served)
            entropy = -(chance * np.log(np.maximum(chance, 1e-300))).sum(axis=1)
            sums += [len(mine), entropy.sum(), reinforce.divergence(old, chance).sum()]
            for size in np.unique(rows.size[mine]).tolist():
                inside = rows.size[mine] == size
                shown = rows.shown[first[mine[inside]][:, None] + np.arange(size)]
                log_joint[mine[inside]] = reinforce.log_joint(score[inside], shown, **self._served)
        number_of = {id(self.spool.cases[number]): number for number in known}
        expected = self.values.expected(rows, self.spool.cases, lambda case, _: known[number_of[id(case)]])
        batch = VisitBatch(
            start=rows.start, reward=rows.reward, log_ratio=log_joint - rows.log_propensity, cluster=rows.cluster,
            predicted=self.values.predicted(rows, self.spool.cases), expected=expected, largest=-rows.lowest,
            default=rows.default > 0,
        )  # fmt: skip
        return batch, sums

    @property
    def _served(self) -> dict[str, float]:
        return {"temperature": self.policy.temperature, "floor": self.policy.floor}

    def _score(self, parameters: Parameters, case: Case, state: State) -> Array:
        held = {name: parameters[name][case.places] for name in ("bias", "linear", "own")}
        arms = np.arange(len(case.places))
        return self.policy.scores_of({**parameters, **held}, state, arms=arms, described=case.described)
