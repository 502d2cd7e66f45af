"""Draw the slates of a group: requests that share a distribution are drawn together, in arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np

from rlrec.app.planning import Plan
from rlrec.policy import slate


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A slate as it is stored: places among the plan's arms, and what the draw's probabilities were."""

    plan: Plan
    decision_id: int
    arms: list[int]
    propensity: list[float]
    marginal: list[float]
    minimum: list[float]
    rounded: list[bool]
    score: list[float | None]

    @property
    def log_propensity(self) -> float:
        total = sum(map(log, self.propensity))
        return 0.0 if total > 0 else total  # a NaN stays one, and no database takes it


def draw(plans: Mapping[int, Plan], ids: Mapping[int, int], bits: int) -> dict[int, Drawn]:
    """Slates of the plans by place: those that share a distribution are drawn together."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, plan in plans.items():
        groups[plan.group].append(place)
    drawn: dict[int, Drawn] = {}
    for places in groups.values():
        case, size = plans[places[0]].case, plans[places[0]].request.size
        seeds = np.full(len(places), bits, np.uint64)
        numbers = np.array([ids[place] for place in places], np.int64)
        made = slate.draw(case.scores, size=size, floor=case.floor, seeds=seeds, decisions=numbers)
        columns = zip(
            places,
            made.slates.tolist(),
            case.arms[made.slates].tolist(),
            made.propensity.tolist(),
            made.marginal.tolist(),
            made.minimum.tolist(),
            made.rounded.tolist(),
            strict=True,
        )
        for place, chosen, arm_ids, propensity, marginal, minimum, rounded in columns:
            drawn[place] = Drawn(
                plan=plans[place],
                decision_id=ids[place],
                arms=arm_ids,
                propensity=propensity,
                marginal=marginal,
                minimum=minimum,
                rounded=rounded,
                score=[case.score(chosen_one) for chosen_one in chosen],
            )
    return drawn


def signed(bits: int) -> int:
    """64 bits as the signed number that a BIGINT holds."""
    return bits - 2**64 if bits >= 2**63 else bits


def unsigned(stored: int) -> int:
    return stored + 2**64 if stored < 0 else stored
