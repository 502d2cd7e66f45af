"""The fields of slots that beliefs depend on: slots that add the same have equal keys, and are counted.

Plain Python: a single `feedback` loads no numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from rlrec import policy as kinds
from rlrec.policy.beliefs.statistics import CONTEXT, ORDINAL, POSITION, PROPENSITY, slate_propensities
from rlrec.records import Version
from rlrec.store.database.unit import Row


class SlotKey(NamedTuple):
    """The fields of a slot that a belief can depend on; those that its policy does not need are 0, so that slots which
    add the same have equal keys, and are counted."""

    arm_id: int
    ordinal: int = 0
    context_id: int = 0
    position: int = 0
    propensity: float = 0.0


# A slate as it was served: its slots (position, arm, propensity and marginal of each; further fields are not read), the
# ordinal of its decision, and the id of its context.
ServedSlate = tuple[Sequence[Row], int, int]


class SlotFields:
    """Which fields of slots the learning beliefs of one policy depend on.

    kinds: by version, since they may count by different curves. budget: of the policy, whose spend they hold."""

    def __init__(self, versions: Sequence[Version]) -> None:
        self.kinds = {version.id: kinds.make(version.policy.kind, version.params) for version in versions}
        kind = self.kinds[versions[0].id]
        self.forgetting, self.budget = kind.forgetting, kind.allowance if kind.budget else None
        needs = frozenset[str]().union(*(kind.needs for kind in self.kinds.values()))
        self.ordinal = self.forgetting.forgets or ORDINAL in needs
        self.context, self.position, self.propensity = (name in needs for name in (CONTEXT, POSITION, PROPENSITY))
        self.arm_key = cache(SlotKey)
        self.arm_alone = not (self.ordinal or self.context or self.position or self.propensity)

    def key(self, arm_id: int, ordinal: int, context_id: int, position: int, propensity: float) -> SlotKey:
        """The key of a slot: without the fields on which nothing depends."""
        if self.arm_alone:
            return self.arm_key(arm_id)
        return SlotKey(
            arm_id, ordinal if self.ordinal else 0, context_id if self.context else 0, position if self.position else 0,
            propensity if self.propensity else 0.0,
        )  # fmt: skip

    def keys(self, served: ServedSlate) -> list[SlotKey]:
        """The keys of the slots of a slate, in order."""
        slots, ordinal, context_id = served
        shown = slate_propensities([(slot[0], slot[2], slot[3]) for slot in slots]) if self.propensity else {}
        return [self.key(arm, ordinal, context_id, position, shown.get(position, 0.0)) for position, arm, *_ in slots]
