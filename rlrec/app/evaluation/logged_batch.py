"""A batch of the log with all that its folds need of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlrec.app.evaluation.contexts import ContextTable
from rlrec.app.evaluation.groups import RowGroup
from rlrec.arrays import Flags, Ids
from rlrec.store.reader import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedBatch:
    """Whole sessions of the log, read for a fold: nothing of it is asked of the store again.

    log: its slots have, beside columns of the reader, those of `log_rows.slates` and `loggers.Support`, and `cluster`,
    `context` (of the table) and `group`.
    groups: of `--by`. eligible: the arms of each eligible set by its id. zeros: of each logger's case the arms that it
    could not show at each position, (size, m); None where that is not known."""

    log: Batch
    contexts: ContextTable
    groups: Sequence[RowGroup] = ()
    eligible: Mapping[int, Ids]
    zeros: Sequence[Flags | None] = ()
