"""The test of carry-over: rewards that depend on the course of a visit raise it, and nothing else does."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest

from rlrec.arrays import piece_rows
from rlrec.ope.checks.dependence import CellSums, carry_over_p_value, carry_over_sums, is_rejected

ARMS = 6


def visits(seed: int, *, users: int = 400, tired: float = 0.0, taste: float = 0.0, portions: int = 1) -> CellSums:
    """Sums over one visit of each user, with arms drawn at random. tired: how fast clicks fade, step by step; taste:
    how much users differ; those who click more stay longer."""
    rng = np.random.default_rng(seed)
    eager = np.exp(taste * rng.normal(size=users))
    length = np.minimum(rng.poisson(4 * eager) + 1, 30)
    user = np.repeat(np.arange(users), length)
    step = piece_rows(np.zeros(users, np.int64), length)
    arm = rng.integers(0, ARMS, len(user))
    before = (user[:, None] == user) & (step[:, None] > step) & (arm[:, None] == arm)
    rate = np.linspace(0.05, 0.25, ARMS)[arm] * eager[user] * np.exp(-tired * step)
    reward = (rng.random(len(user)) < rate).astype(np.float64)
    columns = {"cell": arm, "step": step, "repeats": before.sum(axis=1), "length": length[user], "cluster": user}
    pieces = (user % portions == portion for portion in range(portions))
    return reduce(
        add,
        (
            carry_over_sums(reward[rows], cells=ARMS, **{name: column[rows] for name, column in columns.items()})
            for rows in pieces
        ),
    )


def test_rewards_that_fade_along_a_visit_are_noticed() -> None:
    assert is_rejected(carry_over_p_value(visits(1, tired=0.4)))


@pytest.mark.slow
def test_a_log_without_carry_over_raises_no_alarm() -> None:
    """100 logs of equal readers and 100 of readers who differ, and who stay the longer the more they click: at a level
    of 1 in 1,000, more than two alarms in 200 come in 1 of 800 runs."""
    alarmed = [
        is_rejected(carry_over_p_value(visits(seed, users=200, taste=taste)))
        for seed in range(100)
        for taste in (0.0, 0.6)
    ]
    assert sum(alarmed) <= 2


def test_the_smallest_p_value_alarms() -> None:
    assert [is_rejected(p) for p in (0.0, 1e-9, 0.01, None)] == [True, True, False, False]


def test_sums_of_portions_add_up() -> None:
    complete, portions = visits(2, users=200, tired=0.2), visits(2, users=200, tired=0.2, portions=3)
    assert carry_over_p_value(portions) == pytest.approx(carry_over_p_value(complete), rel=1e-9)


def test_a_log_of_first_steps_says_nothing() -> None:
    n = np.arange(100)
    sums = carry_over_sums(n % 2 * 1.0, cell=n % 3, cells=3, step=n * 0, repeats=n * 0, length=n * 0 + 1, cluster=n)
    assert carry_over_p_value(sums) is None
    assert not is_rejected(carry_over_p_value(sums))


def test_few_clusters_say_nothing() -> None:
    step = np.tile(np.arange(10), 5)
    sums = carry_over_sums(
        1.0 * (step > 4), cell=step * 0, cells=1, step=step, repeats=step, length=step * 0 + 10,
        cluster=np.repeat(np.arange(5), 10),
    )  # fmt: skip
    assert carry_over_p_value(sums) is None
