"""Beliefs of policies that forget or see contexts, by their definition: slot by slot, without any of the ways in which
the program adds them up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from rlrec.app.distributions import designs
from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.learning import slot_statistics
from rlrec.app.learning.ledger import slot_reward
from rlrec.app.policies import policy
from rlrec.arrays import Ids
from rlrec.policy.beliefs.reward import by_position
from rlrec.records import Version
from rlrec.store import Store, Unit
from rlrec.store.log import contents, decisions, events, reader
from rlrec.store.policies import policies
from rlrec.store.policies.beliefs import BeliefKey
from tests.app.shop import version

MEMORIES = {
    "fades": ("thompson", {"discount": "0.95"}),
    "ends": ("ucb", {"window": "40", "floor": "0.1"}),
    "sees": ("linucb", {"floor": "0.1"}),
    "sees-fading": ("lin-thompson", {"discount": "0.95"}),
    "shares": ("lin-thompson", {"model": "shared", "samples": "50"}),
    "bends": ("logistic-thompson", {"window": "70"}),
    "soft": ("softmax", {"discount": "0.9", "model": "shared"}),
    "square": ("squarecb", {"window": "20", "model": "hybrid"}),
}


def remembering(store: Store, *names: str, learns: str = "default") -> None:
    """Policies by the names above."""
    for name in names:
        kind, params = MEMORIES[name]
        policy.create(store, policy.Request(name=name, kind=kind, parameters=params, reward=learns))


def defined(unit: Unit, answers: Version) -> dict[BeliefKey, Any]:
    """The sums of a version when its policy has made as many decisions as now."""
    selected, ordinal = designs.policy_of(answers), policies.ordinal(unit, answers.policy.id)
    memory: Any = selected.forgetting
    ids = [int(key) for batch in _ranges(unit, answers) for key in np.unique(batch.slots["decision_id"])]
    effect, total = events.by_decision(unit, ids), dict[BeliefKey, Any]()
    for decision in decisions.find(unit, ids).values():
        reported, then = by_position(effect.get(decision.id, ())), decision.ordinal or 0
        context = json.loads(contents.context_bodies(unit, [decision.context_id])[decision.context_id])
        for slot in decision.slots:
            reward = slot_reward(answers, reported.get(slot.position, ()), served_at=decision.at)
            index = memory.bucket(then), slot.arm_id
            if index[0] < memory.oldest_bucket(ordinal):
                continue
            sums = np.zeros(3) if reward is None else np.array([1.0, reward, reward**2])
            row = memory.discount ** (ordinal - then) * np.r_[sums, _moments(selected, context, slot.arm_id, sums)]
            total[index] = total.get(index, 0.0) + row
    return total


def _ranges(unit: Unit, answers: Version) -> Any:
    last = decisions.newest_id(unit, answers.policy.id) if answers.entered_to is None else answers.entered_to
    return reader.ranges(unit, answers.policy.id, first=max(1, answers.since), last=last)


def _moments(selected: Any, context: Any, arm: int, sums: Any) -> Any:
    if not selected.is_contextual:
        return []
    x = selected.design.context.encode([context])
    weight, offset = selected.moment_weights(x, np.array([arm]))
    gram, response = sums[0] * weight[0] * np.outer(x[0], x[0]), (sums[1] + sums[0] * offset[0]) * x[0]
    return np.r_[gram[np.triu_indices(len(gram))], response]


def gap(item: dict[BeliefKey, Any], other: dict[BeliefKey, Any]) -> float:
    """The largest difference of two beliefs, in units of 1 + what is larger."""
    places = item.keys() | other.keys()
    pairs = [(np.asarray(item.get(index, 0.0)), np.asarray(other.get(index, 0.0))) for index in places]
    return max((float((abs(a - b) / (1 + np.maximum(abs(a), abs(b)))).max()) for a, b in pairs), default=0.0)


def wrong(store: Store, name: str, number: int | None = None) -> float:
    """How far a belief is from its definition."""
    with store.read() as unit:
        answers = version(unit, name, number)
        ordinal = policies.ordinal(unit, answers.policy.id) if answers.learning else answers.ordinal
        return gap(slot_statistics.stored_sums(unit, answers, ordinal=ordinal), defined(unit, answers))


def arm_ids(distribution: VersionDistribution) -> Ids:
    """The arms in the belief of a version or its prior, ascending."""
    return np.union1d(distribution._arms, distribution._prior_arms)
