"""The base of checks: tests of the log, made whatever estimators were asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import RewardModel
    from rlrec.app.evaluation.rows.log_rows import ArmTable, ImpressionRows, LoggedBatch
    from rlrec.ope.sums.base import Estimator
    from rlrec.records import Reward
    from rlrec.store.log.selected import LogExtent


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedLog:
    """A batch of the log that a check looks at, the arms of the store, and the extent of the log."""

    logged: LoggedBatch
    arms: ArmTable
    extent: LogExtent


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedRows(CheckedLog):
    """The impressions of a batch that a check looks at, too: mature and uncensored ones, with their rewards.

    cluster: name of the unit that was randomised; now: the time at which rows are mature; model: of rewards, which
    never saw the reader; None where no check needs one; people: how it is clear that sessions without users are people
    of their own, one of `Evaluation.people`"""

    cluster: str
    now: int
    rows: ImpressionRows
    reward: Reward
    model: RewardModel | None
    people: str | None = None


class Check(ABC):
    """A test of the log. It holds no data: sums of batches add up, and decide at the end.

    reason: of the verdicts of estimates that rest on it; needs_model: whether it needs a model of rewards; encodes:
    whether it needs the features of contexts"""

    reason: ClassVar[str]
    needs_model: ClassVar[bool] = False
    encodes: ClassVar[bool] = False

    def is_possible(self, extent: LogExtent) -> bool:
        """Whether a log of this extent can fail the check at all."""
        return True

    def concerns(self, estimator: Estimator) -> bool:
        """Whether estimates by this estimator rest on what is checked."""
        return True

    @abstractmethod
    def sums(self, checked: CheckedRows) -> Any:
        """The sums of a batch, which add up; None where it has nothing to be checked by."""

    def fails(self, sums: Any) -> bool:
        """Whether the log fails the check: of honest logs at most one in a hundred does."""
        return bool(sums.alarms)
