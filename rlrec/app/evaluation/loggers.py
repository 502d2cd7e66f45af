"""What is known of the policies that logged: how small their propensities can be, and what they could not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from rlrec import policy as kinds
from rlrec.app import lineage, serving
from rlrec.app.evaluation.contexts import Contexts
from rlrec.app.evaluation.pages import Flags, Rows
from rlrec.app.serving import Ids, Serving
from rlrec.ope.base import distinct
from rlrec.policy import slate
from rlrec.policy.scores import Array
from rlrec.records import Version
from rlrec.store import Unit, contents, policies

DERIVED = 1_000  # distributions of loggers that one evaluation computes anew; rows beyond them stay unknown
LONGEST = 256  # positions of a page whose floor is worked out exactly
CERTAIN = 1 - 1e-12


@dataclass(frozen=True, eq=False)
class Logged:
    """What was logged of a batch, (n,) each.

    lowest: the smallest probability any arm could have had in the row; NaN where it is not known.
    full: every arm had a chance. alone: only the arm shown had one. unclear: only a belief can tell."""

    lowest: Array
    full: Flags
    alone: Flags
    unclear: Flags


class Loggers:
    """The versions that logged, each looked up once."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._versions: dict[int, Version] = {}
        self._zeros: dict[tuple[int, int, int, int, str], Flags] = {}
        self.exploration = cache(self._exploration)
        self._serving = lru_cache(maxsize=8)(self._load)

    def known(self, version_ids: Ids) -> dict[int, Version]:
        wanted = set(version_ids[distinct(version_ids)[0]].tolist())
        self._versions |= policies.by_id(self.unit, wanted - self._versions.keys())
        return {key: self._versions[key] for key in wanted}

    def reads(self, rows: Rows, unclear: Flags) -> set[str]:
        """The fields of the context that the loggers of these rows depend on."""
        found = self.known(rows.slots["version_id"][unclear]).values()
        return {field for version in found for field in self._fields(version)}

    def describe(self, rows: Rows) -> Logged:
        """What is known of the propensities of a batch without a belief."""
        slots = rows.slots
        smallest, own = slots["min_propensity"], ~slots["imported"]
        alone = own & (smallest == 0) & (slots["marginal"] >= CERTAIN)
        lowest = np.where(rows.lowest > 0, rows.lowest, np.nan)
        deeper = np.flatnonzero(own & (rows.depth > 0) & ~np.isnan(lowest) & ~np.isnan(slots["marginal"]))
        if len(deeper):
            lowest[deeper] = self._floors(rows, deeper, lowest[deeper])
        return Logged(lowest=lowest, full=smallest > 0, alone=alone, unclear=own & (smallest == 0) & ~alone)

    def _floors(self, rows: Rows, deeper: Ids, lowest: Array) -> Array:
        """The smallest marginal below position 1: what the floor guarantees whatever the scores, where there is one.

        The smallest conditional of a row says little of it: the arm that mostly stands above is rare here."""
        slots = {name: rows.slots[name][deeper] for name in ("version_id", "size", "eligible_id", "position")}
        self.known(slots["version_id"])
        first, which = distinct(slots["eligible_id"])
        sets = slots["eligible_id"][first].tolist()
        sizes = contents.set_sizes(self.unit, sets)
        arms = np.array([sizes[key] for key in sets], np.int64)[which]
        first, which = distinct(slots["version_id"], slots["size"], arms)
        least = lowest.copy()
        for place, row in enumerate(first.tolist()):
            version_id, size, m = int(slots["version_id"][row]), int(slots["size"][row]), int(arms[row])
            floor = self.exploration(version_id)
            if floor > 0 and size <= min(m, LONGEST):
                mine = which == place
                least[mine] = guaranteed(size, m, floor=floor)[slots["position"][mine] - 1]
        return least

    def _exploration(self, version_id: int) -> float:
        version = self._versions[version_id]
        return kinds.make(version.policy.kind, version.policy.params).exploration

    def alike(self, rows: Rows, unclear: Ids, contexts: Contexts) -> tuple[Ids, Ids]:
        """Of these rows: one of each kind that share a logger's distribution, and the kind each row is of."""
        slots = {name: rows.slots[name][unclear] for name in ("version_id", "belief_seq", "eligible_id", "size")}
        first, which = distinct(slots["version_id"])
        known = [self._versions[key] for key in slots["version_id"][first].tolist()]
        moves = np.array([lineage.learns(version) for version in known])[which]
        reading = np.zeros(len(unclear), np.int64)
        for place, version in enumerate(known):
            mine = which == place
            reading[mine] = contexts.reading(self._fields(version))[0][unclear[mine]]
        first, kind = distinct(
            slots["version_id"], slots["belief_seq"] * moves, slots["eligible_id"], slots["size"], reading
        )
        return unclear[first], kind

    def zeros(self, row: int, rows: Rows, contexts: Contexts, arms: Ids, keys: Mapping[int, str]) -> Flags | None:
        """Which arms the logger of a row could not show at each position, (size, m); None once too many were asked."""
        names = ("version_id", "belief_seq", "eligible_id", "size")
        version_id, seq, eligible_id, size = (int(rows.slots[name][row]) for name in names)
        version = self._versions[version_id]
        context = contexts.read(self._fields(version), row)
        name = version_id, seq if lineage.learns(version) else 0, eligible_id, size, repr(context)
        if name not in self._zeros and len(self._zeros) < DERIVED:
            case = self._serving(version_id, seq).case(eligible_id, arms, context, keys=keys)
            self._zeros[name] = slate.marginals(case.scores, size=min(size, len(arms)), floor=case.floor) == 0
        return self._zeros.get(name)

    @staticmethod
    def _fields(version: Version) -> tuple[str, ...]:
        return kinds.make(version.policy.kind, version.policy.params).reads

    def _load(self, version_id: int, seq: int) -> Serving:
        return serving.load(self.unit, self._versions[version_id], seq=seq)


@lru_cache(maxsize=1_000)
def guaranteed(size: int, m: int, *, floor: float) -> Array:
    """The smallest probability that any arm can have at each position, (size,), by a floor above 0 alone.

    The chance that an arm stands at a position is a mean, over its rank in the score vector, of `slate.placement`."""
    chance, beyond = slate.placement(size, m, floor=floor)
    return np.minimum([chance[place, : place + 1].min() for place in range(size)], beyond)
