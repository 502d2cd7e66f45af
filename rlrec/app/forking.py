"""A belief without the slots that are not mature: what `freeze` and an experiment's variants start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlrec.app import evidence
from rlrec.records import Version
from rlrec.store import Unit, beliefs, decisions, policies, reader
from rlrec.store.beliefs import NOTHING, Sums


def fork(unit: Unit, version: Version) -> tuple[dict[int, Sums], int]:
    """The sums of a belief without its immature slots, and the newest decision that they may hold.

    A frozen belief is what it is. A learning one holds every slot that `served` it, or those that `settled`: the
    immature ones are taken out of the first; overdue ones that wait are let into the second. Within a policy ids are in
    order of time, so that only those slots are read.
    """
    sums: dict[int, Sums] = {row[0]: row[1:] for row in beliefs.current(unit, version.id)}
    policy, last = version.policy.id, reader.last_id(unit, version.policy.id)
    if not version.learning:
        return sums, last
    ripe = decisions.newest_before(unit, policy, before=unit.now - version.reward.window_us)
    if version.entered_to is None:
        sign, first = -1.0, ripe + 1
    else:
        sign, first, last = 1.0, version.entered_to + 1, ripe
    for batch in reader.ranges(unit, policy, first=first, last=last):
        found = evidence.rewarded(batch, version.reward, settled_only=False)
        change = evidence.sums(found, rows=~found.slots["censored"])
        sums = evidence.added(sums, {arm: _times(sign, row) for arm, row in change.items()})
    return {arm: row for arm, row in sums.items() if np.any(row)}, max(ripe, version.entered_to or 0)


def _times(sign: float, row: Sums) -> Sums:
    return sign * row[0], sign * row[1], sign * row[2]


def copy(
    unit: Unit,
    source: Version,
    *,
    policy_id: int,
    number: int,
    status: str,
    seq: int,
    sums: Mapping[int, Sums],
    learned_from: Mapping[str, Any],
    entered_to: int | None = None,
) -> int:
    """A new version that starts from these sums and the source's prior, with its first delta at `seq`: its id."""
    made = policies.add_version(
        unit,
        policy_id=policy_id,
        number=number,
        status=status,
        reward_id=source.reward.id,
        seq=seq,
        parent_id=source.id,
        entered_to=entered_to,
        learned_from=learned_from,
    )
    beliefs.add_prior(unit, made, [(row[0], row[1], row[2]) for row in beliefs.prior(unit, source.id)])
    if kept := {arm: row for arm, row in sums.items() if row != NOTHING}:
        beliefs.add(unit, made, seq=seq, changes=kept)
    return made
