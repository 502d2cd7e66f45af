"""A prior from a log: every arm starts from what it earned there, as far as it was shown."""

from __future__ import annotations

from typing import Any

from rlrec.app.inputs import filters, parameters
from rlrec.app.log import lineage, reward_log
from rlrec.errors import InputError
from rlrec.policy.reward import bounds
from rlrec.records import Reward
from rlrec.store import Unit, arms
from rlrec.store.beliefs import NOTHING, Sums

WEIGHT = 10.0  # pseudo-pulls of an arm, where nothing else is asked for


def asked(text: str | None, weight: float | None, *, prior: str | None) -> dict[str, Any]:
    """What of a policy's definition says that its prior comes from a log; empty where it does not.

    Raises InputError for a weight out of range, or without a log, and for a log beside a file."""
    if text is None:
        if weight is not None:
            raise InputError("--prior-weight is given, and no log to weigh", hint="give --prior-from FILTER too")
        return {}
    if prior is not None:
        raise InputError("--prior and --prior-from do not go together", hint="a prior comes from a file or from a log")
    weight = WEIGHT if weight is None else weight
    if not parameters.LEAST <= weight <= parameters.MOST:
        hint = f"it lies between {parameters.LEAST:g} and {parameters.MOST:g}"
        raise InputError(f"--prior-weight is {weight:g}", hint=hint)
    return {"prior_from": text, "prior_weight": weight}


def learned(
    unit: Unit, *, prior_from: str, prior_weight: float, reward: Reward
) -> tuple[dict[str, tuple[float, float]], dict[str, Any]]:
    """alpha and beta of every arm of the catalogue, and the record of the decisions that they come from.

    An arm's mean reward over mature, uncensored impressions is shrunk to that of all by `prior_weight` pseudo-pulls,
    and worth as many. Raises InputError where the log has none, or the reward may leave [0, 1].
    Source: own derivation: the posterior mean of a Beta whose prior mean is that of the log."""
    limits = bounds(reward)
    if limits is None or limits[0] < 0 or limits[1] > 1:
        hint = "define the reward with --clip 0,1 and a default inside it"
        raise InputError(f"reward {reward.name!r} may leave [0, 1], and a prior counts it fractionally", hint=hint)
    selected = filters.selection(unit, prior_from)
    sums: dict[int, Sums] = {}
    last = 0
    for found in reward_log.impressions(unit, selected, reward):
        sums = reward_log.add_sums(sums, reward_log.arm_sums(found))
        last = max(last, int(found.slots["decision_id"].max(initial=0)))
    slots, total = (sum(row[place] for row in sums.values()) for place in (0, 1))
    if not slots:
        raise InputError("the log has no mature decision for a prior", hint="import a log, or widen the filter")
    prior = {
        arm.key: _pseudo_counts(sums.get(arm.id, NOTHING), overall=total / slots, weight=prior_weight)
        for arm in arms.every(unit)
    }
    record = lineage.record(unit, prior_from, selected, last_id=last, window_us=reward.window_us, slots=int(slots))
    return prior, {"prior": record}


def _pseudo_counts(row: Sums, *, overall: float, weight: float) -> tuple[float, float]:
    """alpha and beta of an arm with these sums, neither below what probabilities are exact for."""
    mean = (row[1] + weight * overall) / (row[0] + weight)
    return max(weight * mean, parameters.LEAST), max(weight * (1 - mean), parameters.LEAST)
