"""What a belief is taught when it is made: by a log, or by the policy's own past under another definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

import numpy as np

from rlrec import policy as kinds
from rlrec.app.distributions import designs
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.inputs import filters, lookup
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.slot_statistics import BeliefFold, Totals
from rlrec.app.log import lineage, propensities, reward_log
from rlrec.app.log.reward_log import RewardedSlots
from rlrec.arrays import Ids
from rlrec.errors import InputError
from rlrec.policy.contextual import is_contextual
from rlrec.policy.design import Design
from rlrec.policy.encoder import Encoder, EncoderFit
from rlrec.policy.fields import WIDEST
from rlrec.policy.gradient import BILINEAR
from rlrec.policy.linear import SHARED
from rlrec.policy.solving import LARGEST
from rlrec.policy.statistics import PROPENSITY
from rlrec.records import Reward, StoredPolicy, Version
from rlrec.store import Unit, arms, contents, reader
from rlrec.store.beliefs import BeliefRow
from rlrec.store.damage import parse
from rlrec.store.reader import Selection

ROUNDS = 8  # of Newton's method
CLOSE = 1e-8
HASHED = 16  # columns for the features of arms, as long as there are none to fit to


@dataclass(frozen=True, kw_only=True)
class InitialBelief:
    """What a version starts from: its sums, the record of what taught it, and its `parameters`."""

    sums: Totals = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)


NO_BELIEF = InitialBelief()


def warm_start(
    unit: Unit,
    kind: str,
    typed: Mapping[str, Any],
    declared: Mapping[str, Encoder] | None,
    *,
    reward_name: str,
    from_log: str | None,
) -> InitialBelief:
    """What `policy create` starts a policy from: the mature decisions of a log, where one is named."""
    reward = lookup.reward(unit, reward_name)
    selected = None if from_log is None else filters.selection(unit, from_log)
    version = unstored(kind, typed, reward)
    if kinds.load(kind).contextual:
        shared = typed["model"] in (SHARED, BILINEAR)
        design = designed(unit, selected, version, declared=declared or {}, shared=shared)
        version = replace(version, parameters=design.to_json())
        designs.policy_of(version)  # refuses more features than its model holds
    if selected is None or from_log is None or not kinds.load(kind).online:
        return InitialBelief(parameters=version.parameters)
    version, sums, slots, last = fit_to_log(unit, version, selected)
    if not slots:
        raise InputError("the log has no mature decision to learn from", hint="import a log, or widen the filter")
    record = lineage.record(unit, from_log, selected, last_id=last, window_us=reward.window_us, slots=slots)
    return InitialBelief(sums=sums, record=record, parameters=version.parameters)


def refit(unit: Unit, version: Version, *, fresh: bool) -> InitialBelief:
    """What a version that is rebuilt as `version` says starts from: the log that taught its parent, as it sees that.

    fresh: without it, since the world has changed. A model that is expanded moves to where the policy's own mature
    log leads it."""
    record = version.learned_from
    known = {name: record[name] for name in ("prior",) if name in record}
    sums: Totals = {}
    if "selection" in record and not fresh:
        selected = Selection(**{"last_id": record.get("last_id"), **record["selection"]})
        version, sums, slots, _ = fit_to_log(unit, version, selected)
        kept = ("filter", "selection", "last_id", "now", "window_us")
        known |= {name: record[name] for name in kept if name in record} | {"slots": slots}
    if _expands(version) and not sums:
        own = Selection(policy_ids=[version.policy.id], first_id=version.since or None, imported=False)
        version = fit_to_log(unit, version, own)[0]
    return InitialBelief(sums=sums, record=known, parameters=version.parameters)


def unstored(kind: str, params: Mapping[str, Any], reward: Reward) -> Version:
    """A version that is not stored yet."""
    policy = StoredPolicy(id=0, name="", kind=kind, params=params, base_id=None, base=None)
    return Version(
        id=0, policy=policy, number=1, status="learning", reward=reward, parent_id=None, seq=0, ordinal=0,
        entered_to=None, learned_from={}, parameters={}, created_at=0,
    )  # fmt: skip


def designed(
    unit: Unit,
    selected: Selection | None,
    draft: Version,
    *,
    declared: Mapping[str, Encoder],
    shared: bool,
) -> Design:
    """Encoders as declared, else fitted to the contexts of a log and to the catalogue, or hashed where there is none.

    shared: fitted ones leave each other room, since a shared model holds only so many products of their features."""
    log = None if "context" in declared else selected
    context = declared.get("context", Encoder.by_hash())
    wide = LARGEST // len(context.names) if log is None else isqrt(LARGEST)
    arm = declared.get("arm") or _of_catalogue(unit, widest=min(wide, WIDEST) if shared else WIDEST)
    if log is not None:
        fitting = EncoderFit()
        for found in _impressions(unit, log, draft):
            fitting.take(_decoded(unit, found.slots["context_id"]))
        wide = LARGEST // len(arm.names)
        context = Encoder.of(fitting.spec(widest=min(wide, WIDEST) if shared else WIDEST))
    return Design(context=context, arm=arm)


def _of_catalogue(unit: Unit, *, widest: int) -> Encoder:
    described = [parse(arm.features, f"arm {arm.key}") for arm in arms.every(unit)]
    if not any(described):
        columns = HASHED
        while columns >= widest:
            columns //= 2
        return Encoder.by_hash(columns)
    fitting = EncoderFit()
    fitting.take(described)
    return Encoder.of(fitting.spec(widest=widest))


def _decoded(unit: Unit, ids: Ids) -> list[dict[str, Any]]:
    """Contexts, each as often as it comes."""
    bodies = {
        key: parse(body, f"context {key}") for key, body in contents.context_bodies(unit, set(ids.tolist())).items()
    }
    return [bodies[key] for key in ids.tolist()]


def _impressions(unit: Unit, selected: Selection, version: Version) -> Iterator[RewardedSlots]:
    """The mature, uncensored impressions of a log that can teach a version, with their contexts."""
    weighed = PROPENSITY in kinds.load(version.policy.kind).needs
    columns = (*reward_log.MATURITY, "arm_id", "context_id", *(propensities.COLUMNS if weighed else ()))
    for batch in reader.batches(unit, selection=selected, columns=columns):
        found = reward_log.with_rewards(batch, version.reward)
        rows = reward_log.mature(found.slots, version.reward, now=unit.now) & ~found.slots["censored"]
        yield propensities.weighable(found, rows) if weighed else found.take(rows)


def fit_to_log(unit: Unit, version: Version, selected: Selection) -> tuple[Version, Totals, int, int]:
    """What a log teaches a draft: the draft with the anchor of its model, its sums, how many slots, and the last id.

    A logistic model is expanded around its weights; repeating that until they stay is Newton's method. The sums are
    those of the anchor that is given back."""
    for left in reversed(range(ROUNDS)):
        fold, total, slots, last = BeliefFold(unit, version, ordinal=0), Totals(), 0, 0
        for found in _impressions(unit, selected, version):
            total = slot_statistics.add(total, fold.sums(found))
            slots += len(found)
            last = max(last, int(found.slots["decision_id"].max(initial=0)))
        moved = anchored(unit, version, total) if left else None
        if moved is None:
            break
        version = moved
    return version, total, slots, last


def anchored(unit: Unit, version: Version, sums: Totals) -> Version | None:
    """The draft expanded around the weights that these sums give; None where that is what it was, or it has none."""
    if not _expands(version) or not sums:
        return None
    policy = designs.policy_of(version)
    assert is_contextual(policy)
    held = VersionDistribution(version, sums=_rows(sums), prior=(), described=designs.described(unit, version))
    known = np.unique([arm for _, arm in sums])
    weights = policy.weights(held.belief(known, revision=designs.NOW))
    before, anchor = policy.design.anchor, dict(zip(known.tolist(), weights, strict=True))
    if all(arm in before and np.allclose(before[arm], anchor[arm], atol=CLOSE) for arm in anchor):
        return None
    return replace(version, parameters={**version.parameters, **replace(policy.design, anchor=anchor).to_json()})


def _expands(version: Version) -> bool:
    """Whether its model is expanded around weights that a log can move."""
    policy = designs.policy_of(version)
    return is_contextual(policy) and policy.expands


def _rows(sums: Totals) -> list[BeliefRow]:
    """Sums as `beliefs.rows` gives them."""
    return [BeliefRow._make((*key, 0, *row[:3].tolist(), row[3:].tobytes())) for key, row in sorted(sums.items())]
