"""Inverse-propensity means of a policy's arms, from its own log."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlrec.app.log import reward_log
from rlrec.ope import adaptive
from rlrec.records import Arm, Version
from rlrec.store import Unit, reader
from rlrec.store.reader import Selection

COLUMNS = (*reward_log.MATURITY, "arm_id", "marginal")


def means(unit: Unit, version: Version, catalogue: Sequence[Arm]) -> list[dict[str, float | None]]:
    """The mean of each arm of the catalogue (in order of id) over the mature, uncensored slots of the policy, whichever
    version served them, weighed by the marginal at their position; slots without one are left out."""
    ids = np.array([arm.id for arm in catalogue], np.int64)
    sums = np.zeros((adaptive.TERMS, len(ids)))
    of_policy = Selection(policy_ids=[version.policy.id], imported=False)
    for batch in reader.batches(unit, of_policy, columns=COLUMNS):
        impressions = reward_log.with_rewards(batch, version.reward)
        mature = reward_log.mature(impressions.slots, version.reward, now=unit.now)
        rows = mature & ~impressions.slots["censored"] & ~np.isnan(impressions.slots["marginal"])
        impressions = impressions.take(rows)
        arm = np.searchsorted(ids, impressions.slots["arm_id"])
        for total, term in zip(sums, adaptive.terms(impressions.reward, impressions.slots["marginal"]), strict=True):
            total += np.bincount(arm, weights=term, minlength=len(ids))
    names = ("ipw_mean", "ipw_lower", "ipw_upper")
    return [
        {name: value if np.isfinite(value) else None for name, value in zip(names, row, strict=True)}
        for row in np.array(adaptive.means(sums)).T.tolist()
    ]
