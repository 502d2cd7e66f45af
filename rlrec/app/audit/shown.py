"""How often each arm was shown against the propensities that were logged: a wrong logger gives itself away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rlrec.app.audit.findings import Findings
from rlrec.app.serving import Ids
from rlrec.policy.scores import Array
from rlrec.store import Unit, contents
from rlrec.store.reader import Batch

CHECK = "shown"
ALARM = 1e-4  # chance that an honest store is accused, over all its policies and arms
PORTION = 200  # eligible sets at a time
LARGEST = 1e100  # a weight beyond this would overflow when it is squared


@dataclass(frozen=True, eq=False)
class Tally:
    """Of each arm (m,), over the decisions in which it was eligible and whose propensity is known.

    n decisions; shown how often it was; weight the sum of 1{shown}/p; variance the sum of 1{shown}(1 - p)/p^2; least
    the sum of the smallest propensity that any arm had. At the first position, or at the one that was observed."""

    arms: Ids
    n: Array
    shown: Array
    weight: Array
    variance: Array
    least: Array


def z(tally: Tally) -> Array:
    """(sum 1{shown}/p - n) / sqrt(sum 1{shown}(1 - p)/p^2), (m,); 0 where an arm was never shown, or always certain.

    It is about normal, and where an arm is rarely shown its upper tail is lighter than that. Its lower tail proves
    nothing: the variance of decisions that did not show the arm is missing from it, so an arm that a learning policy
    rightly gave up has a z far below 0."""
    moved = tally.variance > 0
    spread = np.sqrt(np.where(moved, tally.variance, 1.0))
    return np.where(moved, (tally.weight - tally.n) / spread, 0.0)


def rarity(tally: Tally) -> Array:
    """Bound on the chance that an arm is shown so rarely although it had at least the smallest propensity of every
    decision, (m,). Source: Chernoff's bound for sums of independent indicators (its lower tail)."""
    expected, shown = tally.least, tally.shown
    few = shown < expected
    ratio = np.where(few & (shown > 0), shown / np.where(expected > 0, expected, 1.0), 1.0)
    return np.exp(np.where(few, shown - expected - shown * np.log(ratio), 0.0))


class Shown:
    """The arms of one policy."""

    def __init__(self, unit: Unit, found: Findings) -> None:
        self.unit = unit
        self.found = found
        self._totals = np.zeros((0, 5))
        self._arms = np.empty(0, np.int64)

    def take(self, batch: Batch) -> None:
        slots, first = batch.slots, _first(batch)
        page = slots["decision_id"]
        self._eligible(slots["eligible_id"], slots["arm_id"], page)
        position = slots["position"][first]
        p = np.where(np.isnan(slots["propensity"][first]), slots["marginal"][first], slots["propensity"][first])
        # below the first position a conditional says nothing without the arms above it
        p = np.where(position == 1, p, slots["marginal"][first])
        known = ~np.isnan(p) & ~slots["rounded"][first]
        rows, p = first[known], p[known]
        least = np.where(position[known] == 1, np.nan_to_num(slots["min_propensity"][rows]), 0.0)
        self._count(slots["eligible_id"][rows], least)
        weight = np.minimum(1 / p, LARGEST)
        nothing = np.zeros_like(p)
        self._add(
            slots["arm_id"][rows],
            np.column_stack([nothing, np.ones_like(p), weight, (1 - p) * weight * weight, nothing]),
        )

    def _count(self, sets: Ids, least: Array) -> None:
        """One more decision, and its smallest propensity, for every arm that was eligible in it."""
        ids, place = np.unique(sets, return_inverse=True)
        n, sums = np.bincount(place.ravel()), np.bincount(place.ravel(), weights=least)
        for start in range(0, len(ids), PORTION):
            part = slice(start, start + PORTION)
            arms, sizes = _members(self.unit, ids[part])
            columns = np.zeros((len(arms), 5))
            columns[:, 0], columns[:, 4] = np.repeat(n[part], sizes), np.repeat(sums[part], sizes)
            self._add(arms, columns)

    def _eligible(self, sets: Ids, arms: Ids, decisions: Ids) -> None:
        """Every arm shown was among the eligible ones."""
        ids = np.unique(sets)
        for start in range(0, len(ids), PORTION):
            portion = ids[start : start + PORTION]
            members, sizes = _members(self.unit, portion)
            inside = np.flatnonzero(np.isin(sets, portion))
            width = int(max(members.max(initial=0), arms.max(initial=0))) + 1
            allowed = np.repeat(np.arange(len(portion)), sizes) * width + members
            mine = np.searchsorted(portion, sets[inside]) * width + arms[inside]
            for decision in np.unique(decisions[inside[~np.isin(mine, allowed)]]).tolist():
                self.found.error("dangling", f"decision {decision}", "an arm was shown that was not eligible")

    def _add(self, arms: Ids, columns: Array) -> None:
        known = np.union1d(self._arms, arms)
        totals = np.zeros((len(known), 5))
        totals[np.searchsorted(known, self._arms)] = self._totals
        place = np.searchsorted(known, arms)
        for column in range(5):
            totals[:, column] += np.bincount(place, weights=columns[:, column], minlength=len(known))
        self._arms, self._totals = known, totals

    def finish(self) -> Tally:
        return Tally(self._arms, *self._totals.T)


