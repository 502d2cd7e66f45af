"""This module computes beliefs again from the stored events, with another reward or other features, or without rewards
from before a change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rlrec import policy as kinds
from rlrec.app.distributions import designs
from rlrec.app.evaluation.passes import arm_effects
from rlrec.app.evaluation.rows import groups
from rlrec.app.imports import log_stores
from rlrec.app.inputs import filters, lookup, parameters
from rlrec.app.learning import belief_versions, warm_start
from rlrec.app.learning.belief_versions import VersionSummary, add_settled, is_complete, summary
from rlrec.app.learning.ledger import Ledger
from rlrec.app.log import lineage, reward_log
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.policy.beliefs import drift
from rlrec.policy.beliefs.statistics import Forgetting
from rlrec.policy.kinds.long_term import MIN_SD, LongTerm
from rlrec.records import Record, Version
from rlrec.store import Store, Unit
from rlrec.store.log import decisions, reader, settings
from rlrec.store.policies import arms, beliefs, policies
from rlrec.times import format_time

PORTION = 50_000  # slots that are entered in a transaction
FEW_PULLS = 0.8  # of the live version's pulls, below which a rebuilt version has far fewer


class RebuiltVersion(VersionSummary):
    """This record is the answer of `policy rebuild`. rebuilt: whether a version was made; since: the time of the last
    change of rewards, from which on the version learns, if such a change was asked for."""

    parent: int
    rebuilt: bool
    since: str | None


class Request(Record):
    """This record has the options of `policy rebuild`. reward, features (as JSON), position (the name of a curve): None
    to keep the reward, features or curve of the named version; after_drift: the method that finds the last change of
    rewards; log, horizon_us: only for the kind long-term, the filter of the log and the time in which effects are
    measured."""

    reference: str
    reward: str | None = None
    features: Mapping[str, Any] | None = None
    position: str | None = None
    after_drift: str | None = None
    log: str | None = None
    horizon_us: int | None = None


class _Plan(NamedTuple):
    """This record has the new version before it is stored (`draft`), the belief from which this version starts, and the
    number of removals when the log was read."""

    draft: Version
    belief: warm_start.InitialBelief
    removals: int | None


def rebuild(store: Store, request: Request) -> RebuiltVersion:
    """Make a new version that learns the policy's past again, and then continues to learn. The version can be served
    once it has learned the whole past. With `after_drift`, no version is made if no change of rewards is found."""
    with store.read() as unit:
        source, _ = lookup.version(unit, request.reference)
    if isinstance(policy := designs.policy_of(source), LongTerm):
        return _relearn_effects(store, source, request, by=policy.by)
    if request.log is not None or request.horizon_us is not None:
        hint = "leave out --log and --horizon; a policy of kind long-term learns from any log"
        raise InputError(f"policy {source.policy.name!r} learns from its own decisions", hint=hint)
    with store.read() as unit:
        plan = _plan_rebuild(unit, request)
        if plan is None:
            version, _ = lookup.version(unit, request.reference)
            store.notice(f"no change was found in the rewards of {version.policy.name}: nothing is rebuilt")
            return {**summary(unit, version), "parent": version.number, "rebuilt": False, "since": None}
    parameters.notice_other_reward(store, plan.draft.params, plan.draft.reward.name)
    version_id = store.write(partial(_begin_version, plan=plan))
    while store.write(partial(_enter_portion, policy_id=plan.draft.policy.id, version_id=version_id)):
        pass
    with store.read() as unit:
        version = policies.by_id(unit, [version_id])[version_id]
        _notice_fewer_pulls(store, unit, version)
        answer, since = summary(unit, version), plan.belief.record.get("since")
        return {**answer, "parent": plan.draft.number, "rebuilt": True, "since": since}


def _notice_fewer_pulls(store: Store, unit: Unit, version: Version) -> None:
    """Print a notice if a rebuilt version has far fewer pulls than the live version, although both count all decisions
    alike."""
    live, _ = lookup.version(unit, version.policy.name)
    if (
        Forgetting.parse(version.params).forgets
        or version.since
        or live.params.get("position") != version.params.get("position")
    ):
        return
    before, after = (sum(row.pulls for row in beliefs.counts(unit, row.id)) for row in (live, version))
    if after < FEW_PULLS * before:
        store.notice(
            f"{version.reference} has {quantity(round(after), 'pull')}, and {live.reference}, which is live, has "
            f"{round(before):,}: `rlrec policy diff {live.reference} {version.reference}` compares them"
        )


def _plan_rebuild(unit: Unit, request: Request) -> _Plan | None:
    source, _ = lookup.version(unit, request.reference)
    policy = designs.policy_of(source)
    if source.policy.kind == "logged":
        raise InputError(f"policy {source.policy.name!r} only holds an imported log: it has no belief to rebuild")
    if not policy.learns_online:
        hint = f"`rlrec train-pg {source.policy.name}` makes a new version"
        raise InputError(f"policy {source.policy.name!r} is trained: it has no belief to rebuild", hint=hint)
    reward = source.reward if request.reward is None else lookup.reward(unit, request.reward)
    policy.check(reward)
    changed_parameters: dict[str, Any] = {}
    if request.position is not None:
        if "position" not in kinds.parameters(source.policy.kind):
            raise InputError(f"kind {source.policy.kind} counts by no curve", hint="leave out --position")
        changed_parameters |= parameters.with_curve(unit, {"position": request.position})
    parameters.check_curve({**source.params, **changed_parameters}, reward)
    if request.features is not None:
        if not policy.is_contextual:
            raise InputError(f"kind {source.policy.kind} reads no context", hint="leave out --features")
        changed_parameters |= {
            side: encoder.spec() for side, encoder in parameters.parse_features(request.features).items()
        }
    # older versions learned from the catalogue's features alone
    if policy.is_contextual and warm_start.shares_weights(source.params):
        changed_parameters["learns_stated"] = True
    since = None
    if request.after_drift is not None:
        since = _last_change(unit, replace(source, reward=reward), method=request.after_drift)
        if since is None or since[0] <= source.since:
            return None
        changed_parameters["since"] = since[0]
    draft = replace(source, reward=reward, parameters={**source.parameters, **changed_parameters})
    if "variant" in source.learned_from and since is None:
        draft = _with_origin(unit, draft)
    variants = draft.learned_from.get("variants") if since is None else None
    ids = [source.policy.id, *(variants["selection"]["policy_ids"] if variants else ())]
    pruned_to = max(policies.pruned_to(unit, policy_id) for policy_id in ids)
    if pruned_to and (since is None or since[0] <= pruned_to):
        name = source.policy.name
        hint = f"a new policy can learn from what is left: `{parameters.creation_command(source, f'policy={name}')}`"
        if policy.is_contextual or beliefs.prior(unit, source.id):  # features and priors come from files
            hint = f"a new policy with the same options and --from-log policy={name} can learn from what is left"
        raise CheckFailed(f"old decisions of policy {name!r} were pruned: a rebuild would lack them", hint=hint)
    has_copy = source.policy.base_id is not None and source.learned_from.get("last_id")
    if has_copy and source.parent_id is not None and lineage.learns(source) and since is None:
        text = f"{source.reference} began with a copy of a belief of {source.policy.base}, which a rebuild would lack"
        create_command = parameters.creation_command(source, f"policy={source.policy.base}")
        raise InputError(
            text, hint=f"`{create_command}` learns from the log of {source.policy.base} and of its variants"
        )
    belief = warm_start.refit(unit, draft, from_prior=since is not None)
    record = {"rebuilt_from": source.number, **belief.record}
    if since is not None:
        record["since"] = format_time(since[1])
    belief = replace(belief, record=record)
    if not belief.sums and draft.parameters.get("context") == source.parameters.get("context"):
        belief = replace(belief, weights=beliefs.weights(unit, source.id))
    return _Plan(replace(draft, parameters=belief.parameters), belief, settings.get(unit).removals)


def _with_origin(unit: Unit, draft: Version) -> Version:
    """Return the draft of a version that was promoted from a variant, with what its rebuild learns in place of a copied
    belief: the log with which the policy was created, the logs of variants, and the policy's own log. If the policy was
    rebuilt before with the decisions since a change of rewards, the logs begin at this change."""
    chain = lineage.ancestry(unit, draft)
    origin = lineage.origin(chain)
    record = origin.learned_from
    variants = {link.policy.id: link.policy.name for link in chain if link.policy.base_id is not None}
    # older rebuilds have the log of variants in place of the log with which the policy began
    ids = variants.keys() - {*(record.get("selection", {}).get("policy_ids") or ())}
    selection = {"policy_ids": sorted(ids)} | ({"first_id": origin.since} if origin.since else {})
    log = {"selection": selection, "filter": f"policy={'+'.join(variants[key] for key in sorted(ids))}"}
    parameters = {name: value for name, value in draft.parameters.items() if name != "since"}
    if origin.since:
        parameters["since"] = origin.since
    return replace(draft, learned_from={**record, "variants": log}, parameters=parameters)


def _relearn_effects(store: Store, source: Version, request: Request, *, by: str | None) -> RebuiltVersion:
    """Make a new version of the kind long-term, which has learned the effects of arms in a log. The log may be of
    several policies. by: the field of the context whose values have separate effects, or None."""
    if request.features is not None or request.after_drift is not None:
        hint = "give --log since=TIME, in place of --after-drift; it reads no features"
        raise InputError(f"policy {source.policy.name!r} learns the effects of arms", hint=hint)
    groups.refuse_group(by)
    with store.read() as unit:
        n_removals = settings.get(unit).removals
    with log_stores.reading(store, request.log) as (unit, log, _):
        reward = request.reward or source.reward.name
        result = arm_effects.answer(unit, arm_effects.Request(
            log=log, reward=reward, horizon_us=request.horizon_us, position=request.position, by=by
        ))  # fmt: skip
        # so that an estimate on these rows can say that it learned from them
        record = lineage.make_record(
            unit, request.log or "", filters.selection(unit, log), last_id=decisions.peek(unit) - 1,
            window_us=lookup.reward(unit, reward).window_us, slots=_overall_effects(result)["pages"],
        )  # fmt: skip
    record |= {"rebuilt_from": source.number, "horizon_s": result["horizon_s"]}
    version_id = store.write(partial(_add_effects, source=source, result=result, record=record, removals=n_removals))
    with store.read() as unit:
        answer = summary(unit, policies.by_id(unit, [version_id])[version_id])
        retired_arms = {arm.key for arm in arms.all_arms(unit) if arm.retired_at is not None}
    learned_arms = {row["arm"] for row in _overall_effects(result)["arms"] if row["looks"]}
    if 2 * len(learned_arms & retired_arms) > len(learned_arms):  # then the next arms will retire, too
        share = (
            f"{len(learned_arms & retired_arms):,} of the {len(learned_arms):,} arms that it has learned are retired"
        )
        store.notice(f"{share}; a new arm counts as average until the next rebuild")
    return {**answer, "parent": source.number, "rebuilt": True, "since": None}


def _add_effects(
    unit: Unit, source: Version, result: arm_effects.Result, *, record: Mapping[str, Any], removals: int | None
) -> int:
    """Store a version whose belief has the effects of arms in `result`, and return its id. record: the description of
    the log; removals: the number of commands that had deleted decisions when the log was read."""
    settings.lock_removals(unit, removals)
    overall_effects, policy = _overall_effects(result), source.policy
    prior = {"prior_mean": overall_effects["prior_mean"], "prior_sd": max(overall_effects["prior_sd"], MIN_SD)}
    # a context without the field has the overall effects
    cells = [group for group in result["groups"] if group is not overall_effects and group["group"] is not None]
    ids = {arm.key: arm.id for arm in arms.all_arms(unit)}
    rows = {key: np.zeros(3 + 2 * len(cells)) for key in ids}
    for number, group in enumerate([overall_effects, *cells]):
        for arm in group["arms"]:
            columns = slice(0, 2) if not number else slice(1 + 2 * number, 3 + 2 * number)
            # an arm counts no less than the prior; a cell may
            sd = max(arm["shrunk_sd"] if number else min(arm["shrunk_sd"], prior["prior_sd"]), MIN_SD)
            rows[arm["arm"]][columns] = LongTerm.statistics_of(arm["shrunk"], sd, **prior)
    sums = {(0, ids[key]): row for key, row in rows.items() if row.any()}
    values = json.dumps([group["group"] for group in cells], ensure_ascii=False) if cells else ""
    head, number = policies.lock(unit, [policy.id])[policy.id], policies.versions(unit, [policy.id])[-1].number + 1
    draft = replace(
        source, reward=lookup.reward(unit, result["reward"]), parameters={**source.parameters, **prior, "cells": values}
    )
    settings.add_run(unit, "policy rebuild", {"policy": policy.name, "version": number})
    return belief_versions.copy_version(
        unit, draft, policy_id=policy.id, number=number, status="frozen", seq=head.seq, ordinal=head.ordinal,
        sums=sums, learned_from=record,
    )  # fmt: skip


def _overall_effects(result: arm_effects.Result) -> arm_effects.GroupEffects:
    return result["overall"] or result["groups"][0]


def _last_change(unit: Unit, version: Version, *, method: str) -> tuple[int, int] | None:
    """Return the id and the time of the first decision after the newest change of the policy's rewards, or None if
    there is no change. method: the name of the method that finds changes."""
    detector, newest_change = drift.detector(method), None
    last_id, tests = decisions.newest_id(unit, version.policy.id), filters.selection(unit, None).conditions()
    for batch in reader.ranges(unit, version.policy.id, first=1, last=last_id, tests=tests):
        slots = reward_log.with_rewards(batch, version.reward)
        is_mature = reward_log.is_mature(slots.slots, version.reward, now=unit.now)
        first_slots = slots.take(is_mature & ~slots.slots["censored"] & (slots.slots["position"] == 1))
        for change in detector.take(first_slots.reward, marks=first_slots.slots["decision_id"]):
            newest_change = change.start
    if newest_change is None:
        return None
    decision_id = int(newest_change)
    return decision_id, decisions.find(unit, [decision_id])[decision_id].at


def _begin_version(unit: Unit, plan: _Plan) -> int:
    """Add a version that has not yet learned anything of the policy's past, and return its id. If an earlier rebuild
    left such a version incomplete, return the id of that version."""
    settings.lock_removals(unit, plan.removals)
    draft, policy = plan.draft, plan.draft.policy
    head = policies.lock(unit, [policy.id])[policy.id]
    versions = policies.versions(unit, [policy.id])
    for version in versions:
        is_same = version.reward.id == draft.reward.id and _requested_parameters(
            version.parameters
        ) == _requested_parameters(draft.parameters)
        if version.learning and is_same and not is_complete(version):
            return version.id
    number, discount_factor = versions[-1].number + 1, Forgetting.parse(policy.params).discount ** head.ordinal
    newest_mature = decisions.newest_id(unit, policy.id, drawn_before=unit.now - draft.reward.window_us)
    version_id = belief_versions.copy_version(
        unit, draft, policy_id=policy.id, number=number, status="learning", seq=head.seq, ordinal=head.ordinal,
        sums={key: discount_factor * numbers for key, numbers in plan.belief.sums.items()}, entered_to=0,
        learned_from={**plan.belief.record, "ripe": newest_mature}, weights=plan.belief.weights,
    )  # fmt: skip
    belief_versions.omit_excluded(unit, version_id, plan.belief.logs)
    settings.add_run(unit, "policy rebuild", {"policy": policy.name, "version": number})
    return version_id


def _requested_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that were requested, without weights that were fitted to a log."""
    return {name: value for name, value in parameters.items() if name != "anchor"}


def _enter_portion(unit: Unit, policy_id: int, version_id: int) -> bool:
    """Enter a portion of past decisions into the belief, and return whether more are left. The policy's lock is held
    while the progress of the belief is read, since another process may be rebuilding the same belief, or may have
    retired its version."""
    ledger = Ledger(unit, [policy_id])
    version = next((version for version in ledger.learners[policy_id] if version.id == version_id), None)
    if version is None or is_complete(version):
        return False
    assert version.entered_to is not None
    learns_when_served = version.reward.learn == "served"
    drawn_before = unit.now + 1 if learns_when_served else unit.now - version.reward.window_us
    first_id = version.entered_to + 1
    ids = decisions.find_overdue(unit, policy_id, first=first_id, drawn_before=drawn_before, slots=PORTION)
    if ids:
        add_settled(unit, ledger, version, last_id=ids[-1])
        first_id = ids[-1] + 1
    overdue_slots = decisions.find_overdue(unit, policy_id, first=first_id, drawn_before=drawn_before, slots=1)
    if learns_when_served and not overdue_slots:
        policies.enter(unit, version_id, entered_to=None)
    ledger.close()
    return bool(overdue_slots)
