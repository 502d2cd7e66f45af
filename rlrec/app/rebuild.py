"""Beliefs computed anew from the stored events: under another reward, other features, or since the world changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlrec.app import settle
from rlrec.app.distributions import designs
from rlrec.app.inputs import lookup, parameters
from rlrec.app.learning import warm_start
from rlrec.app.learning.ledger import Ledger
from rlrec.app.learning.version_json import VersionSummary, summary
from rlrec.app.log import reward_log
from rlrec.errors import InputError
from rlrec.policy import drift
from rlrec.policy.forgetting import Forgetting
from rlrec.records import Head, Version
from rlrec.store import Store, Unit, beliefs, decisions, policies, reader, settings
from rlrec.times import written

PORTION = 50_000  # slots that enter in a transaction


@dataclass(frozen=True, kw_only=True)
class Request:
    """reward, features (as JSON has them): None for those of the version meant; after_drift: the method that finds
    the last change."""

    reference: str
    reward: str | None = None
    features: Mapping[str, Any] | None = None
    after_drift: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The version that is made: from which, learning what, what it starts from, and the record of all that."""

    source: Version
    reward_id: int
    window_us: int
    taught: warm_start.Lesson
    record: Mapping[str, Any]


def rebuild(store: Store, request: Request) -> dict[str, Any]:
    """A new version whose belief holds the policy's past as its own definition sees it, and that goes on learning.

    It is usable when it has caught up. Without a change `--after-drift` makes none."""
    with store.read() as unit:
        plan = _plan(unit, request)
    if plan is None:
        with store.read() as unit:
            version, _ = lookup.version(unit, request.reference)
            store.notice(f"no change was found in the rewards of {version.policy.name}: nothing is rebuilt")
            return summary(unit, version) | {"parent": version.number, "rebuilt": False, "since": None}
    made = store.write(partial(_made, plan=plan))
    while store.write(partial(_portion, policy_id=plan.source.policy.id, version_id=made)):
        pass
    with store.read() as unit:
        version = policies.by_id(unit, [made])[made]
        since = plan.record.get("since")
        return summary(unit, version) | {"parent": plan.source.number, "rebuilt": True, "since": since}


def _plan(unit: Unit, request: Request) -> _Plan | None:
    source, _ = lookup.version(unit, request.reference)
    policy = designs.policy_of(source)
    if source.policy.kind == "logged":
        raise InputError(f"policy {source.policy.name!r} is the label of an imported log: it has no belief to rebuild")
    if not policy.online:
        hint = f"`rlrec train-pg {source.policy.name}` makes a new version"
        raise InputError(f"policy {source.policy.name!r} is trained: it has no belief to rebuild", hint=hint)
    reward = source.reward if request.reward is None else lookup.reward(unit, request.reward)
    policy.check(reward)
    changed: dict[str, Any] = {}
    if request.features is not None:
        if not policy.contextual:
            raise InputError(f"kind {source.policy.kind} reads no context", hint="leave out --features")
        changed = {side: one.spec() for side, one in parameters.features(request.features).items()}
    since = None
    if request.after_drift is not None:
        since = _since(unit, replace(source, reward=reward), method=request.after_drift)
        if since is None or since[0] <= source.since:
            return None
        changed["since"] = since[0]
    draft = replace(source, reward=reward, parameters={**source.parameters, **changed})
    taught = warm_start.again(unit, draft, fresh=since is not None)
    record = {"rebuilt_from": source.number, **taught.record, **({} if since is None else {"since": written(since[1])})}
    return _Plan(source=source, reward_id=reward.id, window_us=reward.window_us, taught=taught, record=record)


def _since(unit: Unit, version: Version, *, method: str) -> tuple[int, int] | None:
    """The first decision since the rewards of the policy last changed, and its time."""
    detector, newest = drift.detector(method), None
    for batch in reader.ranges(unit, version.policy.id, first=1, last=reader.last_id(unit, version.policy.id)):
        found = reward_log.rewarded(batch, version.reward)
        kept = reward_log.mature(found.slots, version.reward, now=unit.now) & ~found.slots["censored"]
        found = found.take(kept & (found.slots["position"] == 1))
        for change in detector.take(found.reward, marks=found.slots["decision_id"]):
            newest = change.start
    return None if newest is None else (int(newest), decisions.find(unit, [int(newest)])[int(newest)].at)


