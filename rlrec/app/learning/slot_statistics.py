"""How slots count in the belief of a version: what each adds to the sums of its arm, faded and with its context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from rlrec.app.distributions import designs
from rlrec.app.log import reward_log
from rlrec.app.log.reward_log import Impressions
from rlrec.arrays import Array, Flags, Ids
from rlrec.policy import moments
from rlrec.policy.forgetting import Forgetting
from rlrec.records import Version
from rlrec.store import Unit, beliefs, contents
from rlrec.store.beliefs import BeliefKey

Totals = dict[BeliefKey, Array]
"""Per bucket and arm the three sums, and behind them the packed moments of contextual kinds."""

COLUMNS = ("at", "imported", "censored", "arm_id", "context_id", "ordinal")  # of the log, that it takes


class Credit:
    """The belief of one version when its policy has made `ordinal` decisions."""

    def __init__(self, unit: Unit, version: Version, *, ordinal: int) -> None:
        self.unit, self.version, self.ordinal = unit, version, ordinal
        self.forgetting = Forgetting.of(version.policy.params)

    @cached_property
    def policy(self) -> Any:
        """The contextual policy of the version."""
        return designs.policy_of(self.version)

    def sums(self, found: Impressions, *, rows: Flags | None = None) -> Totals:
        """What impressions add up to."""
        if rows is not None:
            found = found.take(rows)
        if not self.forgetting and not self.version.contextual:
            return {(0, arm): np.array(sums) for arm, sums in reward_log.sums(found).items()}
        ordinal = found.slots["ordinal"] if "ordinal" in found.slots else np.zeros(len(found), np.int64)
        weight = self.forgetting.discount ** (self.ordinal - ordinal).astype(np.float64)
        bucket = ordinal // self.forgetting.width if self.forgetting.window else np.zeros(len(found), np.int64)
        columns = (weight, weight * found.reward, weight * found.reward**2)
        arms = found.slots["arm_id"]
        return self._grouped(bucket, arms, columns, found.slots.get("context_id"))

    def extras(self, told: Mapping[tuple[int, int, int], tuple[float, float]]) -> Totals:
        """Moments that (pulls, reward) by bucket, arm and context add, without the sums before them."""
        bucket, arm, context = np.array(list(told), np.int64).reshape(len(told), 3).T
        pulls, reward = np.array(list(told.values())).reshape(len(told), 2).T
        found = self._grouped(bucket, arm, (pulls, reward, np.zeros(len(told))), context)
        return {place: sums[3:] for place, sums in found.items()}

    def _grouped(self, bucket: Ids, arms: Ids, columns: tuple[Array, Array, Array], contexts: Ids | None) -> Totals:
        places, group = np.unique(np.column_stack([bucket, arms]), axis=0, return_inverse=True)
        group = group.reshape(-1)
        sums = [np.bincount(group, weights=column, minlength=len(places)) for column in columns]
        total: Array = np.column_stack(sums).astype(np.float64)
        if self.version.contextual and contexts is not None:
            total = np.hstack([total, self._moments(contexts, arms, columns, group, len(places))])
        return {(place[0], place[1]): row for place, row in zip(places.tolist(), total, strict=True)}

    def _moments(self, contexts: Ids, arms: Ids, columns: tuple[Array, ...], group: Ids, groups: int) -> Array:
        pulls, reward, _ = columns
        ids, which = np.unique(contexts, return_inverse=True)
        x = self._encoded(ids)[which.reshape(-1)]
        weight, offset = self.policy.credit(x, arms)
        response = reward + pulls * offset
        return moments.change(x, weight=pulls * weight, response=response, group=group, groups=groups)

    def _encoded(self, ids: Ids) -> Array:
        bodies = contents.context_bodies(self.unit, ids.tolist())
        encoded: Array = self.policy.design.context.encode([json.loads(bodies[key]) for key in ids.tolist()])
        return encoded


def standing(unit: Unit, version: Version, *, ordinal: int) -> Totals:
    """The sums of a belief that still count at the policy's `ordinal`, brought forward to it."""
    forgetting = Forgetting.of(version.policy.params)
    found = {}
    for bucket, arm, then, *sums, extra in beliefs.held(unit, version.id, oldest=forgetting.oldest(ordinal)):
        whole = np.array(sums) if extra is None else np.concatenate([sums, np.frombuffer(extra, "<f8")])
        found[bucket, arm] = whole * forgetting.discount ** (ordinal - then)
    return found


def added(total: Totals, more: Totals, *, sign: float = 1.0) -> Totals:
    """Both added, place by place."""
    result = dict(total)
    for place, sums in more.items():
        result[place] = result[place] + sign * sums if place in result else sign * sums
    return result


def something(totals: Totals, *, oldest: int) -> Totals:
    """Without the places whose sums are all 0, or whose bucket lies before the oldest one that counts."""
    return {place: sums for place, sums in totals.items() if place[0] >= oldest and np.any(sums)}
