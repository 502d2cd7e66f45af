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
    """A row an arm of the catalogue (in order of id): its mean over the mature, uncensored slots that any version of
    the policy gave it, weighed by the marginal at the position where it was shown; slots without one are left out."""
    ids = np.array([arm.id for arm in catalogue], np.int64)
    sums = np.zeros((adaptive.TERMS, len(ids)))
    own = Selection(policy_ids=[version.policy.id], imported=False)
    for batch in reader.batches(unit, own, columns=COLUMNS):
        found = reward_log.with_rewards(batch, version.reward)
        old = reward_log.mature(found.slots, version.reward, now=unit.now)
        found = found.take(old & ~found.slots["censored"] & ~np.isnan(found.slots["marginal"]))
        place = np.searchsorted(ids, found.slots["arm_id"])
        for total, term in zip(sums, adaptive.terms(found.reward, found.slots["marginal"]), strict=True):
            total += np.bincount(place, weights=term, minlength=len(ids))
    names = ("ipw_mean", "ipw_lower", "ipw_upper")
    return [
        {name: value if np.isfinite(value) else None for name, value in zip(names, row, strict=True)}
        for row in np.array(adaptive.means(sums)).T.tolist()
    ]
