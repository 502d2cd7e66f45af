"""The log as visits: checked when built, cut by visits, and its columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.ope.sums.visits import MAX_WEIGHT, Course, VisitBatch
from tests.ope.visiting import held, ragged

# Two visits: ratios 2, 1/2, 3 and 1/4; rewards 1, 0, 2 and 4.
HAND = VisitBatch(
    start=np.array([0, 3, 4]),
    reward=np.array([1.0, 0.0, 2.0, 4.0]),
    log_ratio=np.log([2.0, 0.5, 3.0, 0.25]),
    cluster=np.array([7, 8]),
    predicted=np.array([1.0, 1.0, 1.0, 2.0]),
    expected=np.array([3.0, 2.0, 1.0, 2.0]),
    largest=np.log([2.0, 2.0, 4.0, 8.0]),
)


def test_columns_by_hand() -> None:
    course = Course(HAND, 0.5)
    assert course.step.tolist() == [0, 1, 2, 0]
    assert course.ratio == pytest.approx([2, 1, 3, 0.25])
    assert course.weight == pytest.approx([3, 0.25])
    assert course.weighted_return == pytest.approx([3 * 1.5, 0.25 * 4])
    assert course.stepwise_return == pytest.approx([2 + 3 * 2 / 4, 1])
    assert course.mean_weight == pytest.approx([(2 + 0.5 + 0.75) / 1.75, 0.25])
    assert course.correction == pytest.approx([2 * (1 + 1 - 1), 0.5 * (0 + 0.5 - 1), 0.75 * (2 - 1), 0.25 * (4 - 2)])
    assert course.robust_return == pytest.approx([3 + 2 - 0.25 + 0.75, 2.5])
    assert course.bound == pytest.approx([16, 8])
    assert course.max_weight == pytest.approx([3, 0.25])


def test_ratios_are_those_of_a_loop() -> None:
    batch = ragged(0)
    table = held(batch)
    ratio = Course(batch, 1.0).ratio
    for i, low in enumerate(batch.start[:-1]):
        length = batch.length[i]
        np.testing.assert_allclose(ratio[low : low + length], table[i, :length], rtol=1e-13)


def test_a_product_of_ratios_never_overflows() -> None:
    heavy = replace(HAND, log_ratio=np.full(4, 700.0), largest=np.full(4, 700.0))
    course = Course(heavy, 1.0)
    assert course.ratio == pytest.approx(np.full(4, MAX_WEIGHT))
    assert np.isinf(course.bound).all()
    dead = replace(HAND, log_ratio=np.array([-np.inf, 700.0, 700.0, 0.0]))
    assert Course(dead, 1.0).ratio.tolist() == [0, 0, 0, 1]


def test_a_bound_that_is_unknown_at_some_step_is_unknown() -> None:
    for hole in (np.nan, np.inf):
        holed = replace(HAND, largest=np.array([0.0, hole, 0.0, 1.0]))
        assert Course(holed, 1.0).bound == pytest.approx([np.inf, np.e])


def test_where_selects_visits_in_the_order_requested() -> None:
    cut = HAND.take(np.array([1, 0]))
    assert cut.start.tolist() == [0, 1, 4]
    assert (cut.reward.tolist(), cut.cluster.tolist()) == ([4, 1, 0, 2], [8, 7])
    assert len(HAND.take(np.zeros(2, dtype=bool))) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start": [0, 0, 4]}, "visit 0 of the batch has no decision"),
        ({"start": [1, 3, 4]}, "begins with 0"),
        ({"start": [0, 3, 5]}, "shape"),
        ({"cluster": [1, 2, 3]}, "cluster has shape"),
        ({"reward": [1.0, np.nan, 0.0, 0.0]}, "reward of row 1"),
        ({"log_ratio": [0.0, 0.0, np.nan, 0.0]}, "log_ratio of row 2"),
        ({"log_ratio": [0.0, 0.0, 0.0, np.inf]}, "log_ratio of row 3"),
        ({"expected": None}, "come together"),
        ({"predicted": [0.0, 0.0, 0.0, np.inf]}, "predicted of row 3"),
        ({"largest": [0.0, -np.inf, 0.0, 0.0]}, "largest of row 1"),
        ({"unsupported": [0.0, -1.0, 0.0, 0.0]}, "unsupported of row 1"),
    ],
)
def test_a_wrong_batch_is_refused_by_row(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(HAND, **changed)
