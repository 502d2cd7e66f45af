"""Versions of the kind `gradient` made by hand, and the probabilities that their weights come to."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from rlrec.app.distributions import designs
from rlrec.store import Store
from rlrec.store.policies import arms, beliefs, policies
from tests.app import logs


def version(db: str, name: str, *, bias: list[float], last: float = 0.0, minutes: float = 2.0, **record: Any) -> None:
    """The next version of a policy, live: bias of the arms by their keys, `last` for the arm shown just before."""
    with closing(logs.at(db, minutes)) as store:
        store.write(lambda unit: _add(unit, name, bias, last, record))


def _add(unit: Any, name: str, bias: list[float], last: float, record: Any) -> None:
    parent, head = policies.live(unit, [name])[name]
    kind: Any = designs.policy_of(parent)
    recorded = sorted(arms.all_arms(unit), key=lambda arm: arm.key)
    parameters = kind.zero_parameters(len(recorded))
    parameters["bias"][:] = bias
    parameters["history"][:] = [0.0, 0.0, last, 0.0]
    weights, shared = kind.pack(parameters, np.array([arm.id for arm in recorded]))
    number = policies.versions(unit, [parent.policy.id])[-1].number + 1
    answers = policies.add_version(
        unit, policy_id=parent.policy.id, number=number, status="frozen", reward_id=parent.reward.id, seq=head.seq,
        ordinal=head.ordinal, parent_id=parent.id, learned_from=record,
        parameters={**parent.parameters, "shared": shared}, report={},
    )  # fmt: skip
    beliefs.add_weights(unit, answers, weights)
    policies.promote(unit, parent.policy.id, version_id=answers, previous_id=head.live_id)


def chances(bias: list[float], last: float, before: set[int], *, floor: float = 0.0) -> npt.NDArray[np.float64]:
    """Of each arm at position 1, when the arms `before` (places) were shown just before."""
    logits = np.array(bias) + last * np.isin(np.arange(len(bias)), list(before))
    chance = np.exp(logits) / np.exp(logits).sum()
    return (1 - floor) * chance + floor / len(bias)


def page(chance: npt.NDArray[np.float64], shown: list[int]) -> float:
    """Probability of an ordered page without a floor."""
    left, result = chance.copy(), 1.0
    for arm in shown:
        result *= left[arm] / left.sum()
        left[arm] = 0.0
    return result


def stored(db: str) -> Store:
    """The store, long after the log."""
    return logs.at(db, 1e6)
