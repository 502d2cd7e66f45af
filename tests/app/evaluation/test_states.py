"""What a visit has been through changes its rewards, or it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlrec.app.evaluation.checks import CarryOver
from tests.app.evaluation import worlds


def test_rewards_that_fall_with_the_step_fail_and_others_do_not() -> None:
    world, rng = worlds.honest("visits", 1, decisions=3_000), np.random.default_rng(1)
    chance = 0.5 * 0.6 ** np.minimum(world.step, 4)
    tired = replace(world, reward=(rng.random(world.arm.shape) < chance[:, None]).astype(np.float64))
    assert [worlds.fails(CarryOver(), log, batches=3) for log in (world, tired)] == [False, True]
