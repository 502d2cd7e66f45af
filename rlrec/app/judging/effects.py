"""This module computes the effects of showing arms, from one snapshot of the log. It also suggests a reward for the
long run. The suggestion rests on how the events of an arm's slots are related to what follows a look at the arm."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TypedDict

import numpy as np

from rlrec.app.evaluation.passes import arm_effects
from rlrec.app.evaluation.passes.arm_effects import Request, Result
from rlrec.app.evaluation.passes.passes import IN_PROCESS, Workers
from rlrec.app.imports import log_stores
from rlrec.app.inputs import lookup
from rlrec.arrays import Array
from rlrec.errors import CheckFailed, InputError
from rlrec.ope.estimators.shrinkage import draw_errors, draw_lines, joint_rates
from rlrec.store import Store
from rlrec.store.log.events import RETURN
from rlrec.store.policies import policies
from rlrec.times import SECOND

__all__ = ["Request", "Result", "effects", "suggest"]

N_DRAWS, SEED = 2_000, 0  # of the posterior
N_DIGITS = 3  # decimal digits of a weight


def effects(store: Store, request: Request, workers: Workers = IN_PROCESS) -> Result:
    """Return the effect of showing each arm, now and later, in the selected log.

    Raises InputError for unknown names and an empty log, CheckFailed for a log with too few data."""
    with log_stores.reading(store, request.log, workers) as (unit, log, engine):
        return arm_effects.answer(unit, replace(request, log=log), engine)


# -- a reward for the long run --

# A posterior mean with its bounds.
Doubt = TypedDict("Doubt", {"value": float, "lower": float, "upper": float})
# A kind of event. now: its weight in the reward; later: the effect of one more such event at an arm's slots on what
# follows the page, with bounds for all kinds together; weight: the sum of both; rank: rank correlation of arms by its
# rate and by their long-run effect.
EventWeight = TypedDict("EventWeight", {
    "event": str, "now": float, "later": Doubt, "weight": float, "answer": str, "rank": Doubt,
})  # fmt: skip
# explained: the share of the differences between arms after the page that their events explain; rank: of the reward
# itself; None where no kind of event differs between arms. weights: for a definition, None where no later effect can be
# estimated.
Suggestion = TypedDict("Suggestion", {
    "reward": str, "horizon_s": float, "log": str | None, "level": float, "arms": int, "pages": int, "persons": int,
    "explained": Doubt | None, "rank": Doubt | None, "events": list[EventWeight], "name": str,
    "weights": dict[str, float] | None, "window_s": float,
})  # fmt: skip


def suggest(store: Store, request: Request) -> Suggestion:
    """Suggest a reward for the long run. Return weights of events with which the reward of a slot is the long-run
    effect of a look at its arm.

    request: a request without groups, with the examination of positions estimated from the log.

    Raises InputError for unknown names and an empty log, CheckFailed for a log with too few data."""
    with store.read() as unit:
        definition = lookup.reward(unit, request.reward)
        names = {reward.name for reward in policies.rewards(unit)}
    if definition.transforms:
        hint = "give --reward with a definition of plain weights, such as 'click=1'"
        message = f"reward {definition.name!r} transforms {min(definition.transforms)!r}: no weight adds to that"
        raise InputError(message, hint=hint)
    with log_stores.reading(store, request.log) as (unit, log, _):
        effect_pass, by_group, _ = arm_effects.sum_log(unit, replace(request, log=log, reward=definition.name))
    (sums,) = by_group.values()
    estimates = effect_pass.estimate(sums)
    later_effect, error = estimates.total(now=0.0)
    arms = np.flatnonzero(estimates.varies)
    if not (error[arms] > 0).all():
        hint = "collect visits of several pages, or of people who are named and come back"
        raise CheckFailed("nothing came after the pages of this log: nothing can be told of it", hint=hint)
    now_weights = {kind: weight for kind, weight in definition.weights.items() if kind != RETURN}
    answer: Suggestion = {
        "reward": definition.name, "horizon_s": effect_pass.horizon_us / SECOND, "log": request.log,
        "level": request.level, "arms": len(arms), "pages": int(sums.counts[0]), "persons": int(sums.counts[3]),
        "explained": None, "rank": None, "events": [],
        "name": next(name for number in count(2) if (name := f"{definition.name}{number}") not in names),
        "weights": None, "window_s": definition.window_us / SECOND,
    }  # fmt: skip
    kinds = sorted(estimates.rates)
    if not kinds:
        return answer
    values = np.column_stack([sums.events[kind][arms, 0] for kind in kinds])
    products = np.array([[sums.products[kind_a, kind_b] for kind_b in kinds] for kind_a in kinds])
    (rates, covariance), rng = joint_rates(values, products, sums.looks[arms]), np.random.default_rng(SEED)
    draws = draw_lines(later_effect[arms], error[arms], rates, draws=N_DRAWS, rng=rng)
    # ranks by rates and effects that are drawn with their errors
    errors, weights_now = (
        draw_errors(covariance, draws=N_DRAWS, rng=rng),
        [now_weights.get(kind, 0.0) for kind in kinds],
    )
    drawn_rates, shifts = rates + errors, np.einsum("np,nkp->nk", draws.slopes, errors)
    reward_now = drawn_rates @ weights_now
    ranks, joint_level = _ranks(draws.effects + shifts + reward_now), 1 - (1 - request.level) / len(kinds)
    for number, kind in enumerate(kinds):
        # bounds that hold for all kinds together
        slope = _doubt(draws.slopes[:, number], joint_level)
        now = now_weights.get(kind, 0.0)
        answer["events"].append({
            "event": kind, "now": now, "later": slope, "weight": now + slope["value"],
            "answer": "adds" if slope["lower"] > 0 else "costs" if slope["upper"] < 0 else "unknown",
            "rank": _doubt((ranks * _ranks(drawn_rates[:, :, number])).sum(axis=1), joint_level),
        })  # fmt: skip
    if np.ptp(rates @ weights_now) > 0:
        answer["rank"] = _doubt((ranks * _ranks(reward_now)).sum(axis=1), joint_level)
    answer["explained"] = _doubt(np.minimum(draws.centres.var(axis=1) / draws.effects.var(axis=1), 1), request.level)
    if any(event["answer"] != "unknown" for event in answer["events"]):
        weights = {**now_weights, **{event["event"]: event["weight"] for event in answer["events"]}}
        answer["weights"] = {kind: float(f"{weight:.{N_DIGITS}g}") for kind, weight in weights.items()}
    return answer


def _ranks(values: Array) -> Array:
    """Return the ranks of values along the last axis, in an array of the same shape. The ranks are centred and scaled
    to length 1, so that the product of two such vectors is a rank correlation."""
    ranks = values.argsort(axis=-1).argsort(axis=-1) - (values.shape[-1] - 1) / 2
    return np.asarray(ranks / np.linalg.norm(ranks, axis=-1, keepdims=True))


def _doubt(draws: Array, level: float) -> Doubt:
    lower, upper = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return {"value": float(draws.mean()), "lower": lower, "upper": upper}
