"""This module evaluates two-stage targets on a log without lists of candidates. It computes the probability with which
such a target would have shown what the log shows.

The probability is the mean, over all lists, of the second stage's probability given the list. The mean is estimated
from a sample of lists, drawn from the first stage for each case. The estimate is unbiased, since a weight is linear
in this mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from zlib import crc32

import numpy as np

from rlrec.app.evaluation.rows.log_rows import ImpressionRows, LoggedBatch, arms_of_sets
from rlrec.app.evaluation.targets.cases import N_REPLICAS, Block, CaseName, CaseRows
from rlrec.app.evaluation.targets.probabilities import CASES_AT_A_TIME, MAX_CELLS, Scorer
from rlrec.arrays import Array, Flags, Ids, Index
from rlrec.policy.kinds.two_stage import ranking_seeds
from rlrec.policy.scores.families.correlated import Correlated
from rlrec.policy.scores.scores import Scores, cells, subset
from rlrec.policy.slates import list_mixture, slate_draws
from rlrec.policy.slates.list_mixture import ListMixture, SampledLists
from rlrec.store.database.bulk import Columns


class ListBlock(Block, kw_only=False, eq=False):
    """A ListBlock has the distribution of one case, as a mixture over u lists of candidates drawn from the first stage.

    mixture: the lists; weight (u,): the weight of each list; replicas (r, k, m): the probability of each of m arms
    at each of k positions, by the lists of each of r equal parts (replicas) of the sample."""

    mixture: ListMixture = field(kw_only=True)
    weight: Array = field(kw_only=True)
    replicas: Array = field(kw_only=True)

    def take_replica(self, replica: int | None) -> ListBlock:
        if replica is None:
            return self
        shares = self.replicas[replica]
        return replace(self, shares=shares, greatest=shares.max(axis=1), weight=self.mixture.weight[replica])

    @property
    def cells(self) -> int:
        lists = self.mixture.lists
        n_score_cells = (
            0 if isinstance(self.mixture.scores, SampledLists) else len(lists) * cells(self.mixture.scores[0])
        )
        return super().cells + self.replicas.size + self.mixture.weight.size + 2 * lists.size + n_score_cells


@dataclass(eq=False)
class ListScorer(Scorer):
    """A ListScorer computes the probabilities of one two-stage target. list_scorer: the scorer for rows whose list of
    candidates is logged. Given the list, its probabilities are exact."""

    list_scorer: Scorer = field(kw_only=True)

    def has_gap(self, slots: Columns, batch: LoggedBatch) -> Flags:
        return ~(batch.lists.weighable(slots) | self._can_draw_list(slots, batch))

    def _can_draw_list(self, slots: Columns, batch: LoggedBatch) -> Flags:
        """Tell for each row whether no list of candidates is logged, and the target's first stage could draw a list
        long enough for the slate, (n,)."""
        arms = arms_of_sets(slots["eligible_id"], batch.eligible)
        length = self.serving.learner.n_candidates
        return ~batch.lists.has_list(slots) & (arms >= length) & (slots["size"] <= length)

    def replicas(self, slots: Columns, batch: LoggedBatch, *, marginals: bool) -> list[Scorer]:
        replicas: list[Scorer] = self.list_scorer.replicas(slots, batch, marginals=marginals)
        if not replicas and not self._can_draw_list(slots, batch).any():
            return []
        scorers = replicas or [self.list_scorer] * N_REPLICAS
        return [replace(self, replica=number, list_scorer=scorer) for number, scorer in enumerate(scorers)]

    def case_rows(self, rows: ImpressionRows, batch: LoggedBatch, **options: Any) -> Iterator[CaseRows]:
        has_list = np.flatnonzero(batch.lists.has_list(rows.slots))
        yield from self.list_scorer.case_rows(rows, batch, **options | {"subset": has_list})
        deepest = rows.slots["depth"] < self.serving.learner.n_candidates
        list_rows = np.flatnonzero(self._can_draw_list(rows.slots, batch) & deepest)
        yield from super().case_rows(rows, batch, **options | {"subset": list_rows})

    def _cases_at_a_time(self, cases: Ids, *, models: bool) -> int:
        return min(
            CASES_AT_A_TIME,
            max(1, MAX_CELLS // (N_REPLICAS * int(cases[:, 2].max(initial=1)) * max(1, len(self.arms)))),
        )

    def _compute_blocks(
        self,
        case_scores: Mapping[CaseName, Scores],
        size: int,
        batch: LoggedBatch,
        context_by_name: Mapping[str, Mapping[str, Any]],
    ) -> Iterator[Block]:
        for (eligible, revision, _, context), scores in case_scores.items():
            arms = batch.eligible[eligible]
            mixture = self._mixture(scores, eligible, arms, revision, context_by_name[context], name=context)
            replicas = mixture.marginals(size)
            shares = replicas.mean(axis=0)
            yield ListBlock(
                arms, scores, mixture.floor, shares, shares.max(axis=1), mixture=mixture,
                weight=mixture.weight.mean(axis=0), replicas=replicas,
            )  # fmt: skip

    def _mixture(
        self, scores: Scores, eligible: int, arms: Ids, revision: int, context: Mapping[str, Any], *, name: str
    ) -> ListMixture:
        """Draw lists of candidates from the first stage for a case, and return them with the second stage's scores. The
        seed and the order of arms do not depend on ids, so that every store draws the same lists.

        scores: the second stage's scores of all arms; eligible: the id of the eligible set; arms: the ids of its
        arms; revision: the revision of the catalogue; name: the name of the context."""
        keys, serving = self.arms.keys, self.serving
        order = np.argsort(self.arms.ranks(arms))
        arms_digest = crc32("\n".join(keys[arm] for arm in arms[order].tolist()).encode())
        (seed,) = np.random.SeedSequence([self.seed, crc32(name.encode()), arms_digest]).generate_state(1, np.uint64)
        # lists from the first stage
        first_stage = serving.candidates(eligible, arms, context, keys=keys, revision=revision)
        draw_numbers = np.arange(N_REPLICAS * -(-self.samples // N_REPLICAS))
        sample = slate_draws.draw(
            subset(first_stage.scores, order), size=serving.learner.n_candidates, floor=first_stage.floor,
            seeds=np.full(len(draw_numbers), seed, np.uint64), decisions=draw_numbers, with_marginals=False,
        )  # fmt: skip
        lists = np.sort(order[sample.slates], axis=1)
        # the second stage given each list
        if isinstance(scores, Correlated):
            weight = (draw_numbers % N_REPLICAS == np.arange(N_REPLICAS)[:, None]) * (N_REPLICAS / len(draw_numbers))
            sampled_lists = SampledLists(scores, lists, seed=int(ranking_seeds(np.array([seed]))[0]))
            return ListMixture(len(arms), lists, weight, sampled_lists, serving.policy.exploration)
        lists, weight = list_mixture.distinct_lists(lists, draw_numbers % N_REPLICAS, N_REPLICAS)
        if not serving.policy.compares_arms:
            return ListMixture(
                len(arms), lists, weight, list_mixture.scores_of_lists(scores, lists), serving.policy.exploration
            )
        list_scores = [
            serving.scores(tuple(candidates.tolist()), candidates, [context], keys=keys, revision=revision)[0]
            for candidates in arms[lists]
        ]
        return ListMixture(len(arms), lists, weight, list_scores, serving.policy.exploration)

    def _case_rows(
        self, blocks: list[Block], case: Ids, indices: Ids, rows: ImpressionRows, *, joint: bool
    ) -> Iterator[CaseRows]:
        yield ListCaseRows([block.take_replica(self.replica) for block in blocks], case, indices, rows)


class ListCaseRows(CaseRows):
    """A ListCaseRows object has the rows of a batch that belong to given cases of a target that draws lists of
    candidates."""

    @property
    def samples(self) -> int:
        return 0

    def conditionals(self, deep: Ids) -> Iterator[tuple[Ids, Array]]:
        depth = self.rows.slots["depth"][self.indices[deep]]
        for group, blocks, case, order, length in self.slates(deep, depth + 1):
            joint = np.zeros((len(order), order.shape[1] + 1))
            joint[:, 0] = 1.0
            for block, rows in _rows_by_block(blocks, case):
                joint[rows, 1:] = block.mixture.joint_probabilities(order[rows], block.weight)
            joint[:, 1:][np.arange(order.shape[1]) >= length[:, None]] = 0.0
            joint_above = joint[:, :-1]
            yield group, np.divide(joint[:, 1:], joint_above, out=np.zeros_like(joint_above), where=joint_above > 0)

    def _each_position(
        self, blocks: list[Block], case: Index, order: Index
    ) -> Iterator[tuple[Index, int, Array, Index]]:
        for block, rows in _rows_by_block(blocks, case):
            for prefix_rows, position, probability, prefix in block.mixture.each_position(order[rows], block.weight):
                yield rows[prefix_rows], position, probability, prefix


def _rows_by_block(blocks: list[Block], case: Index) -> Iterator[tuple[ListBlock, Index]]:
    """Yield each block that has slates, with the indices of these slates. case: the index of each slate's block."""
    for number, block in enumerate(blocks):
        assert isinstance(block, ListBlock)
        rows = np.flatnonzero(case == number)
        if len(rows):
            yield block, rows
