"""Batches of the log: refused columns, and derived ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlrec.errors import InputError
from rlrec.ope.sums.base import LogBatch, hash_bits


def built(**changed: Any) -> LogBatch:
    columns: dict[str, Any] = {"reward": [1, 0], "propensity": [0.5, 0.25], "target": [0.1, 1], "cluster": [7, 7]}
    return LogBatch(**{**columns, **changed})


def test_weight_is_target_over_propensity() -> None:
    assert built().weight.tolist() == [0.2, 4.0]


def test_rows_without_propensity_or_target_weigh_nothing() -> None:
    batch = built(propensity=[np.nan, 0.25], target=[0.1, np.nan])
    assert batch.weight.tolist() == [0.0, 0.0]
    assert not batch.is_usable.any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward", [np.nan, 0]),
        ("propensity", [0, 0.5]),
        ("propensity", [1.1, 0.5]),
        ("target", [-0.1, 0.5]),
        ("target", [0.5, 1.1]),
        ("predicted", [0.5, np.inf]),
        ("unsupported", [-0.5, 0.0]),
        ("cluster", [1, 2, 3]),
    ],
)
def test_a_bad_column_is_named(field: str, value: list[float]) -> None:
    with pytest.raises(InputError, match=field):
        built(**{field: value})


def test_a_group_keeps_its_rows_in_every_column() -> None:
    group = built(largest=[3, 4]).take(np.array([False, True]))
    assert group.weight.tolist() == [4.0]
    assert group.largest is not None
    assert group.largest.tolist() == [4.0]
    assert group.default is None


def test_hash_does_not_change_between_releases() -> None:
    # The first outputs of SplitMix64 seeded with 0, as published with it (prng.di.unimi.it).
    assert int(hash_bits(np.array([0]), salt=0)[0]) == 0xE220A8397B1DCDAF
    assert int(hash_bits(np.array([0]), salt=1)[0]) == 0x6E789E6AA1B965F4
