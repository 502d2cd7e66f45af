"""Copies of a belief without the slots that are not mature: for `freeze`, and for the variants of experiments."""

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

    A frozen belief is copied as it stands. From one that learns slots when they are `served`, the immature ones are
    taken out; into one that learns them when they are `settled`, overdue ones that wait are let in. Within a policy ids
    are in order of time, so that only those slots are read. Sums are faded until now.
    """
    policy, last = version.policy.id, reader.last_id(unit, version.policy.id)
    if not version.learning:
        return slot_statistics.stored_sums(unit, version, ordinal=version.ordinal), last
    now = policies.ordinal(unit, policy)
    sums, fold = slot_statistics.stored_sums(unit, version, ordinal=now), BeliefFold(unit, version, ordinal=now)
    newest_mature = decisions.newest_before(unit, policy, before=unit.now - version.reward.window_us)
    if version.entered_to is None:
        sign, first = -1.0, newest_mature + 1
    else:
        sign, first, last = 1.0, version.entered_to + 1, newest_mature
    for batch in reader.ranges(unit, policy, first=max(first, version.since), last=last):
        impressions = reward_log.with_rewards(batch, version.reward, settled_only=False)
        sums = slot_statistics.add(sums, fold.sums(impressions, rows=~impressions.slots["censored"]), sign=sign)
    sums = slot_statistics.without_zeros(sums, oldest=fold.forgetting.oldest(now))
    return sums, max(newest_mature, version.entered_to or 0)


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
    """The id of a new version with these sums, as of the policy's `ordinal`, and with the source's prior and design;
    its first delta is `seq`."""
    version_id = policies.add_version(
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
    beliefs.add_prior(unit, version_id, beliefs.prior(unit, source.id))
    weights.add(unit, version_id, weights.by_arm(unit, source.id))
    if sums:
        beliefs.add(unit, version_id, seq=seq, changes=sums, ordinal=ordinal)
    return version_id
