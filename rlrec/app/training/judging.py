"""What the log says of parameters: estimates and paired differences on visits that have not taught them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rlrec import ope
from rlrec.app.designs import Ids
from rlrec.app.training.spool import Case, Rows, Spool
from rlrec.app.valuing import Decisions, Fitting, Shown, Values
from rlrec.ope.base import distinct
from rlrec.ope.estimate import Estimate
from rlrec.ope.paired import Difference, difference
from rlrec.ope.sessions import SessionFold, SessionStat
from rlrec.ope.visits import VisitBatch
from rlrec.policy import reinforce
from rlrec.policy.gradient import Gradient, Parameters, State
from rlrec.policy.scores import Array

ESTIMATOR = "wdr"
VISITS = 2_000  # that are read at a time
FEW = 50  # replicates of an interval that nobody looks at


def fitted(spool: Spool, visits: Ids, *, gamma: float, arms: int) -> Values:
    """The model of returns by the visits given."""
    total: Fitting | None = None
    for one in spool.sets(visits, size=VISITS):
        rows = spool.read(one)
        told = Fitting.of(_decisions(rows, spool.cases), rows.reward, gamma=gamma, arms=arms)
        total = told if total is None else total + told
    assert total is not None
    return total.finish()


def _decisions(rows: Rows, cases: list[Case]) -> Decisions:
    """As the model of returns sees them: arms by their places among those that are trained."""
    state, (kinds, which) = rows.state(), np.unique(rows.case, return_inverse=True)
    places = [cases[number].places for number in kinds.tolist()]
    table, lengths = np.concatenate(places), np.array([len(one) for one in places])
    base = (np.cumsum(lengths) - lengths)[which]
    return Decisions(
        start=rows.start, cluster=rows.cluster, top=table[base + rows.shown[rows.first[:-1]]], x=rows.x, row=state.row,
        arm=table[base[state.row] + state.arm], own=state.own,
    )  # fmt: skip


def _by_case(rows: Rows) -> Iterator[tuple[int, Ids]]:
    """The cases of some rows, and the decisions of each."""
    kinds, which = distinct(rows.case)
    for kind, row in enumerate(kinds.tolist()):
        yield int(rows.case[row]), np.flatnonzero(which == kind)


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
        log_joint, first, shares = np.empty(n), rows.first, list[Shown]()
        for number, mine in _by_case(rows):
            case, part = self.spool.cases[number], state if len(mine) == n else state.take(mine)
            score = self._score(parameters, case, part)
            chance = reinforce.chances(score, **self._served)
            old = reinforce.chances(self._score(self.against, case, part), **self._served)
            entropy = -(chance * np.log(np.maximum(chance, 1e-300))).sum(axis=1)
            sums += [len(mine), entropy.sum(), reinforce.divergence(old, chance).sum()]
            for size in np.unique(rows.size[mine]).tolist():
                inside = rows.size[mine] == size
                shown = rows.shown[first[mine[inside]][:, None] + np.arange(size)]
                log_joint[mine[inside]] = reinforce.log_joint(score[inside], shown, **self._served)
            shares.append(
                Shown(rows=mine, log_page=log_joint[mine], places=case.places, share=chance, case=np.arange(len(mine)))
            )
        decisions = _decisions(rows, self.spool.cases)
        batch = VisitBatch(
            start=rows.start, reward=rows.reward, log_ratio=log_joint - rows.log_propensity, cluster=rows.cluster,
            predicted=self.values.predicted(decisions), expected=self.values.expected(decisions, shares),
            largest=-rows.lowest, default=rows.default > 0,
        )  # fmt: skip
        return batch, sums

    @property
    def _served(self) -> dict[str, float]:
        return {"temperature": self.policy.temperature, "floor": self.policy.floor}

    def _score(self, parameters: Parameters, case: Case, state: State) -> Array:
        held = {name: parameters[name][case.places] for name in ("bias", "linear", "own")}
        arms = np.arange(len(case.places))
        return self.policy.scores_of({**parameters, **held}, state, arms=arms, described=case.described)
