"""This module holds the policy for the long run. The policy shows each arm with the probability that showing this arm
has the largest value, now and later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, FlooredPolicy, bounded_parameter
from rlrec.policy.beliefs.statistics import SlotColumns, count_slots

if TYPE_CHECKING:
    from rlrec.arrays import Array
    from rlrec.policy.scores.scores import Scores

MAX_MEAN, MIN_SD = 1e15, 1e-12


class LongTerm(FlooredPolicy):
    """Show each arm with the probability that showing it is worth most, now and later, by normal posteriors of the
    effects of arms.

    The effect of an arm is what a full look at the arm adds to the reward of the page, to the later part of the
    visit, and by bringing the person back. `policy rebuild` learns the effects from the log of any policy. A belief
    counts an effect of mean b and standard error s as 1 / s^2 pulls that earned b / s^2. An arm that the belief does
    not know has the prior of `prior_mean` and `prior_sd`, which describe the arms of the policy's log. Until the
    policy has learned, all arms are equal.

    by: a field of the context. Each value of the field in the log (listed in `cells`) has separate effects, which are
    shrunk towards the effects in all contexts together. A context with no value, or another one, uses the effects in
    all contexts together."""

    floor: float = bounded_parameter(0.05, 0, 1)
    by: str | None = None
    cells: str = ""
    prior_mean: float = bounded_parameter(0.0, -MAX_MEAN, MAX_MEAN)
    prior_sd: float = bounded_parameter(1.0, MIN_SD, MAX_MEAN)

    purpose: ClassVar[str] = "ranks arms by what showing them is worth in the long run; learns from any policy's log"
    why_no_prior: ClassVar[str] = "the arms of its log say how arms differ"
    learns_online: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "":
            raise InputError("by is empty", hint="it names a field of the context")
        if self._columns and self.by is None:
            raise InputError(f"cells is {self.cells!r}, and by is not given", hint="by names the field of these values")

    @cached_property
    def _columns(self) -> Mapping[str, int]:
        """Return the column of each cell's pulls in `Belief.extra`, by the text of the cell's value. The rewards of the
        cell are in the next column.

        A cell is a value of the context field `by`."""
        hint = 'write a list in JSON: ["phone", "desktop"]; `policy rebuild` writes it itself'
        try:
            values = json.loads(self.cells) if self.cells != "" else []
        except (TypeError, ValueError):
            raise InputError(f"cells is {self.cells!r}", hint=hint) from None
        if not isinstance(values, list):
            raise InputError(f"cells is {self.cells!r}", hint=hint)
        return {text_of(value): 2 * row for row, value in enumerate(values)}

    @property
    def fields_read(self) -> tuple[str, ...]:
        return () if self.by is None else (self.by,)

    @property
    def width(self) -> int:
        return super().width + 2 * len(self._columns)

    def statistics(self, slots: SlotColumns) -> Array:
        import numpy as np

        return count_slots(slots, np.zeros((len(slots), 2 * len(self._columns))))  # a single slot shows no effect

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.gaussian import Gaussian

        local_belief = self.local_belief(belief, context)
        return Gaussian(self.mean(local_belief), self.deviation(local_belief))

    def index(self, belief: Belief, *, context: Mapping[str, Any] | None = None) -> Array:
        return self.mean(self.local_belief(belief, context or {}))

    def local_belief(self, belief: Belief, context: Mapping[str, Any]) -> Belief:
        if self.by is None or not self._columns or belief.extra is None:
            return belief
        from rlrec.policy.contexts.features import value_of

        column = self._columns.get(text_of(value_of(context, self.by)))
        if column is None:
            return belief
        return replace(belief, pulls=belief.extra[..., column], reward_sum=belief.extra[..., column + 1])

    def mean(self, belief: Belief, *, default: float = 0.0) -> Array:
        prior_pulls = self.prior_sd**-2
        mean: Array = (belief.reward_sum + prior_pulls * self.prior_mean) / (belief.pulls + prior_pulls)
        return mean

    def deviation(self, belief: Belief) -> Array:
        deviation: Array = (belief.pulls + self.prior_sd**-2) ** -0.5
        return deviation

    @staticmethod
    def statistics_of(mean: float, sd: float, *, prior_mean: float, prior_sd: float) -> tuple[float, float]:
        """Return the pulls and the rewards of a belief whose posterior has this mean and standard deviation. Both are 0
        if the posterior is the prior.

        The numbers of a cell (a value of the field `by`) may be negative, since less may be known of the cell than
        of the arm."""
        pulls, prior_pulls = sd**-2, prior_sd**-2
        if abs(pulls - prior_pulls) <= prior_pulls * 1e-9 and mean == prior_mean:
            return 0.0, 0.0
        return pulls - prior_pulls, pulls * mean - prior_pulls * prior_mean


def text_of(value: Any) -> str:
    """Return a value of the context as JSON. A float without a fraction is written like an integer."""
    is_integral = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_integral else value, sort_keys=True, ensure_ascii=False)
