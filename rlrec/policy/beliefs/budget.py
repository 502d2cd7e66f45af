"""This module defines the budget of a policy, which limits what its decisions may cost in each period. It does without
numpy."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from rlrec.errors import InputError
from rlrec.policy.beliefs.reward import KIND

PERIODS = {"hour": 3_600_000_000, "day": 86_400_000_000, "week": 604_800_000_000}  # microseconds
SLICES = 24  # of a period, in which decisions and costs are counted
_FROM_MONDAY_US = 3 * PERIODS["day"]  # 1970-01-01 was a Thursday
_FORM = rf"({KIND.pattern}):([0-9.eE+-]+)/([a-z]+)"


class Budget(NamedTuple):
    """A Budget states the amount that the slots of a policy may cost in each period (hour, day or week of UTC) by a
    kind of event."""

    event: str
    amount: float
    period: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a budget parameter, EVENT:AMOUNT/PERIOD. Raises InputError for any other text."""
        form = re.fullmatch(_FORM, text) if isinstance(text, str) else None
        try:
            amount = float(form[2]) if form else 0.0
        except ValueError:
            amount = 0.0
        if form is None or not 0 < amount <= 1e15 or form[3] not in PERIODS:
            periods = ", ".join(PERIODS)
            hint = f"write EVENT:AMOUNT/PERIOD, as cost_usd:25/day: an amount above 0, and one of {periods}"
            raise InputError(f"budget is {text!r}", hint=hint)
        return cls(form[1], amount, form[3])

    @property
    def slice_us(self) -> int:
        return PERIODS[self.period] // SLICES

    @property
    def offset_us(self) -> int:
        """Return the microseconds from the beginning of the period that contains 1970-01-01 until that date."""
        return _FROM_MONDAY_US if self.period == "week" else 0

    def slices(self, time: int) -> float:
        """Return the number of slices, with a fraction, until a time; periods begin at multiples of SLICES."""
        return (time + self.offset_us) / self.slice_us

    def bucket(self, time: int) -> int:
        """Return the bucket of a belief that holds the spend at a time; buckets of spend are negative."""
        return -1 - (time + self.offset_us) // self.slice_us
