"""This module has the cases for which a target's distribution is computed, and the rows of a log that belong to them. A
case is a set of decisions that share one distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rlrec.app.evaluation.rows.log_rows import ArmTable, ImpressionRows, LoggedBatch
from rlrec.arrays import Array, Flags, Ids, Index, distinct, look_up, offsets, rows_by_kind, run_starts
from rlrec.policy.scores.floors import Floor
from rlrec.policy.scores.scores import Scores, cells
from rlrec.policy.slates import slate
from rlrec.records import Record
from rlrec.store.database.bulk import Columns

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import ModelValues

N_REPLICAS = 8  # parts that simulated pages are cut into, to estimate the error of the simulation
CASE_OVERHEAD = 200  # numbers that a case stores beside its arrays, about

CaseName = tuple[int, int, int, str]  # eligible set, revision of the catalogue, positions, context
Draw = tuple[int, int]  # the seed and the number that identify random words


class Block(Record, kw_only=False, eq=False):
    """A Block has the distribution of one case (decisions that share one distribution). arms (m,): the id of each arm;
    shares (k, m): the probability of each arm at each position; greatest (k,): the largest probability at each
    position.

    If scores are correlated, every decision is a case of its own, with samples that its `draw` (a seed and a number)
    determines. At the first `n_conditional` positions, `shares` are then conditional probabilities given the slate
    above as it was shown, and `greatest` is an upper bound of the probability of any slate down to the position."""

    arms: Ids
    scores: Scores
    floor: Floor
    shares: Array
    greatest: Array
    simulate: Callable[[], Array] | None = None
    name: CaseName | None = None
    draw: Draw | None = None
    n_conditional: int = 0

    def take_replica(self, replica: int | None) -> Block:
        """Return the same case with shares from simulated slates, for shares that have no closed form.

        replica: the number of the equal part (replica) of the simulated slates to use, or None for all of them."""
        shares = self._replicas.mean(axis=0) if replica is None else self._replicas[replica]
        return Block(self.arms, self.scores, self.floor, shares, shares.max(axis=1))

    @property
    def drawn_scores(self) -> Scores:
        """Return the scores of the case. If the case is one decision with a `draw`, return the samples of scores that
        it drew."""
        return self.scores if self.draw is None else self.scores.decision_scores(*self.draw)

    @cached_property
    def _replicas(self) -> Array:
        """Return the probability of each arm at each position in each of r equal parts of the simulated slates, (r, k,
        m)."""
        assert self.simulate is not None
        return self.simulate()

    @property
    def cells(self) -> int:
        n_simulated_cells = 0 if self.simulate is None else N_REPLICAS * len(self.shares) * len(self.arms)
        scores = getattr(self.scores, "scores", self.scores)  # the scores under rules
        return CASE_OVERHEAD + len(self.arms) + self.shares.size + cells(scores) + n_simulated_cells


class TargetProbabilities(Record, kw_only=False, eq=False):
    """This record has a target's probabilities on the n rows of a batch. Each array has the shape (n,).

    is_prefix: whether the row is weighted by the slate down to the row, not by its slot alone; target: the
    probability of the arm shown at its position or, if `is_prefix`, of the slate down to the row; greatest: the
    largest probability of any arm; support_gap: the probability of arms that the logger could not show; means: the
    mean of the reward model under the target; weight_above: the weight of the slate above, if `means` is a mean
    given that slate, else 1."""

    is_prefix: Flags
    target: Array
    greatest: Array
    support_gap: Array
    means: Array
    weight_above: Array


def complement(probability: Array) -> Array:
    """Return one minus each probability, where probabilities above 1 count as 1, (n,)."""
    return 1 - np.minimum(probability, 1.0)


DecisionName = tuple[CaseName | None, Draw, bytes]  # its case, its draw, and the slate above its lowest row


def decision_block(
    block: Block, rows: ImpressionRows, row: int, draw: Draw, share_cache: dict[DecisionName, Array]
) -> Block:
    """Return the distribution of one decision, from the samples that its draw determines. The shares are conditional on
    the slate above. If the slate above is not known, the shares at position 1 stand for all positions.

    block: the case of the decision; row: the lowest row of the decision; draw: the seed and the number of its
    samples; share_cache: the shares of decisions computed before."""
    slots, decision = rows.slots, replace(block, draw=draw)
    start = int(slots["start"][row])
    order, length = possible_slates(block.arms, rows.shown_arms[None, start : start + int(slots["depth"][row])])
    slate_above = order[0, : length[0]] if slots["complete"][row] else order[0, :0]
    decision_name, n_conditional = (block.name, draw, slate_above.tobytes()), len(slate_above) + 1
    if decision_name not in share_cache:
        scores = decision.drawn_scores
        conditional_probabilities = [
            slate.remaining(scores, slate_above[:depth], floor=block.floor) for depth in range(n_conditional)
        ]
        share_cache[decision_name] = np.array(
            [*conditional_probabilities, *[conditional_probabilities[-1]] * (len(block.shares) - n_conditional)]
        )
    shares = share_cache[decision_name]
    return replace(decision, shares=shares, greatest=np.full(len(shares), shares[0].max()), n_conditional=n_conditional)


def ruled_rows(blocks: list[Block], case: Ids, indices: Ids, rows: ImpressionRows, *, cells: int) -> Iterator[CaseRows]:
    """Yield the rows of slates with rules, grouped by case. Here, decisions belong to the same case only if the slates
    above their lowest rows are also equal.

    blocks: the cases without the slate above; case: the index of each row's block; indices: the index of each row in
    the batch; cells: the number of probabilities that may be in memory at a time."""
    from rlrec.policy.slates.rules import RuledScores

    # the lowest row of each decision represents it
    order = np.argsort(-rows.slots["depth"][indices], kind="stable")
    indices, case = indices[order], case[order]
    first_rows, decision = distinct(rows.slots["decision_id"][indices])
    lowest_rows, lowest_case = indices[first_rows], case[first_rows]
    deepest = np.minimum(rows.slots["depth"], rows.slots["size"] - 1)[lowest_rows]
    n_above = np.where(rows.slots["complete"][lowest_rows], deepest, 0)
    for members in rows_by_kind(lowest_case, n_above):
        block, depth = blocks[int(lowest_case[members[0]])], int(n_above[members[0]])
        assert isinstance(block.scores, RuledScores)
        shown_arms = rows.shown_arms[rows.slots["start"][lowest_rows[members]][:, None] + np.arange(depth)]
        slates, _ = possible_slates(block.arms, shown_arms)
        distinct_slates, slate_number = (
            distinct(*slates.T) if depth else (np.zeros(1, np.intp), np.zeros(len(members), np.intp))
        )
        size = len(block.greatest)
        step = max(1, cells // (size * len(block.arms)))
        for start in range(0, len(distinct_slates), step):
            shares = block.scores.order(size).steps(slates[distinct_slates[start : start + step]], size=size)
            greatest = shares[:, 0].max(axis=1)
            slate_blocks = [
                Block(block.arms, block.scores, 0.0, table, np.full(size, bound), n_conditional=depth + 1)
                for table, bound in zip(shares, greatest.tolist(), strict=True)
            ]
            block_number = np.full(len(first_rows), -1)
            block_number[members] = np.where(
                (slate_number >= start) & (slate_number < start + step), slate_number - start, -1
            )
            portion_rows = np.flatnonzero(block_number[decision] >= 0)
            yield CaseRows(
                slate_blocks,
                block_number[decision[portion_rows]],
                indices[portion_rows],
                rows,
                per_decision_samples=True,
            )


def arm_indices(arms: Ids, slates: Ids, *, case: Index | None = None) -> tuple[Index, Flags]:
    """Return the index of each slate's arms among the given arms, (n, k). Return also whether a slate is possible,
    (n,): all its arms are among the given arms and differ from each other.

    arms: the given arms, ascending, (m,), or the given arms of each of u cases, (u, m); slates (n, k): the arms of n
    slates; case (n,): the case of each slate."""
    case = np.zeros(len(slates), np.intp) if case is None else case
    arms, stride = np.atleast_2d(arms), max(int(arms[..., -1].max()), int(slates.max(initial=0))) + 1
    keys, shown_keys = (np.arange(len(arms))[:, None] * stride + arms).ravel(), case[:, None] * stride + slates
    (index, exists), sorted_slates = look_up(keys, shown_keys), np.sort(slates, axis=1)
    is_possible = exists.all(axis=1) & (sorted_slates[:, 1:] != sorted_slates[:, :-1]).all(axis=1)
    return np.minimum(index - case[:, None] * arms.shape[1], arms.shape[1] - 1), is_possible


def possible_slates(arms: Ids, slates: Ids, *, case: Index | None = None) -> tuple[Index, Ids]:
    """Return the index of each slate's arms among the given arms, (n, k), and how many arms from the top of each slate
    can be shown, (n,). With one more arm, the slate has probability 0. Indices below are of other arms, as
    placeholders.

    arms: the given arms, ascending, (m,), or the given arms of each of u cases, (u, m); slates (n, k): the arms of n
    slates; case (n,): the case of each slate."""
    order, is_possible = arm_indices(arms, slates, case=case)
    n, k = slates.shape
    length, impossible = np.full(n, k), np.flatnonzero(~is_possible)
    if not len(impossible):
        return order, length
    row_case = None if case is None else np.repeat(case[impossible], k)
    _, is_eligible = arm_indices(arms, slates[impossible].reshape(-1, 1), case=row_case)
    length[impossible] = (~is_eligible.reshape(-1, k)).argmax(axis=1)  # 0 where an arm occurs twice
    indices, is_shown = order[impossible], np.arange(k) < length[impossible, None]
    # fill the positions below with the first arms that do not stand above
    is_used = (np.where(is_shown, indices, -1)[:, :, None] == np.arange(k)).any(axis=1)
    arms_by_use = np.argsort(is_used, axis=1, kind="stable")
    rank = np.maximum(np.arange(k) - length[impossible, None], 0)
    order[impossible] = np.where(is_shown, indices, np.take_along_axis(arms_by_use, rank, axis=1))
    return order, length


def columns_of(arms: Ids, row: int, slots: Columns, batch: LoggedBatch) -> Index:
    """Return the index of each given arm among all eligible arms of a row, (m,).

    arms: the arms that a target may show, ascending."""
    return np.searchsorted(batch.eligible[int(slots["eligible_id"][row])], arms)


class CaseRows:
    """A CaseRows object has the p rows of a batch that belong to given cases. blocks: the distributions of the cases;
    indices (p,): the index of each row in the batch; case (p,): the index of each row's block.

    per_decision_samples: whether the shares are computed from samples of each decision, given the slate above;
    second_pass: whether the rows were yielded before with simulated marginals (see `Scorer.probabilities`)."""

    def __init__(
        self, blocks: list[Block], case: Ids, indices: Ids, rows: ImpressionRows, *, per_decision_samples: bool = False,
        second_pass: bool = False,
    ) -> None:  # fmt: skip
        self.per_decision_samples, self.second_pass = per_decision_samples, second_pass
        self.blocks, self.case, self.indices, self.rows = blocks, case, indices, rows
        self.arm, self.position = rows.slots["arm_id"][indices], rows.slots["position"][indices]
        arms = np.array([len(block.arms) for block in blocks])
        length = np.array([len(block.greatest) for block in blocks])
        # the index of each row's share in the shares of all blocks: block, position, arm
        self.is_inside = self.position <= length[case]
        position_index = np.where(self.is_inside, self.position, 1) - 1
        stride = max(int(self.arm.max(initial=0)), *(int(block.arms[-1]) for block in blocks)) + 1
        keys = np.concatenate([number * stride + block.arms for number, block in enumerate(blocks)])
        index, self.is_eligible = look_up(keys, case * stride + self.arm)
        self.arm_index = np.where(self.is_eligible, index - offsets(arms)[case], 0)
        self._shares = np.concatenate([block.shares.ravel() for block in blocks])
        greatest = np.concatenate([block.greatest for block in blocks])
        self._top, self._stride, self._length = offsets(arms * length)[case] + self.arm_index, arms[case], length[case]
        self.target = np.where(
            self.is_inside & self.is_eligible, self._shares[self._top + position_index * self._stride], 0.0
        )
        self.greatest = np.where(self.is_inside, greatest[offsets(length)[case] + position_index], 0.0)

    def at_positions(self, positions: int) -> Array:
        """Return the target's probability of showing each row's arm at positions 1 to `positions`, (p, positions). The
        value is 0 below the end of the row's slate, and NaN where the probability has no closed form."""
        table = np.zeros((len(self.indices), positions))
        for position in range(positions):
            is_inside = self.is_eligible & (position < self._length)
            table[is_inside, position] = self._shares[self._top[is_inside] + position * self._stride[is_inside]]
        if self.per_decision_samples:
            table[:, 1:] = np.nan
        return table

    def weigh(self, probabilities: TargetProbabilities) -> None:
        """Write the target's probability of each row into the arrays of the batch. If a row is weighted by the slate
        down to it, this is the probability of that slate. Rows below position 1 are weighted so if probabilities come
        from samples. If the arm shown was the only possible arm, all other arms count as arms that the logger could not
        show.

        probabilities: the arrays of the batch, to which this method writes."""
        is_alone = self.rows.slots["alone"]
        probabilities.target[self.indices], probabilities.greatest[self.indices] = self.target, self.greatest
        probabilities.support_gap[self.indices] = complement(self.target) * is_alone[self.indices]
        if self.per_decision_samples:
            probabilities.is_prefix[self.indices] |= self.position > 1
        by_prefix = probabilities.is_prefix[self.indices] & ~np.isnan(self.rows.slots["prefix"][self.indices])
        slots = self.rows.slots
        for group, steps in self.conditionals(np.flatnonzero(by_prefix & self.has_above)):
            rows = self.indices[group]
            probabilities.target[rows] = steps.prod(axis=1)
            probabilities.support_gap[rows] = complement(steps[:, -1]) * is_alone[rows]
            if self.per_decision_samples:  # their shares are given the slots above
                logged_above = slots["prefix"][rows] / slots["propensity"][rows]
                probabilities.weight_above[rows] = steps[:, :-1].prod(axis=1) / logged_above

    @property
    def samples(self) -> int:
        """Return the number of samples that represent the scores, or 0 if the probabilities at each position are known.
        Rules for slates without a closed form count as 1 sample."""
        return self.blocks[0].scores.samples or int(self.per_decision_samples)

    @property
    def has_above(self) -> Flags:
        """Tell for each row whether its slate has rows above it, (p,)."""
        return self.rows.slots["depth"][self.indices] > 0

    def log_slates(self) -> Array:
        """Return the logarithm of the target's probability of the slate down to each row, (p,)."""
        with np.errstate(divide="ignore"):
            log_slate: Array = np.log(np.minimum(self.target, 1.0))
            for group, steps in self.conditionals(np.flatnonzero(self.has_above)):
                log_slate[group] = np.log(steps).sum(axis=1)
        return log_slate

    def conditionals(self, deep: Ids) -> Iterator[tuple[Ids, Array]]:
        """Yield the given rows in groups of equal depth. With the indices of g rows, (g,), yield the target's
        probability of the arm at each position from the top down to the row, given the arms above, (g, depth + 1). It
        is 0 if the target cannot show the arm. deep: the indices of the rows among these p rows."""
        depth = self.rows.slots["depth"][self.indices[deep]]
        for group, blocks, case, order, length in self.slates(deep, depth + 1):
            position = np.arange(order.shape[1])
            n_conditional = np.array([block.n_conditional for block in blocks])[case]
            if n_conditional.all() and (n_conditional >= length).all():  # shares are given the slate above
                first_share, row = (self._top - self.arm_index)[group], np.minimum(position, n_conditional[:, None] - 1)
                steps = self._shares[first_share[:, None] + row * self._stride[group, None] + order]
                steps = slate.mix_floor(steps, 0.0, len(blocks[0].arms) - position)
            else:  # cases that share scores may differ in the slate above
                numbers: dict[tuple[int, Draw | None], int] = {}
                names = [(id(block.scores), block.draw) for block in blocks]
                number = np.array([numbers.setdefault(name, len(numbers)) for name in names])
                scores = [blocks[row].drawn_scores for row in distinct(number)[0].tolist()]
                steps = slate.conditionals_each(scores, number[case], order, floor=blocks[0].floor)
            yield group, np.where(position < length[:, None], steps, 0.0)

    def slates(self, lowest: Ids, length: Ids) -> Iterator[tuple[Ids, list[Block], Index, Index, Ids]]:
        """Group the given rows by the length of the slate and the number of eligible arms. For each group, yield five
        values: the g rows, their blocks, the index of each row's block, the indices of the arms of each slate, (g,
        length), and how many arms from the top of each slate can be shown, (g,).

        lowest: the indices of the rows, each the lowest of its slate; length: the length of each row's slate."""
        start = self.rows.slots["start"][self.indices]
        first_rows, kind_number = distinct(length, self._stride[lowest])
        for number, size in enumerate(length[first_rows].tolist()):
            group = lowest[kind_number == number]
            used_cases, case = np.unique(self.case[group], return_inverse=True)
            blocks = [self.blocks[block_number] for block_number in used_cases.tolist()]
            slates = self.rows.shown_arms[start[group][:, None] + np.arange(size)]
            yield group, blocks, case, *possible_slates(np.array([block.arms for block in blocks]), slates, case=case)

    def write_steps(self, steps: Array) -> None:
        """Write the target's probability of the arm of each slot, given the slots above.

        steps: the array to write to, with an element for each slot of the batch."""
        if self.per_decision_samples:  # the target's probabilities are given the slots above
            steps[self.indices] = self.target
        if self.samples:
            return
        lowest = self._lowest
        is_alone = lowest[~self.has_above[lowest]]
        steps[self.indices[is_alone]] = self.target[is_alone]
        for group, conditionals in self.conditionals(lowest[self.has_above[lowest]]):
            steps[self.indices[group][:, None] - np.arange(conditionals.shape[1])[::-1]] = conditionals

    def write_steps_and_means(self, steps: Array, means: Array, arms: Ids, values: ModelValues) -> None:
        """Write the target's probability of the arm of each slot, given the slots above. Write also the mean value that
        a reward model predicts if the target draws the arm of the slot.

        steps, means: the arrays to write to; arms: the ids of the arms of the catalogue; values: the values of the
        model."""
        lowest = self._lowest
        size = self.rows.slots["size"][self.indices[lowest]]
        for group, blocks, case, order, length in self.slates(lowest, size):
            slots = self.indices[group][:, None] - np.arange(order.shape[1])[::-1]
            columns = np.searchsorted(arms, [block.arms for block in blocks])
            for rows, position, probability, prefix in self._each_position(blocks, case, order):
                row = slots[rows, position]
                steps[row] = np.where(position < length[rows], probability[prefix, order[rows, position]], 0.0)
                shares = np.zeros((len(probability), len(arms)))
                shares[np.arange(len(shares))[:, None], columns[case[rows[run_starts(prefix)]]]] = probability
                means[row] = values.means(shares, case=prefix, rows=row)

    @property
    def _lowest(self) -> Index:
        """Return the indices of the rows at the last position of their slates."""
        return np.flatnonzero(self.rows.slots["depth"][self.indices] + 1 == self.rows.slots["size"][self.indices])

    def _each_position(
        self, blocks: list[Block], case: Index, order: Index
    ) -> Iterator[tuple[Index, int, Array, Index]]:
        """Yield the probability of every arm at each position of n slates of k positions, in the form of
        `slate.each_position`.

        case (n,): the index of each slate's block; order (n, k): the indices of the arms of each slate."""
        return slate.each_position([block.scores for block in blocks], case, order, floor=blocks[0].floor)

    def shares(self, arms: ArmTable) -> tuple[Ids, Array]:
        """Return the place of each arm of the catalogue in the order of keys, (arms,), and the probability of each arm
        at position 1 in each case, (blocks, arms)."""
        shares = np.zeros((len(self.blocks), len(arms)))
        for row, block in enumerate(self.blocks):
            shares[row, arms.index(block.arms)] = block.shares[0]
        return arms.rank, shares

    def fill_means(self, means: Array, arms: Ids, values: ModelValues) -> None:
        """Write the mean value that a reward model predicts if the target draws the arm at the position of each row.

        means: the array to write to; arms: the ids of the arms of the catalogue; values: the values of the model."""
        first_rows, pair = distinct(self.case, self.position)
        shares = np.zeros((len(first_rows), len(arms)))
        for row, (case, position) in enumerate(zip(self.case[first_rows], self.position[first_rows], strict=True)):
            block = self.blocks[case]
            if position <= len(block.shares):
                shares[row, np.searchsorted(arms, block.arms)] = block.shares[position - 1]
        means[self.indices] = values.means(shares, case=pair, rows=self.indices)

    def write_support_gap(self, support_gap: Array, batch: LoggedBatch) -> None:
        """Write the target's probability of the arms that had probability 0 under the logger. Only rows are written for
        which the logger's belief must tell which arms these are. support_gap: the array to write to."""
        slots = self.rows.slots
        unknown_rows = np.flatnonzero(slots["unknown_support"][self.indices] & self.is_inside)
        logger_case = slots["logger_case"][self.indices[unknown_rows]]
        for number in np.unique(logger_case).tolist():
            group = unknown_rows[logger_case == number]
            zeros = batch.zeros[number]
            if zeros is None:
                support_gap[self.indices[group]] = np.nan
                continue
            for case in np.unique(self.case[group]).tolist():  # the target may depend on more than the logger
                rows, block = group[self.case[group] == case], self.blocks[case]
                arm_columns = columns_of(block.arms, self.indices[rows[0]], slots, batch)
                zero_mass = (block.shares * zeros[:, arm_columns]).sum(axis=1)
                support_gap[self.indices[rows]] = np.minimum(zero_mass[self.position[rows] - 1], 1.0)
