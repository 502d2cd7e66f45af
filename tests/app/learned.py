"""Trained versions made by hand: random parameters, so that everything that a state says matters."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from rlrec.app.distributions import designs
from rlrec.policy.gradients.gradient import Gradient
from rlrec.store import Store, Unit
from rlrec.store.policies import arms, beliefs, policies
from tests.app.shop import version

REPORT: dict[str, Any] = {
    "curve": [
        {
            "epoch": 1, "value": 0.25, "gain": 0.0625, "lower": -0.125, "upper": 0.25, "ess": 90.5, "entropy": 1.5,
            "kl": 0.03125, "clipped": 0.25, "variance": 2.0, "variance_without_baseline": 8.0,
        },
        {
            "epoch": 2, "value": None, "gain": None, "lower": None, "upper": None, "ess": None, "entropy": None,
            "kl": None, "clipped": 0.0, "variance": 1.0, "variance_without_baseline": 4.0,
        },
    ],
    "best": 1,
    "gate": {
        "estimator": "wdr", "against": 1, "candidate": 2, "alpha": 0.0125, "value": 0.75, "live_value": 0.5,
        "estimate": 0.25, "std_error": 0.0625, "lower": 0.125, "upper": 0.375, "ess": 40.5, "sessions": 60,
        "verdict": "weak", "reasons": ["low-ess"], "passed": True,
    },
}  # fmt: skip


def trained(store: Store, name: str, *, seed: int = 3, report: Any = REPORT, promote: bool = True) -> int:
    """A new version of a policy of kind `gradient`, as `train-pg` would have made it: its number."""

    def work(unit: Unit) -> int:
        parent = version(unit, name)
        policy, stored = cast(Gradient, designs.policy_of(parent)), arms.all_arms(unit)
        rng = np.random.default_rng(seed)
        drawn = {key: rng.normal(size=values.shape) for key, values in policy.zero_parameters(len(stored)).items()}
        weights, shared = policy.pack(drawn, np.array(sorted(arm.id for arm in stored)))
        number = policies.versions(unit, [parent.policy.id])[-1].number + 1
        answers = policies.add_version(
            unit, policy_id=parent.policy.id, number=number, status="frozen", reward_id=parent.reward.id,
            seq=parent.seq, ordinal=parent.ordinal, parent_id=parent.id, learned_from={"sessions": 60},
            parameters={**parent.parameters, "shared": shared}, report=report,
        )  # fmt: skip
        beliefs.add_weights(unit, answers, weights)
        if promote:
            policies.promote(unit, parent.policy.id, version_id=answers, previous_id=parent.id)
        return number

    return store.write(work)
