"""The probabilities with which a target would have filled the pages that the log shows, slot by slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rlrec.app.evaluation.rows.log_rows import PAIRS, ImpressionRows, LoggedBatch, arms_of_sets, slot_set_flags
from rlrec.app.evaluation.targets.cases import CaseRows, columns_of
from rlrec.app.evaluation.targets.logger_marginals import UNIFORM, UNKNOWN
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.evaluation.targets.state_probabilities import StateCaseRows, StateScorer
from rlrec.arrays import Array, Flags
from rlrec.ope.estimators import pseudo_inverse
from rlrec.store.database.bulk import Columns

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import ModelValues

PER_DECISION = 32  # pages that are simulated, at most, for a decision that has a distribution of its own


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The needs of estimators. joint: the probability of the slots down to each one; tabled: those of every position;
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


def slate_target(
    scorer: Scorer, rows: ImpressionRows, logged: LoggedBatch, *, needs: Needs, values: ModelValues | None
) -> SlateTarget:
    """The probabilities of a target for the slots of complete pages. values: of a model of what a page still earns."""
    n, is_unknown = len(rows), np.full(len(rows), np.nan)
    steps, additive, expected = is_unknown.copy(), is_unknown.copy(), np.zeros(n)
    simulated = (
        isinstance(scorer, StateScorer) and scorer.samples > 0 and (needs.marginal or needs.tabled or needs.additive)
    )
    table = np.full((n, needs.positions), np.nan) if needs.tabled or needs.additive or simulated else None

    def write_rows(case_rows: CaseRows | StateCaseRows) -> None:
        if isinstance(case_rows, StateCaseRows):
            if needs.joint:
                case_rows.write_steps(steps)
            if table is not None and simulated:
                runs = min(scorer.samples, PER_DECISION)
                table[case_rows.indices] = case_rows.at_positions(needs.positions, runs=runs, seed=scorer.seed)
        else:
            if values is not None and not case_rows.samples:
                case_rows.write_steps_and_values(steps, expected, scorer.arms.ids, values)
            elif needs.joint:
                case_rows.write_steps(steps)
            if table is not None and not case_rows.second_pass:
                table[case_rows.indices] = case_rows.at_positions(needs.positions)
                if needs.additive and not case_rows.per_decision_samples:
                    _fill_additive(case_rows, additive, logged)
        if values is not None and (isinstance(case_rows, StateCaseRows) or case_rows.per_decision_samples):
            case_rows.fill_expected(expected, scorer.arms.ids, values)

    probabilities = scorer.probabilities(rows, logged, None, on_rows=write_rows, joint=needs.joint)
    marginal = np.where(probabilities.prefixed, np.nan, np.minimum(probabilities.target, 1.0))
    greatest = np.where(probabilities.prefixed, np.nan, probabilities.greatest)
    if table is not None and simulated:
        marginal = np.take_along_axis(table, rows.slots["position"][:, None] - 1, axis=1)[:, 0]
    if table is not None and needs.additive:
        even, arms = rows.slots[PAIRS] == UNIFORM, arms_of_sets(rows.slots["eligible_id"], logged.eligible)
        shown = np.take_along_axis(table, rows.slots["position"][:, None] - 1, axis=1)[:, 0]
        sums, size = table.sum(axis=1), rows.slots["size"]
        additive[even] = pseudo_inverse.uniform_weights(shown, sums, size=size, arms=arms)[even]
        is_alone = rows.slots["size"] == 1
        additive[is_alone] = probabilities.target[is_alone] / rows.slots["propensity"][is_alone]
    has_sets = slot_set_flags(rows.slots)
    if has_sets is not None and needs.additive:  # of independent slots: 1 + sum of (ratio - 1)
        size, ratio = rows.slots["size"][has_sets], (marginal / rows.slots["propensity"])[has_sets]
        additive[has_sets] = ratio - 1 + 1 / size
    return SlateTarget(
        steps=np.minimum(steps, 1.0), marginal=marginal, greatest=greatest, unsupported=probabilities.unsupported,
        table=table if needs.tabled else None, additive=additive if needs.additive else None,
        expected=None if values is None else expected,
    )  # fmt: skip


def exposures(scorer: Scorer, rows: ImpressionRows, logged: LoggedBatch, *, examination: Array) -> Array:
    """The examinations at which a target would have shown each arm on a page, by rank, (n, arms); NaN where they have
    no closed form. rows: the first slots of the pages; examination: of each position."""
    expected = np.full((len(rows), len(scorer.arms)), np.nan)

    for case_rows in scorer.case_rows(rows, logged):
        if not isinstance(case_rows, CaseRows) or case_rows.per_decision_samples or case_rows.samples:
            continue
        by_case = np.zeros((len(case_rows.blocks), len(scorer.arms)))
        for case, block in enumerate(case_rows.blocks):
            rank = scorer.arms.ranks(block.arms)
            by_case[case, rank] = examination[: len(block.shares)] @ block.shares
        expected[case_rows.indices] = by_case[case_rows.case]
    list_ratio, has_sets = scorer.list_ratio(rows.slots, logged), slot_set_flags(rows.slots)
    for is_other in (None if list_ratio is None else list_ratio != 0, has_sets):
        if is_other is not None:
            expected[is_other] = np.nan
    return expected


def without_pairs(slots: Columns) -> Flags:
    """The rows whose logger does not tell how likely pairs of slots are, (n,); pages of one slot have none."""
    is_unknown: Flags = (slots[PAIRS] == UNKNOWN) & (slots["size"] > 1)
    has_sets = slot_set_flags(slots)
    return is_unknown if has_sets is None else is_unknown & ~(has_sets & ~np.isnan(slots["marginal"]))


def _fill_additive(case_rows: CaseRows, additive: Array, logged: LoggedBatch) -> None:
    """Write what each slot adds to the weight of `pi`, where the slates of the logger are listed."""
    slots = case_rows.rows.slots
    pairs = slots[PAIRS][case_rows.indices]
    has_pairs = np.flatnonzero(pairs >= 0)
    for case, number in np.unique(np.column_stack([case_rows.case, pairs])[has_pairs], axis=0).tolist():
        group = has_pairs[(case_rows.case[has_pairs] == case) & (pairs[has_pairs] == number)]
        block, first = case_rows.blocks[case], case_rows.indices[group[0]]
        eligible = logged.eligible[int(slots["eligible_id"][first])]
        shares = np.zeros((len(block.shares), len(eligible)))
        shares[:, columns_of(block.arms, first, slots, logged)] = block.shares
        slates = pseudo_inverse.slates(*shares.shape)
        coefficients = pseudo_inverse.coefficients(slates, logged.pairs[number], shares)
        shown = np.searchsorted(eligible, case_rows.arm[group])
        additive[case_rows.indices[group]] = coefficients[case_rows.position[group] - 1, shown]
