"""What a trained version makes of decisions: the states that it reads, and the scores of the arms there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from rlrec.app import designs
from rlrec.app.designs import Described, Ids
from rlrec.ope.base import distinct
from rlrec.policy.gradient import OF_ARM, Gradient, Parameters, State
from rlrec.policy.history import History
from rlrec.policy.scores import Array
from rlrec.records import Version
from rlrec.store import Unit, contents, weights

CELLS = 2_000_000  # scores that are worked out at a time


@dataclass(frozen=True, eq=False)
class Case:
    """Decisions that share an eligible set as it was described: their rows, the arms (m,) and features of these."""

    rows: Ids
    arms: Ids
    described: Array


class Trained:
    """One version of a kind that reads states. greedy: without its exploration."""

    def __init__(self, unit: Unit, version: Version, *, greedy: bool = False) -> None:
        made = cast(Gradient, designs.policy_of(version))
        self.unit, self.version = unit, version
        self.policy = made.greedy() if greedy else made
        found = weights.of(unit, version.id)
        self.arms: Ids = np.array([row[0] for row in found], np.int64)
        packed = np.frombuffer(b"".join(row[1] for row in found), "<f8")
        both: Mapping[str, Any] = version.parameters.get("shared", {})
        self.parameters = made.unpacked(packed, both)
        self.described = Described(unit, made.design.arm)
        self.eligible = lru_cache(maxsize=1_000)(self._arms)

    def of(self, arms: Ids, revision: int) -> tuple[Parameters, Array]:
        """Its parameters for these arms, and their features by a catalogue."""
        return self.parameters_of(arms), self.described.of(arms, revision)

    def parameters_of(self, arms: Ids) -> Parameters:
        """Its parameters for these arms; an arm that it has never seen has nothing of its own."""
        place = np.minimum(np.searchsorted(self.arms, arms), max(0, len(self.arms) - 1))
        known = self.arms[place] == arms if len(self.arms) else np.zeros(len(arms), np.bool_)
        found = dict(self.parameters)
        for name in OF_ARM:
            values = np.zeros((len(arms), *self.parameters[name].shape[1:]))
            values[known] = self.parameters[name][place[known]]
            found[name] = values
        return found

    def encoded(self, contexts: Sequence[Mapping[str, Any]]) -> Array:
        """Features of contexts, (n, q)."""
        found: Array = self.policy.design.context.encode(contexts)
        return found

    def states(self, context: Array, history: History, revision: Ids) -> State:
        """States of decisions by encoded contexts (n, q), what they remember, and the catalogue of each, (n,)."""
        return self.policy.states(context, history, self._features(history.arm, revision[history.rows]))

    def _features(self, arms: Ids, revision: Ids) -> Array:
        """Of arms as they were described at a revision each, (e, p)."""
        if not len(arms):
            return np.zeros((0, len(self.policy.design.arm.names)))
        epoch = np.array([self.described.epoch(one) for one in np.unique(revision).tolist()])
        first, which = distinct(arms, epoch[np.searchsorted(np.unique(revision), revision)])
        rows = [self.described.of(arms[[row]], int(revision[row]))[0] for row in first.tolist()]
        found: Array = np.array(rows)[which]
        return found

    def cases(self, eligible: Ids, revision: Ids) -> Iterator[Case]:
        """Decisions by eligible set (its id, (n,)) and catalogue, few enough at a time for their scores to be held."""
        epochs = {one: self.described.epoch(one) for one in np.unique(revision).tolist()}
        epoch = np.array([epochs[one] for one in revision.tolist()], np.int64)
        first, which = distinct(eligible, epoch)
        order, ends = np.argsort(which, kind="stable"), np.cumsum(np.bincount(which, minlength=len(first)))
        for row, end, count in zip(first.tolist(), ends.tolist(), np.diff(np.r_[0, ends]).tolist(), strict=True):
            arms = self.eligible(int(eligible[row]))
            described = self.described.of(arms, int(revision[row]))
            step = max(1, CELLS // len(arms))
            for start in range(end - count, end, step):
                yield Case(order[start : min(start + step, end)], arms, described)

    def _arms(self, eligible: int) -> Ids:
        return np.array(contents.eligible_arms(self.unit, [eligible])[eligible], np.int64)

    def scores(self, state: State, case: Case) -> Array:
        """Noiseless scores of the arms of a case in the states of its rows, (rows, m)."""
        mine = state if len(case.rows) == len(state) and (case.rows == np.arange(len(state))).all() else None
        return self.policy.scores_of(
            self.parameters_of(case.arms),
            state.take(case.rows) if mine is None else mine,
            arms=case.arms,
            described=case.described,
        )


def readings(unit: Unit, context_ids: Ids) -> tuple[list[dict[str, Any]], Ids]:
    """The distinct contexts of decisions, and which of them each has, (n,)."""
    import msgspec

    ids, which = np.unique(context_ids, return_inverse=True)
    decode: Callable[[str], dict[str, Any]] = msgspec.json.Decoder().decode
    bodies = contents.context_bodies(unit, ids.tolist())
    return list(map(decode, map(bodies.__getitem__, ids.tolist()))), which.reshape(-1)
