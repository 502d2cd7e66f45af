"""Outcomes of units that were drawn by weights that changed: groups are compared within strata, where all were drawn by
the same weights, and what they differ by is combined.

Of all units together, a group that had a larger share when rates were high looks better than it is. A stratum counts by
the harmonic mean of its units in the groups, whatever they earned: one in which a group has few units tells little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rlrec.arrays import Ids
from rlrec.ope.comparisons.comparison import Metric, MetricValue
from rlrec.ope.comparisons.outcomes import Outcomes
from rlrec.ope.sums.unit_visits import UnitSums

MIN_UNITS = 2  # of every group in a stratum that counts: one has no error


@dataclass(frozen=True, kw_only=True, eq=False)
class PhasedOutcomes(Outcomes):
    """The figures of strata, combined. sums: of all units; strata: by number; groups: how many. Errors are those of
    strata that know nothing of each other, as those of `ramp_strata` do though a unit can be in several."""

    strata: Mapping[int, Outcomes]
    groups: int

    def value(self, group: int, metric: Metric) -> MetricValue:
        """A metric of a group, as it would be if every group had the same share of its units in each stratum."""
        values = {key: outcomes.value(group, metric) for key, outcomes in self.strata.items()}
        return self._combine(group, metric, values)

    def units(self, group: int, metric: Metric) -> int:
        """How many units of a group count, in all strata."""
        return sum(outcomes.value(group, metric).units for outcomes in self.strata.values())

    def _shares(self, metric: Metric) -> dict[int, float]:
        """How much each stratum counts, of those that have enough units."""
        weights = dict[int, float]()
        for key, outcomes in self.strata.items():
            units = np.array([outcomes.value(group, metric).units for group in range(self.groups)])
            if units.min() >= MIN_UNITS:
                weights[key] = float(1 / (1 / units).sum())
        return {key: weight / sum(weights.values()) for key, weight in weights.items()}

    def _combine(self, group: int, metric: Metric, values: Mapping[int, MetricValue]) -> MetricValue:
        shares, pooled = self._shares(metric), super().value(group, metric)
        if not shares:
            return replace(pooled, units=min(pooled.units, 1), value=np.nan, error=np.nan)
        value = sum(share * values[key].value for key, share in shares.items())
        variance = sum((share * values[key].error) ** 2 for key, share in shares.items())
        return replace(pooled, value=float(value), error=float(np.sqrt(variance)))

    def _adjusted(self, group: int, metric: Metric, theta: float) -> MetricValue | None:
        values = {key: outcomes._adjusted(group, metric, theta) for key, outcomes in self.strata.items()}
        rows = {key: value for key, value in values.items() if value is not None}
        return self._combine(group, metric, rows) if rows.keys() >= self._shares(metric).keys() else None

    def _past_products(self, metric: Metric) -> list[tuple[float, float]]:
        return [pair for outcomes in self.strata.values() for pair in outcomes._past_products(metric)]


def ramp_strata(cells: UnitSums, phases: int, groups: int) -> tuple[UnitSums, Ids]:
    """The units of a ramp in each phase that served them, and the stratum of each: of that phase and the last one
    before in which it was served. What follows a phase in which it had moved is left out, since who comes again may
    hang on that. Within a stratum all units had been served alike before they were drawn, so that differences of strata
    are uncorrelated. cells: of the groups phase * groups + group; of several in a phase, the first one counts."""
    rows = np.lexsort((cells.entry, cells.group // groups, cells.unit))
    unit, (phase, group) = cells.unit[rows], np.divmod(cells.group[rows], groups)
    begins = np.append(True, unit[1:] != unit[:-1])[: len(unit)]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(unit)), 0))
    n_moved: Ids = np.cumsum(group > 0) - (group > 0)
    last_phase = np.where(begins, -1, np.roll(phase, 1))
    is_counted = (n_moved == n_moved[first]) & (last_phase < phase)
    units = replace(cells.take(rows[is_counted]), group=group[is_counted])
    return units, (phase * (phases + 1) + last_phase + 1)[is_counted]
