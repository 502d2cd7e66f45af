"""Slates as stored, and the same slates derived again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.arrays import Array, Flags, Ids, Index, offsets, piece_rows, run_starts, take
from rlrec.policy.beliefs.base import EVERYTHING
from rlrec.policy.contexts.fields import value_of
from rlrec.policy.contexts.statements import GROUPS, PAGE, PAGE_FIELDS
from rlrec.policy.slates import slate_draws
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import contents
from rlrec.store.policies import arms

CHECK, DRAWS = "propensities", "draws"
ABSOLUTE, RELATIVE = 1e-9, 1e-6  # tolerances: a propensity computed another way may differ by either


@dataclass(frozen=True, eq=False)
class StoredSlates:
    """Decisions with all slots of their slates: columns of `audit`, and the row of each decision's first slot, (n,)."""

    slots: Columns
    first: Index

    def __len__(self) -> int:
        return len(self.first)

    def per_decision(self, name: str) -> npt.NDArray[Any]:
        return self.slots[name][self.first]

    def fields(self, rows: Index, *names: str) -> Iterator[tuple[Any, ...]]:
        """Some columns of some decisions: for each decision its row and its values."""
        return zip(rows.tolist(), *(self.slots[name][self.first[rows]].tolist() for name in names), strict=True)

    def per_slot(self, name: str, slates: Index, size: int) -> npt.NDArray[Any]:
        """A column of the slots of some slates of one length, (slates, size)."""
        return self.slots[name][self.first[slates][:, None] + np.arange(size)]

    def of_arms(self, slates: Index, size: int, arms: Ids) -> Index:
        """Those of some slates of one length that show only some arms."""
        return slates[np.isin(self.per_slot("arm_id", slates, size), arms).all(axis=1)]

    def take(self, rows: Flags | Index) -> StoredSlates:
        size = self.per_decision("size")[rows]
        return StoredSlates(take(self.slots, piece_rows(self.first[rows], size)), offsets(size)[:-1])


def complete_slates(slots: Columns) -> StoredSlates:
    """The slates that have all their slots; the others are findings of `dangling`."""
    ids = slots["decision_id"]
    first = run_starts(ids)
    length = np.diff(np.r_[first, len(ids)])
    is_full = (length == slots["size"][first]) & (slots["position"][first + length - 1] == length)
    return StoredSlates(slots, first).take(is_full)


class References:
    """The contexts and eligible sets that decisions refer to. reads: the context fields that the policy reads."""

    def __init__(self, unit: Unit, findings: Findings, *, reads: Sequence[str]) -> None:
        self.unit, self.findings, self.reads = unit, findings, reads
        self._sets: dict[int, Ids | None] = {}
        self._keys: dict[int, str] = {}
        self._n_arms = 0
        self._contexts: dict[int, dict[str, object]] = {}

    def read(self, context_ids: Ids) -> None:
        """Read contexts that will be asked for; one that cannot be read counts as empty."""
        for key, body in contents.context_bodies(self.unit, set(context_ids.tolist())).items():
            has_page = PAGE in body or GROUPS in body  # whichever fields the policy reads
            if not self.reads and not has_page:
                continue
            try:
                context = json.loads(body)
                names = context if self.reads == EVERYTHING else self.reads
                self._contexts[key] = {name: value_of(context, name) for name in names}
                # otherwise the context holds them already
                if self.reads != EVERYTHING and not context.keys().isdisjoint((PAGE, GROUPS)):
                    stated = {name: value_of(context, name) for name in PAGE_FIELDS}
                    self._contexts[key] |= {name: value for name, value in stated.items() if value is not None}
            except UNREADABLE:
                self.findings.error(CHECK, f"context {key}", "it cannot be read")

    def context(self, key: int) -> Mapping[str, object]:
        return self._contexts.get(key, {})

    def eligible(self, key: int) -> tuple[Ids, dict[int, str]] | None:
        """Arms and their keys; None where a set cannot be read, which is a finding of `dangling`."""
        if key not in self._sets:
            if self._n_arms > contents.MAX_ARMS:
                self._sets.clear()
                self._n_arms = 0
            try:
                ids = contents.eligible_arms(self.unit, [key])[key]
                new = set(ids).difference(self._keys)
                self._keys |= arms.keys(self.unit, new) if new else {}
                self._sets[key] = np.array(ids, np.int64) if new <= self._keys.keys() else None
                self._n_arms += len(ids)
            except UNREADABLE:
                self._sets[key] = None
        members = self._sets[key]
        return None if members is None else (members, self._keys)


class SlateGroup:
    """Stored slates of one length: arrays (n,), and (n, size) for their slots."""

    def __init__(self, slates: StoredSlates, group: Index, size: int) -> None:
        self.ids: Ids = slates.slots["decision_id"][slates.first[group]]
        self.seeds = slates.slots["seed"][slates.first[group]].view(np.uint64)
        self.log: Array = slates.slots["log_propensity"][slates.first[group]]
        self.arms: Ids = slates.per_slot("arm_id", group, size)
        self.propensity: Array = slates.per_slot("propensity", group, size)
        self.marginal: Array = slates.per_slot("marginal", group, size)
        self.min_propensity: Array = slates.per_slot("min_propensity", group, size)
        self.score: Array = slates.per_slot("score", group, size)

    def compare(self, derive: Callable[[], DerivedSlates], *, source: str, findings: Findings) -> int:
        """Add a finding for every slate that differs from the one derived again. Returns how many could be derived.
        source: the belief, as messages name it."""
        if not len(self.ids):
            return 0
        try:
            with np.errstate(all="ignore"):
                derived = derive()
        except UNREADABLE as error:
            findings.decision_error(CHECK, self.ids[0], f"it cannot be derived again: {error}")
            return 0
        for row in np.flatnonzero(derived.redrawn).tolist():
            findings.decision_error(DRAWS, self.ids[row], f"its seed draws another slate from {source}")
        details: dict[int, list[str]] = {}
        for name in ("propensity", "marginal", "min_propensity", "score"):
            stored, expected = getattr(self, name), getattr(derived, name)
            # a marginal without a closed form and an infinite score are stored as NULL
            is_wrong = ~agree(stored, expected) & ~(np.isnan(stored) & (np.isnan(expected) | (expected <= 0)))
            for row, column in np.argwhere(is_wrong).tolist():
                values = f"{stored[row, column]:.12g}, not {expected[row, column]:.12g}"
                details.setdefault(row, []).append(f"{name} at position {column + 1} is {values}")
        log_joint = np.log(np.maximum(derived.propensity, slate_draws.SMALLEST)).sum(axis=1)
        for row in np.flatnonzero(~agree(np.exp(self.log), np.exp(log_joint))).tolist():
            details.setdefault(row, []).append(f"log_propensity is {self.log[row]:.12g}, not {log_joint[row]:.12g}")
        for row, differences in sorted(details.items()):
            findings.decision_error(CHECK, self.ids[row], f"from {source}: {'; '.join(differences)}")
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class DerivedSlates:
    """The figures of `SlateGroup`, derived again, (n, size); score: NaN where there is none. redrawn (n,): the seed
    gives another slate.
    Where the seed gives another slate of several positions, its smallest propensities are copied from the stored
    slate."""

    redrawn: Flags
    propensity: Array
    marginal: Array
    min_propensity: Array
    score: Array


def agree(stored: Array, derived: Array) -> Flags:
    """Which probabilities agree within the precision of doubles."""
    distance = np.abs(stored - derived)
    return (distance <= ABSOLUTE) | (distance <= RELATIVE * np.abs(derived))
