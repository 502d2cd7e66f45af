"""Policies: what kinds there are, create one, list them, and look into what one believes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from rlrec import policy as kinds
from rlrec.app.audit import reward_drift
from rlrec.app.distributions import designs, exact
from rlrec.app.inputs import canonical, lookup, parameters
from rlrec.app.learning import arm_means, belief_versions, graduation
from rlrec.app.learning.belief_versions import VersionSummary
from rlrec.app.learning.warm_start import NO_BELIEF, InitialBelief, warm_start
from rlrec.app.log import lineage
from rlrec.arrays import Array, Ids, finite_or_none, plain_number
from rlrec.errors import Conflict, InputError, suggest
from rlrec.ope.exposure import spread
from rlrec.policy import means, slate
from rlrec.policy.base import Belief, Examined, Policy
from rlrec.policy.contextual import ContextualPolicy, is_contextual
from rlrec.records import Arm, Reward, StoredPolicy, Version
from rlrec.store import Store, Unit, activity, arms, beliefs, bulk, decisions, policies, routes, settings
from rlrec.store.unit import parse
from rlrec.times import DAY_US, written

Z = 1.959963984540054  # normal quantile of intervals of 95 %
LARGEST = 50  # weights of an arm that are shown, where features are hashed into more columns than can be listed
NAMED = 10  # fields that a notice names
DETERMINISTIC = ("ucb", "ucb-tuned", "kl-ucb", "linucb")  # kinds that draw at random only where they have a floor


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of `policy create`: `parameters` as typed, K=V; `features` as JSON has them."""

    name: str
    kind: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    reward: str = "default"
    prior: str | None = None
    from_log: str | None = None
    prior_from: str | None = None
    prior_weight: float | None = None
    from_policy: str | None = None
    features: Mapping[str, Any] | None = None


class CreatedPolicy(VersionSummary):
    """kl: KL(the version that a trained policy starts from || version 1), in nats."""

    created: bool
    kl: NotRequired[float]


KindRow = TypedDict("KindRow", {"kind": str, "parameters": dict[str, Any], "when": str, "what": str})
PolicyVersion = TypedDict("PolicyVersion", {"version": int, "status": str, "live": bool, "created_at": str})


class CountingCurve(TypedDict):
    """A curve by which pulls count; in_bounds: whether the bounds of arms hold its error."""

    curve: str
    in_bounds: bool


class PolicyBelief(VersionSummary):
    """Answer of `policy show`: the belief per arm, how the version came about, and the versions of its policy."""

    arms: list[dict[str, Any]]
    features: NotRequired[dict[str, Any]]
    live: int
    drift: list[dict[str, Any]]
    learned_from: dict[str, Any]
    training: dict[str, Any] | None
    created_at: str
    version_list: list[PolicyVersion]
    exposure: dict[str, dict[str, float | None]]
    counting: CountingCurve | None


def list_kinds() -> list[KindRow]:
    """Every kind, its parameters with their defaults, and when to use it."""
    rows: list[KindRow] = []
    for kind in kinds.KINDS:
        loaded = kinds.load(kind)
        what = " ".join((loaded.__doc__ or "").split("\n\n")[0].split())
        rows.append({"kind": kind, "parameters": kinds.parameters(kind), "when": loaded.purpose, "what": what})
    return rows


