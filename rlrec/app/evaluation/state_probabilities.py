"""With which probability a target that reads session state would have shown what the log shows.

Every decision has a state of its own, the one that was recorded when it was made: nothing of it is computed anew from
what is known today. Decisions on one eligible set are worked out together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rlrec.app.distributions.trained import EligibleGroup, Trained
from rlrec.app.evaluation.log_rows import Rows
from rlrec.app.evaluation.probabilities import CELLS, Known, Scorer, Seen, places
from rlrec.app.evaluation.visit_values import Shown
from rlrec.arrays import Array, Flags, Ids
from rlrec.policy import history, reinforce
from rlrec.policy.plackett_luce import softmax
from rlrec.store import Unit
from rlrec.store.bulk import Columns


@dataclass(eq=False)
class StateScorer(Scorer):
    """One target that reads session state."""

    @property
    def trained(self) -> Trained:
        assert self.target.serving is not None
        assert self.target.serving.trained is not None
        return self.target.serving.trained

    def blind(self, slots: Columns) -> Flags | None:
        known: Flags = slots["recorded"]
        return None if known.all() else ~known

    def seen(self, unit: Unit, rows: Rows, known: Known) -> Seen:
        """A softmax has no marginal below position 1: both sides of a weight are the page down to the row there."""
        seen = Seen.nothing(np.isnan(rows.slots["marginal"]) | (rows.slots["position"] > 1))
        begins = np.flatnonzero(np.diff(rows.slots["decision_id"], prepend=-1))
        counts = np.diff(np.r_[begins, len(rows)])
        code, readings = known.contexts.reading(self.target.reads)
        slots = {name: column[begins] for name, column in rows.slots.items()}
        for case in self.asked(slots, code[begins], readings):
            part = _Part(self.trained, case, rows, begins[case.rows], counts[case.rows])
            part.weigh(seen)
            part.value(seen.expected, known)
            part.unsupported(seen.unsupported, known)
        seen.settle(known.logged)
        return seen

    def pages(self, unit: Unit, rows: Rows, known: Known, *, shares: bool) -> Iterator[Shown]:
        policy = self.trained.policy
        served = {"temperature": policy.temperature, "floor": policy.floor}
        code, readings = known.contexts.reading(self.target.reads)
        for case in self.asked(rows.slots, code, readings):
            yield Shown(
                rows=case.rows,
                log_page=_log_pages(case, rows, **served),
                places=known.rank[np.searchsorted(known.arms, case.arms)],
                share=reinforce.probabilities(case.score, None, **served) if shares else case.score,
                case=np.arange(len(case.rows)),
            )

    def asked(self, slots: Columns, code: Ids, readings: list[dict[str, object]]) -> Iterator[EligibleGroup]:
        """Decisions, one a row of slots, which reads the context `code`."""
        remembered = history.unpack(slots["history"].tolist(), slots["step"])
        revision = slots["catalogue_revision"]
        state = self.trained.states(self.trained.encoded(readings)[code], remembered, revision)
        return self.trained.cases(state, slots["eligible_id"], revision)


class _Part:
    """The rows of the decisions of a case, which begin at begins (d,) in the batch and are counts (d,) each.

    mine (p,): those rows; which (p,): the decision of each."""

    def __init__(self, trained: Trained, case: EligibleGroup, rows: Rows, begins: Ids, counts: Ids) -> None:
        self.arms, self.score, self.rows = case.arms, case.score, rows
        self.served = {"temperature": trained.policy.temperature, "floor": trained.policy.floor}
        self.chance = reinforce.probabilities(self.score, None, **self.served)
        self.mine = np.repeat(begins - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        self.which = np.repeat(np.arange(len(counts)), counts)
        self.depth, self.position = rows.depth[self.mine], rows.slots["position"][self.mine]

    def weigh(self, seen: Seen) -> None:
        """The target's probability of the row, or of the page down to it; no page down to it is likelier than the best
        arm."""
        place, good = places(self.arms, self.rows.slots["arm_id"][self.mine][:, None])
        seen.greatest[self.mine] = self.chance.max(axis=1)[self.which]
        seen.target[self.mine] = np.where(good, self.chance[self.which, place[:, 0]], 0.0)
        deep = np.flatnonzero((self.depth > 0) & ~np.isnan(self.rows.prefix[self.mine]))
        for depth in np.unique(self.depth[deep]).tolist():
            group = deep[self.depth[deep] == depth]
            place, good = self._pages(group, depth + 1)
            joint = reinforce.log_joint(self.score[self.which[group[good]]], place[good], None, **self.served)
            seen.target[self.mine[group]] = 0.0
            seen.target[self.mine[group[good]]] = np.exp(joint)

    def _pages(self, group: Ids, size: int) -> tuple[Ids, Flags]:
        """Places of the top of the pages of some rows, (g, size), and which of these can be made of the arms."""
        start = self.rows.start[self.mine[group]]
        return places(self.arms, self.rows.shown[start[:, None] + np.arange(size)])

    def value(self, expected: Array, known: Known) -> None:
        """The mean of the reward model under the target, given the page above as it was shown."""
        if known.valued is None:
            return
        at, step = np.searchsorted(known.arms, self.arms), max(1, CELLS // len(known.arms))
        for start in range(0, len(self.mine), step):
            group = np.arange(start, min(start + step, len(self.mine)))
            shares = np.zeros((len(group), len(known.arms)))
            shares[:, at] = self._given_above(group)
            expected[self.mine[group]] = known.valued.expected(
                shares, case=np.arange(len(group)), rows=self.mine[group]
            )

    def _given_above(self, group: Ids) -> Array:
        """Probability of each arm in some rows, (g, m); of position 1 where the page above is not known."""
        found = self.chance[self.which[group]]
        deep = np.flatnonzero((self.depth[group] > 0) & self.rows.whole[self.mine[group]])
        for depth in np.unique(self.depth[group[deep]]).tolist():
            lower = deep[self.depth[group[deep]] == depth]
            above, good = self._pages(group[lower], depth)
            lower, above = lower[good], above[good]
            found[lower] = _below(self.score[self.which[group[lower]]], above, **self.served)
        return found

    def unsupported(self, unsupported: Array, known: Known) -> None:
        """The target's probability on arms the logger gave 0, at position 1; below it is not known."""
        unclear = known.logged.unclear[self.mine]
        unsupported[self.mine[unclear]] = np.nan
        top = np.flatnonzero(unclear & (self.position == 1))
        if not len(top):
            return
        examples, kind = known.loggers.alike(self.rows, self.mine[top], known.contexts)
        for place, row in enumerate(examples.tolist()):
            zeros = known.loggers.zeros(row, self.rows, known.contexts, self.arms, known.keys)
            if zeros is not None:
                group = top[kind == place]
                unsupported[self.mine[group]] = self.chance[self.which[group]] @ zeros[0]


def _log_pages(case: EligibleGroup, rows: Rows, *, temperature: float, floor: float) -> Array:
    """Log of the probability of the pages of a case, (d,); rows: the lowest slot of each."""
    found, depth, start = np.full(len(case.rows), -np.inf), rows.depth[case.rows], rows.start[case.rows]
    for deep in np.unique(depth).tolist():
        mine = np.flatnonzero(depth == deep)
        place, good = places(case.arms, rows.shown[start[mine][:, None] + np.arange(deep + 1)])
        found[mine[good]] = reinforce.log_joint(
            case.score[mine[good]], place[good], temperature=temperature, floor=floor
        )
    return found


def _below(score: Array, above: Ids, *, temperature: float, floor: float) -> Array:
    """Probability of each arm below pages, (n, m), by scores (n, m); above (n, k) places, k < m."""
    left, rows = score.copy(), np.arange(len(score))[:, None]
    left[rows, above] = -np.inf
    mixed: Array = (1 - floor) * softmax(left, temperature=temperature) + floor / (score.shape[1] - above.shape[1])
    mixed[rows, above] = 0.0
    return mixed
