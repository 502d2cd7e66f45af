"""This module finds live versions that no request gets, because a route or an experiment serves another version, or
because no route or experiment serves the policy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.inputs import arm_rules, lookup
from rlrec.errors import InputError
from rlrec.policy import COMMON_PARAMETERS
from rlrec.records import Head, Version
from rlrec.store import Store, Unit
from rlrec.store.database.unit import StoredRows
from rlrec.store.log import selected
from rlrec.store.policies import beliefs, experiments, policies, routes
from rlrec.times import DAY_US, format_time

CHECK = "live"


def check(unit: Unit, *, findings: Findings, policy: str | None = None) -> None:
    """Find routes and running experiments that serve another version than the live version. Also find served policies
    that can show no arm, policies whose promoted version is served nowhere, and routes that an earlier release fixed to
    one version at the end of a ramp (a gradual switch to a new version).

    policy: the name of the one policy to check, including routes to versions that variants of the policy learned, or
    None for all policies."""
    from rlrec.store.log import activity

    names = {row.name for row in policies.all_policies(unit)}
    live = StoredRows("policy", ((version.policy.id, version) for version, _ in policies.live(unit, names).values()))
    changes = routes.newest_changes(unit)
    serving_ids = set[int]()  # policies that a route or an experiment serves
    for change in changes:
        version = live[live[change.policy_id].policy.base_id or change.policy_id]
        is_stale = change.number is not None and change.command.startswith("experiment stop ")
        has_learned = version.policy.id != change.policy_id
        follows_live = change.version_id in (None, version.id) and not is_stale
        is_reported = (
            version.policy.name == policy if has_learned else not follows_live and policy in (None, version.policy.name)
        )
        if is_reported and not change.running:
            command = f"rlrec route set {change.route} --to {version.policy.name}"
            remedy = f"`{command}` lets it follow {version.reference}"
            detail = f"serves {change.reference}, whichever version is live: {remedy}"
            findings.add(CHECK, "warning" if is_stale else "info", f"route {change.route}", detail)
        serving_ids.add(version.policy.id)
    holdouts = {change.holdout for change in changes}
    live_since = activity.live_times(unit)  # holdouts keep what they serve
    for experiment in experiments.all_experiments(unit):
        versions = [live[variant.policy_id] for variant in experiment.serving if experiment.status == "running"]
        serving_ids |= {version.policy.base_id or 0 for version in versions}
        for base_id in {version.policy.base_id for version in versions if version.policy.base_id is not None}:
            version, copies = live[base_id], [version for version in versions if version.policy.base_id == base_id]
            is_older = version.id not in {copy.parent_id for copy in copies} and experiment.name not in holdouts
            # else it was chosen beside the live one
            is_older &= live_since.get(version.policy.id, 0) >= experiment.created_at
            if is_older and policy in (None, version.policy.name):
                references = (
                    copy.reference if copy.learning else f"{version.policy.name}@{copy.number}" for copy in copies
                )
                remedy = f"`rlrec experiment stop {experiment.name}` ends it"
                served_text = " and ".join(references)
                detail = f"serves {served_text}, and nobody there gets {version.reference}, which is live"
                findings.add(CHECK, "info", f"experiment {experiment.name}", f"{detail}: {remedy}")
        serving_ids |= {version.policy.id for version in versions}
    for version in live.values():
        params, subject = version.policy.params, f"policy {version.policy.name}"
        if policy not in (None, version.policy.name) or params.keys().isdisjoint(COMMON_PARAMETERS):
            continue
        if version.policy.id in serving_ids or activity.count_served_since(unit, version.policy.id, unit.now - DAY_US):
            if not arm_rules.allowed_arms(unit, params):
                detail = "no arm is left by its `arms` and `block`, and requests are refused: see `rlrec arm list`"
                findings.add(CHECK, "warning", subject, detail)
            for text in arm_rules.idle_page_rules(unit, params):
                findings.add(CHECK, "info", subject, f"{text} has no effect: no arm that it names can be shown now")
    for version in (live[policy_id] for policy_id in sorted(live_since.keys() - serving_ids)):
        is_checked = policy in (None, version.policy.name) and version.policy.base_id is None
        if changes and is_checked and not activity.count_served_since(unit, version.policy.id, unit.now - DAY_US):
            if policies.promotions(unit, version.policy.id)[-1].rolled_back_at is not None:
                continue  # nobody meant to serve what a rollback made live again
            detail = "serves no route, and nobody outside of experiments got it within 24 hours"
            detail += f"; {version.reference} is live"
            if len(changes) == 1:  # else only its owner knows which route its log is like
                command = f"rlrec route set {changes[0].route} --to {version.policy.name} --share 20%"
                end = f"once {changes[0].experiment} has ended, " if changes[0].running else ""
                detail += f": {end}`{command}` gives it to some users"
            findings.add(CHECK, "info", f"policy {version.policy.name}", detail)


def successors_sentence(unit: Unit, version: Version) -> str | None:
    """Return a sentence that says which variants are served in place of a version. Return None if the version itself is
    served, or if no variant is served."""
    running_experiments = [row for row in experiments.all_experiments(unit) if row.status == "running"]
    serving_ids = {variant.policy_id for row in running_experiments for variant in row.variants}
    serving_ids |= {change.policy_id for change in routes.newest_changes(unit)}
    copies = [policy for policy in policies.all_policies(unit) if policy.base_id == version.policy.id]
    live = policies.live(unit, {policy.name for policy in copies if policy.id in serving_ids})
    names = sorted(name for name in live if live[name].version.learning)
    if not names:
        return None
    logs = ([version.policy.id], [live[name].version.policy.id for name in names])
    (_, end), (begin, _) = (selected.times(unit, selected.Selection(policy_ids=ids, imported=False)) for ids in logs)
    if not begin or end > begin:
        return None
    since_text = f" since {format_time(end)[:10]}" if end else ""
    noun, verb = ("variant", "serves: judge it") if len(names) == 1 else ("variants", "serve: judge these")
    return f"{version.reference} served nobody{since_text}; its {noun} {' and '.join(names)} {verb}"


def waiting_version(unit: Unit, live: Version) -> Version | None:
    """Return the newest version of a policy if it was trained or rebuilt and is not live; else return None.

    live: the live version of the policy."""
    version = policies.versions(unit, [live.policy.id])[-1]
    has_learned = version.policy.kind == "gradient" or "rebuilt_from" in version.learned_from
    return version if version.number > live.number and has_learned and version.status != "retired" else None


def notice_successors(
    store: Store, unit: Unit, references: Collection[str], options: Mapping[str, str] = {}
) -> dict[str, str]:
    """For each policy that is to be judged, print which variants are served in its place, and which newer version is
    not live yet. Return a sentence for each version that has learned nothing, by the reference of the version.

    references: the references of the policies and versions to judge; options: options of the command that judges,
    for the command that such a sentence recommends."""
    has_copies, untaught_versions = any(row.base_id is not None for row in policies.all_policies(unit)), {}
    for reference, result in lookup.resolve(unit, references, built_in=references).items():
        if isinstance(result, InputError):
            continue
        successors_text = successors_sentence(unit, result[0]) if has_copies else None
        untaught_text = untaught_sentence(unit, *result, options)
        if untaught_text is not None:
            untaught_versions[result[0].reference] = successors_text or untaught_text
        elif successors_text is not None:
            store.notice(successors_text)
        if reference == result[0].policy.name and (sentence := waiting_sentence(unit, result[0])) is not None:
            store.notice(sentence)
    return untaught_versions


def waiting_sentence(unit: Unit, live: Version) -> str | None:
    """Return a sentence that says that a newer version of the policy is not live yet. Return None if there is no such
    version."""
    if (waiting := waiting_version(unit, live)) is None:
        return None
    return f"{live.reference} is judged, which is live; {waiting.reference} is newer, and waits: name it to judge that"


def untaught_sentence(unit: Unit, version: Version, head: Head, options: Mapping[str, str] = {}) -> str | None:
    """If a version can learn, but began with no knowledge and has learned nothing so far, return a sentence that says
    so. Return None for any other version.

    head: the head of the policy; options: options of the command that judges the version, for the command that the
    sentence recommends."""
    from rlrec.app.inputs.parameters import sweep_command  # these need numpy
    from rlrec.app.log import lineage

    origin, is_trained = version.learned_from or version.parent_id, version.policy.kind == "gradient"
    if origin or head.seq or not (is_trained or (version.learning and lineage.learns(version))):
        return None
    if beliefs.prior(unit, version.id):
        return None
    reward = lookup.reward(unit, options["reward"]) if "reward" in options else version.reward
    sweep = sweep_command(replace(version, reward=reward), options)
    remedy = "it learns as it serves" if sweep is None else f"`{sweep[0]}` judges what {sweep[1]} learns from this log"
    if is_trained:
        remedy = f"`rlrec train-pg {version.policy.name}` makes a version that has learned"
    return f"{version.reference} has learned nothing yet, and draws as if all arms were alike: {remedy}"


def describe_bypasses(unit: Unit, policy: str) -> list[str]:
    """Return a text for each finding of `check` on one policy, for example on a route that does not serve the policy's
    live version."""
    findings = Findings()
    check(unit, findings=findings, policy=policy)
    return [f"{finding.subject} {finding.detail}" for finding in findings.in_order()]
