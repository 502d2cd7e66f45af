"""A belief without the slots that are not mature: what `freeze` and an experiment's variants start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import reward_log
from rlrec.records import Version
from rlrec.store import Unit, beliefs, decisions, policies, reader, weights


def fork(unit: Unit, version: Version) -> tuple[Totals, int]:
    """The sums of a belief without its immature slots, and the newest decision that they may hold.

    A frozen belief is what it is. A learning one holds every slot that `served` it, or those that `settled`: the
    immature ones are taken out of the first; overdue ones that wait are let into the second. Within a policy ids are in
    order of time, so that only those slots are read. What it forgets is forgotten as of now.
    """
    policy, last = version.policy.id, reader.last_id(unit, version.policy.id)
    if not version.learning:
        return slot_statistics.stored_sums(unit, version, ordinal=version.ordinal), last
    now = policies.ordinal(unit, policy)
    sums, fold = slot_statistics.stored_sums(unit, version, ordinal=now), BeliefFold(unit, version, ordinal=now)
    ripe = decisions.newest_before(unit, policy, before=unit.now - version.reward.window_us)
    if version.entered_to is None:
        sign, first = -1.0, ripe + 1
    else:
        sign, first, last = 1.0, version.entered_to + 1, ripe
    for batch in reader.ranges(unit, policy, first=max(first, version.since), last=last):
        found = reward_log.with_rewards(batch, version.reward, settled_only=False)
        sums = slot_statistics.add(sums, fold.sums(found, rows=~found.slots["censored"]), sign=sign)
    return slot_statistics.without_zeros(sums, oldest=fold.forgetting.oldest(now)), max(ripe, version.entered_to or 0)


def copy(
    unit: Unit,
    source: Version,
    *,
    policy_id: int,
    number: int,
    status: str,
    seq: int,
    ordinal: int,
    sums: Totals,
    learned_from: Mapping[str, Any],
    entered_to: int | None = None,
) -> int:
    """A new version that starts from these sums, as of the policy's `ordinal`, from the source's prior and design, with
    its first delta at `seq`: its id."""
    made = policies.add_version(
        unit,
        policy_id=policy_id,
        number=number,
        status=status,
        reward_id=source.reward.id,
        seq=seq,
        ordinal=ordinal,
        parent_id=source.id,
        parameters=source.parameters,
        entered_to=entered_to,
        learned_from=learned_from,
    )
    beliefs.add_prior(unit, made, beliefs.prior(unit, source.id))
    weights.add(unit, made, weights.by_arm(unit, source.id))
    if sums:
        beliefs.add(unit, made, seq=seq, changes=sums, ordinal=ordinal)
    return made