def create(store: Store, request: Request) -> CreatedPolicy:
    """A policy with version 1, live. The same again is fine; raises Conflict where the name means another one."""
    if request.kind in kinds.INTERNAL:
        hint = "`rlrec experiment create NAME --interleave A,B`"
        raise InputError(f"policies of kind {request.kind} are made by experiments", hint=hint)
    copied = _copied(store, request)
    policy = kinds.make(request.kind, _resolved(store, request, copied))
    typed = kinds.values(policy)  # with the defaults of today: a policy never changes
    popular = arm_means.options(request.prior_from, request.prior_weight, prior=request.prior)
    prior = {} if request.prior is None else parameters.prior(Path(request.prior))
    declared = None if request.features is None else parameters.features(request.features)
    if declared is not None and not policy.contextual:
        raise InputError(f"kind {request.kind} reads no context", hint="leave out --features, or use linucb, say")
    definition = {
        "kind": request.kind,
        "params": typed,
        "reward": request.reward,
        "prior": canonical.digest_of({key: list(pair) for key, pair in prior.items()}).hex(),
        "from_log": request.from_log,
        **popular,
        **({} if copied is None else {"from_policy": request.from_policy}),
        **({} if declared is None else {"features": {side: encoder.spec() for side, encoder in declared.items()}}),
    }
    if (prior or popular) and policy.no_prior:
        raise InputError(f"kind {request.kind} has no prior: {policy.no_prior}", hint="leave it out")
    if (prior or popular) and not lineage.informed(policy):
        store.notice(f"kind {request.kind} ignores the prior when it draws; `policy show` includes it")
    if (prior or popular) and typed.get("model") in ("shared", "features"):
        store.notice("a shared model has no prior per arm: this prior changes nothing")
    with store.read() as unit, bulk.alongside(unit) if request.from_log or popular else nullcontext():
        initial, new = NO_BELIEF, policies.by_name(unit, request.name) is None
        removals = settings.get(unit).removals
        if new:
            encoders = declared if copied is None else graduation.encoders(copied) | (declared or {})
            initial = warm_start(
                unit, request.kind, typed, encoders, reward_name=request.reward, from_log=request.from_log
            )
        if new and copied is not None:
            initial = graduation.graduate(unit, copied, initial, typed)
        if new and popular:
            draft = designs.unstored(request.kind, typed, lookup.reward(unit, request.reward))
            prior, record = arm_means.prior_from_log(unit, draft, **popular)
            initial = replace(initial, record={**initial.record, **record})

    def work(unit: Unit) -> CreatedPolicy:
        stored = policies.by_name(unit, request.name)
        if stored is not None:
            return _existing(unit, stored, definition)
        settings.lock_removals(unit, removals)
        lookup.refuse_route_name(unit, request.name)
        definition_of_reward = lookup.reward(unit, request.reward)
        policy.check(definition_of_reward)
        parameters.check_curve(typed, definition_of_reward)
        return _create(unit, request, typed, definition, definition_of_reward, prior, initial)

    answer = store.write(work, repeatable=True)
    if answer["created"]:
        parameters.notice_other_reward(store, typed, request.reward)
    fitted = initial.parameters.get("context") if request.from_log and "context" not in (declared or {}) else None
    if answer["created"] and fitted is not None:
        names = [*fitted["fields"]]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        store.notice(f"reads of contexts {', '.join(names[:NAMED]) or 'nothing: the log has no field to fit'}{more}")
    unnamed = declared is None and request.from_log is None and not (copied and copied.contextual)
    if answer["created"] and policy.contextual and unnamed:
        store.notice(
            "no features are named: contexts are hashed into 16 columns (name them by --features or --from-log)"
        )
    if answer["created"] and request.kind in DETERMINISTIC and policy.exploration == 0:
        store.notice(
            f"{request.kind} without a floor leaves a log that cannot judge other policies: consider --param floor=0.05"
        )
    return answer


def _copied(store: Store, request: Request) -> Version | None:
    """The version that a trained policy starts from; None without `from_policy`."""
    if request.from_policy is None:
        return None
    if request.kind != graduation.KIND:
        raise InputError(
            f"kind {request.kind} does not start from another policy", hint=f"--from-policy is for {graduation.KIND}"
        )
    with store.read() as unit:
        return graduation.source(unit, request.from_policy)


def _resolved(store: Store, request: Request, copied: Version | None) -> Mapping[str, Any]:
    """The typed parameters, with the values of a curve that they name, and the exploration of a version that is copied.

    A curve without a number is the newest one of that name, or the one that the policy has if it exists already."""
    typed = parameters.typed(request.kind, request.parameters)
    if copied is not None:
        typed = graduation.parameters(copied, typed)
    if not any(value for name, value in typed.items() if name.rpartition(".")[2] == "position"):
        return typed
    with store.read() as unit:
        stored = policies.by_name(unit, request.name)
        before = {} if stored is None else {name: str(value) for name, value in stored.params.items()}
        same = {name: before[name] for name in typed if before.get(name, "").rpartition("@")[0] == typed[name] != ""}
        return parameters.with_curve(unit, {**typed, **same})


