"""The probabilities with which a target would have filled the pages that the log shows, slot by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.app.evaluation.models.reward_models import ModelValues
from rlrec.app.evaluation.rows import slot_sets
from rlrec.app.evaluation.rows.log_rows import ArmTable, ImpressionRows, LoggedBatch, arms_of_sets
from rlrec.app.evaluation.targets.cases import CaseRows, places
from rlrec.app.evaluation.targets.list_probabilities import ListCaseRows
from rlrec.app.evaluation.targets.logger_marginals import PAIRS, UNIFORM, UNKNOWN
from rlrec.app.evaluation.targets.probabilities import CELLS, Scorer
from rlrec.app.evaluation.targets.state_probabilities import StateCaseRows
from rlrec.arrays import Array, Flags, run_starts
from rlrec.ope.estimators import pseudo_inverse
from rlrec.policy.slates import slate
from rlrec.store.database.bulk import Columns

PER_DECISION = 32  # pages that are simulated, at most, for a decision that has a distribution of its own


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The needs of estimators. joint: probabilities given the slots above; tabled: those of every position;
    additive: weights of `pi`; marginal: the probability of each arm at its position. positions: of the longest page."""

    positions: int
    joint: bool
    tabled: bool
    additive: bool
    marginal: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class SlateTarget:
    """Probabilities of a target for complete pages, (n,) each of their slots; NaN where one is not known.

    steps: of the arm given the slots above; marginal: of the arm at its position, greatest: of any arm there.
    table (n, positions): of the arm at every position. additive: what the slot adds to the weight of `pi`.
    expected: mean of the model given the slots above."""

    steps: Array
    marginal: Array
    greatest: Array
    unsupported: Array
    table: Array | None
    additive: Array | None
    expected: Array | None


def of(
    scorer: Scorer, rows: ImpressionRows, logged: LoggedBatch, *, wanted: Wanted, values: ModelValues | None
) -> SlateTarget:
    """The probabilities of a target for the slots of complete pages. values: of a model of what a page still earns."""
    n, unknown = len(rows), np.full(len(rows), np.nan)
    steps, additive, expected = unknown.copy(), unknown.copy(), np.zeros(n)
    simulated = scorer.target.stateful and scorer.samples > 0 and (wanted.marginal or wanted.tabled or wanted.additive)
    table = np.full((n, wanted.positions), np.nan) if wanted.tabled or wanted.additive or simulated else None

    def fill(some: CaseRows | StateCaseRows) -> None:
        if values is not None and isinstance(some, ListCaseRows):
            some.fill_both(steps, expected, scorer.arms.ids, values)
        elif values is not None and isinstance(some, CaseRows) and not some.samples:
            _fill_both(some, steps, expected, scorer.arms, values)
        elif wanted.joint:
            _fill_steps(some, steps)
        if table is not None and isinstance(some, StateCaseRows) and simulated:
            runs = min(scorer.samples, PER_DECISION)
            table[some.indices] = some.at_positions(wanted.positions, runs=runs, seed=scorer.seed)
        if table is not None and isinstance(some, CaseRows) and not some.aside:
            table[some.indices] = some.at_positions(wanted.positions)
            if wanted.additive and not some.drawn:
                _fill_additive(some, additive, logged)
        if values is not None and (isinstance(some, StateCaseRows) or some.drawn):
            some.fill_expected(expected, scorer.arms.ids, values)

    of_target = scorer.probabilities(rows, logged, None, beside=fill, joint=wanted.joint)
    marginal = np.where(of_target.prefixed, np.nan, np.minimum(of_target.target, 1.0))
    greatest = np.where(of_target.prefixed, np.nan, of_target.greatest)
    if table is not None and simulated:
        marginal = np.take_along_axis(table, rows.slots["position"][:, None] - 1, axis=1)[:, 0]
    if table is not None and wanted.additive:
        even = rows.slots[PAIRS] == UNIFORM
        additive[even] = _of_uniform(rows.slots, table, logged)[even]
        alone = rows.slots["size"] == 1
        additive[alone] = of_target.target[alone] / rows.slots["propensity"][alone]
    has_sets = slot_sets.flags(rows.slots)
    if has_sets is not None and wanted.additive:  # of independent slots: 1 + sum of (ratio - 1)
        size, ratio = rows.slots["size"][has_sets], (marginal / rows.slots["propensity"])[has_sets]
        additive[has_sets] = ratio - 1 + 1 / size
    return SlateTarget(
        steps=np.minimum(steps, 1.0), marginal=marginal, greatest=greatest, unsupported=of_target.unsupported,
        table=table if wanted.tabled else None, additive=additive if wanted.additive else None,
        expected=None if values is None else expected,
    )  # fmt: skip


