"""This module holds the policies that do not learn.

Some draw uniformly, by given probabilities, or by the scores of a request. The module also holds the policy of an
imported log, and the policy that drafts slates from two rankers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.errors import InputError
from rlrec.policy.beliefs.base import Belief, FlooredPolicy, Policy, bounded_parameter, check_number, sum_tolerance
from rlrec.policy.contexts.statements import ARMS, SCORE, SCORES, by_arm

if TYPE_CHECKING:
    from rlrec.arrays import Array
    from rlrec.policy.scores.scores import Scores

COLDEST = 1e-9  # smallest positive temperature
LARGE_TEMPERATURE = 1e6  # temperatures: beside larger scores, such as times in seconds, the noise would lose its digits
ANY_VALUE = "*"  # the value whose probabilities apply where no row has the context's value


class _UnlearnedPolicy(Policy, init=False, eq=False, repr=False):
    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        import numpy as np

        from rlrec.policy.scores.families.point import Point

        return Point(np.zeros(belief.pulls.shape[-1]))


class Uniform(_UnlearnedPolicy, FlooredPolicy):
    """Show every eligible arm with the same probability, whatever the floor."""

    purpose: ClassVar[str] = "pure exploration: its log can evaluate every other policy"


class LoggedPolicy(_UnlearnedPolicy):
    """Stand for the policy of an imported log, of which only the propensities are recorded."""

    floor = 0.0
    purpose: ClassVar[str] = "owns an imported log, and cannot serve"
    can_serve: ClassVar[bool] = False
    learns_online: ClassVar[bool] = False


class Fixed(_UnlearnedPolicy, FlooredPolicy):
    """Show arms with given probabilities, per arm or per value of one field of the context. At later positions the
    probabilities of the arms left are rescaled to add up to 1.

    probabilities: arm -> probability, or with `by` value -> arm -> probability. A value that is not text is written
    as in JSON (9, true), and "*" stands for the values not listed and for a context without the field. Arms that are
    not listed are shown only when no listed arm is left."""

    probabilities: Mapping[str, Any] = field(default_factory=dict)
    by: str | None = None

    purpose: ClassVar[str] = "probabilities from a file: a known policy, or a business rule by segment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.probabilities:
            raise InputError("kind fixed needs probabilities", hint="--param probabilities=FILE, a CSV arm,probability")
        if self.by == "":
            raise InputError("by is empty", hint="it names a field of the context")
        tables = self.probabilities.items() if self.by else [("", self.probabilities)]
        for value, table in tables:
            condition_text = f" for value {value!r}" if self.by else ""
            for arm, probability in table.items():
                check_number(f"the probability of {arm!r}{condition_text}", probability, 0, 1)
            total = sum(table.values())
            if abs(total - 1) > sum_tolerance(len(table)):
                raise InputError(
                    f"the probabilities{condition_text} add up to {total:.9g}", hint="they must add up to 1"
                )

    @property
    def fields_read(self) -> tuple[str, ...]:
        return () if self.by is None else (self.by,)

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        import numpy as np

        from rlrec.policy.scores.families.gumbel import Gumbel

        table = self._table(context)
        probabilities = np.array([table.get(arm, 0.0) for arm in arms], np.float64)
        with np.errstate(divide="ignore"):
            return Gumbel(np.log(probabilities))

    def _table(self, context: Mapping[str, Any]) -> Mapping[str, float]:
        if self.by is None:
            return self.probabilities
        from rlrec.policy.contexts.features import text_of, value_of

        value = value_of(context, self.by)
        name = ANY_VALUE if value is None else text_of(value)
        table: Mapping[str, float] | None = self.probabilities.get(name, self.probabilities.get(ANY_VALUE))
        if table is None:
            subject = f"a context without {self.by!r}" if value is None else f"{self.by}={name!r}"
            hint = f"add rows for it, or for {ANY_VALUE!r}"
            raise InputError(f"no probabilities for {subject}", hint=hint, field="context")
        return table


class Scored(_UnlearnedPolicy, FlooredPolicy):
    """Rank the arms by the scores that the request brings, which makes a ranker of your own explore.

    With temperature 0, an arm is shown at random with probability epsilon, else the arm with the highest score left;
    arms with equal scores are equally likely. With a temperature above 0, every position shows the arms that are
    left in proportion to exp(score / temperature) (Plackett-Luce); then epsilon is 0 unless it is typed. score:
    which of the `scores` of an arm is used ("" for its `score`)."""

    temperature: float = bounded_parameter(0.0, 0, 1e9)
    epsilon: float = bounded_parameter(0.1, 0, 1)
    score: str = ""

    purpose: ClassVar[str] = "your own ranker: each request brings the scores of its arms"
    uniform_rate_parameters: ClassVar[tuple[str, ...]] = ("epsilon",)
    exploration_parameters: ClassVar[tuple[str, ...]] = ("floor", "epsilon", "temperature")
    takes_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.temperature < COLDEST:
            raise InputError(f"temperature is {self.temperature:g}", hint=f"it is 0, or from {COLDEST:g} to 1e9")

    @property
    def score_name(self) -> str:
        """Return the name under which requests state the scores that this policy uses."""
        return f"{SCORES}.{self.score}" if self.score else SCORE

    @property
    def fields_read(self) -> tuple[str, ...]:
        return (f"{ARMS}.{self.score_name}",)

    @classmethod
    def implied_defaults(cls, typed_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"epsilon": 0.0} if typed_parameters.get("temperature") else {}

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        from rlrec.policy.scores.families.gumbel import Gumbel
        from rlrec.policy.scores.families.point import Point

        values = self.request_scores(arms, context)
        if not self.temperature:
            return Point(values)
        if abs(values).max(initial=0.0) > LARGE_TEMPERATURE * self.temperature:
            values = values - values.max()
        return Gumbel(values / self.temperature)

    def request_scores(self, arms: Iterable[str], context: Mapping[str, Any]) -> Array:
        """Return the score that the request states for each arm, (m,). Raises InputError for an arm without a score."""
        import numpy as np

        score_by_key, keys = by_arm(context, self.score_name) or {}, list(arms)
        if unscored_keys := [key for key in keys if key not in score_by_key]:
            example = json.dumps({"arm": "KEY", **({SCORES: {self.score: 1.7}} if self.score else {SCORE: 1.7})})
            hint = (
                f"kind scored needs one for each arm of a request: {example} in `--candidates`, or in `arms` of a line"
            )
            name = f" {self.score!r}" if self.score else ""
            raise InputError(f"arm {unscored_keys[0]!r} has no score{name}", hint=hint, field="arms")
        return np.array([score_by_key[key] for key in keys], np.float64)


class TeamDraft(Policy):
    """Draft the rankings of two frozen versions into one slate, as `interleaving` explains.

    first, second: the ids of the two versions; fields: the context fields on which either version depends."""

    first: int = 0
    second: int = 0
    fields: tuple[str, ...] = ()
    floor: float = 0.0

    purpose: ClassVar[str] = "made by `experiment create --interleave`"
    learns_online: ClassVar[bool] = False
    is_draft: ClassVar[bool] = True
    exploration_parameters: ClassVar[tuple[str, ...]] = ()

    @property
    def fields_read(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        raise TypeError("two rankers have no scores in common")
