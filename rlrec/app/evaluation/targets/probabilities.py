"""This module computes the probability with which a target would have shown what the log shows.

A row is scored with the arms that were eligible and the context at its time, not with today's catalogue. Each
distinct case is computed once, and the values of the rows are found by array indexing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import numpy as np

from rlrec.app.distributions.exact import VersionDistribution
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.log_rows import ArmTable, ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.cases import (
    CASE_OVERHEAD,
    N_REPLICAS,
    Block,
    CaseName,
    CaseRows,
    DecisionName,
    TargetProbabilities,
    decision_block,
    ruled_rows,
)  # fmt: skip
from rlrec.app.evaluation.targets.targets import Target
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Flags, Ids, distinct, take
from rlrec.errors import InputError
from rlrec.ope.sums.base import LogBatch
from rlrec.policy.contexts.statements import GROUPS, by_arm
from rlrec.policy.scores.scores import Scores, subset
from rlrec.policy.slates import slate, slate_draws
from rlrec.store.database.bulk import Columns

if TYPE_CHECKING:
    from rlrec.app.evaluation.models.reward_models import ModelValues, TargetSlates
    from rlrec.policy.kinds.fixed import Scored
    from rlrec.policy.scores.families.correlated import Correlated
    from rlrec.policy.slates.rules import RuledScores

MAX_REFUSALS = 10_000  # cached results of whether rules can be satisfied
CASES_AT_A_TIME = 100  # computed at a time
MAX_CELLS = 4_000_000  # numbers in memory at a time, for cases and for their values under a reward model
NARROWED_OFFSET = 1 << 60  # added to the number of an eligible set, to name the arms of it that the target may show
MAX_CACHED = 8_000_000  # numbers of computed cases that are cached from batch to batch


@dataclass(eq=False)
class Scorer:
    """A Scorer computes the probabilities of one target, and caches the cases that it has computed.

    samples: the number of slates to simulate if marginals have no closed form. If this number is 0, rows without a
    marginal are weighted by the slate down to the row. seed: the seed of these slates; replica: the number of the
    part of the simulated slates to use, or None for all of them."""

    target: Target
    arms: ArmTable
    samples: int = 0
    seed: int = 0
    replica: int | None = None
    _blocks: dict[CaseName, Block] = field(default_factory=dict)
    _cells: int = 0
    _refusals: dict[tuple[object, ...], bool] = field(default_factory=dict)
    _narrow_sets: dict[int, Ids] = field(default_factory=dict)
    _drawn_shares: dict[DecisionName, Array] = field(default_factory=dict)

    def describe(self, batch: LoggedBatch) -> None:
        """Load the features of arms that hold only for single decisions of a batch."""
        serving = self.target.serving
        for arm_features in (
            serving and serving.arm_features,
            serving and serving.trained_model and serving.trained_model.arm_features,
        ):
            if arm_features:
                arm_features.logged_features = batch.features

    def log_batch(self, rows: ImpressionRows, batch: LoggedBatch, values: ModelValues | None) -> LogBatch:
        """Return the rows as a batch for the estimators that use one row for each impression.

        A weight is the target's marginal at the position shown, divided by the logger's marginal. If one of these
        marginals is unknown, the weight is the ratio of the probabilities of the slate down to the row.

        values: the values that a reward model predicts, or None."""
        slots, predictions = rows.slots, None if values is None else values.predictions
        shared_columns: dict[str, Any] = {
            "reward": rows.reward, "cluster": slots["cluster"], "predicted": predictions, "default": rows.default,
            "count": reward_log.sampling_counts(slots),
        }  # fmt: skip
        if not self.target.is_weighed:  # what it showed is a sample of its own distribution
            ones, zeros = np.ones(len(rows)), np.zeros(len(rows))
            return LogBatch(
                **shared_columns, propensity=ones, target=ones, expected=predictions, largest=ones, unsupported=zeros
            )
        probabilities = self.probabilities(rows, batch, values)
        smallest_prefix = np.where(slots["smallest_prefix"] > 0, slots["smallest_prefix"], np.nan)
        log_batch = LogBatch(
            **shared_columns, propensity=np.where(probabilities.is_prefix, slots["prefix"], slots["marginal"]),
            target=np.minimum(probabilities.target, 1.0), unsupported=probabilities.support_gap,
            expected=None if values is None else probabilities.weight_above * probabilities.means,
            largest=probabilities.greatest / np.where(probabilities.is_prefix, smallest_prefix, slots["smallest"]),
        )  # fmt: skip
        ratio = self.list_ratio(slots, batch)
        return log_batch if ratio is None else _reweigh_by_lists(log_batch, ratio)

    def replicas(self, slots: Columns, batch: LoggedBatch, *, marginals: bool) -> list[Scorer]:
        """Return a scorer for each part (replica) of the target's simulated slates. Decisions with equal contexts share
        simulated slates. The list is empty if no row has a simulated probability.

        marginals: whether weights may be ratios of marginals."""
        # arms with one shared posterior have no closed form below position 1
        shares_scores = self.target.is_sampled and getattr(self.serving.policy, "model", "") in ("shared", "hybrid")
        if not marginals or not shares_scores or not (self._is_simulated(slots) & ~self._has_rules(slots, batch)).any():
            return []
        return [replace(self, replica=number) for number in range(N_REPLICAS)]

    def list_ratio(self, slots: Columns, batch: LoggedBatch) -> Array | None:
        """Return for each row the logarithm of a ratio, (n,): the target's probability of the decision's list of
        candidates, divided by the logger's. The result is None if all values are 0."""
        if self.target.serving is None:
            return None
        return batch.lists.log_ratio(self.serving, slots, batch.contexts, keys=self.arms.keys)

    def has_gap(self, slots: Columns, batch: LoggedBatch) -> Flags:
        """Tell for each row whether the target has no probability, since the list of candidates, the session state or
        the scores that it needs are unknown, (n,)."""
        return ~batch.lists.weighable(slots) & self.target.draws_candidates

    def eligible_sets(self, slots: Columns, batch: LoggedBatch) -> Ids:
        """Return the number of the set of arms that the target may show in each row, (n,). In decisions of other
        policies, this is the eligible set without the arms that the target's rules take away. `arms_of` returns the
        arms of a number."""
        numbers: Ids = slots["eligible_id"]
        if self.target.arm_lists is None or self.target.draws_candidates:
            return numbers
        is_narrowed = slots["policy_id"] != self.target.policy_id
        for number in np.unique(numbers[is_narrowed]).tolist():
            if number + NARROWED_OFFSET not in self._narrow_sets:
                remaining_arms = self.target.arm_lists.keep_allowed(batch.eligible[number].tolist())
                self._narrow_sets[number + NARROWED_OFFSET] = np.array(remaining_arms, np.int64)
        return np.where(is_narrowed, numbers + NARROWED_OFFSET, numbers)

    def arms_of(self, number: int, batch: LoggedBatch) -> Ids:
        """Return the arms of a set, ascending. number: the number of the set, as `eligible_sets` returns it."""
        return self._narrow_sets[number] if number in self._narrow_sets else batch.eligible[number]

    def refuses_page(self, slots: Columns, batch: LoggedBatch) -> Flags:
        """Tell for each row whether the target cannot make the slate, (n,). This is so if the rules of the target and
        of the request contradict each other or leave too few arms. It is also so if the target's lists of allowed arms
        leave out arms that a rule of the request names."""
        is_refused, serving = self._short_of_arms(slots, batch), self.target.serving
        if serving is None or not self.target.is_weighed:
            return is_refused
        has_rules = self._has_rules(slots, batch)
        if not has_rules.any():
            return is_refused
        codes, contexts = batch.contexts.reading(self.target.fields_read)
        revision = slots["catalogue_revision"] * serving.reads_catalogue(contexts)
        size = np.maximum(slots["size"], slots.get("depth", 0) + 1)  # a row that stands for its slate has no other size
        sets, has_rules = self.eligible_sets(slots, batch), has_rules & ~is_refused
        columns = np.column_stack([sets, revision, size, codes[slots["context"]]])[has_rules]
        first_rows, case = distinct(*columns.T)
        refusals = [
            self._refuses(numbers, contexts[context], batch) for *numbers, context in columns[first_rows].tolist()
        ]
        is_refused[has_rules] = np.array(refusals, np.bool_)[case]
        return is_refused

    def _has_rules(self, slots: Columns, batch: LoggedBatch) -> Flags:
        """Tell for each row whether the request or the target has rules for the slate, (n,)."""
        return batch.contexts.have_rules[slots["context"]] | bool(self.serving.page_rules({}))

    def _short_of_arms(self, slots: Columns, batch: LoggedBatch) -> Flags:
        """Tell for each row whether its slate, which another policy served, has more positions than the target has arms
        to show, (n,)."""
        if self.target.arm_lists is None or self.target.draws_candidates:
            return np.zeros(len(slots["context"]), np.bool_)
        size, has_sets = np.maximum(slots["size"], slots.get("depth", 0) + 1), log_rows.slot_set_flags(slots)
        if has_sets is not None:
            slots = {**slots, "eligible_id": np.where(has_sets, slots[log_rows.SLOT_SET], slots["eligible_id"])}
            size = np.where(has_sets, 1, size)
        numbers, row_set = np.unique(self.eligible_sets(slots, batch), return_inverse=True)
        n_arms = np.array([len(self.arms_of(number, batch)) for number in numbers.tolist()])
        return n_arms[row_set] < size

    def _refuses(self, numbers: Sequence[int], context: Mapping[str, Any], batch: LoggedBatch) -> bool:
        """Tell whether the target cannot make a slate in a context.

        numbers: the number of the eligible set, the revision of the catalogue, and the length of the slate."""
        (eligible, revision, size), refusal_key = numbers, (*numbers, repr(context))
        if refusal_key not in self._refusals:
            if len(self._refusals) > MAX_REFUSALS:
                self._refusals.clear()
            arms = self.arms_of(eligible, batch)
            try:
                layout = self.serving.layout(eligible, arms, context, keys=self.arms.keys, revision=revision)
                if layout is not None:
                    layout.check(min(size, len(arms)))
                self._refusals[refusal_key] = self._leaves_out_named(eligible, context, batch)
            except InputError:
                self._refusals[refusal_key] = True
        return self._refusals[refusal_key]

    def _leaves_out_named(self, number: int, context: Mapping[str, Any], batch: LoggedBatch) -> bool:
        """Tell whether the target's lists of allowed arms leave out arms that a rule of the request names. A policy
        that serves refuses such a request. number: the number of the set of arms, as `eligible_sets` returns it."""
        if number not in self._narrow_sets:
            return False
        sets, groups = (self._narrow_sets[number], batch.eligible[number - NARROWED_OFFSET]), context.get(GROUPS, {})
        keys, all_keys = ({self.arms.keys[arm] for arm in arms.tolist()} for arms in sets)
        pages = [page for page in self.serving.page_rules(context) if page.is_request]
        return any(page.texts(keys, groups) != page.texts(all_keys, groups) for page in pages)

    @property
    def serving(self) -> VersionDistribution:
        assert self.target.serving is not None
        return self.target.serving

    def probabilities(
        self, rows: ImpressionRows, batch: LoggedBatch, values: ModelValues | None, *,
        on_rows: Callable[[Any], None] | None = None,
        joint: bool = False,
    ) -> TargetProbabilities:  # fmt: skip
        """Return the target's probabilities of the rows.

        values: the values that a reward model predicts, or None; on_rows: a function that receives each portion of
        the rows once it is computed; joint: whether `on_rows` receives rows with simulated marginals a second time,
        with the samples of each decision (`second_pass`)."""
        target, greatest, support_gap, means = (np.zeros(len(rows)) for _ in range(4))
        is_prefix, weight_above = self._needs_prefix(rows.slots), np.ones(len(rows))
        probabilities = TargetProbabilities(is_prefix, target, greatest, support_gap, means, weight_above)
        has_sets = log_rows.slot_set_flags(rows.slots)
        logged_slots = rows.slots
        rows = log_rows.as_decisions(rows)
        for case_rows in self.case_rows(rows, batch, models=values is not None, joint=joint):
            if case_rows.second_pass:
                assert on_rows is not None
                on_rows(case_rows)
                continue
            case_rows.weigh(probabilities)
            if values is not None and len(case_rows.indices):
                case_rows.fill_means(probabilities.means, self.arms.ids, values)
            case_rows.write_support_gap(probabilities.support_gap, batch)
            if on_rows is not None and len(case_rows.indices):
                on_rows(case_rows)
        # the unsupported share, where the row itself tells
        is_full, is_alone, is_unknown = (rows.slots[name] for name in ("full", "alone", "unknown_support"))
        probabilities.support_gap[~(is_full | is_alone | is_unknown)] = np.nan
        if has_sets is not None:
            is_prefix = has_sets & probabilities.is_prefix
            products = log_rows.multiply_down(logged_slots, has_sets, probabilities.target)
            probabilities.target[is_prefix] = products[is_prefix]
        return probabilities

    def _needs_prefix(self, slots: Columns) -> Flags:
        """Tell for each row whether it is weighted by the slate down to the row, (n,). These are the rows without a
        marginal."""
        return np.isnan(slots["marginal"])

    def slates(self, rows: ImpressionRows, batch: LoggedBatch, *, shares: bool) -> Iterator[TargetSlates]:
        """Yield the target's probabilities of whole slates, in portions.

        rows: the lowest slot of each slate; shares: whether the probabilities of all arms at position 1 are needed."""
        from rlrec.app.evaluation.models.reward_models import TargetSlates

        for case_rows in self.case_rows(rows, batch):
            arms, share = case_rows.shares(self.arms) if shares else (self.arms.rank, np.empty((0, len(self.arms))))
            log_slate, case = case_rows.log_slates(), case_rows.case
            yield TargetSlates(rows=case_rows.indices, log_slate=log_slate, arms=arms, share=share, case=case)

    def case_rows(
        self, rows: ImpressionRows, batch: LoggedBatch, *, models: bool = False, joint: bool = False,
        subset: Ids | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        """Yield the rows with the target's probabilities, grouped by case, in portions.

        models: whether values of a reward model are needed; joint: whether rows with simulated marginals are yielded
        a second time, with the samples of each decision; subset: the indices of the rows to yield, or None for all
        rows."""
        subset = np.arange(len(rows)) if subset is None else subset
        subset = subset[~self.refuses_page(rows.slots, batch)[subset]]
        if not len(subset):
            return
        codes, contexts = batch.contexts.reading(self.target.fields_read)
        slots = rows.slots
        # the revision matters where the target reads features of arms
        revision = slots["catalogue_revision"] * self.serving.reads_catalogue(contexts)
        sets = self.eligible_sets(slots, batch)
        columns = {"set": sets, "revision": revision, "size": slots["size"], "context": codes[slots["context"]]}
        if len(subset) < len(rows):
            columns = take(columns, subset)
        first_rows, case = distinct(*columns.values())
        cases = np.column_stack([column[first_rows] for column in columns.values()])
        order = np.argsort(case, kind="stable")
        ends = np.searchsorted(case[order], np.arange(len(cases) + 1))
        step = self._cases_at_a_time(cases, models=models)
        for start in range(0, len(cases), step):
            end = min(start + step, len(cases))
            blocks = self._blocks_of(cases[start:end], contexts, batch)
            portion = order[ends[start] : ends[end]]
            yield from self._case_rows(blocks, case[portion] - start, subset[portion], rows, joint=joint)

    def _cases_at_a_time(self, cases: Ids, *, models: bool) -> int:
        max_slots = int(cases[:, 2].max(initial=1)) if models else 1
        return min(CASES_AT_A_TIME, max(1, MAX_CELLS // (max_slots * max(1, len(self.arms)))))

    def _blocks_of(self, cases: Ids, contexts: list[dict[str, object]], batch: LoggedBatch) -> list[Block]:
        """Return the distribution (Block) of each of c cases, from the cache or newly computed.

        cases (c, 4): the eligible set, the revision, the length of the slate and the index of the context of each
        case."""
        names = [(*numbers, repr(contexts[context])) for *numbers, context in cases.tolist()]
        if self._cells > MAX_CACHED:
            self.serving.forget()
            self._blocks = {name: self._blocks[name] for name in names if name in self._blocks}
            self._cells = sum(block.cells for block in self._blocks.values())
        missing_cases: dict[tuple[int, int], dict[CaseName, int]] = {}
        for name, context in zip(names, cases[:, 3].tolist(), strict=True):
            if name not in self._blocks:
                missing_cases.setdefault(name[:2], {})[name] = context
        # by number of arms, positions, and whether rules apply
        scores_by_shape: dict[tuple[int, int, bool], dict[CaseName, Scores]] = {}
        for (eligible, revision), new_cases in missing_cases.items():
            arms = self.arms_of(eligible, batch)
            contexts_read = [contexts[context] for context in new_cases.values()]
            set_scores = self.serving.scores(eligible, arms, contexts_read, keys=self.arms.keys, revision=revision)
            for name, scores in zip(new_cases, set_scores, strict=True):
                shape = len(arms), min(name[2], len(arms)), scores.is_ruled
                scores_by_shape.setdefault(shape, {})[name] = scores
        read_by_name = {
            name[3]: contexts[context] for new_cases in missing_cases.values() for name, context in new_cases.items()
        }
        for (_, size, _), scores_by_name in scores_by_shape.items():
            blocks = self._compute_blocks(scores_by_name, size, batch, read_by_name)
            for name, block in zip(scores_by_name, blocks, strict=True):
                self._blocks[name] = block
                self._cells += block.cells
        return [self._blocks[name] for name in names]

    def _compute_blocks(
        self,
        case_scores: Mapping[CaseName, Scores],
        size: int,
        batch: LoggedBatch,
        context_by_name: Mapping[str, Mapping[str, Any]],
    ) -> Iterator[Block]:
        """Yield the distribution (Block) of each case. All cases have the same number of arms.

        case_scores: the scores of each case; size: the number of positions; context_by_name: each context, by name."""
        floor, first_scores = self.serving.policy.exploration, next(iter(case_scores.values()))
        if first_scores.is_ruled:  # marginals where these have a closed form, else conditionals for each slate above
            for name, scores in case_scores.items():
                marginals, greatest = np.empty((size, 0)), np.ones(size)
                if cast("RuledScores", scores).layout.has_closed_form and not scores.samples:
                    marginals = slate.marginals(scores, size=size, floor=0.0)
                    greatest = marginals.max(axis=1)
                yield Block(self.arms_of(name[0], batch), scores, 0.0, marginals, greatest, name=name)
            return
        if first_scores.samples:
            for name, scores in case_scores.items():
                arms = self.arms_of(name[0], batch)
                simulate = self._simulate(cast("Correlated", scores), arms, size, name[3]) if self.samples else None
                yield Block(arms, scores, floor, np.empty((size, 0)), np.ones(size), simulate, name)
            return
        shares = slate.marginals_each(list(case_scores.values()), size=size, floor=floor)
        for ((eligible, *_), scores), marginals in zip(case_scores.items(), shares, strict=True):
            yield Block(self.arms_of(eligible, batch), scores, floor, marginals, marginals.max(axis=1))

    def _case_rows(
        self, blocks: list[Block], case: Ids, indices: Ids, rows: ImpressionRows, *, joint: bool
    ) -> Iterator[CaseRows]:
        """Yield rows with their cases. If scores are correlated, the rows with simulated marginals come first, and all
        other rows follow in portions of decisions. Slates with rules are yielded separately.

        case: the index of each row's block; indices: the index of each row in the batch; joint: whether rows with
        simulated marginals are yielded a second time, with the samples of each decision."""
        # under rules of a page there may be no closed form below position 1
        is_open = np.array([block.scores.is_ruled and not block.shares.size for block in blocks])[case]
        if is_open.any() and not blocks[0].scores.samples:
            yield from ruled_rows(blocks, case[is_open], indices[is_open], rows, cells=MAX_CELLS)
            case, indices = case[~is_open], indices[~is_open]
            if not len(indices):
                return
        if not blocks[0].scores.samples:
            is_ruled = np.array([block.scores.is_ruled for block in blocks])[case]
            for group in (np.flatnonzero(is_ruled), np.flatnonzero(~is_ruled)):
                if len(group):
                    used_cases, case_index = np.unique(case[group], return_inverse=True)
                    yield CaseRows([blocks[number] for number in used_cases.tolist()], case_index, indices[group], rows)
            return
        is_simulated = self._is_simulated(rows.slots)[indices] & ~is_open
        if is_simulated.any():
            first_rows, case_index = distinct(case[is_simulated])
            simulated_blocks = [
                blocks[number].take_replica(self.replica) for number in case[is_simulated][first_rows].tolist()
            ]
            yield CaseRows(simulated_blocks, case_index, indices[is_simulated], rows)
        for group in (is_open, ~is_open & ~is_simulated):
            if group.any():
                yield from self._drawn_rows(blocks, case[group], indices[group], rows)
        if joint and is_simulated.any():
            yield from self._drawn_rows(blocks, case[is_simulated], indices[is_simulated], rows, second_pass=True)

    def _is_simulated(self, slots: Columns) -> Flags:
        """Tell for each row whether the target's marginals on its slate are simulated, (n,). They are if the slate has
        several slots and all its logger's marginals are known."""
        if not self.samples:
            return np.zeros(len(slots["marginal"]), np.bool_)
        first_rows, decision = distinct(slots["decision_id"])
        n_unknown = np.bincount(decision, weights=np.isnan(slots["marginal"]), minlength=len(first_rows))[decision]
        return (n_unknown == 0) & (slots["size"] > 1)

    def _drawn_rows(
        self, blocks: list[Block], case: Ids, indices: Ids, rows: ImpressionRows, *, second_pass: bool = False
    ) -> Iterator[CaseRows]:
        """Yield rows with samples drawn for each decision, in portions of decisions.

        case: the index of each row's block; indices: the index of each row in the batch; second_pass: whether the
        rows were yielded before with simulated marginals."""
        n_samples = blocks[0].scores.samples
        # the lowest row of a decision, which represents it, comes first
        order = np.argsort(-rows.slots["depth"][indices], kind="stable")
        indices, case = indices[order], case[order]
        seeds, numbers = self.target.words(rows.slots)
        first_rows, decision = distinct(rows.slots["decision_id"][indices])
        step = max(1, MAX_CELLS // (n_samples * max(len(block.arms) for block in blocks)))
        for start in range(0, len(first_rows), step):
            lowest = first_rows[start : start + step]
            cases = zip(case[lowest].tolist(), indices[lowest].tolist(), strict=True)
            decision_blocks = [
                decision_block(blocks[number], rows, row, (int(seeds[row]), int(numbers[row])), self._drawn_shares)
                for number, row in cases
            ]
            if len(self._drawn_shares) * (CASE_OVERHEAD + decision_blocks[0].shares.size) > MAX_CACHED:
                self._drawn_shares.clear()
            portion_rows = (decision >= start) & (decision < start + step)
            block_of = decision[portion_rows] - start
            options = {"per_decision_samples": True, "second_pass": second_pass}
            yield CaseRows(decision_blocks, block_of, indices[portion_rows], rows, **options)

    def _simulate(self, scores: Correlated, arms: Ids, size: int, context: str) -> Callable[[], Array]:
        """Return a function that simulates slates for a case, and returns the marginals of each replica (equal part of
        the slates), (replicas, size, arms). The seed and the order of arms do not depend on ids.

        arms: the ids of the arms; size: the number of positions; context: the name of the context."""
        order = np.argsort(self.arms.ranks(arms))

        def simulate() -> Array:
            rng = np.random.default_rng([self.seed, size, crc32(context.encode())])
            ordered_scores = subset(scores, order)
            shares, n_runs = np.empty((N_REPLICAS, size, len(arms))), -(-self.samples // N_REPLICAS)
            for replica_shares in shares:
                replica_shares[:, order] = slate.simulated_marginals(
                    ordered_scores, size=size, floor=self.serving.policy.exploration, runs=n_runs, rng=rng
                )
            return shares

        return simulate


@dataclass(eq=False)
class RequestScorer(Scorer):
    """A RequestScorer computes the probabilities of a target that ranks by scores stated in requests. A row has no
    probability if any eligible arm lacks a score."""

    def has_gap(self, slots: Columns, batch: LoggedBatch) -> Flags:
        return ~self._has_scores(slots, batch)

    def case_rows(self, rows: ImpressionRows, batch: LoggedBatch, **options: Any) -> Iterator[CaseRows]:
        scored_rows = np.flatnonzero(self._has_scores(rows.slots, batch))
        yield from super().case_rows(rows, batch, **options | {"subset": scored_rows})

    def _has_scores(self, slots: Columns, batch: LoggedBatch) -> Flags:
        """Tell for each row whether its request states a score for every eligible arm, (n,)."""
        codes, contexts = batch.contexts.reading(self.target.fields_read)
        columns = self.eligible_sets(slots, batch), codes[slots["context"]]
        first_rows, case = distinct(*columns)
        sets, numbers = (column[first_rows].tolist() for column in columns)
        keys = {number: {*map(self.arms.keys.__getitem__, self.arms_of(number, batch).tolist())} for number in {*sets}}
        name = cast("Scored", self.serving.policy).score_name
        scores = [by_arm(contexts[number], name) or {} for number in numbers]
        has_all = [keys[number] <= by_key.keys() for number, by_key in zip(sets, scores, strict=True)]
        return np.array(has_all, np.bool_)[case]


def _reweigh_by_lists(batch: LogBatch, ratio: Array) -> LogBatch:
    """Return the batch with its weights multiplied by exp(ratio). The target's and the logger's probability in a weight
    are changed so that both stay within [0, 1]. The largest weight of such a row is then unknown.

    ratio (n,): the result of `Scorer.list_ratio`."""
    is_reweighed, share = ratio != 0, np.exp(ratio)
    return replace(
        batch,
        propensity=np.maximum(batch.propensity * np.exp(np.minimum(0.0, -ratio)), slate_draws.MIN_PROBABILITY),
        target=batch.target * np.exp(np.minimum(0.0, ratio)),
        largest=None if batch.largest is None else np.where(is_reweighed, np.nan, batch.largest),
        expected=None if batch.expected is None else batch.expected * share,
        unsupported=None if batch.unsupported is None else np.where(is_reweighed, np.nan, batch.unsupported),
    )