def without_pairs(slots: Columns) -> Flags:
    """The rows whose logger does not tell how likely pairs of slots are, (n,); pages of one slot have none."""
    unknown: Flags = (slots[PAIRS] == UNKNOWN) & (slots["size"] > 1)
    has_sets = slot_sets.flags(slots)
    return unknown if has_sets is None else unknown & ~(has_sets & ~np.isnan(slots["marginal"]))


def _of_uniform(slots: Columns, table: Array, logged: LoggedBatch) -> Array:
    """The weight of `pi` on uniform pages, slot by slot, (n,)."""
    arms = arms_of_sets(slots["eligible_id"], logged.eligible)
    here = np.take_along_axis(table, slots["position"][:, None] - 1, axis=1)[:, 0]
    return pseudo_inverse.of_uniform(here, table.sum(axis=1), size=slots["size"], arms=arms)


def _fill_additive(some: CaseRows, additive: Array, logged: LoggedBatch) -> None:
    """Write what each slot adds to the weight of `pi`, where the slates of the logger are listed."""
    pairs = some.rows.slots[PAIRS][some.indices]
    listed = np.flatnonzero(pairs >= 0)
    for case, number in np.unique(np.column_stack([some.case, pairs])[listed], axis=0).tolist():
        group = listed[(some.case[listed] == case) & (pairs[listed] == number)]
        shares = some.blocks[case].shares
        drawn = pseudo_inverse.slates(*shares.shape)
        coefficients = pseudo_inverse.coefficients(drawn, logged.pairs[number], shares)
        additive[some.indices[group]] = coefficients[some.position[group] - 1, some.arm_index[group]]


def _fill_steps(some: CaseRows | StateCaseRows, steps: Array) -> None:
    """Write the target's probability of the arm of each slot given the slots above."""
    slots, indices = some.rows.slots, some.indices
    if isinstance(some, StateCaseRows):
        index, possible = places(some.arms, slots["arm_id"][indices][:, None])
        step = max(1, CELLS // len(some.arms))
        for start in range(0, len(indices), step):
            rows = np.arange(start, min(start + step, len(indices)))
            of_arm = some.below_slate(rows)[np.arange(len(rows)), index[rows, 0]]
            steps[indices[rows]] = np.where(possible[rows], of_arm, 0.0)
        return
    if some.drawn:  # these are given the slots above
        steps[indices] = some.target
    if some.samples:
        return
    lowest = slots["depth"][indices] + 1 == slots["size"][indices]
    alone = lowest & ~some.deep
    steps[indices[alone]] = some.target[alone]
    for group, of_slate in some.conditionals(np.flatnonzero(lowest & some.deep)):
        steps[indices[group][:, None] - np.arange(of_slate.shape[1])[::-1]] = of_slate


def _fill_both(some: CaseRows, steps: Array, expected: Array, arms: ArmTable, values: ModelValues) -> None:
    """Write the target's probability of the arm of each slot given the slots above, and the mean of the model under
    the target there."""
    size = some.rows.slots["size"][some.indices]
    lowest = np.flatnonzero(some.rows.slots["depth"][some.indices] + 1 == size)
    for group, blocks, case, order, possible in some.slates(lowest, size[lowest]):
        slots = some.indices[group][:, None] - np.arange(order.shape[1])[::-1]
        steps[slots[~possible]] = 0.0
        slots, case, order = slots[possible], case[possible], order[possible]
        columns = np.searchsorted(arms.ids, [block.arms for block in blocks])
        scores = [block.scores for block in blocks]
        for rows, position, probability, above in slate.each_position(scores, case, order, floor=blocks[0].floor):
            here = slots[rows, position]
            steps[here] = probability[above, order[rows, position]]
            shares = np.zeros((len(probability), len(arms)))
            shares[np.arange(len(shares))[:, None], columns[case[rows[run_starts(above)]]]] = probability
            expected[here] = values.expected(shares, case=above, rows=here)
