"""This module makes holdouts and compares them with the other variants. The holdout of an experiment is a part of the
users or sessions that gets uniform slates, to compare estimates with the truth. The permanent holdout of a route is a
part of the users, and measures what the route gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Any

from rlrec import policy as kinds
from rlrec.app.inputs import canonical, filters
from rlrec.errors import InputError
from rlrec.records import Reward, Version
from rlrec.store import Unit
from rlrec.store.policies import policies
from rlrec.store.policies.experiments import Experiment

LABEL, KIND = "holdout", "uniform"
SERVED_LABEL = "served"  # the label of the other users of a route
MIN_SHARE, MAX_SHARE = 1e-9, 0.5
Estimate = Mapping[str, Any]


def check_share(share: float) -> None:
    """Raise InputError if the holdout's share of all users or sessions is too close to 0, or above a half."""
    if not MIN_SHARE <= share <= MAX_SHARE:
        hint = f"it lies between {MIN_SHARE:g} and {MAX_SHARE:g}, and is above 0"
        raise InputError(f"the holdout is {share:g} of all units", hint=hint)


def holdout_weight(share: float, variant_weights: Sequence[float]) -> float:
    """Return the weight that gives a holdout this share of all users or sessions, beside variants with the given
    weights."""
    return sum(variant_weights) * share / (1 - share)


def add_policy(unit: Unit, experiment: str, model: Version, *, label: str = LABEL) -> int:
    """Create the uniform policy of a variant, and return its id. The policy is no copy of another policy.

    experiment: the name of the experiment; model: a version from which the policy takes the reward, and the rules
    about what may be shown and where; label: the label of the variant."""
    rules = {name: model.params[name] for name in kinds.COMMON_PARAMETERS if name in model.params}
    policy_id, _ = policies.create(
        unit, name=f"{KIND}@{experiment}/{label}", kind=KIND, params=kinds.values(kinds.make(KIND, rules)),
        definition=canonical.text({"experiment": experiment, "variant": label}), status="learning",
        reward_id=model.reward.id, entered_to=None if model.reward.learn == "served" else 0, learned_from={},
    )  # fmt: skip
    return policy_id


def stored_share(experiment: Experiment) -> float | None:
    """Return the holdout's share of all users or sessions, or None if the experiment has no holdout."""
    stored_share = experiment.declaration.get(LABEL)
    return None if stored_share is None else float(stored_share)


def compare_holdout(unit: Unit, experiment: Experiment, reward: Reward, *, level: float) -> dict[str, Any] | None:
    """Compare an estimate with the truth. The truth is the mean reward of the holdout's own decisions, which the policy
    `uniform` drew. The estimate is of the same mean, from the log of the other variants. Return None if the experiment
    has no holdout.

    Both figures are means per impression over mature, uncensored decisions, with errors clustered by the user or
    session that was assigned. The p-value is from Welch's t-test, with effective sample sizes. The verdict is the
    worse of the two verdicts."""
    from rlrec.ope.checks.reasons import in_order, worst_verdict
    from rlrec.ope.comparisons.comparison import difference

    unit_share = stored_share(experiment)
    if unit_share is None:
        return None
    holdout = next(variant for variant in experiment.variants if variant.label == LABEL)
    sides = [holdout.id], [variant.id for variant in experiment.variants if variant is not holdout]
    truth, estimate = (_estimate_variants(unit, holdout.policy, ids, experiment.unit, reward, level) for ids in sides)
    gap = difference(_metric_value(estimate), _metric_value(truth), level=level)
    return {
        "label": LABEL, "share": unit_share, **{name: truth[name] for name in ("value", "lower", "upper")},
        "estimate": estimate["value"], "estimate_lower": estimate["lower"], "estimate_upper": estimate["upper"],
        "difference": gap.value, "p_value": gap.p_value,
        "verdict": worst_verdict((truth["verdict"], estimate["verdict"])),
        "reasons": [*in_order([*truth["reasons"], *estimate["reasons"]])],
    }  # fmt: skip


def _estimate_variants(
    unit: Unit, policy: str, variants: Sequence[int], by: str, reward: Reward, level: float
) -> Estimate:
    """Return the `snips` estimate of a policy on the decisions of the given variants. On decisions that the policy
    itself drew, all weights are 1, and the estimate is the mean reward.

    variants: the ids of the variants; by: what errors are clustered by, "user" or "session"."""
    from rlrec.app.evaluation.passes import estimates
    from rlrec.app.evaluation.passes.request import EmptyLog, Request

    request = Request(targets=[policy], estimators="snips", level=level, cluster=by, reward=reward.name)
    try:
        selection = replace(filters.selection(unit, None), variant_ids=list(variants))
        (row,) = estimates.answer(unit, request, estimates.estimators(request), selection)
    except EmptyLog:
        nothing = dict.fromkeys(("value", "lower", "upper", "std_error"))
        return {**nothing, "n": 0, "ess": 0.0, "verdict": "insufficient", "reasons": ["no-rows"]}
    return row.record


def _metric_value(estimate: Estimate) -> Any:
    from rlrec.ope.comparisons.comparison import MetricValue

    value, error = (nan if estimate[name] is None else estimate[name] for name in ("value", "std_error"))
    return MetricValue(units=int(estimate["ess"]), value=value, error=error)
