"""More, less or equal: one rule for every sentence about a difference."""

import pytest

from rlrec.directions import difference_direction, direction, rounding


@pytest.mark.parametrize(
    ("lower", "upper", "sign"),
    [
        (0.1, 0.2, "more"), (0.1, None, "more"), (-0.2, -0.1, "less"), (None, -0.1, "less"), (-0.1, 0.1, "unsure"),
        (0.0, 0.0, "equal"), (1e-15, 2e-15, "equal"), (-2e-15, -1e-15, "equal"), (1e-15, 0.1, "unsure"),
        (None, 0.0, "unsure"), (0.0, None, "unsure"), (None, None, "unsure"),
    ],
)  # fmt: skip
def test_what_is_within_rounding_is_equal(lower: float | None, upper: float | None, sign: str) -> None:
    assert direction(lower, upper, tolerance=rounding(0.3, None)) == sign


def test_rounding_is_that_of_the_figures_compared() -> None:
    row = {"value": 1e-4, "relative": 1e-10, "lower": 5e-5, "upper": 2e-4}  # of a mean of a million
    assert difference_direction(row) == "equal"
    assert difference_direction({**row, "relative": 0.1}) == "more"
