"""Comparisons of groups of units, and what tells the groups apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlrec import times
from rlrec.app.evaluation.rows import groups
from rlrec.app.evaluation.rows.groups import day_numbers
from rlrec.arrays import Ids
from rlrec.records import Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from rlrec.store.policies.experiments import Experiment
from rlrec.times import DAY_US

PERIODS = {"hour": DAY_US // 24, "day": DAY_US, "week": 7 * DAY_US}
BY = ("variant", "policy", "version", *PERIODS, "users")
USERS = ("new", "returning")
LEAST_OVERLAP = 0.9  # of the days of two groups that were served at the same times
NAMED = "named"  # users, not sessions without one
THURSDAY = 3  # 1970-01-01; a week begins on a Monday


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of groups of units. experiment: whose unit and assignment count; by: one of BY; adjust: by the past
    of units before their assignment; users: one of USERS, or NAMED, whose units alone count; age_us: only the first so
    long of every unit counts, of units that came that long before the end of the log, and the windows of rewards; unit:
    user or session, where no experiment says it; segment: the field of the context of a unit's first decision, by
    which variants are compared, too; metrics: the names of those that are wanted, None for all."""

    selection: Selection
    rewards: Sequence[Reward]
    experiment: Experiment | None = None
    by: str | None = None
    adjust: bool = False
    users: str | None = None
    age_us: int | None = None
    unit: str = "user"
    segment: str | None = None
    metrics: Collection[str] | None = None

    @property
    def by_session(self) -> bool:
        """Whether the unit is the session, whoever its user is."""
        return (self.unit if self.experiment is None else self.experiment.unit) == "session"


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of a study in their order. column: of decisions, or one of PERIODS, None for one group; values: of the
    column, ascending, and codes: the group of each; labels: of the groups; cut: periods that the log covers in part;
    apart: groups that were not served on the days of the first one."""

    labels: Sequence[str | None]
    column: str | None = None
    values: Ids | None = None
    codes: Ids | None = None
    cut: frozenset[int] = frozenset()
    apart: frozenset[int] = frozenset()

    @property
    def shared(self) -> bool:
        """Whether a unit can be in several groups."""
        return self.column == "version_id" or self.column in PERIODS

    @classmethod
    def from_study(cls, unit: Unit, study: Study) -> Groups:
        """Groups of the same label are one. Raises InputError where they are too many."""
        by, cut = study.by, frozenset[int]()
        if by == "variant" and study.experiment is not None:
            column, names = "variant_id", {variant.id: variant.label for variant in study.experiment.variants}
        elif by in ("policy", "version"):
            column, names = "version_id", _version_labels(unit, study)
        elif by in PERIODS:
            column, (names, cut) = by, _periods(by, *selected.times(unit, study.selection))
        else:
            return cls(labels=[*USERS] if by == "users" else [None])
        codes = {label: number for number, label in enumerate(dict.fromkeys(names.values()))}
        if len(codes) > groups.MAX_GROUPS:
            raise groups.too_many(by)
        values = np.array(sorted(names), np.int64)
        code = np.array([codes[names[value]] for value in values.tolist()], np.int64)
        shown = cls(labels=[*codes], column=column, values=values, codes=code, cut=cut)
        return replace(shown, apart=shown._served_apart(unit, study)) if by in ("policy", "version") else shown

    def _served_apart(self, unit: Unit, study: Study) -> frozenset[int]:
        """The groups of which a tenth of the decisions, or more, are of other days than those of the first one."""
        counts = selected.day_counts(unit, study.selection)
        days, day = np.unique([row.day for row in counts], return_inverse=True)
        decisions = np.zeros((len(self.labels), len(days)))
        group = self.number({"at": day, "version_id": np.array([row.version_id for row in counts], np.int64)})
        np.add.at(decisions, (group, day), [row.decisions for row in counts])
        shares = decisions / decisions.sum(axis=1, keepdims=True)
        overlap = np.minimum(shares, shares[:1]).sum(axis=1)
        return frozenset(np.flatnonzero(overlap < LEAST_OVERLAP).tolist())

    def number(self, slots: Columns) -> Ids:
        """The group of each decision, (d,)."""
        if self.column is None or self.values is None or self.codes is None:
            return np.zeros(len(slots["at"]), np.int64)
        column = _period(slots["at"], self.column) if self.column in PERIODS else slots[self.column]
        return self.codes[np.searchsorted(self.values, column)]


def _period(at: Ids, by: str) -> Ids:
    """The number of the period of each time, (n,): of days and weeks in the time zone."""
    if by == "hour":
        return at // PERIODS["hour"]
    return day_numbers(at) if by == "day" else (day_numbers(at) + THURSDAY) // 7


def _start(number: int, by: str) -> int:
    if by == "hour":
        return number * PERIODS["hour"]
    return times.midnight(number if by == "day" else number * 7 - THURSDAY)


def _period_name(start: int, by: str) -> str:
    """The date on which a period begins, or its hour."""
    text = times.local(start).isoformat(timespec="minutes").replace("+00:00", "Z")
    return text if by == "hour" else text[:10]


def _periods(by: str, first_at: int, last_at: int) -> tuple[dict[int, str], frozenset[int]]:
    """Names of the periods of a log between two times, an hour or the first day of each, by number; and which groups
    are cut: the first and the last, where the log lacks more than a seventh of them."""
    first, last = _period(np.array([first_at, last_at]), by).tolist()
    end = min(last, first + groups.MAX_GROUPS) + 1
    starts = {number: _start(number, by) for number in range(first, end + 1)}
    length = starts[first + 1] - starts[first]
    is_cut = first_at > starts[first] + length // 7, last_at < starts[end] - (starts[end] - starts[end - 1]) // 7
    names = {number: _period_name(start, by) for number, start in starts.items() if number < end}
    return names, frozenset(number for number, cut in zip((0, len(names) - 1), is_cut, strict=True) if cut)


def _version_labels(unit: Unit, study: Study) -> dict[int, str]:
    """The policy, or the version, of each version that served selected decisions, in the order of names."""
    served = selected.version_counts(unit, study.selection)
    owners = {policy.id for policy in policies.all_policies(unit)}
    versions = sorted(
        (version for version in policies.versions(unit, owners) if version.id in served),
        key=lambda version: (version.policy.name, version.number),
    )
    by_policy = study.by == "policy"
    return {version.id: version.policy.name if by_policy else version.reference for version in versions}
