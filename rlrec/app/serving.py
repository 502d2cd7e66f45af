"""A version's belief, and the distributions it makes for the arms and contexts that are asked about."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec import policy as kinds
from rlrec.policy.base import EVERYTHING, Belief, Policy
from rlrec.policy.scores import Array, Scores
from rlrec.policy.slate import Pages
from rlrec.records import Version
from rlrec.store import Unit, beliefs
from rlrec.store.unit import Row

Ids = npt.NDArray[np.int64]
ARMS = 10_000  # in all distributions that are kept of one belief: 30 MB


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """The distribution over one eligible set: arms (m,) ids; scores and, where the kind has one, index (m,).

    reads: the fields of the context that it depends on. known: its pages by their length."""

    arms: Ids
    scores: Scores
    index: Array | None
    floor: float
    reads: tuple[str, ...]
    known: dict[int, Pages]
    before: Mapping[int, Pages]

    def pages(self, size: int) -> Pages:
        """Pages of so many positions, worked out once; from those of an earlier belief where there are any."""
        if size not in self.known:
            old = self.before.get(size)
            made = Pages(self.scores, size=size, floor=self.floor) if old is None else old.changed(self.scores)
            self.known[size] = made
        return self.known[size]

    def noiseless(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.object_]:
        """The noiseless score of arms, same shape; None where there is none, or it is not finite (never tried)."""
        shown = np.full(places.shape, None, np.object_)
        if self.index is not None:
            found = self.index[places]
            known = np.isfinite(found)
            shown[known] = found[known]
        return shown


class Serving:
    """One version at one moment: its policy, its sums per arm, and a cache of the distributions asked for."""

    def __init__(self, version: Version, *, sums: Sequence[Row], prior: Sequence[Row], greedy: bool = False) -> None:
        self.version = version
        made = kinds.make(version.policy.kind, version.policy.params)
        self.policy: Policy = made.greedy() if greedy else made
        self._arms, self._sums = _table(sums, 3)
        self._prior_arms, self._prior = _table(prior, 2)
        self._cases: dict[tuple[Hashable, str], Case] = {}
        self._before: dict[tuple[Hashable, str], Mapping[int, Pages]] = {}
        self._kept = 0

    @cached_property
    def known(self) -> Ids:
        """Arms that the belief or its prior knows, ascending."""
        return np.union1d(self._arms, self._prior_arms)

    def belief(self, arms: Ids) -> Belief:
        """Sums and prior of these arms; an arm the belief does not know has none, and the kind's default prior."""
        sums = _aligned(self._arms, self._sums, arms, (0.0, 0.0, 0.0))
        prior = _aligned(self._prior_arms, self._prior, arms, self.policy.prior)
        return Belief(
            pulls=sums[:, 0],
            reward_sum=sums[:, 1],
            reward_squares=sums[:, 2],
            alpha=prior[:, 0],
            beta=prior[:, 1],
            total=float(self._sums[:, 0].sum()),
        )

    def reading(self, context: Mapping[str, Any]) -> str:
        """What of a context the distribution depends on: equal for contexts that make the same one."""
        reads = self.policy.reads
        if reads == EVERYTHING:
            return repr(context)
        return repr([context.get(field) for field in reads]) if reads else ""

    def case(self, eligible: Hashable, arms: Ids, context: Mapping[str, Any], *, keys: Mapping[int, str]) -> Case:
        """The distribution for an eligible set (by any name for it) and a context, made once.

        keys: of the arms. Raises InputError where the policy has no distribution for the context.
        """
        name = eligible, self.reading(context)
        if name not in self._cases:
            belief = self.belief(arms)
            scores = self.policy.scores(belief, arms=[keys[arm] for arm in arms.tolist()], context=context)
            index = self.policy.index(belief)
            if self._kept > ARMS:
                self.forget()
            self._kept += len(arms)
            self._cases[name] = Case(
                arms=arms, scores=scores, index=index, floor=self.policy.exploration, reads=self.policy.reads,
                known={}, before=self._before.get(name, {}),
            )  # fmt: skip
        return self._cases[name]

    def forget(self) -> None:
        """Drop the distributions made so far: they would fill the memory where no two rows share one."""
        self._cases.clear()
        self._before.clear()
        self._kept = 0


def load(unit: Unit, version: Version, *, seq: int | None = None, greedy: bool = False) -> Serving:
    """A version as it stands, or as it stood after change `seq` of its policy."""
    sums = beliefs.current(unit, version.id) if seq is None else beliefs.as_of(unit, version.id, seq)
    return Serving(version, sums=sums, prior=beliefs.prior(unit, version.id), greedy=greedy)


def renewed(unit: Unit, before: Serving) -> Serving:
    """A version that was served before, as it stands now: what it knew of its pages is brought up to date."""
    made = copy(before)  # policy and prior are the same
    made.__dict__.pop("known", None)
    made._arms, made._sums = _table(beliefs.current(unit, before.version.id), 3)
    made._before = {name: {**case.before, **case.known} for name, case in before._cases.items()}
    made._cases, made._kept = {}, 0
    return made


def _table(rows: Sequence[Row], width: int) -> tuple[Ids, Array]:
    whole = np.array(rows, np.float64).reshape(len(rows), 1 + width)
    return whole[:, 0].astype(np.int64), whole[:, 1:]


def _aligned(known: Ids, values: Array, arms: Ids, missing: tuple[float, ...]) -> Array:
    if not len(known):
        return np.tile(np.array(missing), (len(arms), 1))
    if np.array_equal(known, arms):
        return values
    place = np.minimum(np.searchsorted(known, arms), len(known) - 1)
    return np.where((known[place] == arms)[:, None], values[place], np.array(missing))
