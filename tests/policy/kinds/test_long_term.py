"""The kind long-term: posteriors of effects, drawn from with exact probabilities."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rlrec import policy as kinds
from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief
from rlrec.policy.beliefs.means import intervals
from rlrec.policy.kinds.long_term import LongTerm

HOURS = {"by": "hour", "cells": "[9]"}
OFF = {"prior_mean": 3.0, "prior_sd": 0.05, "by": HOURS, "cells": HOURS}  # of the tests of every kind
IMPOSSIBLE = {
    "prior_mean": [1e300, float("inf"), float("nan"), "1", True],
    "prior_sd": [0.0, -1.0, 1e300, float("inf"), float("nan"), "1", True],
    "cells": ["phone", '{"a": 1}', "[9]", 3, True],
}
PRIOR = {"prior_mean": 0.02, "prior_sd": 0.1}
MEAN, SD = np.array([0.05, -0.03, 0.02]), np.array([0.04, 0.06, 0.1])  # the last one is the prior


def belief() -> Belief:
    statistics = [LongTerm.statistics_of(mean, sd, **PRIOR) for mean, sd in zip(MEAN, SD, strict=True)]
    pulls, reward = np.array(statistics).T
    nothing = np.zeros(3)
    return Belief(
        pulls=pulls, reward_sum=reward, reward_squares=nothing, alpha=nothing, beta=nothing, total=float(pulls.sum())
    )


def test_a_belief_has_the_posterior_that_was_learned() -> None:
    policy = kinds.make("long-term", PRIOR)
    assert policy.mean(belief()) == pytest.approx(MEAN)
    assert policy.deviation(belief()) == pytest.approx(SD)
    assert LongTerm.statistics_of(0.02, 0.1, **PRIOR) == (0.0, 0.0)
    lower, upper = intervals(policy, belief())
    assert upper - lower == pytest.approx(2 * 1.959964 * SD)


def test_it_draws_each_arm_as_often_as_its_effect_is_the_largest() -> None:
    """A million draws of the posteriors: a difference above .002 is a false alarm of 1 in 30,000."""
    scores = kinds.make("long-term", PRIOR).scores(belief(), arms="abc", context={})
    draws = np.random.default_rng(0).normal(MEAN, SD, (1_000_000, 3)).argmax(axis=1)
    assert scores.order(1).p_best() == pytest.approx(np.bincount(draws) / 1e6, abs=0.002)


def test_until_it_has_learned_all_arms_are_equal() -> None:
    nothing = np.zeros(4)
    empty = Belief(pulls=nothing, reward_sum=nothing, reward_squares=nothing, alpha=nothing, beta=nothing, total=0.0)
    policy = kinds.make("long-term", {})
    assert policy.scores(empty, arms="abcd", context={}).order(1).p_best() == pytest.approx([0.25] * 4)
    assert policy.exploration == 0.05


def test_a_cell_has_a_belief_of_its_own() -> None:
    """Of a cell of which less is known than of its arm, pulls are below 0."""
    values = ["phone", 3, True]
    policy = kinds.make("long-term", PRIOR | {"by": "device", "cells": json.dumps(values)})
    assert (policy.fields_read, policy.width) == (("device",), 9)
    means, sds = np.array([MEAN + 0.1, MEAN - 0.2, MEAN * 2]), np.array([SD * 2, SD, SD / 2])
    pairs = [
        [LongTerm.statistics_of(mean, sd, **PRIOR) for mean, sd in zip(*cell, strict=True)]
        for cell in zip(means, sds, strict=True)
    ]
    extra = np.array(pairs).transpose(1, 0, 2).reshape(3, 6)
    assert extra.min() < 0
    learned = replace(belief(), extra=extra)
    for cell, value in enumerate(values):
        local = policy.local_belief(learned, {"device": value})
        assert policy.mean(local) == pytest.approx(means[cell])
        assert policy.deviation(local) == pytest.approx(sds[cell])
        assert policy.index(learned, context={"device": value}) == pytest.approx(means[cell])
    assert policy.index(learned, context={"device": 3.0}) == pytest.approx(means[1])
    for other in ({}, {"device": "3"}, {"device": 1}, {"device": None}, {"device": "PHONE"}):
        assert policy.index(learned, context=other) == pytest.approx(MEAN)


def test_a_cell_is_drawn_exactly() -> None:
    policy = kinds.make("long-term", PRIOR | {"by": "device", "cells": '["phone"]'})
    extra = np.array([LongTerm.statistics_of(mean, sd, **PRIOR) for mean, sd in zip(MEAN[::-1], SD, strict=True)])
    scores = policy.scores(replace(belief(), extra=extra), arms="abc", context={"device": "phone"})
    draws = np.random.default_rng(0).normal(MEAN[::-1], SD, (1_000_000, 3)).argmax(axis=1)
    assert scores.order(1).p_best() == pytest.approx(np.bincount(draws) / 1e6, abs=0.002)


@pytest.mark.parametrize(("name", "value"), [("prior_sd", 0.0), ("prior_sd", float("nan")), ("floor", 1.5), ("by", "")])
def test_what_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        kinds.make("long-term", {name: value})