def _existing(unit: Unit, policy: StoredPolicy, definition: Mapping[str, Any]) -> CreatedPolicy:
    """The live version of a policy that is stored. Raises Conflict where its definition is another one."""
    stored = parse(policies.definition(unit, policy.id), f"definition of policy {policy.name}")
    # parameters added later have their defaults
    stored["params"] = kinds.parameters(policy.kind, stored["params"]) | stored["params"]
    if canonical.text(stored) != canonical.text(definition):
        hint = "policies never change: use another name"
        raise Conflict(f"policy {policy.name!r} already has another definition", hint=hint)
    version, _ = lookup.version(unit, policy.name)
    return _created(unit, version, policies.versions(unit, [policy.id])[0], created=False)


def _created(unit: Unit, version: Version, first: Version, *, created: bool) -> CreatedPolicy:
    answer = cast(CreatedPolicy, {**belief_versions.summary(unit, version), "created": created})
    if "kl" in first.learned_from:
        answer["kl"] = first.learned_from["kl"]
    return answer


def _create(
    unit: Unit, request: Request, typed: Mapping[str, Any], definition: Mapping[str, Any], reward: Reward,
    prior: Mapping[str, tuple[float, float]], initial: InitialBelief,
) -> CreatedPolicy:  # fmt: skip
    policy_id = policies.add_policy(
        unit, name=request.name, kind=request.kind, params=typed, definition=canonical.text(definition)
    )
    version_id = policies.add_version(
        unit, policy_id=policy_id, number=1, status="learning" if kinds.load(request.kind).online else "frozen",
        reward_id=reward.id, seq=0, entered_to=None if reward.learn == "served" else 0,
        learned_from=initial.record, parameters=initial.parameters, parent_id=initial.parent_id,
    )  # fmt: skip
    policies.add_head(unit, policy_id, live_id=version_id)
    beliefs.add_prior(unit, version_id, _prior_rows(unit, prior))
    beliefs.add_weights(unit, version_id, initial.weights)
    if initial.sums:
        beliefs.add(unit, version_id, seq=0, changes=initial.sums)
    settings.add_run(unit, "policy create", {"name": request.name, **asdict(request)}, initial.record)
    version = policies.by_id(unit, [version_id])[version_id]
    return _created(unit, version, version, created=True)


def _prior_rows(unit: Unit, prior: Mapping[str, tuple[float, float]]) -> list[tuple[int, float, float]]:
    ids = arms.ids(unit, list(prior))
    missing = next((key for key in prior if key not in ids), None)
    if missing is not None:
        near = suggest(missing, [arm.key for arm in arms.every(unit)])
        raise InputError(f"the prior names arm {missing!r}, which the catalogue lacks", hint=near or "add it first")
    return [(ids[key], *prior[key]) for key in prior]


def listing(store: Store) -> list[VersionSummary]:
    """Every policy at its live version."""
    with store.read() as unit:
        every = policies.all_policies(unit)
        live = policies.live(unit, {policy.name for policy in every})
        return [belief_versions.summary(unit, live[policy.name][0]) for policy in every]


def show(store: Store, reference: str, context: Mapping[str, Any] | None = None) -> PolicyBelief:
    """The belief of a version about every arm, and what it would serve now, in a context."""
    context = context or {}
    with store.read() as unit, bulk.alongside(unit):
        version, head = lookup.version(unit, reference)
        live = policies.by_id(unit, [head.live_id])[head.live_id]
        summary = belief_versions.summary(unit, version)
        weighted = arm_means.weighted_means(unit, version, arms.every(unit))
        rows = zip(_beliefs(unit, version, context), weighted, strict=True)
        listed = [belief | weighed for belief, weighed in rows]
        return {
            "policy": summary["policy"], "version": summary["version"], "kind": summary["kind"],
            "params": summary["params"], "reward": summary["reward"], "arms": listed, "status": summary["status"],
            "versions": summary["versions"], **_features(version), "live": live.number,
            "drift": _drift(unit, version), "learned_from": dict(version.learned_from),
            "training": policies.report(unit, version.id), "created_at": written(version.created_at),
            "version_list": [
                {
                    "version": other.number, "status": other.status, "live": other.id == head.live_id,
                    "created_at": written(other.created_at),
                }
                for other in policies.versions(unit, [version.policy.id])
            ],
            "exposure": {"served": _spread(listed, "served"), "now": _spread(listed, "probability")},
            "counting": _counting(unit, version),
        }  # fmt: skip


