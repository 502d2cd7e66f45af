"""The loggers of an evaluation whose rows may be weighed by the spread of their weights: those fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlrec.app.log import lineage
from rlrec.arrays import Ids, look_up, run_starts
from rlrec.ope.units import strata
from rlrec.ope.units.strata import NO_LOGGER, Stratum
from rlrec.records import Sums
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import selected
from rlrec.store.log.selected import LogExtent, Selection
from rlrec.store.policies import policies


@dataclass(frozen=True, kw_only=True)
class LoggerFacts(Sums):
    """Facts about loggers in the rows of a log. learned: names of those that learned from some of these rows. mixed: a
    logger, and another one that served in clusters counted as the first one's; None for one that is not weighed."""

    learned: frozenset[str] = frozenset()
    mixed: frozenset[tuple[str, str | None]] = frozenset()

    def is_fixed(self, name: str) -> bool:
        """Whether no version that served under this name learned from these rows."""
        co_loggers = {co_logger for logger, co_logger in self.mixed if logger == name}
        return None not in co_loggers and not {name, *co_loggers} & self.learned


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedLoggers:
    """The versions that served most of the selected decisions and do not learn while they serve, by id in that order.
    names: as POLICY@VERSION; lessons: decisions that each learned from."""

    names: Mapping[int, str] = field(default_factory=dict)
    lessons: Mapping[int, Sequence[lineage.LearnedFrom]] = field(default_factory=dict)

    @classmethod
    def from_log(cls, unit: Unit, selection: Selection, extent: LogExtent) -> FixedLoggers:
        """None of them where fewer than two served. The policy of an imported log is taken to be fixed. extent: of the
        selection."""
        if extent.first_version == extent.last_version:
            return cls()
        decisions = selected.version_counts(unit, selection)
        versions = policies.by_id(unit, decisions)
        fixed = {
            key: version.reference
            for key, version in versions.items()
            if version.status == "frozen" or not lineage.learns(version)
        }
        frequent = sorted(fixed, key=lambda key: (-decisions[key], fixed[key]))[: strata.MAX_LOGGERS]
        if len(frequent) < 2:
            return cls()
        lessons = {key: lineage.learned_from(lineage.ancestry(unit, versions[key])) for key in frequent}
        return cls(names={key: fixed[key] for key in frequent}, lessons=lessons)

    def loggers_that_learned(self, slots: Columns) -> frozenset[str]:
        """Names of those that learned from one of these slots."""
        learned = (key for key, lessons in self.lessons.items() if any(lesson.rows(slots).any() for lesson in lessons))
        return frozenset(self.names[key] for key in learned)

    def strata(self, slots: Columns, begins: Ids, *, spanning: bool, max_loggers: int) -> RowStrata:
        """The stratum of each row. begins: its first slot. spanning: a cluster may come back in another batch; where it
        does not, all its rows are in the stratum of the first one. max_loggers: loggers that can be weighed."""
        names = list(self.names.values())[:max_loggers]
        if len(names) < 2:
            return RowStrata(strata=[NO_LOGGER], codes=np.zeros(len(begins), np.int64), mixed=frozenset())
        # the logger of each slot, and of the first row of each cluster or of each row
        ids = np.array(list(self.names)[:max_loggers], np.int64)
        order = np.argsort(ids)
        index, weighable = look_up(ids[order], slots["version_id"])
        logger = np.where(weighable, order[index], -1)
        starts = begins if spanning else begins[run_starts(slots["cluster"][begins])]
        slot_logger = np.repeat(logger[starts], np.diff(np.r_[starts, len(logger)]))
        row_logger = slot_logger[begins]
        # which others served in the rows of a logger
        differs = (slot_logger != logger) & (slot_logger >= 0)
        pairs = np.unique(np.column_stack([slot_logger[differs], logger[differs]]), axis=0).tolist()
        mixed = frozenset((names[first], names[second] if second >= 0 else None) for first, second in pairs)
        codes = np.where(row_logger >= 0, 2 * row_logger + strata.halves(slots["cluster"][begins]), 2 * len(names))
        return RowStrata(
            strata=[*(Stratum(name, half) for name in names for half in (0, 1)), NO_LOGGER], codes=codes, mixed=mixed
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RowStrata:
    """The stratum of each row, (n,), as a number in `strata`; mixed: of `LoggerFacts`."""

    strata: Sequence[Stratum]
    codes: Ids
    mixed: frozenset[tuple[str, str | None]]
