"""The test of carry-over between visits: what a visit shows raises it, and users who differ do not."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest

from rlrec.arrays import Array
from rlrec.ope.checks.dependence import VisitCarryOverSums, VisitDraws, is_rejected, visit_carry_over_sums

ARMS = 10
RATES = np.linspace(0.05, 0.5, ARMS)


def visits(
    seed: int,
    *,
    users: int = 400,
    spoils: float = 0.0,
    eager: float = 1.0,
    fitted: bool = False,
    portions: int = 1,
    effect: Array = RATES,
) -> VisitCarryOverSums:
    """Sums over the visits of users, 4 on average. eager: how much users differ, in rewards, in the length of visits,
    and in how often they come; spoils: how much a visit of popular arms takes from the next one, or one of arms with
    another effect; fitted: eager users are shown popular arms more often. Every second arm is bought more often."""
    rng = np.random.default_rng(seed)
    taste = np.exp(eager * rng.normal(size=users))
    number = rng.geometric(1 / (1 + 3 * np.clip(taste, 0.1, 4)))
    user, n = np.repeat(np.arange(users), number), number.sum()
    length = np.minimum(rng.poisson(3 * taste[user]) + 1, 20)
    following = np.where(np.arange(n) + 1 < n, np.arange(n) + 1, -1)
    following[np.cumsum(number) - 1] = -1
    score = (0.5 * np.log(taste)[:, None] if fitted else 0.0) * np.linspace(-1, 1, ARMS) + np.zeros((users, 1))
    p = 0.5 * np.exp(score) / np.exp(score).sum(axis=1, keepdims=True) + 0.5 / ARMS
    visit = np.repeat(np.arange(n), length)
    arm = (rng.random(len(visit))[:, None] > np.cumsum(p, axis=1)[user[visit]]).sum(axis=1).clip(0, ARMS - 1)
    shown = np.bincount(visit, weights=(effect - effect.mean())[arm]) / length
    before = np.r_[0.0, np.where(following[:-1] >= 0, shown[:-1], 0.0)]
    rate = RATES[arm] * np.minimum(taste[user[visit]], 1.5) * np.exp(-spoils * before[visit])
    reward = (rng.random(len(visit)) < rate).astype(np.float64)
    bought = reward * (rng.random(len(visit)) < 0.2 + 0.6 * (arm % 2))
    returns = np.bincount(visit, weights=reward, minlength=n)
    least = p.min(axis=1)[user[visit]]
    person = rng.integers(0, 2**60, users)[user]

    def sums(portion: int) -> VisitCarryOverSums:
        rows, chosen = np.flatnonzero(user[visit] % portions == portion), user % portions == portion
        draws = VisitDraws(
            visit=visit[rows], arm=arm[rows], weight=(least / p[user[visit], arm])[rows], draw_visit=visit[rows],
            eligible=0 * rows, m_total=least[rows], members=np.ones((1, ARMS)),
        )  # fmt: skip
        return visit_carry_over_sums(
            draws, person=person, is_counted=chosen, next_visit=np.where(chosen, following, -1), returns=returns,
            visit=visit[rows], arm=arm[rows], reward=reward[rows], events={"click": reward[rows], "buy": bought[rows]},
        )  # fmt: skip

    return reduce(add, map(sums, range(portions)))


def test_visits_that_spoil_the_next_one_are_noticed() -> None:
    assert is_rejected(visits(1, users=2_000, spoils=4.0, eager=0.3).p_value())


def test_arms_that_are_clicked_and_not_bought_are_noticed_by_their_purchases() -> None:
    """Rewards of arms say nothing of the effect on the next visit; purchases do."""
    odd, apart = np.arange(ARMS) % 2, RATES - RATES.mean()
    effect = odd - odd.mean() - apart * (apart @ odd) / (apart @ apart)
    sums = visits(1, users=2_000, spoils=1.0, eager=0.3, effect=effect)
    assert is_rejected(sums.p_value())
    assert not is_rejected(replace(sums, events={}).p_value())


@pytest.mark.simulation
def test_users_who_differ_raise_no_alarm() -> None:
    """200 logs of a logger that draws at random, and 200 of one that shows popular arms to eager users. At a level of
    1 in 1,000, more than three alarms in 400 come in 1 of 1,300 runs."""
    alarmed = [is_rejected(visits(seed, fitted=fitted).p_value()) for seed in range(200) for fitted in (False, True)]
    assert sum(alarmed) <= 3


def test_sums_of_portions_add_up() -> None:
    together, apart = visits(2, spoils=2.0), visits(2, spoils=2.0, portions=3)
    assert apart.p_value() == pytest.approx(together.p_value(), rel=1e-6)


def test_users_who_came_once_say_nothing() -> None:
    n = np.arange(300)
    draws = VisitDraws(
        visit=n,
        arm=n % 2,
        weight=np.ones(300),
        draw_visit=n,
        eligible=0 * n,
        m_total=np.full(300, 0.5),
        members=np.ones((1, 2)),
    )
    sums = visit_carry_over_sums(
        draws,
        person=n,
        is_counted=n >= 0,
        next_visit=0 * n - 1,
        returns=np.ones(300),
        visit=n,
        arm=n % 2,
        reward=n % 2 * 1.0,
        events={},
    )
    assert sums.p_value() is None
    assert not is_rejected(sums.p_value())
