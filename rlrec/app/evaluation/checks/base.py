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
class CheckedRows:
    """The impressions of a batch that a check looks at: mature and uncensored ones, with their rewards.

    logged: the batch; arms: of the store; extent: of the log; cluster: name of the unit that was randomised; now: the
    time at which rows are mature; model: of rewards, which never saw the reader; None where no check needs one;
    people: how it is clear that sessions without users are people of their own, one of `Evaluation.people`"""

    logged: LoggedBatch
    arms: ArmTable
    extent: LogExtent
    cluster: str
    now: int
    rows: ImpressionRows
    reward: Reward
    model: RewardModel | None
    people: str | None = None


class Check(ABC):
    """A test of the log. It holds no data: sums of batches add up, and decide at the end.

    reason: of the verdicts of estimates that rest on it; columns: of the log that it reads beside those that estimates
    of impressions read; needs_model: whether it needs a model of rewards; encodes: whether it needs the features of
    contexts"""

    reason: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ()
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

    @abstractmethod
    def fails(self, sums: Any) -> bool:
        """Whether the log fails the check: of honest logs at most one in a hundred does."""
