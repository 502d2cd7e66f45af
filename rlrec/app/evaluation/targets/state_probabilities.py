"""This module computes the probability with which a target would have shown what the log shows, for a target that has
separate scores in each decision. Such a target reads session state, or is a table from a user.

Session state is read as it was recorded with the decision, not computed again from later data. Decisions with the
same eligible set are computed together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlrec.app.distributions.page_layouts import page_codes
from rlrec.app.distributions.trained import EligibleGroup
from rlrec.app.evaluation.rows.log_rows import ArmTable, ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.cases import Block, CaseRows, TargetProbabilities, arm_indices, columns_of, complement
from rlrec.app.evaluation.targets.probabilities import MAX_CELLS, NARROWED_OFFSET, Scorer
from rlrec.app.inputs.decision_tables import MARGINAL, PROBABILITY, SCORE, DecisionTable
from rlrec.arrays import Array, Flags, Ids, piece_rows, rows_by_kind, run_starts, take
from rlrec.errors import InputError
from rlrec.policy.gradients import history
from rlrec.policy.scores.families.point import Point
from rlrec.policy.scores.sampler import uniforms_at
from rlrec.policy.slates import plackett_luce, rules, slate
from rlrec.store.database.bulk import Columns

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import ModelValues
    from rlrec.policy.slates.page_layout import PageLayout


@dataclass(eq=False)
class StateScorer(Scorer):
    """A StateScorer computes the probabilities of a target that reads session state."""

    def has_gap(self, slots: Columns, batch: LoggedBatch) -> Flags:
        return ~np.asarray(slots["recorded"], np.bool_)

    def _needs_prefix(self, slots: Columns) -> Flags:
        """Tell for each row whether it is weighted by the slate down to the row, (n,). This is so for all rows below
        position 1, since a softmax has no closed marginal there."""
        return super()._needs_prefix(slots) | (slots["position"] > 1)

    def case_rows(self, rows: ImpressionRows, batch: LoggedBatch, **_: Any) -> Iterator[StateCaseRows]:
        model = self.serving.trained_model
        assert model is not None
        # decisions grouped by their eligible arms
        starts = run_starts(rows.slots["decision_id"])
        counts, slots = np.diff(np.r_[starts, len(rows)]), take(rows.slots, starts)
        codes, contexts = batch.contexts.reading(self.target.fields_read)
        histories = history.unpack(slots["history"].tolist(), slots["step"])
        revision = slots["catalogue_revision"]
        context_code = codes[slots["context"]]
        state = model.states(model.encode_contexts(contexts)[context_code], histories, revision)
        draw_options = {"temperature": model.policy.temperature, "floor": model.policy.exploration}
        numbers = self.eligible_sets(slots, batch)
        sets = {number: self.arms_of(number, batch) for number in np.unique(numbers).tolist()}
        # rows with no arm that the target may show are refused, so any arms will do
        sets |= {number: batch.eligible[number - NARROWED_OFFSET] for number, arms in sets.items() if not len(arms)}
        has_rules = self._has_rules(slots, batch)
        page = page_codes(contexts)[context_code] if has_rules.any() else np.zeros(len(context_code), np.intp)
        is_refused = self.refuses_page(slots, batch) if has_rules.any() else has_rules
        for group in model.request_cases(
            state, numbers, revision, contexts, context_code, sets=sets, keys=self.arms.keys
        ):
            for members in rows_by_kind(page[group.rows]):
                page_rows, first_row = group.rows[members], int(group.rows[members[0]])
                page_group = EligibleGroup(page_rows, group.arms, group.score[members])
                columns = page_group, rows, starts[page_rows], counts[page_rows], draw_options
                if not has_rules[first_row]:
                    yield StateCaseRows(*columns)
                elif not is_refused[first_row]:
                    layout = self.serving.layout(
                        int(numbers[first_row]), group.arms, contexts[context_code[first_row]], keys=self.arms.keys,
                        revision=int(revision[first_row]),
                    )  # fmt: skip
                    assert layout is not None
                    yield RuledStateCaseRows(*columns, layout)


@dataclass(eq=False)
class TableScorer(StateScorer):
    """A TableScorer computes the probabilities of a target that is given as a table. The table has scores, by which
    slates are drawn arm by arm, or probabilities at each position, or probabilities of the only slot of a decision.
    InputError is raised if a decision has several slots and the table has only probabilities of one slot."""

    table: DecisionTable = field(kw_only=True)

    def has_gap(self, slots: Columns, batch: LoggedBatch) -> Flags:
        """Tell for each row whether the table gives no probability, (n,). This is so if the row must be weighted
        together with the slots above, and the table only has probabilities at each position. A table needs no recorded
        state."""
        # rows of whole visits have no depth
        is_joint = np.isnan(slots["marginal"]) & (slots["depth"] > 0) if "depth" in slots else slots["size"] > 1
        return Scorer.has_gap(self, slots, batch) | (is_joint & (self.table.column == MARGINAL))

    def refuses_page(self, slots: Columns, batch: LoggedBatch) -> Flags:
        is_ruled = np.isin(slots["policy_id"], [*self.target.ruled_ids]) | batch.contexts.have_rules[slots["context"]]
        return is_ruled & (self.table.column == SCORE)

    def _needs_prefix(self, slots: Columns) -> Flags:
        return super()._needs_prefix(slots) if self.table.column == SCORE else Scorer._needs_prefix(self, slots)

    def case_rows(self, rows: ImpressionRows, batch: LoggedBatch, **_: Any) -> Iterator[Any]:
        starts, table = run_starts(rows.slots["decision_id"]), self.table
        counts, slots = np.diff(starts, append=len(rows)), take(rows.slots, starts)
        has_several = (counts > 1) | (slots["depth"] > 0)
        if table.column == PROBABILITY and has_several.any():
            page = f"the log has several slots of decision {slots['decision_id'][has_several][0]}"
            hint = "give scores, by which a page is drawn arm by arm, or a `marginal` for each `position`"
            raise InputError(f"{table.source} has probabilities, and {page}", hint=hint)
        lowest = np.maximum.reduceat(rows.slots["position"], starts)
        size = np.maximum(slots["size"], lowest) if table.column == MARGINAL else np.ones_like(starts)
        for members in rows_by_kind(slots["eligible_id"], size):
            arms, k = batch.eligible[int(slots["eligible_id"][members[0]])], int(size[members[0]])
            for portion in np.array_split(members, 1 + len(members) * k * len(self.arms) // MAX_CELLS):
                values = table.values(slots["decision_id"][portion], arms, keys=self.arms.keys, k=k)
                if table.column == MARGINAL:
                    scores, case = Point(np.zeros(len(arms))), np.repeat(np.arange(len(portion)), counts[portion])
                    blocks = [Block(arms, scores, 0.0, shares, shares.max(axis=1)) for shares in values]
                    yield PositionCaseRows(blocks, case, piece_rows(starts[portion], counts[portion]), rows)
                    continue
                score = values[:, 0]
                with np.errstate(divide="ignore"):
                    group = EligibleGroup(portion, arms, np.log(score) if table.column == PROBABILITY else score)
                draw_options = {"temperature": table.temperature, "floor": 0.0}
                yield StateCaseRows(group, rows, starts[portion], counts[portion], draw_options)


class PositionCaseRows(CaseRows):
    """A PositionCaseRows object has rows of decisions for which a table gives a probability at each position. The joint
    probability of several slots does not follow from these."""

    samples = 0

    def conditionals(self, deep: Ids) -> Iterator[tuple[Ids, Array]]:
        """Yield the given rows once, with NaN for each row, since probabilities given the arms above are unknown."""
        yield deep, np.full((len(deep), 1), np.nan)

    def log_slates(self) -> Array:
        return np.nan_to_num(super().log_slates(), nan=-np.inf)

    def write_steps_and_means(self, steps: Array, means: Array, arms: Ids, values: ModelValues) -> None:
        self.write_steps(steps)
        self.fill_means(means, arms, values)


class StateCaseRows:
    """A StateCaseRows object has the p rows of d decisions that have the same m eligible arms. indices (p,): the index
    of each row in the batch; decision (p,): the number of each row's decision.

    group: the arms and the scores of the decisions; starts (d,): the index in the batch at which each decision
    begins; counts (d,): the number of its rows; options: the temperature and the floor of the draw."""

    second_pass: ClassVar[bool] = False

    def __init__(
        self, group: EligibleGroup, rows: ImpressionRows, starts: Ids, counts: Ids, options: dict[str, Any]
    ) -> None:
        self.arms, self.score, self.rows, self.options = group.arms, group.score, rows, options
        self.indices = piece_rows(starts, counts)
        self.decision = self.case = np.repeat(np.arange(len(counts)), counts)
        self.depth, self.position = (rows.slots[name][self.indices] for name in ("depth", "position"))

    def weigh(self, probabilities: TargetProbabilities) -> None:
        """Write the target's probabilities into the arrays of the batch. In a row at position 1, this is the
        probability of the arm; in a lower row, the probability of the slate down to the row. The largest probability of
        any arm at position 1 is an upper bound of both.

        probabilities: the arrays of the batch, to which this method writes."""
        slots = self.rows.slots
        index, is_possible = arm_indices(self.arms, slots["arm_id"][self.indices][:, None])
        probabilities.greatest[self.indices] = self.probability.max(axis=1)[self.decision]
        probabilities.target[self.indices] = np.where(is_possible, self.probability[self.decision, index[:, 0]], 0.0)
        deep = np.flatnonzero((self.depth > 0) & ~np.isnan(slots["prefix"][self.indices]))
        indices, lower_rows, is_alone = self.indices, self.indices[deep], slots["alone"]
        probabilities.support_gap[indices] = complement(probabilities.target[indices]) * is_alone[indices]
        probabilities.target[lower_rows] = np.exp(self.log_slates(deep))
        probability_above = np.exp(self.log_slates(deep, with_row=False))
        conditional = np.divide(
            probabilities.target[lower_rows],
            probability_above,
            out=np.ones(len(lower_rows)),
            where=probability_above > 0,
        )
        probabilities.support_gap[lower_rows] = complement(conditional) * is_alone[lower_rows]
        probabilities.weight_above[lower_rows] = (
            probability_above * slots["propensity"][lower_rows] / slots["prefix"][lower_rows]
        )

    @cached_property
    def probability(self) -> Array:
        """Return the probability of each arm at position 1 in each decision, (d, m)."""
        return plackett_luce.probabilities(self.score, None, **self.options)

    def shares(self, arms: ArmTable) -> tuple[Ids, Array]:
        """Return the place of each of m arms in the order of keys, (m,), and the probability of each arm at position 1
        in each decision, (d, m)."""
        return arms.ranks(self.arms), self.probability

    def log_slates(self, rows: Ids | None = None, *, with_row: bool = True) -> Array:
        """Return the logarithm of the target's probability of the slate down to each of g rows, (g,).

        rows: the indices of the rows, or None for all rows; with_row: whether the slate includes the row itself."""
        rows = np.arange(len(self.indices)) if rows is None else rows
        log_slate = np.full(len(rows), -np.inf)
        for depth in np.unique(self.depth[rows]).tolist():
            lower = np.flatnonzero(self.depth[rows] == depth)
            order, is_possible = self._slate_indices(rows[lower], depth + with_row)
            lower, order = lower[is_possible], order[is_possible]
            decision = self.decision[rows[lower]]
            if order.shape[1] == 1 and len(self.arms) > 1:  # computed before, for the shares
                with np.errstate(divide="ignore"):
                    log_slate[lower] = np.log(self.probability[decision, order[:, 0]])
            else:
                log_slate[lower] = self._log_conditionals(self.score[decision], order).sum(axis=1)
        return log_slate

    def write_steps(self, steps: Array) -> None:
        """Write the target's probability of the arm of each slot, given the slots above.

        steps: the array to write to, with an element for each slot of the batch."""
        index, is_possible = arm_indices(self.arms, self.rows.slots["arm_id"][self.indices][:, None])
        step = max(1, MAX_CELLS // len(self.arms))
        for start in range(0, len(self.indices), step):
            rows = np.arange(start, min(start + step, len(self.indices)))
            probability = self.below_slate(rows)[np.arange(len(rows)), index[rows, 0]]
            steps[self.indices[rows]] = np.where(is_possible[rows], probability, 0.0)

    def at_positions(self, positions: int, *, runs: int, seed: int) -> Array:
        """Return unbiased estimates of the target's probability of showing each row's arm at positions 1 to
        `positions`, (p, positions). The estimates come from simulated slates, since a softmax has no closed marginal
        below position 1. Below the end of the slate the value is 0.

        runs: the number of simulated slates of each decision; seed: the seed of the slates."""
        table, slots = np.zeros((len(self.indices), positions)), self.rows.slots
        index, is_possible = arm_indices(self.arms, slots["arm_id"][self.indices][:, None])
        first_of_decision, words = run_starts(self.decision), np.arange(runs * positions)
        step = max(1, MAX_CELLS // (positions * max(len(self.arms), runs)))
        for start in range(0, len(first_of_decision), step):
            first_rows = self.indices[first_of_decision[start : start + step]]
            score, ids = self.score[start : start + step], slots["decision_digest"][first_rows]
            uniform = uniforms_at(np.full(len(ids), seed, np.uint64), ids, words).reshape(len(ids), runs, positions)
            shares = np.zeros((len(ids), positions, len(self.arms)))
            for run in range(runs):
                drawn_arms = np.empty((len(ids), 0), np.int64)
                for position in range(min(positions, len(self.arms))):
                    probability = self._next_arms(score, drawn_arms)
                    shares[:, position] += probability / runs
                    arm = slate.invert_rows(probability, uniform[:, run, position])
                    drawn_arms = np.column_stack([drawn_arms, arm])
            portion_rows = np.flatnonzero((self.decision >= start) & (self.decision < start + step) & is_possible)
            table[portion_rows] = shares[self.decision[portion_rows] - start, :, index[portion_rows, 0]]
        return np.where(np.arange(positions) < slots["size"][self.indices, None], table, 0.0)

    def _slate_indices(self, rows: Ids, size: int) -> tuple[Ids, Flags]:
        """Return the indices of the top arms of g slates among the eligible arms, (g, size). Return also whether a
        slate is possible, (g,): all its top arms are eligible and differ.

        rows (g,): the index of one row of each slate; size: the number of arms from the top."""
        start = self.rows.slots["start"][self.indices[rows]]
        return arm_indices(self.arms, self.rows.shown_arms[start[:, None] + np.arange(size)])

    def fill_means(self, means: Array, arms: Ids, values: ModelValues) -> None:
        """Write the mean value that a reward model predicts if the target draws the arm of each row, given the slate
        above as it was shown.

        means: the array to write to; arms: the ids of the arms of the catalogue; values: the values of the model."""
        arm_columns, step = np.searchsorted(arms, self.arms), max(1, MAX_CELLS // len(arms))
        for start in range(0, len(self.indices), step):
            portion = np.arange(start, min(start + step, len(self.indices)))
            shares = np.zeros((len(portion), len(arms)))
            shares[:, arm_columns] = self.below_slate(portion)
            rows = self.indices[portion]
            means[rows] = values.means(shares, case=np.arange(len(portion)), rows=rows)

    def below_slate(self, rows: Ids) -> Array:
        """Return the probability of each of m arms at the position of each of g given rows, given the slate above, (g,
        m). If the slate above is not known, this is the probability at position 1."""
        probability = self.probability[self.decision[rows]]
        is_complete = self.rows.slots["complete"][self.indices[rows]]
        deep = np.flatnonzero((self.depth[rows] > 0) & is_complete)
        for depth in np.unique(self.depth[rows[deep]]).tolist():
            lower = deep[self.depth[rows[deep]] == depth]
            slates, is_possible = self._slate_indices(rows[lower], depth)
            lower, slates = lower[is_possible], slates[is_possible]
            probability[lower] = self._next_arms(self.score[self.decision[rows[lower]]], slates)
        return probability

    def _log_conditionals(self, score: Array, slates: Ids) -> Array:
        """Return the logarithm of the probability of each slot of n slates, given the slots above, (n, k).

        score (n, m): the score of each arm; slates (n, k): the indices of the arms of each slate."""
        return plackett_luce.log_conditionals(score, slates, **self.options)

    def _next_arms(self, score: Array, slates: Ids) -> Array:
        """Return the probability of each arm at the position that follows each of n slates, (n, m).

        score (n, m): the score of each arm; slates: the indices of the arms of each slate."""
        is_left = np.ones(score.shape, np.bool_)
        np.put_along_axis(is_left, slates, False, axis=1)
        return plackett_luce.probabilities(score, is_left, **self.options, position=slates.shape[1] + 1)

    def write_support_gap(self, support_gap: Array, batch: LoggedBatch) -> None:
        """Write the target's probability of the arms that had probability 0 under the logger, for rows at position 1.
        At lower positions this probability is not known, and NaN is written. support_gap: the array to write to."""
        slots = self.rows.slots
        is_unknown = slots["unknown_support"][self.indices]
        support_gap[self.indices[is_unknown]] = np.nan
        top_rows = np.flatnonzero(is_unknown & (self.position == 1))
        logger_case = slots["logger_case"][self.indices[top_rows]]
        for number in np.unique(logger_case).tolist():
            zeros = batch.zeros[number]
            if zeros is not None:
                rows = top_rows[logger_case == number]
                arm_columns = columns_of(self.arms, self.indices[rows[0]], slots, batch)
                support_gap[self.indices[rows]] = self.probability[self.decision[rows]] @ zeros[0, arm_columns]


class RuledStateCaseRows(StateCaseRows):
    """A RuledStateCaseRows object is a StateCaseRows object for slates that must keep the same rules. layout: the
    rules."""

    def __init__(
        self, group: EligibleGroup, rows: ImpressionRows, starts: Ids, counts: Ids, options: dict[str, Any],
        layout: PageLayout,
    ) -> None:  # fmt: skip
        super().__init__(group, rows, starts, counts, options)
        self.layout = layout

    @cached_property
    def probability(self) -> Array:
        return self._next_arms(self.score, np.empty((len(self.score), 0), np.intp))

    def _log_conditionals(self, score: Array, slates: Ids) -> Array:
        return rules.log_conditionals(score, self.layout, slates, **self.options)

    def _next_arms(self, score: Array, slates: Ids) -> Array:
        return rules.next_arms(score, self.layout, slates, **self.options)
