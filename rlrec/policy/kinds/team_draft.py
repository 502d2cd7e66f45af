"""The policy of an interleaved experiment: two frozen versions take turns to fill one slate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlrec.policy.beliefs.base import Belief, Policy

if TYPE_CHECKING:
    from rlrec.policy.scores.scores import Scores


@dataclass(frozen=True, kw_only=True)
class TeamDraft(Policy):
    """Two frozen versions whose rankings are drafted into one slate: see `interleaving`.

    first, second: their ids. fields: of the context on which either depends."""

    first: int = 0
    second: int = 0
    fields: tuple[str, ...] = ()
    floor: float = 0.0

    purpose: ClassVar[str] = "made by `experiment create --interleave`"
    online: ClassVar[bool] = False
    drafted: ClassVar[bool] = True
    explores_by: ClassVar[tuple[str, ...]] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.fields)

    def scores(self, belief: Belief, *, arms: Iterable[str], context: Mapping[str, Any]) -> Scores:
        raise TypeError("two rankers have no scores in common")
