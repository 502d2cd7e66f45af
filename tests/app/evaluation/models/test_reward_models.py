"""The model of returns: what it says of one page, and on average under a target."""

from __future__ import annotations

import numpy as np
import pytest

from rlrec.app.evaluation.models.reward_models import MAX_STEPS, Decisions, ReturnSums, TargetSlates

ARMS = 4


def visits(seed: int = 1, *, number: int = 200, longest: int = 5) -> tuple[Decisions, np.ndarray]:
    """Visits whose rewards depend on the arm on top, and on whether it was remembered; and those rewards."""
    generator = np.random.default_rng(seed)
    start = np.r_[0, np.cumsum(generator.integers(1, longest + 1, number))]
    n = int(start[-1])
    row = np.flatnonzero(generator.random(n) < 0.7)
    top, arm = generator.integers(0, ARMS, n), generator.integers(0, ARMS, len(row))
    separate = np.column_stack([np.ones(len(row)), *generator.random((3, len(row)))])
    decisions = Decisions(
        start=start,
        cluster=np.arange(number),
        top=top,
        x=generator.normal(size=(n, 3)),
        row=row,
        arm=arm,
        memory=separate,
    )
    return decisions, top - 0.5 * decisions.memory_of_top()[:, 0] + generator.normal(size=n) / 10


def shown(decisions: Decisions, share: np.ndarray) -> list[TargetSlates]:
    """What a target makes of all decisions, in two parts."""
    every = np.arange(len(decisions.top))
    return [
        TargetSlates(
            rows=rows, log_slate=np.zeros(len(rows)), arms=np.arange(ARMS), share=share[rows], case=np.arange(len(rows))
        )
        for rows in (every[::2], every[1::2])
    ]


def test_a_target_that_shows_what_was_shown_is_worth_what_that_is_worth() -> None:
    decisions, reward = visits()
    values = ReturnSums.from_decisions(decisions, reward, gamma=0.9, arms=ARMS).finish()
    certain = np.eye(ARMS)[decisions.top]
    assert values.predict_mean(decisions, shown(decisions, certain)) == pytest.approx(values.predict(decisions))


def test_the_mean_is_that_over_all_arms_that_could_be_shown() -> None:
    decisions, reward = visits()
    values = ReturnSums.from_decisions(decisions, reward, gamma=0.9, arms=ARMS).finish()
    share = np.random.default_rng(2).dirichlet(np.ones(ARMS), len(decisions.top))
    each = [values.predict_mean(decisions, shown(decisions, np.eye(ARMS)[[arm] * len(share)])) for arm in range(ARMS)]
    assert values.predict_mean(decisions, shown(decisions, share)) == pytest.approx(
        (share * np.array(each).T).sum(axis=1)
    )


def test_it_finds_what_an_arm_earns_and_what_memory_takes_off() -> None:
    decisions, reward = visits(number=2_000, longest=1)
    values = ReturnSums.from_decisions(decisions, reward, gamma=1.0, arms=ARMS).finish()
    assert np.abs(values.predict(decisions) - reward).mean() < 0.12


@pytest.mark.slow
def test_fits_add_up_and_late_steps_share_one() -> None:
    (item, gained), (other, more) = visits(1), visits(2, longest=2 * MAX_STEPS)
    both = ReturnSums.from_decisions(item, gained, gamma=0.9, arms=ARMS) + ReturnSums.from_decisions(
        other, more, gamma=0.9, arms=ARMS
    )
    again = ReturnSums.from_decisions(other, more, gamma=0.9, arms=ARMS) + ReturnSums.from_decisions(
        item, gained, gamma=0.9, arms=ARMS
    )
    assert both.finish().predict(other) == pytest.approx(again.finish().predict(other))
    assert other.steps.max() == MAX_STEPS