def _spread(arms: Sequence[Mapping[str, Any]], column: str) -> dict[str, float | None]:
    """How a column of active arms is spread over them: what was served, or would be at position 1."""
    values = [row[column] or 0.0 for row in arms if row["status"] == "active"]
    return asdict(spread(np.array(values, np.float64)))


def _drift(unit: Unit, version: Version) -> list[dict[str, Any]]:
    """The newest changes of the mean reward of the policy and of its arms, among its newest decisions."""
    names: dict[int | str, str | None] = {"policy": None, **{arm.id: arm.key for arm in arms.every(unit)}}
    return [{"arm": names[key], **change} for key, change in reward_drift.recent(unit, version).items()]


class _Features(TypedDict, total=False):
    features: dict[str, Any]


def _features(version: Version) -> _Features:
    """The encoders of contexts and arms, as `--features` takes them; nothing for a kind that reads no context."""
    return {"features": {side: version.parameters[side] for side in ("context", "arm")}} if version.contextual else {}


COMPARED = ("pulls", "mean", "probability")


def diff(store: Store, first: str, second: str) -> list[dict[str, Any]]:
    """A row for each arm: the beliefs of two versions, and by how much the second (b) is above the first (a)."""
    with store.read() as unit:
        sides = [_beliefs(unit, lookup.version(unit, reference)[0], {}) for reference in (first, second)]
        return [{"arm": a["arm"], "status": a["status"], **_differences(a, b)} for a, b in zip(*sides, strict=True)]


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float | None]:
    row: dict[str, float | None] = {}
    for name in COMPARED:
        first, second = a[name], b[name]
        difference = None if first is None or second is None else second - first
        row |= {f"{name}_a": first, f"{name}_b": second, f"{name}_difference": difference}
    return row


