"""This module shows what a version believes about each arm, which arms it would serve, and where it is served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from rlrec.app.audit.draws import newest
from rlrec.app.distributions import designs, exact
from rlrec.app.inputs import lookup
from rlrec.app.inputs.arm_rules import allowed_arms
from rlrec.app.learning import arm_means, belief_versions
from rlrec.app.log import stored_contexts
from rlrec.arrays import Array, Ids, finite_or_none, plain_number
from rlrec.errors import InputError
from rlrec.ope.checks.exposure import spread
from rlrec.policy import is_contextual
from rlrec.policy.beliefs import means
from rlrec.policy.beliefs.base import PRICE, Belief, CurvePolicy, Policy
from rlrec.policy.beliefs.statistics import CONTEXT
from rlrec.policy.contexts.encoder import ContextualPolicy
from rlrec.policy.slates import slate
from rlrec.policy.slates.rules import RuledScores
from rlrec.records import Arm, Version
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import activity, decisions
from rlrec.store.policies import arms, beliefs, experiments, policies, routes
from rlrec.times import DAY_US, format_time

Z = 1.959963984540054  # normal quantile for 95 % intervals
MAX_WEIGHTS = 50  # weights shown per arm, if features are hashed into too many columns to list
COMPARED_FIGURES = ("pulls", "mean", "probability")  # figures of which two versions are compared
RULED_OUT = "ruled-out"  # the status of an active arm excluded by rules of the policy

PolicyVersion = TypedDict("PolicyVersion", {"version": int, "status": str, "live": bool, "created_at": str})


class CountingCurve(TypedDict):
    """This record names the curve of examination by which a pull counts at each position. in_bounds: whether the bounds
    of the arms' mean rewards include the error of the curve."""

    curve: str
    in_bounds: bool


class Pacing(TypedDict):
    """This record has the state of a budget. event: the kind of event whose values are costs; amount: the budget per
    period; spent: the cost in the present period; price: the present price of cost, which makes costly arms score
    less."""

    event: str
    amount: float
    period: str
    spent: float
    price: float


class PolicyBelief(belief_versions.VersionSummary):
    """This record is the answer of `policy show`: the belief per arm, how the version was made, and the versions of its
    policy.

    weighed: the number of decisions from which ipw_mean is computed, or None for all; has_prior: whether the belief
    began with priors. Some fields are missing for some policies: features (the encoders of contexts and arms, as in
    `--features`), the context used, the budget, the time when the experiment of a variant stopped, and `pruned`,
    which is set if old decisions were pruned."""

    arms: list[dict[str, Any]]
    features: NotRequired[dict[str, Any]]
    context: NotRequired[dict[str, Any]]
    live: int
    drift: list[dict[str, Any]]
    learned_from: dict[str, Any]
    has_prior: bool
    training: dict[str, Any] | None
    created_at: str
    version_list: list[PolicyVersion]
    exposure: dict[str, dict[str, float | None]]
    counting: CountingCurve | None
    weighed: int | None
    budget: NotRequired[Pacing]
    stopped_at: NotRequired[str]
    pruned: NotRequired[bool]


# The users whom a version serves. counting: the curve by which it counts pulls, None if each counts as one; routes:
# that serve it; decisions_24h: of its policy in the last 24 hours, if it is live.
Audience = TypedDict("Audience", {
    "counting": CountingCurve | None, "live": bool, "routes": list[str], "decisions_24h": int,
})  # fmt: skip


