"""Functions here compute mean rewards of arms in a log. For a prior, the mean of each arm is shrunk to the mean over
all arms. `weighted_means` weights each slot by the inverse of its propensity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rlrec.app.distributions import designs
from rlrec.app.inputs import filters, parameters
from rlrec.app.learning.slot_statistics import BeliefFold
from rlrec.app.log import lineage, reward_log
from rlrec.arrays import distinct, finite_or_none
from rlrec.errors import InputError
from rlrec.ope.sums import adaptive
from rlrec.policy.beliefs.reward import bounds, within_unit_hint
from rlrec.records import Arm, Version
from rlrec.store import Unit
from rlrec.store.log import decisions, reader
from rlrec.store.policies import arms

WEIGHT = 10.0  # default pseudo-pulls of an arm
# decisions in the sample for weighted means, and the stretches of the log that it consists of
SAMPLED, STRETCHES = 20_000, 50
WEIGHED = ("decision_id", "at", "imported", "position", "arm_id", "marginal", "censored")


def options(text: str | None, weight: float | None, *, prior: str | None) -> dict[str, Any]:
    """Return the two fields of a policy's definition that describe a prior from a log, or an empty dictionary without a
    log. Raises InputError for a weight out of range, a weight without a log, and a log together with a prior from a
    file.

    text: the filter of the log; weight: the number of pseudo-pulls; prior: the file."""
    if text is None:
        if weight is not None:
            raise InputError("--prior-weight needs a log", hint="give --prior-from FILTER too")
        return {}
    if prior is not None:
        raise InputError("--prior and --prior-from do not go together", hint="a prior comes from a file or from a log")
    weight = WEIGHT if weight is None else weight
    if not parameters.MIN_COUNT <= weight <= parameters.MAX_COUNT:
        hint = f"it lies between {parameters.MIN_COUNT:g} and {parameters.MAX_COUNT:g}"
        raise InputError(f"--prior-weight is {weight:g}", hint=hint)
    return {"prior_from": text, "prior_weight": weight}


def prior_from_log(
    unit: Unit, draft: Version, *, prior_from: str, prior_weight: float
) -> tuple[dict[str, tuple[float, float]], dict[str, Any]]:
    """Return alpha and beta of every arm of the catalogue, and the record of the decisions from which they are
    computed.

    The mean reward of an arm over mature, uncensored impressions is shrunk to the mean over all arms, with the
    weight of `prior_weight` pseudo-pulls. The prior of each arm also counts as `prior_weight` pulls. Raises
    InputError if the log has no such impressions, or if the reward may leave [0, 1]. The method is derived here:
    alpha / (alpha + beta) is the posterior mean of a Beta distribution whose prior mean is the mean of the log."""
    reward, limits = draft.reward, bounds(draft.reward)
    if limits is None or limits[0] < 0 or limits[1] > 1:
        message = f"reward {reward.name!r} may leave [0, 1], and a prior counts it fractionally"
        raise InputError(message, hint=within_unit_hint(reward))
    selection = filters.selection(unit, prior_from)
    sums, n_slots, last_id = BeliefFold(unit, draft, ordinal=0).log_sums([selection])
    pulls, rewards = (sum(float(row[column]) for row in sums.values()) for column in (0, 1))
    if not pulls:
        raise InputError("the log has no mature decision for a prior", hint="import a log, or widen the filter")
    prior = {
        arm.key: _pseudo_counts(*sums.get((0, arm.id), (0.0, 0.0))[:2], prior_mean=rewards / pulls, weight=prior_weight)
        for arm in arms.all_arms(unit)
    }
    record = lineage.make_record(
        unit, prior_from, selection, last_id=last_id, window_us=reward.window_us, slots=n_slots
    )
    return prior, {"prior": record}


def _pseudo_counts(pulls: float, reward: float, *, prior_mean: float, weight: float) -> tuple[float, float]:
    """Return alpha and beta of an arm with these sums. Both are at least the smallest count for which probabilities are
    exact. prior_mean: the mean reward of all arms; weight: the number of pseudo-pulls."""
    mean = float(reward + weight * prior_mean) / float(pulls + weight)
    return max(weight * mean, parameters.MIN_COUNT), max(weight * (1 - mean), parameters.MIN_COUNT)


def weighted_means(
    unit: Unit, version: Version, catalogue: Sequence[Arm], *, sample: bool
) -> tuple[list[dict[str, float | None]], int | None]:
    """Return the mean reward of each arm of the catalogue, with its interval, in order of id. The means are over the
    mature, uncensored slots that all versions of the policy served. A slot is weighted by the inverse of the marginal
    at its position; slots without a marginal are left out. If the version uses a curve of examination, a slot counts
    only as much as its position is examined.

    sample: whether to read only SAMPLED decisions of a longer log. The second value is then the number of decisions
    that were read, or None if all were read."""
    ids = np.array([arm.id for arm in catalogue], np.int64)
    sums, n_read = np.zeros((adaptive.N_TERMS, len(ids))), 0
    policy, policy_id = designs.policy_of(version), version.policy.id
    tests = filters.selection(unit, None).conditions()
    first_id, last_id = decisions.id_extent(unit, policy_id)
    stretches = [(first_id, last_id)]
    if is_sampled := sample and decisions.newest_id(unit, policy_id, SAMPLED + 1) > 0:
        edges = np.linspace(first_id, last_id + 1, STRETCHES + 1).astype(np.int64).tolist()
        portions = (
            reader.id_ranges(unit, policy_id, first=start, last=end - 1, size=SAMPLED // STRETCHES)
            for start, end in pairwise(edges)
        )
        stretches = [next(portion) for portion in portions]
    for first_id, last_id in stretches:
        for batch in reader.ranges(unit, policy_id, first=first_id, last=last_id, tests=tests, columns=WEIGHED):
            n_read += len(distinct(batch.slots["decision_id"])[0])
            slots = reward_log.with_rewards(batch, version.reward)
            is_counted = reward_log.is_mature(slots.slots, version.reward, now=unit.now) & ~slots.slots["censored"]
            weighed_slots = slots.take(is_counted & ~np.isnan(slots.slots["marginal"]))
            arm = np.searchsorted(ids, weighed_slots.slots["arm_id"])
            reward, pulls = policy.rewards_and_pulls(weighed_slots.reward, weighed_slots.slots["position"])
            for total, term in zip(sums, adaptive.terms(reward, weighed_slots.slots["marginal"], pulls), strict=True):
                total += np.bincount(arm, weights=term, minlength=len(ids))
    names = ("ipw_mean", "ipw_lower", "ipw_upper")
    rows = np.array(adaptive.means(sums)).T.tolist()
    return [dict(zip(names, map(finite_or_none, row), strict=True)) for row in rows], n_read if is_sampled else None
