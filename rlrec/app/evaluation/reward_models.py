"""Reward models of an evaluation: fitted on the log itself, cross-fitted by cluster, or given as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from rlrec.app.evaluation.contexts import Contexts
from rlrec.app.evaluation.log_rows import Rows
from rlrec.app.inputs import parameters
from rlrec.arrays import Array, Ids
from rlrec.errors import InputError, suggest
from rlrec.ope.direct import Model, RewardTable, Ridge, RidgeSums
from rlrec.policy import features
from rlrec.policy.reward import bounds
from rlrec.records import Reward

ANY = "*"  # in a table: the arms, or the values, that no row names
POSITIONS = 32  # positions with an effect of their own; those below share the last one's


@dataclass(frozen=True, eq=False)
class Valued:
    """A model's view of a batch. predicted (n,): value of the arm shown; expected(shares (m, arms), case, rows): mean
    value of the given rows of the batch under the shares of the case each has."""

    predicted: Array
    expected: Expected


class Expected(Protocol):
    def __call__(self, shares: Array, *, case: Ids, rows: Ids) -> Array: ...


# -- fitted on the log --


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitting:
    """The first pass over the log: sums of the normal equations, batch by batch. arms (a,): ids of the catalogue; rank
    (a,): where their keys stand in order, which is how they stand in the sums whatever ids a store gave them."""

    ridge: Ridge
    arms: Ids
    rank: Ids

    def stat(self, rows: Rows, contexts: Contexts) -> RidgeSums:
        return self.ridge.sums(
            rows.reward,
            self.rank[np.searchsorted(self.arms, rows.slots["arm_id"])],
            position=self.position(rows),
            cluster=rows.cluster,
            context=contexts.encoded,
            code=contexts.code,
        )

    def position(self, rows: Rows) -> Ids:
        return np.minimum(rows.slots["position"], self.ridge.positions)

    def finish(self, sums: RidgeSums, definition: Reward) -> Fitted:
        """The model, its values cut at the reward's range."""
        reach = bounds(definition) or (-np.inf, np.inf)
        model = self.ridge.finish(sums, reward_range=reach)
        return Fitted(self, replace(model, effects=model.effects[:, self.rank]))


def fitting(arms: Ids, rank: Ids, *, positions: int) -> Fitting:
    """A ridge regression on arm, position and hashed context, for a log with pages of up to `positions`."""
    ridge = Ridge(arms=max(1, len(arms)), positions=max(1, min(positions, POSITIONS)), features=features.WIDTH)
    return Fitting(ridge=ridge, arms=arms, rank=rank)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A ridge regression that was fitted on the log; no row is valued by a model that saw its cluster."""

    fitting: Fitting
    model: Model
    encodes: bool = True
    reads: str | None = None

    def rows(self, rows: Rows, contexts: Contexts) -> Valued:
        fold = self.fitting.ridge.fold(rows.cluster)
        position = self.fitting.position(rows)
        offset = self.model.offset(fold, position, context=contexts.encoded, code=contexts.code)
        arm = np.searchsorted(self.fitting.arms, rows.slots["arm_id"])

        def expected(shares: Array, *, case: Ids, rows: Ids) -> Array:
            return self.model.expected(shares, case=case, fold=fold[rows], offset=offset[rows])

        return Valued(self.model.predicted(arm, fold=fold, offset=offset), expected)


# -- given --


@dataclass(frozen=True, kw_only=True, eq=False)
class Tabled:
    """A table arm -> reward, or value of a context field -> arm -> reward."""

    table: RewardTable
    arms: Ids
    values: Mapping[str, int]
    reads: str | None
    where: str
    encodes: bool = False

    def rows(self, rows: Rows, contexts: Contexts) -> Valued:
        value = self._value(rows, contexts)
        arm = np.searchsorted(self.arms, rows.slots["arm_id"])

        def expected(shares: Array, *, case: Ids, rows: Ids) -> Array:
            return self.table.expected(shares, case=case, value=value[rows])

        return Valued(self.table.predicted(arm, value=value), expected)

    def _value(self, rows: Rows, contexts: Contexts) -> Ids:
        if self.reads is None:
            return np.zeros(len(rows), np.int64)
        codes, values = contexts.coded(self.reads, features.text_of)
        return np.array([self._place(features.text_of(value)) for value in values], np.int64)[codes]

    def _place(self, value: str) -> int:
        found = self.values.get(value, self.values.get(ANY))
        if found is None:
            raise InputError(f"{self.where} has no row for {self.reads}={value!r}", hint=f"add one, or one for {ANY!r}")
        return found


def tabled(path: str, *, by: str | None, arms: Ids, keys: Mapping[int, str]) -> Tabled:
    """The model in a CSV file. Raises InputError where it names an arm the catalogue lacks, or lacks one of its."""
    given = parameters.reward_model(Path(path), by=by is not None)
    if not given:
        raise InputError(f"{path} holds no reward", hint="one row an arm: arm,reward")
    known = set(keys.values())
    strange = next((arm for table in given.values() for arm in table if arm != ANY and arm not in known), None)
    if strange is not None:
        raise InputError(f"{path} names arm {strange!r}, which the catalogue lacks", hint=suggest(strange, list(known)))
    rows = [[_worth(path, table, keys[arm]) for arm in arms.tolist()] for table in given.values()]
    places = {value: place for place, value in enumerate(given)}
    return Tabled(table=RewardTable(np.array(rows, np.float64)), arms=arms, values=places, reads=by, where=path)


def _worth(path: str, table: Mapping[str, float], arm: str) -> float:
    found = table.get(arm, table.get(ANY))
    if found is None:
        raise InputError(f"{path} has no reward for arm {arm!r}", hint=f"add a row for it, or one for {ANY!r}")
    return found


RewardModel = Fitted | Tabled
"""Either has `rows`, says whether it `encodes` contexts as numbers, and which field of them it `reads`."""
