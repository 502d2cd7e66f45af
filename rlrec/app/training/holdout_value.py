"""What the log says of parameters: estimates and paired differences on visits that have not taught them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rlrec import ope
from rlrec.app.evaluation.visit_values import Decisions, Fitting, Shown, Values
from rlrec.app.training.blocks import Block, blocks
from rlrec.app.training.dataset import Part, Rows
from rlrec.arrays import Array
from rlrec.ope.estimate import Estimate, FinishOptions
from rlrec.ope.paired import PairedDifference, difference
from rlrec.ope.sessions import SessionFold, SessionPartial
from rlrec.ope.visits import VisitBatch
from rlrec.policy import reinforce
from rlrec.policy.gradient import OF_ARM, Gradient, Parameters, scored

ESTIMATOR = "wdr"
VISITS = 500  # in a set of those that judge
CELLS = 1 << 19  # scores that are worked out at a time: what follows from them stays near the processor
FEW = 50  # replicates of an interval that nobody looks at


def fitted(part: Part, *, gamma: float, arms: int) -> Values:
    """The model of returns by some visits."""
    total: Fitting | None = None
    for rows in part.sets():
        told = Fitting.of(_decisions(rows), rows.reward, gamma=gamma, arms=arms)
        total = told if total is None else total + told
    assert total is not None
    return total.finish()


def _decisions(rows: Rows) -> Decisions:
    """As the model of returns sees them: arms by their places among those that are trained."""
    state, table = rows.state(), np.concatenate([case.places for case in rows.cases])
    lengths = np.array([len(case.places) for case in rows.cases])
    base = (np.cumsum(lengths) - lengths)[rows.case]
    return Decisions(
        start=rows.start, cluster=rows.cluster, top=table[base + rows.shown[rows.first[:-1]]], x=rows.x, row=state.row,
        arm=table[base[state.row] + state.arm], own=state.own,
    )  # fmt: skip


class Judge:
    """What some visits say of parameters, beside those that they are held against."""

    def __init__(
        self, part: Part, policy: Gradient, against: Parameters, *, gamma: float, values: Values,
        most: int | None = None,
    ) -> None:  # fmt: skip
        """most: visits, the first ones, that are asked."""
        self.part, self.policy, self.against, self.values, self.most = part, policy, against, values, most
        asked = ope.parse(ESTIMATOR).sessions
        self.fold = SessionFold(estimators=asked, gamma=gamma, horizon=part.longest, spanning=part.spanning)
        self._known = self._stat(against)

    def point(self, parameters: Parameters, *, z: float) -> dict[str, Any]:
        """A point of the learning curve, with a lower and an upper bound of the gain z standard errors away."""
        stat, (entropy, kl) = self._stat(parameters), self._apart(parameters)
        estimate, gain = self._estimate(stat), self._difference(stat, alpha=0.025, replicates=FEW)
        error = gain.std_error
        return {
            "value": estimate.value, "gain": gain.value, "ess": estimate.ess, "entropy": entropy, "kl": kl,
            "lower": None if error is None or gain.value is None else gain.value - z * error,
            "upper": None if error is None or gain.value is None else gain.value + z * error,
        }  # fmt: skip

    def judged(self, parameters: Parameters, *, alpha: float) -> tuple[Estimate, Estimate, PairedDifference]:
        """The estimates of the parameters and of what they are held against, and of what they are above it: its lower
        bound is wrong with probability alpha."""
        stat = self._stat(parameters)
        return self._estimate(stat), self._estimate(self._known), self._difference(stat, alpha=alpha)

    def _difference(self, stat: SessionPartial, **asked: Any) -> PairedDifference:
        return difference(stat, self._known, estimator=self.fold.estimators[ESTIMATOR], **asked)

    def _estimate(self, stat: SessionPartial) -> Estimate:
        return self.fold.finish(stat, FinishOptions(interval="normal"))[0]

    def _stat(self, parameters: Parameters) -> SessionPartial:
        """The fold over the visits."""
        total: SessionPartial | None = None
        for rows in self.part.sets(self.most):
            told = self.fold.partial(self._batch(rows, parameters))
            total = told if total is None else total + told
        assert total is not None
        return total

    def _batch(self, rows: Rows, parameters: Parameters) -> VisitBatch:
        """Visits as the parameters see them."""
        decisions, log_joint = _decisions(rows), np.empty(len(rows.case))
        expected = self.values.expected(decisions, self._shown(rows, parameters, log_joint))
        return VisitBatch(
            start=rows.start, reward=rows.reward, log_ratio=log_joint - rows.log_propensity, cluster=rows.cluster,
            predicted=self.values.predicted(decisions), expected=expected, largest=-rows.lowest,
            default=rows.default > 0,
        )  # fmt: skip

    def _shown(self, rows: Rows, parameters: Parameters, log_joint: Array) -> Iterator[Shown]:
        """What the parameters would show, portion by portion; the probability of what was shown goes into log_joint."""
        for block in self._portions(rows):
            score, mine, shown = self._score(parameters, block), block.rows, block.shown
            chance = reinforce.chances(score, block.eligible, **self._served)
            if shown.shape[1] == 1:
                with np.errstate(divide="ignore"):
                    log_joint[mine] = np.log(chance[np.arange(len(mine)), shown[:, 0]])
            else:
                log_joint[mine] = reinforce.log_joint(score, shown, block.eligible, **self._served)
            cases = np.arange(len(mine))
            yield Shown(rows=mine, log_page=log_joint[mine], places=block.places, share=chance, case=cases)

    def _portions(self, rows: Rows) -> Iterator[Block]:
        """Decisions that can be worked out together, few at a time."""
        for block in blocks(rows):
            step = max(1, CELLS // len(block.places))
            for start in range(0, len(block.rows), step):
                yield block.between(start, start + step)

    def _apart(self, parameters: Parameters) -> tuple[float, float]:
        """Mean entropy of the parameters, and mean KL(against || parameters), in nats, on the first set of visits."""
        sums = np.zeros(3)
        for block in self._portions(next(self.part.sets())):
            old, new = (
                reinforce.chances(self._score(one, block), block.eligible, **self._served)
                for one in (self.against, parameters)
            )
            entropy = -(new * np.log(np.maximum(new, 1e-30))).sum()
            sums += [len(block.rows), float(entropy), float(reinforce.divergence(old, new).sum())]
        return float(sums[1] / sums[0]), float(sums[2] / sums[0])

    @property
    def _served(self) -> dict[str, float]:
        return {"temperature": self.policy.temperature, "floor": self.policy.floor}

    def _score(self, parameters: Parameters, block: Block) -> Array:
        held = {name: parameters[name][block.places] for name in OF_ARM}
        return scored(self.policy.effective({**parameters, **held}, block.described), block.state)