def _made(unit: Unit, plan: _Plan) -> int:
    """The version, with nothing of the policy's past in it yet; one that a kill left behind is gone on with."""
    policy_id = plan.source.policy.id
    head = policies.lock(unit, [policy_id])[policy_id]
    mine = policies.versions(unit, [policy_id])
    for one in mine:
        same = one.reward.id == plan.reward_id and _named(one.parameters) == _named(plan.taught.parameters)
        if one.learning and same and not caught_up(one):
            return one.id
    made = policies.add_version(
        unit,
        policy_id=policy_id,
        number=mine[-1].number + 1,
        status="learning",
        reward_id=plan.reward_id,
        seq=head.seq,
        ordinal=head.ordinal,
        parent_id=plan.source.id,
        entered_to=0,
        learned_from={
            **plan.record,
            "ripe": decisions.newest_before(unit, policy_id, before=unit.now - plan.window_us),
        },
        parameters=plan.taught.parameters,
    )
    beliefs.add_prior(unit, made, beliefs.prior(unit, plan.source.id))
    if plan.taught.sums:
        kept = Forgetting.of(plan.source.policy.params).discount ** head.ordinal
        sums = {place: kept * sums for place, sums in plan.taught.sums.items()}
        beliefs.add(unit, made, seq=head.seq, changes=sums, ordinal=head.ordinal)
    settings.add_run(unit, "policy rebuild", {"policy": plan.source.policy.name, "version": mine[-1].number + 1})
    return made


def _named(written: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, without the weights that a log led to."""
    return {name: value for name, value in written.items() if name != "anchor"}


def caught_up(version: Version) -> bool:
    """Whether a belief holds what it should: one that was rebuilt, the past that was ripe when it was made."""
    record = version.learned_from
    if version.entered_to is None or "rebuilt_from" not in record:
        return True
    return version.reward.learn == "settled" and version.entered_to >= record["ripe"]


def _portion(unit: Unit, policy_id: int, version_id: int) -> bool:
    """Let a range of the past in, the last one whole: whether more is to come. Others may be at it, or have retired it:
    where it stands is read under the policy's lock."""
    ledger = Ledger(unit, [policy_id])
    version = next((one for one in ledger.learning[policy_id] if one.id == version_id), None)
    if version is None or caught_up(version):
        return False
    assert version.entered_to is not None
    prompt = version.reward.learn == "served"
    before = unit.now + 1 if prompt else unit.now - version.reward.window_us
    first = version.entered_to + 1
    ids = decisions.overdue(unit, policy_id, first=first, before=before, slots=PORTION)
    if ids:
        settle.enter(unit, ledger, version, last=ids[-1])
    rest = decisions.overdue(unit, policy_id, first=ids[-1] + 1 if ids else first, before=before, slots=1)
    if prompt and not rest:
        policies.enter(unit, version_id, entered_to=None)
    ledger.close()
    return bool(rest)


def retire(store: Store, reference: str) -> VersionSummary:
    """End the learning of a version. Retiring it again changes nothing; the live one cannot be."""
    if lookup.split(reference)[1] is None:
        raise InputError(f"{reference!r} names no version", hint=f"write {reference}@V; `rlrec policy show` lists them")

    def work(unit: Unit) -> VersionSummary:
        version, _ = lookup.version(unit, reference)
        head: Head = policies.lock(unit, [version.policy.id])[version.policy.id]
        if head.live_id == version.id:
            raise InputError(f"version {version.number} of {version.policy.name} is live", hint="promote another first")
        if version.status == "frozen":
            raise InputError(f"version {version.number} of {version.policy.name} is frozen: it learns nothing")
        if version.learning:
            policies.retire(unit, version.id, ordinal=head.ordinal)
            settings.add_run(unit, "policy retire", {"policy": version.policy.name, "version": version.number})
        return summary(unit, policies.by_id(unit, [version.id])[version.id])

    return store.write(work)
