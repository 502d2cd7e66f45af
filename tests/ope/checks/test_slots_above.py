"""The test of independent slots: readers who stop at a click raise it, readers who differ in eagerness do not."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.ope.checks.dependence import CellSums, is_rejected, slots_above_p_value, slots_above_sums

ARMS, SIZE = 8, 4
RATES = np.linspace(0.05, 0.5, ARMS)


def pages(seed: int, *, users: int = 300, stops: bool = False, eager: float = 1.0, fitted: bool = False) -> CellSums:
    """Sums over 3 pages of each user. stops: readers leave the page after a click, else they look at position k with
    probability 1 / k; eager: how much they differ; fitted: eager users have popular arms on top."""
    rng = np.random.default_rng(seed)
    taste = np.exp(eager * rng.normal(size=users))
    user = np.repeat(np.arange(users), 3)
    liking = 4 * np.log(taste)[user, None] * RATES if fitted else np.zeros((len(user), 1))
    arms = np.argsort(-(liking + rng.gumbel(size=(len(user), ARMS))), axis=1)[:, :SIZE]
    clicks = rng.random(arms.shape) < np.minimum(RATES[arms] * taste[user, None], 0.95)
    if stops:
        clicks &= np.cumsum(clicks, axis=1) == 1
    else:
        clicks &= rng.random(arms.shape) < 1 / np.arange(1, SIZE + 1)
    position = np.tile(np.arange(1, SIZE + 1), len(user))
    return slots_above_sums(
        clicks.ravel().astype(np.float64), attraction=RATES[arms].ravel(), cell=arms.ravel() * SIZE + position - 1,
        cells=ARMS * SIZE, decision=np.repeat(np.arange(len(user)), SIZE), position=position,
        cluster=np.repeat(user, SIZE),
    )  # fmt: skip


@pytest.mark.parametrize("users", [100, 300])
def test_readers_who_stop_at_a_click_are_noticed(users: int) -> None:
    """300 pages do not yet tell by the arms above alone."""
    assert is_rejected(slots_above_p_value(pages(1, users=users, stops=True, eager=0.5)))


def test_clicks_that_are_too_rare_to_matter_raise_no_alarm() -> None:
    """A slot in 200 has a click, after which the reader leaves: 1 % of the clicks below are lost."""
    rng = np.random.default_rng(3)
    clicks = rng.random((200_000, SIZE)) < 0.005
    clicks &= np.cumsum(clicks, axis=1) <= 1
    n, position = clicks.size, np.tile(np.arange(1, SIZE + 1), len(clicks))
    page = np.repeat(np.arange(len(clicks)), SIZE)
    sums = slots_above_sums(
        clicks.ravel().astype(np.float64), attraction=np.zeros(n), cell=position - 1, cells=SIZE, decision=page,
        position=position, cluster=page,
    )  # fmt: skip
    assert slots_above_p_value(sums) == 1.0


@pytest.mark.slow
def test_readers_who_differ_raise_no_alarm() -> None:
    """200 logs of random pages and 200 of pages that are fitted to the reader. At a level of 1 in 1,000, more than
    three alarms in 400 come in 1 of 1,300 runs."""
    alarmed = [
        is_rejected(slots_above_p_value(pages(seed, fitted=fitted))) for seed in range(200) for fitted in (False, True)
    ]
    assert sum(alarmed) <= 3


def test_slots_of_other_slates_and_below_a_missing_one_do_not_count() -> None:
    n = 400
    sums = slots_above_sums(
        np.arange(n) % 2 * 1.0, attraction=np.arange(n) % 7 * 1.0, cell=np.zeros(n, np.int64), cells=1,
        decision=np.arange(n), position=np.arange(n) % 3 + 1, cluster=np.arange(n),
    )  # fmt: skip
    assert slots_above_p_value(sums) is None
