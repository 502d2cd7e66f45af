"""What is known of the policies that logged: how small their propensities can be, and what they could not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from rlrec.app.distributions import designs, exact
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.contexts import Contexts
from rlrec.app.evaluation.log_rows import Rows
from rlrec.app.log import lineage
from rlrec.arrays import Array, Flags, Ids, distinct
from rlrec.policy import slate
from rlrec.policy.base import Policy
from rlrec.records import Version
from rlrec.store import Unit, contents, policies

DERIVED = 1_000  # distributions of loggers that one evaluation computes anew; rows beyond them stay unknown
LONGEST = 256  # positions of a page whose floor is worked out exactly
CERTAIN = 1 - 1e-12
# What a logger's distribution depends on, beside the context.
_DRAWN = ("version_id", "belief_seq", "belief_ordinal", "eligible_id", "catalogue_revision", "size")


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
        self._zeros: dict[tuple[object, ...], Flags] = {}
        self._policy = cache(self._made)
        self._serving = lru_cache(maxsize=8)(self._load)

    def known(self, version_ids: Ids) -> dict[int, Version]:
        wanted = set(version_ids[distinct(version_ids)[0]].tolist())
        self._versions |= policies.by_id(self.unit, wanted - self._versions.keys())
        return {key: self._versions[key] for key in wanted}

    def reads(self, rows: Rows, unclear: Flags) -> set[str]:
        """The fields of the context that the loggers of these rows depend on."""
        return {field for key in self.known(rows.slots["version_id"][unclear]) for field in self._policy(key).reads}

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
            floor = self._policy(version_id).exploration
            if floor > 0 and size <= min(m, LONGEST):
                mine = which == place
                least[mine] = guaranteed(size, m, floor=floor)[slots["position"][mine] - 1]
        return least

    def alike(self, rows: Rows, unclear: Ids, contexts: Contexts) -> tuple[Ids, Ids]:
        """Of these rows: one of each kind that share a logger's distribution, and the kind each row is of."""
        slots = {name: rows.slots[name][unclear] for name in _DRAWN}
        first, which = distinct(slots["version_id"])
        reading = np.zeros(len(unclear), np.int64)
        for place, version_id in enumerate(slots["version_id"][first].tolist()):
            mine = which == place
            for name in self._idle(version_id):
                slots[name][mine] = 0
            reading[mine] = contexts.reading(self._policy(version_id).reads)[0][unclear[mine]]
        first, kind = distinct(*slots.values(), reading)
        return unclear[first], kind

    def zeros(self, row: int, rows: Rows, contexts: Contexts, arms: Ids, keys: Mapping[int, str]) -> Flags | None:
        """Which arms the logger of a row could not show at each position, (size, m); None once too many were asked, and
        for one that read the session."""
        drawn = {name: int(rows.slots[name][row]) for name in _DRAWN}
        version_id = drawn["version_id"]
        if self._policy(version_id).stateful:
            return None
        drawn |= dict.fromkeys(self._idle(version_id), 0)
        context = contexts.read(self._policy(version_id).reads, row)
        name = *drawn.values(), repr(context)
        if name not in self._zeros and len(self._zeros) < DERIVED:
            served = self._serving(version_id, drawn["belief_seq"], drawn["belief_ordinal"])
            case = served.case(drawn["eligible_id"], arms, context, keys=keys, revision=drawn["catalogue_revision"])
            size = min(drawn["size"], len(arms))
            self._zeros[name] = slate.marginals(case.scores, size=size, floor=case.floor) == 0
        return self._zeros.get(name)

    def _idle(self, version_id: int) -> list[str]:
        """What of _DRAWN the distributions of a version do not depend on."""
        policy = self._policy(version_id)
        needed = {
            "belief_seq": lineage.informed(policy),
            "belief_ordinal": bool(policy.forgetting),
            "catalogue_revision": policy.contextual,
        }
        return [name for name, matters in needed.items() if not matters]

    def _made(self, version_id: int) -> Policy:
        return designs.policy_of(self._versions[version_id])

    def _load(self, version_id: int, seq: int, ordinal: int) -> VersionDistribution:
        return exact.load(self.unit, self._versions[version_id], seq=seq, ordinal=ordinal)


@lru_cache(maxsize=1_000)
def guaranteed(size: int, m: int, *, floor: float) -> Array:
    """The smallest probability that any arm can have at each position, (size,), by a floor above 0 alone.

    The chance that an arm stands at a position is a mean, over its rank in the score vector, of `slate.placement`."""
    chance, beyond = slate.placement(size, m, floor=floor)
    return np.minimum([chance[place, : place + 1].min() for place in range(size)], beyond)