def show(
    store: Store, reference: str, context: Mapping[str, Any] | None = None, *, sample: bool = True, drift: bool = True
) -> PolicyBelief:
    """Return what a version believes about every arm, and what it would serve now in a context. context: None for the
    context of the newest decision; sample: whether weighted means may be computed from a part of a long log; drift:
    whether to look for changes of mean rewards."""
    with store.read() as unit, nullcontext() if sample else bulk.alongside(unit):
        version, head = lookup.version(unit, reference)
        live = policies.by_id(unit, [head.live_id])[head.live_id]
        summary = belief_versions.summary(unit, version)
        catalogue, changes = arms.all_arms(unit), newest.recent_changes(unit, version) if drift else {}
        names: dict[int | str, str | None] = {"policy": None, **{arm.id: arm.key for arm in catalogue}}
        optional_fields: dict[str, Any] = {}
        reads_context = version.is_contextual or bool(version.params.get("by"))
        if context is None:
            context = _newest_context(unit, version) if reads_context else {}
        if version.is_contextual:
            optional_fields["features"] = {side: version.parameters[side] for side in ("context", "arm")}
        if reads_context:
            optional_fields["context"] = dict(context)
        if version.params.get("budget"):
            optional_fields["budget"] = pacing(unit, version)
        name = version.policy.name.partition("@")[2].partition("/")[0]
        if (experiment := experiments.by_name(unit, [name]).get(name)) and experiment.stopped_at:
            optional_fields["stopped_at"] = format_time(experiment.stopped_at)
        if policies.pruned_to(unit, version.policy.id):
            optional_fields["pruned"] = True
        weighted_means, n_weighed = arm_means.weighted_means(unit, version, catalogue, sample=sample)
        arm_rows = [
            belief | mean for belief, mean in zip(_beliefs(unit, version, context), weighted_means, strict=True)
        ]
        answer = {
            "policy": summary["policy"], "version": summary["version"], "kind": summary["kind"],
            "params": summary["params"], "reward": summary["reward"], "arms": arm_rows, "status": summary["status"],
            "versions": summary["versions"], **optional_fields, "live": live.number,
            "drift": [{"arm": names[key], **change} for key, change in changes.items()],
            "learned_from": dict(version.learned_from), "has_prior": bool(beliefs.prior(unit, version.id)),
            "training": policies.report(unit, version.id), "created_at": format_time(version.created_at),
            "version_list": [
                {
                    "version": other.number, "status": other.status, "live": other.id == head.live_id,
                    "created_at": format_time(other.created_at),
                }
                for other in policies.versions(unit, [version.policy.id])
            ],
            "exposure": {"served": _spread(arm_rows, "served"), "now": _spread(arm_rows, "probability")},
            "counting": _counting_curve(unit, version), "weighed": n_weighed,
        }  # fmt: skip
        return cast(PolicyBelief, answer)


def _newest_context(unit: Unit, version: Version) -> dict[str, Any]:
    """Return the context of the newest decision of a policy, or of the newest decision of the log if the policy has
    none. Rules and features that the request stated for arms or for the slate are left out. The result is empty if
    there is no context, or if the version cannot read the context."""
    requests = (decisions.newest_requests(unit, policy_id, limit=1) for policy_id in (version.policy.id, None))
    ids = np.array([context_id for _, context_id, _ in next(filter(None, requests), [])], np.int64)
    bodies, _ = stored_contexts.distinct_contexts(unit, ids)
    context = {name: value for body in bodies for name, value in body.items() if not name.startswith("@")}
    with suppress(InputError):
        exact.load(unit, version).check(context)
        return context
    return {}


def pacing(unit: Unit, version: Version) -> Pacing:
    """Return the state of the budget of a version that has one."""
    distribution = exact.load(unit, version)
    assert distribution.spend is not None
    (event, amount, period), spent = distribution.spend.budget, distribution.spend.spent_in_period(unit.now)
    price = distribution.price_at(unit.now)
    return {"event": event, "amount": amount, "period": period, "spent": spent, "price": price}


def _spread(arms: Sequence[Mapping[str, Any]], column: str) -> dict[str, float | None]:
    """Return figures on how evenly the column (slots served, or probabilities) is spread over the active arms."""
    values = [row[column] or 0.0 for row in arms if row["status"] == "active"]
    return spread(np.array(values, np.float64))


def diff(store: Store, first: str, second: str) -> list[dict[str, Any]]:
    """Return a row for each arm, with the beliefs of two versions, and the second (b) minus the first (a)."""
    with store.read() as unit:
        sides = [_beliefs(unit, lookup.version(unit, reference)[0], {}) for reference in (first, second)]
    rows: list[dict[str, Any]] = []
    for a, b in zip(*sides, strict=True):
        row = {"arm": a["arm"], "status": a["status"]}
        for name in COMPARED_FIGURES:
            difference = None if a[name] is None or b[name] is None else b[name] - a[name]
            row |= {f"{name}_a": a[name], f"{name}_b": b[name], f"{name}_difference": difference}
        rows.append(row)
    return rows


