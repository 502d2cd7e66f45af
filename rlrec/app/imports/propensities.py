"""This module computes propensities for a log without propensities. It assumes a uniform logger, or fits probabilities
to the arms that were shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import groupby
from math import log
from operator import itemgetter

import numpy as np

from rlrec.app.imports.columns import LogColumns, values

UNIFORM: Mapping[str, float] = defaultdict(lambda: 1.0)  # equal weights, under which all arms are shown alike
STEPS = 200  # iterations of the fit, at most
TOLERANCE = 1e-9  # relative change of weights at which the fit ends


def fit(groups: Iterable[LogColumns]) -> dict[str, float]:
    """Return the weight of each arm, by key, under which the log is most likely. Each slot is taken to show one of the
    eligible arms with a probability proportional to the arm's weight.

    Source: Hunter (2004), MM algorithms for generalized Bradley-Terry models, eq. 30."""
    offers, times_shown = defaultdict[tuple[str, ...], float](float), defaultdict[str, float](float)
    for rows in groups:
        sets = values(rows.eligible, len(rows))
        # each counts for the decisions that the log dropped, too
        n_original_decisions = [1 / (keep_share or 1.0) for keep_share in values(rows.keep_probability, len(rows))]
        for row, arm in zip(rows.slots.row, rows.slots.arm, strict=True):
            offers[rows.eligible_sets[sets[row]]] += n_original_decisions[row]
            times_shown[arm] += n_original_decisions[row]
    arms = sorted(set().union(*offers)) if offers else []
    index = {arm: number for number, arm in enumerate(arms)}
    members = [np.array([index[arm] for arm in members], np.int64) for members in offers]
    counts = np.array(list(offers.values()), np.float64)
    weights = np.full(len(arms), 1 / max(len(arms), 1))
    shown_counts = np.array([times_shown[arm] for arm in arms], np.float64)
    for _ in range(STEPS):
        denominators = np.zeros(len(arms))
        for index_of_set, count in zip(members, counts, strict=True):
            if (total := weights[index_of_set].sum()) > 0:
                denominators[index_of_set] += count / total
        new_weights = np.divide(shown_counts, denominators, out=np.zeros(len(arms)), where=denominators > 0)
        new_weights /= new_weights.sum()
        if np.allclose(new_weights, weights, rtol=TOLERANCE, atol=0):
            break
        weights = new_weights
    return dict(zip(arms, weights.tolist(), strict=True))


def fill(rows: LogColumns, weights: Mapping[str, float]) -> LogColumns:
    """Fill in propensities for decisions with neither propensities nor marginals, mark these as estimated, and return
    all rows. Each slot is taken to show one of the remaining arms with a probability proportional to its weight. If the
    log does not show a position, slots below it get marginals instead."""
    slots, n = rows.slots, len(rows.slots.row)
    propensity, marginal = list(values(slots.propensity, n)), list(values(slots.marginal, n))
    logs, flags = list(values(rows.log_propensity, len(rows))), list(values(rows.estimated, len(rows)))
    positions, sets = values(slots.position, n), values(rows.eligible, len(rows))
    sizes, members = values(rows.size, len(rows)), values(rows.slot_sets, len(rows))

    @cache
    def total(arms: tuple[str, ...]) -> float:
        return sum(map(weights.__getitem__, arms))

    for row, row_slots in groupby(enumerate(slots.row), itemgetter(1)):
        indexes = [index for index, _ in row_slots]
        if any(propensity[index] is not None or marginal[index] is not None for index in indexes):
            continue
        flags[row], shown_arms, total_log = 1, list[str](), 0.0
        arms = rows.eligible_sets[sets[row]]
        for number, index in enumerate(indexes):
            slot_arms = arms if members[row] is None else members[row][number]
            left_weight = total(slot_arms) - sum(weights[arm] for arm in shown_arms if arm in slot_arms)
            arm = slots.arm[index]
            if positions[index] == number + 1:
                propensity[index] = min(1.0, weights[arm] / left_weight)
                total_log += log(propensity[index])
            else:
                marginal[index] = min(1.0, weights[arm] / total(slot_arms))
            shown_arms.append(arm)
        if len(indexes) == sizes[row] and propensity[indexes[-1]] is not None:
            logs[row] = min(0.0, total_log)
    new_slots = replace(slots, propensity=propensity, marginal=marginal)
    return replace(rows, slots=new_slots, log_propensity=logs, estimated=flags)