def _first(batch: Batch) -> Ids:
    """The row of each decision's first observed slot: they are in order of decision and position."""
    ids = batch.slots["decision_id"]
    return np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])


def _members(unit: Unit, ids: Ids) -> tuple[Ids, Ids]:
    """Arms of these eligible sets one after the other, and how many each has; a set that cannot be read has none."""
    try:
        sets = contents.eligible_arms(unit, ids.tolist())
        lists = [np.array(sets.get(key, ()), np.int64) for key in ids.tolist()]
    except (TypeError, ValueError):
        lists = [_readable(unit, key) for key in ids.tolist()]
    return np.concatenate(lists), np.array([len(arms) for arms in lists], np.int64)


def _readable(unit: Unit, key: int) -> Ids:
    try:
        return np.array(contents.eligible_arms(unit, [key]).get(key, ()), np.int64)
    except (TypeError, ValueError):
        return np.empty(0, np.int64)


def threshold(tests: int) -> float:
    """The z that an honest arm exceeds with probability ALARM / 2 / tests."""
    from scipy.special import ndtri

    return float(-ndtri(ALARM / 2 / max(1, tests)))


def accused(tally: Tally, *, tests: int) -> Iterator[tuple[int, str]]:
    """Arms whose count cannot be, and why. tests: how many arms of all policies are looked at."""
    score, chance, limit = z(tally), rarity(tally), threshold(tests)
    for place in np.flatnonzero(score > limit).tolist():
        said = f"the logged propensities weigh that as {tally.weight[place]:.6g}"
        yield int(tally.arms[place]), f"{_count(tally, place)}, {said}: z {score[place]:.1f}, beyond {limit:.1f}"
    for place in np.flatnonzero(chance < ALARM / 2 / max(1, tests)).tolist():
        said = f"the smallest logged propensities promise {tally.least[place]:.6g} at least"
        yield int(tally.arms[place]), f"{_count(tally, place)}, {said}: chance below {max(chance[place], 1e-300):.1g}"


def _count(tally: Tally, place: int) -> str:
    return f"shown {tally.shown[place]:.0f} times in {tally.n[place]:.0f} decisions"


def report(tallies: Mapping[str, Tally], *, found: Findings, names: Mapping[int, str]) -> int:
    """Findings of all policies by name: how many arms were looked at."""
    tests = sum(len(tally.arms) for tally in tallies.values())
    for policy, tally in tallies.items():
        for arm, why in accused(tally, tests=tests):
            found.error(CHECK, f"policy {policy} arm {names.get(arm, f'id {arm}')}", why)
    return tests
