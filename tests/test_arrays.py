from __future__ import annotations

import numpy as np
import pytest

from rlrec.arrays import distinct, look_up

END = np.iinfo(np.int64).max


@pytest.mark.parametrize("gap", [1, 3, 10**15])
def test_a_key_is_found_where_it_is_however_far_apart_values_lie(gap: int) -> None:
    values = np.sort(np.random.default_rng(1).choice(np.arange(-50, 50), 40, replace=False)) * gap
    keys = np.array([*range(-60, 60), 0]).reshape(11, 11) * gap
    index, in_values = look_up(values, np.concatenate([keys, [[-END - 1, END] + [0] * 9]]))
    expected = [[key in values.tolist() for key in row] for row in keys.tolist()]
    assert in_values[:-1].tolist() == expected
    assert not in_values[-1, :2].any()
    assert (values[index[:-1]] == keys).tolist() == expected


def test_a_key_that_is_the_only_value_is_found_and_its_opposite_is_not() -> None:
    for value in (-END - 1, END):
        assert look_up(np.array([value]), np.array([END, -END - 1]))[1].tolist() == [value == END, value != END]


@pytest.mark.parametrize("kinds", [["i8", "i8"], ["i1", "u8"], ["?", "i4"]])
@pytest.mark.parametrize("most", [1, 3, 2**50])
def test_rows_are_numbered_in_the_order_of_their_values(kinds: list[str], most: int) -> None:
    """Whether values are counted or sorted, and where some of those between do not occur."""
    rng = np.random.default_rng(2)
    columns = [rng.choice([0, 1, most], 60).astype(kind) for kind in kinds]
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    first, code = distinct(*columns)
    assert [sorted(set(rows))[number] for number in code.tolist()] == rows
    assert first.tolist() == [rows.index(row) for row in sorted(set(rows))]
