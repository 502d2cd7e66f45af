"""This module compares a route with its challenger, a policy that never serves. With each decision of the route, it
stores the challenger's probability of the shown slate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from rlrec.app.serving.draws import DrawnSlate
from rlrec.app.serving.requests import PlannedRequest, SharedDistribution
from rlrec.arrays import Array, finite_or_none
from rlrec.errors import InputError
from rlrec.policy.gradients import history
from rlrec.store import Unit
from rlrec.store.database.unit import Row
from rlrec.store.policies import routes
from rlrec.store.policies.routes import Shadow
from rlrec.times import format_time

LEAST = -1e308  # stands for the log of 0


# The figures of a challenger. decisions: that were shadowed; weighed: those with an exact probability; mean_weight,
# ess: of the weights, the challenger's probability over the propensity.
ShadowReport = TypedDict("ShadowReport", {
    "route": str, "shadow": str, "since": str, "until": str | None, "decisions": int, "weighed": int,
    "mean_weight": float | None, "ess": float | None, "started": NotRequired[bool], "stopped": NotRequired[bool],
})  # fmt: skip


def store(
    unit: Unit, plans: Mapping[int, PlannedRequest], ids: Sequence[int], slates: Sequence[DrawnSlate],
    step: Sequence[int], blobs: Sequence[bytes], keys: Mapping[int, str],
) -> None:  # fmt: skip
    """Store the route of each decision, and the logarithm of the probability with which the challenger would have shown
    its slate (None if this is not known exactly). plans: the requests to routes, by index in the group; ids, slates,
    step, blobs: the decision ids, slates, steps and packed histories of the whole group; keys: the key of each arm, by
    id."""
    by_route = [(ids[index], route.route_id) for index, plan in plans.items() if (route := plan.distribution.route)]
    routes.add_decisions(unit, by_route)
    groups: dict[tuple[SharedDistribution, str], list[int]] = defaultdict(list)
    for index, plan in plans.items():
        if (challenger := plan.distribution.challenger) is not None:
            groups[plan.distribution, challenger.reading(plan.request.context)].append(index)
    shadow_rows = list[Row]()
    for (distribution, _), indices in groups.items():
        assert distribution.shadow is not None
        group_plans = [plans[index] for index in indices]
        shown_arms = np.searchsorted(distribution.case.arms, np.array([slates[index].arms for index in indices]))
        steps = np.array([step[index] for index in indices], np.int64)
        past_slots = history.unpack([blobs[index] for index in indices], steps)
        log_probabilities = _log_probabilities(group_plans, shown_arms, past_slots, keys)
        values: list[float | None] = [None] * len(indices)
        if log_probabilities is not None:
            values = np.clip(log_probabilities, LEAST, 0.0).tolist()
        shadow_rows += [(distribution.shadow.id, ids[index], log) for index, log in zip(indices, values, strict=True)]
    routes.add_shadowed(unit, shadow_rows)


def _log_probabilities(
    plans: Sequence[PlannedRequest], slates: Any, histories: history.History, keys: Mapping[int, str]
) -> Array | None:
    """Return the logarithm of the challenger's probability of each of n slates, (n,). Returns None if the
    probabilities are not known exactly. slates (n, k): the indices of the shown arms in the eligible set, which all
    requests share."""
    distribution, challenger = plans[0].distribution, plans[0].distribution.challenger
    assert challenger is not None
    if challenger.generator is not None or challenger.rankers:
        return None
    trained_model, context, arms = challenger.trained_model, plans[0].request.context, distribution.case.arms
    try:
        if trained_model is None:
            challenger.check(context)
            case = challenger.case(distribution.eligible, arms, context, keys=keys, revision=distribution.revision)
            return None if case.scores.samples else case.slate_sampler(distribution.size).log_probabilities(slates)
        contexts = trained_model.encode_contexts([plan.request.context for plan in plans])
    except InputError:  # the challenger cannot read this context; its failure must not stop the request
        return None
    # each slate was shown in its own session state
    state = trained_model.states(contexts, histories, np.full(len(plans), distribution.revision))
    logged_draw = trained_model.log(trained_model.scores(state, arms, distribution.revision), slates)
    with np.errstate(divide="ignore"):
        return np.where(logged_draw.is_rounded, -np.inf, np.log(logged_draw.propensity)).sum(axis=1)


def report(unit: Unit, route: str, shadow: Shadow) -> ShadowReport:
    """Return the figures of a challenger so far: the number of decisions, and the mean and the effective sample size of
    the weights. The weight of a decision is the challenger's probability of its slate, divided by the propensity.
    route: the name of the route."""
    rows = routes.log_probabilities(unit, shadow.id)
    log_weights = [probability - propensity for probability, propensity in rows if probability is not None]
    weight = np.exp(np.array(log_weights, np.float64))
    sum_of_squares = float((weight**2).sum())
    return {
        "route": route, "shadow": shadow.reference, "since": format_time(shadow.started_at),
        "until": None if shadow.stopped_at is None else format_time(shadow.stopped_at), "decisions": len(rows),
        "weighed": len(weight), "mean_weight": finite_or_none(float(weight.mean())) if len(weight) else None,
        "ess": finite_or_none(float(weight.sum()) ** 2 / sum_of_squares) if sum_of_squares > 0 else None,
    }  # fmt: skip
