"""A belief without the slots that are not mature: what `freeze` and an experiment's variants start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlrec.app import evidence
from rlrec.records import Version
from rlrec.store import Unit, beliefs, policies, reader
from rlrec.store.beliefs import NOTHING, Sums


def fork(unit: Unit, version: Version) -> tuple[dict[int, Sums], int]:
    """The sums of a belief without its immature slots, and the newest mature decision of the policy.

    A frozen belief is what it is. A learning one holds every slot that `served` it, or those that `settled`: the
    immature ones are taken out of the first; overdue ones that wait are let into the second.
    """
    sums: dict[int, Sums] = {row[0]: row[1:] for row in beliefs.current(unit, version.id)}
    last = reader.last_id(unit, version.policy.id)
    if not version.learning:
        return sums, last
    first = 1 if version.entered_to is None else version.entered_to + 1
    newest = 0 if version.entered_to is None else version.entered_to
    for batch in reader.ranges(unit, version.policy.id, first=first, last=last):
        found = evidence.rewarded(batch, version.reward, settled_only=False)
        ripe = evidence.mature(found.slots, version.reward, now=unit.now)
        newest = max(newest, int(found.slots["decision_id"][ripe].max(initial=0)))
        rows = ~found.slots["censored"] & (~ripe if version.entered_to is None else ripe)
        change = evidence.sums(found, rows=rows)
        sign = -1.0 if version.entered_to is None else 1.0
        sums = evidence.added(sums, {arm: _times(sign, row) for arm, row in change.items()})
    return {arm: row for arm, row in sums.items() if np.any(row)}, newest


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
