"""This module defines the budget of a policy, which limits what the decisions of the policy may cost in each period.
The module does without numpy."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from rlrec.errors import InputError
from rlrec.policy.beliefs.reward import KIND

US_BY_PERIOD = {"hour": 3_600_000_000, "day": 86_400_000_000, "week": 604_800_000_000}  # microseconds
N_SLICES = 24  # of a period, in which decisions and costs are counted
_FROM_MONDAY_US = 3 * US_BY_PERIOD["day"]  # 1970-01-01 was a Thursday
_PATTERN = rf"({KIND.pattern}):([0-9.eE+-]+)/([a-z]+)"


class Budget(NamedTuple):
    """A Budget states what the slots of a policy may cost in each period.

    event: the kind of event whose values are the costs; amount: the largest cost of a period; period: hour, day or
    week of UTC."""

    event: str
    amount: float
    period: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the budget that a text such as cost_usd:25/day (EVENT:AMOUNT/PERIOD) states. Raises InputError for any
        other text."""
        form = re.fullmatch(_PATTERN, text) if isinstance(text, str) else None
        try:
            amount = float(form[2]) if form else 0.0
        except ValueError:
            amount = 0.0
        if form is None or not 0 < amount <= 1e15 or form[3] not in US_BY_PERIOD:
            periods = ", ".join(US_BY_PERIOD)
            hint = f"write EVENT:AMOUNT/PERIOD, as cost_usd:25/day: an amount above 0, and one of {periods}"
            raise InputError(f"budget is {text!r}", hint=hint)
        return cls(form[1], amount, form[3])

    @property
    def slice_us(self) -> int:
        return US_BY_PERIOD[self.period] // N_SLICES

    @property
    def offset_us(self) -> int:
        """Return the time in microseconds from the beginning of the period that contains 1970-01-01 until
        1970-01-01."""
        return _FROM_MONDAY_US if self.period == "week" else 0

    def slices(self, time: int) -> float:
        """Return the time in slices, with a fraction, since the beginning of the period that contains 1970-01-01. A
        period has N_SLICES slices, so every period begins at a multiple of N_SLICES.

        time: in microseconds since 1970-01-01."""
        return (time + self.offset_us) / self.slice_us

    def bucket(self, time: int) -> int:
        """Return the number of the bucket of a belief in which the spend at a time is summed. There is a bucket for
        each slice, with a negative number.

        time: in microseconds since 1970-01-01."""
        return -1 - (time + self.offset_us) // self.slice_us