def _beliefs(unit: Unit, version: Version, context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each arm of the catalogue. `status` is `ruled-out` for an active arm that rules of the policy
    exclude. For a learning version, the count of slots includes all versions of the policy."""
    distribution, catalogue = exact.load(unit, version), arms.all_arms(unit)
    if distribution.rankers:
        ranker_names = " and ".join(ranker.version.reference for ranker in distribution.rankers)
        raise InputError(f"{version.policy.name} is drafted from two rankers", hint=f"look at {ranker_names}")
    distribution.check(context)
    if distribution.spend is not None:
        context = {**context, PRICE: distribution.price_at(unit.now)}
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
            columns = policy.design.columns if distribution.columns is None else distribution.columns.column_ids()
            largest_weights = _largest_weights(policy, belief, columns)
            weights = [a | b for a, b in zip(weights or [{}] * len(largest_weights), largest_weights, strict=True)]
    else:  # NaN for a trained kind, whose scores are no rewards
        belief = policy.local_belief(belief, context)
        mean, (lower, upper) = policy.mean(belief, default=np.nan), means.intervals(policy, belief)
    mean, lower, upper = means.widen(mean, lower, upper, _curve_error(unit, version, policy, belief))
    arm_ids = frozenset(allowed_arms(unit, version.params))
    best_probability, probability = _probabilities(distribution, catalogue, arm_ids, context)
    served_slots, pending_slots = _served_slots(unit, version, policy), _pending_slots(unit, version)
    figures = {"mean": mean, "lower": lower, "upper": upper, "p_best": best_probability, "probability": probability}
    has_sums = policy.can_serve and policy.learns_online  # those of effects are no slots
    return [
        {
            "arm": arm.key,
            "status": RULED_OUT if arm.id not in arm_ids and arm.status(unit.now) == "active" else arm.status(unit.now),
            "served": served_slots.get(arm.id, 0), "pending": pending_slots.get(arm.id, 0),
            "pulls": plain_number(belief.pulls[row]) if has_sums else None,
            "reward_sum": plain_number(belief.reward_sum[row]) if has_sums else None,
            **{name: finite_or_none(column[row]) for name, column in figures.items()},
            **({"weights": weights[row]} if weights else {}),
            **({} if belief.cost is None else {"cost": float(belief.cost[row])}),
        }
        for row, arm in enumerate(catalogue)
    ]  # fmt: skip


def _served_slots(unit: Unit, version: Version, policy: Policy) -> Mapping[int, int]:
    """Return the number of slots of each arm: from the belief if it counts every slot once, else from the log."""
    policy_id, slots = version.policy.id, Counter[int]()
    has_every_slot = version.learning and version.number == 1 and not version.has_omissions
    if not has_every_slot or not policy.needed_columns <= {CONTEXT} or policy.forgetting.forgets:
        return decisions.slot_counts(unit, policy_id=policy_id, version_id=None if version.learning else version.id)
    if decisions.any_imported(unit, policy_id):
        return decisions.slot_counts(unit, policy_id=policy_id)
    initial_counts = (
        beliefs.counts(unit, version.id, seq=version.seq) if version.learned_from or version.parent_id else []
    )
    slots.update({row.arm_id: round(row.pulls) for row in beliefs.counts(unit, version.id)})
    slots.subtract({row.arm_id: round(row.pulls) for row in initial_counts})
    slots.subtract({row.arm_id: round(row.pulls) for row in beliefs.pruned_sums(unit, version.id) if not row.bucket})
    slots.update(decisions.slot_counts(unit, policy_id=policy_id, is_censored=True))
    if version.entered_to is not None:
        slots.update(decisions.slot_counts(unit, policy_id=policy_id, first=version.entered_to + 1, is_censored=False))
    return slots


def _pending_slots(unit: Unit, version: Version) -> Mapping[int, int]:
    """Return the number of slots of each arm whose rewards may still arrive, by arm id."""
    since, entered_to = unit.now - version.reward.window_us, version.entered_to if version.learning else None
    first_ids = [activity.first_id_since(unit, since), None if entered_to is None else entered_to + 1]
    first_id = min((number for number in first_ids if number is not None), default=None)
    if first_id is None:
        return {}
    return decisions.slot_counts(
        unit, policy_id=version.policy.id, version_id=None if version.learning else version.id, first=first_id,
        since=since, entered_to=entered_to,
    )  # fmt: skip


def _largest_weights(policy: ContextualPolicy, belief: Belief, columns: Ids) -> list[dict[str, float]]:
    """Return, for each arm, the MAX_WEIGHTS largest weights of columns of sparse contexts, by name of the column."""
    weights, largest_weights = policy.column_weights(belief, columns), list[dict[str, float]]()
    for column in weights.T:
        order = np.argsort(-np.abs(column), kind="stable")[:MAX_WEIGHTS]
        names = map(policy.design.context.names.__getitem__, columns[order].tolist())
        largest_weights.append(dict(zip(names, column[order].tolist(), strict=True)))
    return largest_weights


def _curve_error(unit: Unit, version: Version, policy: Policy, belief: Belief) -> Array:
    """Return the possible error of the curve by which pulls are counted, (m,), for m arms. It is half the width of a 95
    % interval for the curve's logarithm, at the mean examination of an arm's pulls without a reward. The result is 0 if
    the bounds of arms do not include the error."""
    counting_curve = _counting_curve(unit, version)
    missed_pulls = policy.missed_rewards(belief) if isinstance(policy, CurvePolicy) else None
    if counting_curve is None or not counting_curve["in_bounds"] or missed_pulls is None:
        return np.zeros(len(belief.pulls))
    pulls = missed_pulls * policy.examination
    total_pulls = pulls.sum(axis=-1)
    mean_examination = np.divide(
        pulls @ policy.examination, total_pulls, out=np.ones(len(total_pulls)), where=total_pulls > 0
    )
    curve = lookup.curve(unit, counting_curve["curve"])
    return np.interp(mean_examination, *np.array(sorted(zip(curve.examination, curve.errors, strict=True))).T)


def audience(store: Store, reference: str) -> Audience:
    """Return where a version is served now: whether it is live, the routes that serve it, and the number of its
    policy's decisions in the last 24 hours."""
    with store.read() as unit:
        version, head = lookup.version(unit, reference)
        live = head.live_id == version.id
        served_by = {(version.policy.id, version.id), *([(version.policy.id, None)] if live else [])}
        changes = routes.newest_changes(unit)
        return {
            "counting": _counting_curve(unit, version), "live": live,
            "routes": [change.route for change in changes if (change.policy_id, change.version_id) in served_by],
            "decisions_24h": activity.count_served_since(unit, version.policy.id, unit.now - DAY_US) if live else 0,
        }  # fmt: skip


def _counting_curve(unit: Unit, version: Version) -> CountingCurve | None:
    reference = version.params.get("position")
    if not reference:
        return None
    has_bounds = all(row["upper"] is not None for row in lookup.curve(unit, reference).positions)
    return {"curve": reference, "in_bounds": has_bounds and not designs.policy_of(version).is_contextual}


def _probabilities(
    distribution: exact.VersionDistribution, catalogue: Sequence[Arm], arm_ids: Collection[int],
    context: Mapping[str, Any],
) -> tuple[Array, Array]:  # fmt: skip
    """Return two arrays with a value for each arm: the probability that the arm is the best, and the probability that
    the arm is served now at position 1. Unknown values are NaN. arm_ids: the arms that may be served."""
    is_active = np.array([arm.id in arm_ids for arm in catalogue], np.bool_)
    best_probability, probability = np.full(len(catalogue), np.nan), np.where(is_active, np.nan, 0.0)
    ids = np.array([arm.id for arm in catalogue], np.int64)[is_active]
    if not distribution.policy.can_serve or not len(ids):
        return best_probability, probability
    try:
        case = distribution.case("now", ids, context, keys={arm.id: arm.key for arm in catalogue}, revision=designs.NOW)
    except InputError:  # the policy has no distribution in this context
        return best_probability, probability
    ruled_scores = case.scores
    best_probability[is_active] = slate.p_first(
        ruled_scores.scores if isinstance(ruled_scores, RuledScores) else ruled_scores, floor=0.0
    )
    if distribution.generator is None:  # over all lists of candidates there is no closed form
        probability[is_active] = slate.p_first(case.scores, floor=case.floor)
    return best_probability, probability
