"""This module summarizes versions of a policy, tells whether their beliefs have learned all they should, and copies
beliefs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from rlrec.app.learning.ledger import Ledger
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.records import Head, Version
from rlrec.store import Unit
from rlrec.store.log import decisions, selected, settings
from rlrec.store.log.selected import Selection
from rlrec.store.policies import beliefs, policies

if TYPE_CHECKING:
    from rlrec.app.learning.slot_statistics import Totals

# One version; `versions`: the numbers of all versions of its policy.
VersionSummary = TypedDict("VersionSummary", {
    "policy": str, "version": int, "kind": str, "params": dict[str, Any], "reward": str, "status": str,
    "versions": list[int],
})  # fmt: skip


def summary(unit: Unit, version: Version) -> VersionSummary:
    """Return the policy, number, kind, parameters, reward and status of a version, and the numbers of all versions."""
    policy, numbers = version.policy, [sibling.number for sibling in policies.versions(unit, [version.policy.id])]
    return {
        "policy": policy.name, "version": version.number, "kind": policy.kind, "params": dict(version.params),
        "reward": version.reward.name, "status": version.status, "versions": numbers,
    }  # fmt: skip


def is_complete(version: Version) -> bool:
    """Tell whether a belief has learned everything that it should have. For a rebuilt belief, this is the past that was
    mature when the rebuild began."""
    record = version.learned_from
    if version.entered_to is None or "rebuilt_from" not in record:
        return True
    return version.reward.learn == "settled" and version.entered_to >= record["ripe"]


def add_settled(unit: Unit, ledger: Ledger, version: Version, *, last_id: int) -> int:
    """Enter decisions into a belief: those after the newest decision that it contains, up to `last_id`. Return how many
    slots entered."""
    from rlrec.app.learning.slot_statistics import BeliefFold

    first_id = max(version.since, (version.entered_to or 0) + 1)
    ledger.omit([version], first_id=first_id, last_id=last_id)
    fold = BeliefFold(unit, version, ordinal=ledger.ordinal[version.policy.id])
    added_sums, n_entered = fold.range_sums(first_id, last_id)
    if added_sums:
        ledger.write(version, added_sums)
    ledger.mark_entered(version, last_id)
    return n_entered


def omit_excluded(unit: Unit, version_id: int, logs: Sequence[Selection]) -> None:
    """Record that the belief of a version leaves out those decisions of logs that exclusions hide."""
    for log in logs:
        if log.without:
            selected.omit(unit, version_id, log)


def fork(unit: Unit, version: Version) -> tuple[Totals, int]:
    """Return the sums of a belief without its immature slots, and the newest decision that the sums may include. Sums
    are discounted until now.

    A frozen belief is copied as it is. If the belief learns slots when they are `served`, its immature slots are
    subtracted. If it learns slots when they are `settled`, mature slots that have not entered it are added, unless
    the store has exclusions. Within a policy ids are in order of time, so no other slots are read."""
    from rlrec.app.learning import slot_statistics

    policy, last_id = version.policy.id, decisions.newest_id(unit, version.policy.id)
    if not version.learning:
        return slot_statistics.stored_sums(unit, version, ordinal=version.ordinal), last_id
    present_ordinal = policies.ordinal(unit, policy)
    fold = slot_statistics.BeliefFold(unit, version, ordinal=present_ordinal)
    mature_id = decisions.newest_id(unit, policy, drawn_before=unit.now - version.reward.window_us)
    if version.entered_to is None:
        sign, first_id = -1.0, mature_id + 1
    elif settings.get(unit).has_exclusions:  # whether a waiting slot is excluded is decided when it enters
        return slot_statistics.stored_sums(unit, version, ordinal=present_ordinal), version.entered_to
    else:
        sign, first_id, last_id = 1.0, version.entered_to + 1, mature_id
    change_sums, _ = fold.range_sums(max(first_id, version.since), last_id)
    sums = slot_statistics.add_totals(
        slot_statistics.stored_sums(unit, version, ordinal=present_ordinal), change_sums, sign=sign
    )
    sums = slot_statistics.without_zeros(sums, oldest_bucket=fold.forgetting.oldest_bucket(present_ordinal))
    return sums, max(mature_id, version.entered_to or 0)


def adopt(unit: Unit, variant: Version, head: Head, *, ordinal: int) -> Version:
    """Add a version to a policy, with the present belief of a variant of this policy. The new version then learns from
    what the policy serves. The caller holds the locks of the policy and the variant.

    head: the head of the policy; ordinal: the number of decisions of the variant."""
    from rlrec.app.learning import slot_statistics

    forgetting, newest_id = Forgetting.parse(variant.params), decisions.newest_id(unit, head.policy_id)
    # the same buckets count as before, at this policy's ordinal
    shift = forgetting.oldest_bucket(head.ordinal) - forgetting.oldest_bucket(ordinal)
    sums = slot_statistics.stored_sums(unit, variant, ordinal=ordinal)
    record = {
        "policy_id": variant.policy.id, "ordinal": ordinal, "variant": variant.policy.name,
        "last_id": decisions.newest_id(unit, variant.policy.id) if variant.entered_to is None else variant.entered_to,
    }  # fmt: skip
    version_id = copy_version(
        unit, replace(variant, parameters={**variant.parameters, "since": newest_id + 1}), policy_id=head.policy_id,
        number=policies.versions(unit, [head.policy_id])[-1].number + 1, status=variant.status, seq=head.seq,
        ordinal=head.ordinal, sums={(bucket + shift, arm): numbers for (bucket, arm), numbers in sums.items()},
        entered_to=None if variant.reward.learn == "served" else newest_id, learned_from=record,
    )  # fmt: skip
    return policies.by_id(unit, [version_id])[version_id]


def copy_version(
    unit: Unit, source: Version, *, policy_id: int, number: int, status: str, seq: int, ordinal: int, sums: Totals,
    learned_from: Mapping[str, Any], entered_to: int | None = None, weights: Sequence[tuple[int, bytes]] | None = None,
) -> int:  # fmt: skip
    """Add a version with the given sums, and with the prior and parameters of the source, and return the id of the new
    version.

    sums: the sums, discounted to the policy's `ordinal`; seq: the number of the change that stores them; entered_to:
    the last decision in the belief (None: decisions enter at once); weights: the packed weights of each arm, by id
    (None: the weights of the source)."""
    version_id = policies.add_version(
        unit, policy_id=policy_id, number=number, status=status, reward_id=source.reward.id, seq=seq, ordinal=ordinal,
        parent_id=source.id, parameters=source.parameters, entered_to=entered_to, learned_from=learned_from,
    )  # fmt: skip
    beliefs.add_prior(unit, version_id, beliefs.prior(unit, source.id))
    beliefs.add_weights(unit, version_id, beliefs.weights(unit, source.id) if weights is None else weights)
    if sums:
        beliefs.add(unit, version_id, seq=seq, changes=sums, ordinal=ordinal)
    # a copy continues the source's spend
    spend = {row[:2]: row[3:6] for row in beliefs.spend(unit, source.id)} if source.params.get("budget") else {}
    if spend:
        beliefs.add(unit, version_id, seq=seq, changes=spend)
    return version_id