def _beliefs(unit: Unit, version: Version, context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each arm of the catalogue. A version that learns counts what any version of its policy served."""
    version_id = None if version.learning else version.id
    served = decisions.slot_counts(unit, policy_id=version.policy.id, version_id=version_id)
    pending = decisions.pending_slot_counts(
        unit, policy_id=version.policy.id, version_id=version_id, since=unit.now - version.reward.window_us,
        entered_to=version.entered_to if version.learning else None,
    )  # fmt: skip
    distribution, catalogue = exact.load(unit, version), arms.every(unit)
    if distribution.rankers:
        named = " and ".join(each.version.reference for each in distribution.rankers)
        raise InputError(f"{version.policy.name} is drafted from two rankers", hint=f"look at {named}")
    distribution.check(context)
    if not catalogue:
        return []
    ids = np.array([arm.id for arm in catalogue], np.int64)
    belief = distribution.belief(ids, revision=designs.NOW)
    policy, weights = distribution.policy, list[dict[str, Any]]()
    if is_contextual(policy):
        mean, lower, upper = policy.interval(belief, context=context, z=Z)
        if distribution.columns is None:
            weights = [dict(zip(policy.features, row, strict=True)) for row in policy.weights(belief).tolist()]
        if policy.design.context.is_sparse:
            columns = policy.design.columns if distribution.columns is None else distribution.columns.columns()
            largest = _largest_weights(policy, belief, columns)
            weights = [row | more for row, more in zip(weights or [{}] * len(largest), largest, strict=True)]
    else:  # NaN for a trained kind, whose scores are not rewards
        mean, (lower, upper) = policy.mean(belief, unknown=np.nan), means.intervals(policy, belief)
    mean, lower, upper = means.widened(mean, lower, upper, _curve_error(unit, version, policy, belief))
    best, probability = _probabilities(distribution, catalogue, context)
    figures = {"mean": mean, "lower": lower, "upper": upper, "p_best": best, "probability": probability}
    return [
        {
            "arm": arm.key, "status": "active" if arm.retired_at is None else "retired",
            "served": served.get(arm.id, 0), "pending": pending.get(arm.id, 0),
            "pulls": plain_number(belief.pulls[row]), "reward_sum": plain_number(belief.reward_sum[row]),
            **{name: finite_or_none(column[row]) for name, column in figures.items()},
            **({"weights": weights[row]} if weights else {}),
        }
        for row, arm in enumerate(catalogue)
    ]  # fmt: skip


def _largest_weights(policy: ContextualPolicy, belief: Belief, columns: Ids) -> list[dict[str, float]]:
    """For each arm the LARGEST weights of columns of sparse contexts, by name."""
    weights, largest = policy.column_weights(belief, columns), list[dict[str, float]]()
    for column in weights.T:
        order = np.argsort(-np.abs(column), kind="stable")[:LARGEST]
        names = map(policy.design.context.names.__getitem__, columns[order].tolist())
        largest.append(dict(zip(names, column[order].tolist(), strict=True)))
    return largest


def _curve_error(unit: Unit, version: Version, policy: Policy, belief: Belief) -> Array:
    """How far the curve by which pulls count may be off, (m,): half an interval of 95 % of its logarithm, at the mean
    examination of an arm's pulls without a reward; 0 where the bounds do not hold it."""
    counting = _counting(unit, version)
    missed = policy.missed(belief) if isinstance(policy, Examined) else None
    if counting is None or not counting["in_bounds"] or missed is None:
        return np.zeros(len(belief.pulls))
    pulls = missed * policy.examination
    total = pulls.sum(axis=-1)
    size = np.divide(pulls @ policy.examination, total, out=np.ones(len(total)), where=total > 0)
    curve = lookup.curve(unit, counting["curve"])
    return np.interp(size, *np.array(sorted(zip(curve.examination, curve.errors, strict=True))).T)


# Whom a version serves. counting: the curve by which it counts pulls, None where it counts each as one; routes: that
# lead to it; decisions_24h: of its policy in the last 24 hours, where it is live.
Audience = TypedDict("Audience", {
    "counting": CountingCurve | None, "live": bool, "routes": list[str], "decisions_24h": int,
})  # fmt: skip


def audience(store: Store, reference: str) -> Audience:
    """Whom a version serves now."""
    with store.read() as unit:
        version, head = lookup.version(unit, reference)
        live = head.live_id == version.id
        served_by = {(version.policy.id, version.id), *([(version.policy.id, None)] if live else [])}
        return {
            "counting": _counting(unit, version), "live": live,
            "routes": [each.route for each in routes.every(unit) if (each.policy_id, each.version_id) in served_by],
            "decisions_24h": activity.served_since(unit, version.policy.id, unit.now - DAY_US) if live else 0,
        }  # fmt: skip


def _counting(unit: Unit, version: Version) -> CountingCurve | None:
    reference = version.params.get("position")
    if not reference:
        return None
    has_bounds = all(row["upper"] is not None for row in lookup.curve(unit, reference).positions)
    return {"curve": reference, "in_bounds": has_bounds and not designs.policy_of(version).contextual}


def _probabilities(
    distribution: exact.VersionDistribution, catalogue: Sequence[Arm], context: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Probability of each arm to be the best, and to be served now at position 1; NaN where there is none."""
    active = np.array([arm.retired_at is None for arm in catalogue])
    best, probability = np.full(len(catalogue), np.nan), np.where(active, np.nan, 0.0)
    ids = np.array([arm.id for arm in catalogue], np.int64)[active]
    if not distribution.policy.served or not len(ids):
        return best, probability
    try:
        case = distribution.case("now", ids, context, keys={arm.id: arm.key for arm in catalogue}, revision=designs.NOW)
    except InputError:  # the policy has no distribution in this context
        return best, probability
    best[active] = slate.first(case.scores, floor=0.0)
    if distribution.generator is None:  # over all lists of candidates it has no closed form
        probability[active] = slate.first(case.scores, floor=case.floor)
    return best, probability
