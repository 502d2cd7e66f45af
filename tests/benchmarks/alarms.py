"""How often figures of equal variants alarm: outcomes of units, their numbers and their ages."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.measure import Figure, Setting
from tests.ope.comparisons import test_outcomes as equal
from tests.ope.units import test_rivals as targets

RUNS, OFTEN = 400, 1_000  # at 5 %, at 1e-3


def alarms(setting: Setting) -> Iterator[Figure]:
    """At most the level and three standard errors: each figure fails falsely once in some hundred seeds."""
    runs, often = setting.size(RUNS), setting.size(OFTEN)
    for name, count in (
        ("equal variants", equal.alarms_of_equal_variants(runs, adjusted=False)),
        ("equal variants, adjusted by the past", equal.alarms_of_equal_variants(runs, adjusted=True)),
        ("groups that share units", equal.alarms_of_shared_units(runs)),
        ("60 equal targets", targets.alarms(runs)["together"]),
    ):
        yield Figure(name=f"{name}: alarms in {runs}", value=count, unit="", at_most=equal.most(runs, 0.05))
    for name, count in (
        ("equal numbers of decisions", equal.alarms_of_equal_numbers(often)),
        ("differences of equal ages, twice", equal.alarms_of_equal_ages(often // 2)),
    ):
        yield Figure(name=f"{name}: alarms in {often}", value=count, unit="", at_most=equal.most(often, 1e-3))
