"""This module has two kinds of rows in which a row is a complete slate (page). A SlateUnit weighs each slate as a whole
or slot by slot. An EffectUnit compares the arms that were drawn with the arms that were expected before the draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from rlrec.app.evaluation.models import reward_models
from rlrec.app.evaluation.passes.fold import M, RowCounts, RowUnit, any_slot
from rlrec.app.evaluation.passes.log_reader import Reading
from rlrec.app.evaluation.passes.request import Evaluation
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.log_rows import PAIRS, ImpressionRows, LoggedBatch, arms_of_sets, slot_set_flags
from rlrec.app.evaluation.targets.cases import CaseRows, columns_of
from rlrec.app.evaluation.targets.logger_marginals import UNIFORM, UNKNOWN
from rlrec.app.evaluation.targets.probabilities import Scorer
from rlrec.app.evaluation.targets.state_probabilities import StateCaseRows, StateScorer
from rlrec.app.log import reward_log
from rlrec.arrays import Array, Flags, Ids, numbers_in_runs, offsets, run_starts
from rlrec.errors import InputError
from rlrec.ope.checks.positions import OverlapSums, PositionRows, chained_curve, overlap_sums
from rlrec.ope.estimators import pseudo_inverse
from rlrec.ope.sums.exposures import Exposures
from rlrec.ope.units.effects import EffectBatch, EffectFold, Effects
from rlrec.ope.units.fold import PositionCurve
from rlrec.ope.units.slates import Iips, Interpol, Pbm, Pi, SlateBatch, SlateEstimator, SlateFold
from rlrec.records import Record, Reward
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader

MAX_SIMULATED = 32  # most simulated pages for a decision with a distribution of its own


class CompletePages(Record, eq=False):
    """This record has the s complete slates of a batch, with n slots in all. The slots of a slate are in order from the
    top.

    impressions: the n slots; start (s + 1,): the index of the first slot of each slate, and n; page (s,): the reward
    from events of the whole slate."""

    impressions: ImpressionRows
    start: Ids
    page: Array

    def __len__(self) -> int:
        return len(self.page)

    def take(self, pages: Flags) -> CompletePages:
        """Return the flagged slates. pages (s,): a flag for each slate."""
        if pages.all():
            return self
        size = np.diff(self.start)
        return CompletePages(
            impressions=self.impressions.take(np.repeat(pages, size)), start=offsets(size[pages]), page=self.page[pages]
        )

    @property
    def slots(self) -> Columns:
        return self.impressions.slots

    @property
    def begins(self) -> Ids:
        """Return the index of the first slot of each slate, (s,)."""
        return self.start[:-1]

    @property
    def reward_left(self) -> Array:
        """Return for each slot the reward of its slate from this slot down to the end, including the reward from events
        of the whole slate, (n,)."""
        reward, size = self.impressions.reward, np.diff(self.start)
        remaining_reward = np.cumsum(reward[::-1])[::-1]
        after_page = np.r_[remaining_reward, 0.0][self.start[1:]]
        return remaining_reward - np.repeat(after_page - self.page, size)


class PageUnit(RowUnit[CompletePages, M], eq=False):
    """A PageUnit is a kind of rows in which a row is a complete slate."""

    noun: ClassVar[str] = "page"
    censored_text: ClassVar[str] = "has a censored slot"

    def usable_rows(self, batch: LoggedBatch, reward: Reward) -> tuple[CompletePages, RowCounts]:
        pages = _complete_pages(batch.log, reward)
        first_slots = {name: pages.slots[name][pages.begins] for name in ("at", "imported")}
        is_mature = reward_log.is_mature(first_slots, reward, now=self.evaluation.now)
        is_censored = any_slot(pages, pages.slots["censored"])
        counts = RowCounts(
            n_selected=len(pages), waiting=int((~is_mature).sum()), left_out=int((is_mature & is_censored).sum())
        )
        return pages.take(is_mature & ~is_censored), counts

    def refusal(self, batch: LoggedBatch) -> str | None:
        slots, missing = batch.log.slots, _incomplete_slots(batch.log.slots)
        if not len(missing):
            return None
        decision, size = slots["decision_id"][missing[0]], slots["size"][missing[0]]
        counts = f"{np.count_nonzero(slots['decision_id'] == decision)} of {size} positions"
        return f"decision {decision} shows {counts}: slate estimators need complete pages"


class SlateUnit(PageUnit[reward_models.FittedRewardModel], eq=False):
    """A SlateUnit is a kind of rows in which a row is a complete slate that is weighted.

    fit: fits models that predict the reward of a slate from each slot down to the end; needs: which data about a
    target the estimators need; require_pairs: whether a slate that the estimator `pi` cannot weigh raises an error.
    If not, such a slate is left out."""

    fold: SlateFold
    fit: reward_models.RewardModelFit
    needs: Needs
    require_pairs: bool

    @classmethod
    def prepare(
        cls, unit: Unit, evaluation: Evaluation, estimators: Mapping[str, SlateEstimator], *, require_pairs: bool
    ) -> SlateUnit:
        """Return slates as rows for these estimators, with the position curves that the estimators name. Raise
        InputError for an unknown curve.

        require_pairs: whether a slate that the estimator `pi` cannot weigh raises an error."""
        resolved_estimators = {
            label: replace(kind, shape=reward_models.position_curve(unit, kind.curve))
            if isinstance(kind, Pbm | Interpol) and kind.curve else kind
            for label, kind in estimators.items()
        }  # fmt: skip
        n_positions = evaluation.extent.positions
        kinds = resolved_estimators.values()
        needs = Needs(
            positions=max(1, n_positions), joint=any(kind.needs_joint for kind in kinds),
            table=any(kind.needs_table for kind in kinds), additive=any(isinstance(kind, Pi) for kind in kinds),
            marginal=any(isinstance(kind, Iips) for kind in kinds),
        )  # fmt: skip
        fold = SlateFold(estimators=resolved_estimators, spans_batches=evaluation.spans_batches)
        fit = reward_models.RewardModelFit(arms=evaluation.arms, positions=n_positions)
        return cls(evaluation=evaluation, fold=fold, fit=fit, needs=needs, require_pairs=require_pairs)

    @property
    def fit_reading(self) -> Reading:
        return Reading(columns=(*log_rows.FIT_COLUMNS, "size"), targets=False)

    @property
    def judge_reading(self) -> Reading:
        n_marginals = self.needs.positions if self.needs.table else 0
        columns = self.evaluation.judged_columns
        return Reading(columns=columns, marginals=n_marginals or None, pairs=self.needs.additive)

    def model_sums(self, batch: LoggedBatch, rows: CompletePages) -> reward_models.RewardModelSums:
        return self.fit.sums(replace(rows.impressions, reward=rows.reward_left), batch.contexts)

    def fit_model(self, sums: reward_models.RewardModelSums, reward: Reward) -> reward_models.FittedRewardModel:
        return self.fit.finish(sums, None)

    def batch_of(
        self, batch: LoggedBatch, rows: CompletePages, model: reward_models.FittedRewardModel | None
    ) -> Callable[[Scorer], SlateBatch]:
        impressions, slots = rows.impressions, rows.slots
        values = None if model is None else model.rows(impressions, batch.contexts)
        needs = replace(self.needs, joint=self.needs.joint or bool((rows.page != 0).any()))
        if self.require_pairs and needs.additive:
            _require_pairs(slots)
        predictions, count = None if values is None else values.predictions, reward_log.sampling_counts(slots)
        shared_columns: dict[str, Any] = {
            "start": rows.start, "reward": impressions.reward, "page": rows.page, "default": impressions.default,
            "cluster": slots["cluster"][rows.begins], "predicted": predictions,
            "count": None if count is None else count[rows.begins],
        }  # fmt: skip

        def make_batch(scorer: Scorer) -> SlateBatch:
            """Return the slates as a batch for the slate estimators, weighted for the target of a scorer."""
            if not scorer.target.is_weighed:
                return _on_policy_batch(shared_columns, slots, needs)
            columns = slate_columns(scorer, impressions, batch, needs=needs, values=values)
            slate_batch, list_ratio = SlateBatch(**shared_columns | columns), scorer.list_ratio(slots, batch)
            return slate_batch if list_ratio is None else _reweigh_by_lists(slate_batch, list_ratio, rows.begins)

        return make_batch


def _reweigh_by_lists(batch: SlateBatch, ratio: Array, begins: Ids) -> SlateBatch:
    """Return the batch with its weights multiplied by exp(ratio). The factor of a slate is given to its first slot,
    since a list of candidates is drawn before the first slot.

    ratio (n,): for each slot, the logarithm of the target's probability of the list, divided by the logger's;
    begins: the index of the first slot of each slate."""
    share, first_ratio, unknown_values = np.exp(ratio), np.zeros(len(ratio)), np.full(len(ratio), np.nan)
    first_ratio[begins] = ratio[begins]
    return replace(
        batch, log_ratio=batch.log_ratio + first_ratio, marginal_ratio=batch.marginal_ratio * share,
        largest=unknown_values, largest_marginal=unknown_values, unsupported=unknown_values,
        target_at=None if batch.target_at is None else batch.target_at * share[:, None],
        additive=None if batch.additive is None else batch.additive * share,
        expected=None if batch.expected is None else batch.expected * np.exp(first_ratio),
    )  # fmt: skip


def _on_policy_batch(shared_columns: dict[str, Any], slots: Columns, needs: Needs) -> SlateBatch:
    """Return a batch of slates that the target itself served. All weights are 1, and the arms shown are a sample of the
    target's distribution. shared_columns: the columns of the batch that are the same for all targets."""
    n = len(slots["position"])
    shown_at = np.zeros((n, needs.positions))
    shown_at[np.arange(n), slots["position"] - 1] = 1.0
    ones = np.ones(n)
    return SlateBatch(
        **shared_columns, log_ratio=np.zeros(n), largest=np.zeros(n), marginal_ratio=ones, largest_marginal=ones,
        target_at=shown_at, logged_at=shown_at, additive=1 / slots["size"], expected=shared_columns["predicted"],
        unsupported=np.zeros(n),
    )  # fmt: skip


def _require_pairs(slots: Columns) -> None:
    """Raise InputError if the logger's probabilities of pairs of slots are unknown for any slate. A slate of one slot
    has no pairs, and slots with their own sets of arms need no such probabilities."""
    is_unknown, has_sets = (slots[PAIRS] == UNKNOWN) & (slots["size"] > 1), slot_set_flags(slots)
    if has_sets is not None:
        is_unknown &= ~has_sets | np.isnan(slots["marginal"])
    if is_unknown.any():
        decision = int(slots["decision_id"][np.argmax(is_unknown)])
        cause = "its logger was not uniform, and has too many slates to list, or no exact probabilities of them"
        hint = "use rips or sips, which need propensities alone, or iips or pbm:CURVE, which need marginals"
        raise InputError(f"pi cannot weigh decision {decision}: {cause}", hint=hint)


def _incomplete_slots(slots: Columns) -> Ids:
    """Return the indices of slots that show that their slate lacks a position."""
    first_slots = run_starts(slots["decision_id"])
    size = np.diff(np.r_[first_slots, len(slots["decision_id"])])
    depth = numbers_in_runs(first_slots, len(slots["position"]))
    return np.flatnonzero((slots["size"] != np.repeat(size, size)) | (slots["position"] != depth + 1))


def _complete_pages(batch: reader.Batch, definition: Reward) -> CompletePages:
    """Return the complete slates of a batch, with their rewards."""
    rows, missing = reward_log.with_rewards(batch, definition), _incomplete_slots(batch.slots)
    if len(missing):
        rows = rows.take(~np.isin(batch.slots["decision_id"], batch.slots["decision_id"][missing]))
    slots = rows.slots
    first_slots = run_starts(slots["decision_id"])
    size = np.diff(np.r_[first_slots, len(slots["decision_id"])])
    # all slots of a page are in one cluster, whatever the unit
    slots = {**slots, "cluster": np.repeat(slots["cluster"][first_slots], size)}
    impressions = ImpressionRows(slots=slots, reward=rows.reward, default=rows.default, shown_arms=slots["arm_id"])
    page = reward_log.page_events(batch, definition, slots["decision_id"][first_slots])
    return CompletePages(impressions=impressions, start=offsets(size), page=page)


# -- the probabilities with which a target would have filled the logged pages, slot by slot --


class Needs(Record):
    """This record says which data about a target the estimators need.

    positions: the length of the longest slate; joint: whether to compute the target's probability of all slots down
    to each slot; table: the probabilities of the shown arm at every position; additive: the weights of the estimator
    `pi`; marginal: the probability of each arm at the position where it was shown."""

    positions: int
    joint: bool
    table: bool
    additive: bool
    marginal: bool


def slate_columns(
    scorer: Scorer, rows: ImpressionRows, batch: LoggedBatch, *, needs: Needs, values: reward_models.ModelValues | None
) -> dict[str, Array | None]:
    """Return the columns of a `SlateBatch` that depend on the target. An unknown value is NaN.

    rows: the slots of complete slates; needs: the data that estimators need; values: the values of a model that
    predicts the reward of a slate from each slot down to the end, or None."""
    n, is_unknown = len(rows), np.full(len(rows), np.nan)
    steps, additive, means = is_unknown.copy(), is_unknown.copy(), np.zeros(n)
    is_simulated = (
        isinstance(scorer, StateScorer) and scorer.samples > 0 and (needs.marginal or needs.table or needs.additive)
    )
    table = np.full((n, needs.positions), np.nan) if needs.table or needs.additive or is_simulated else None

    def write_rows(case_rows: CaseRows | StateCaseRows) -> None:
        if isinstance(case_rows, StateCaseRows):
            if needs.joint:
                case_rows.write_steps(steps)
            if table is not None and is_simulated:
                n_runs = min(scorer.samples, MAX_SIMULATED)
                table[case_rows.indices] = case_rows.at_positions(needs.positions, runs=n_runs, seed=scorer.seed)
        else:
            if values is not None and not case_rows.samples:
                case_rows.write_steps_and_means(steps, means, scorer.arms.ids, values)
            elif needs.joint:
                case_rows.write_steps(steps)
            if table is not None and not case_rows.second_pass:
                table[case_rows.indices] = case_rows.at_positions(needs.positions)
                if needs.additive and not case_rows.per_decision_samples:
                    _fill_additive(case_rows, additive, batch)
        if values is not None and (isinstance(case_rows, StateCaseRows) or case_rows.per_decision_samples):
            case_rows.fill_means(means, scorer.arms.ids, values)

    probabilities = scorer.probabilities(rows, batch, None, on_rows=write_rows, joint=needs.joint)
    marginal = np.where(probabilities.is_prefix, np.nan, np.minimum(probabilities.target, 1.0))
    greatest = np.where(probabilities.is_prefix, np.nan, probabilities.greatest)
    if table is not None and is_simulated:
        marginal = np.take_along_axis(table, rows.slots["position"][:, None] - 1, axis=1)[:, 0]
    if table is not None and needs.additive:
        is_uniform, arms = rows.slots[PAIRS] == UNIFORM, arms_of_sets(rows.slots["eligible_id"], batch.eligible)
        shown_share = np.take_along_axis(table, rows.slots["position"][:, None] - 1, axis=1)[:, 0]
        sums, size = table.sum(axis=1), rows.slots["size"]
        additive[is_uniform] = pseudo_inverse.uniform_weights(shown_share, sums, size=size, arms=arms)[is_uniform]
        is_alone = rows.slots["size"] == 1
        additive[is_alone] = probabilities.target[is_alone] / rows.slots["propensity"][is_alone]
    has_sets = slot_set_flags(rows.slots)
    if has_sets is not None and needs.additive:  # the weight of independent slots is 1 + sum of (ratio - 1)
        size, ratio = rows.slots["size"][has_sets], (marginal / rows.slots["propensity"])[has_sets]
        additive[has_sets] = ratio - 1 + 1 / size
    slots = rows.slots
    with np.errstate(divide="ignore"):
        log_ratio = np.log(np.minimum(steps, 1.0)) - np.log(slots["propensity"])
    return {
        "log_ratio": log_ratio, "marginal_ratio": marginal / slots["marginal"],
        "largest": -np.log(np.where(slots["min_propensity"] > 0, slots["min_propensity"], np.nan)),
        "largest_marginal": greatest / slots["smallest"], "unsupported": probabilities.support_gap,
        "target_at": table if needs.table else None, "logged_at": slots.get(log_rows.MARGINALS),
        "additive": additive if needs.additive else None, "expected": None if values is None else means,
    }  # fmt: skip


def target_exposures(scorer: Scorer, rows: ImpressionRows, batch: LoggedBatch, *, examination: Array) -> Array:
    """Return how often each arm is expected to be examined on a slate that the target draws, (n, arms), with arms in
    order of key. The result is NaN if the target's probabilities have no closed form.

    rows: the first slot of each slate; examination: the examination of each position."""
    exposure = np.full((len(rows), len(scorer.arms)), np.nan)

    for case_rows in scorer.case_rows(rows, batch):
        if not isinstance(case_rows, CaseRows) or case_rows.per_decision_samples or case_rows.samples:
            continue
        by_case = np.zeros((len(case_rows.blocks), len(scorer.arms)))
        for case, block in enumerate(case_rows.blocks):
            rank = scorer.arms.ranks(block.arms)
            by_case[case, rank] = examination[: len(block.shares)] @ block.shares
        exposure[case_rows.indices] = by_case[case_rows.case]
    list_ratio, has_sets = scorer.list_ratio(rows.slots, batch), slot_set_flags(rows.slots)
    for is_other in (None if list_ratio is None else list_ratio != 0, has_sets):
        if is_other is not None:
            exposure[is_other] = np.nan
    return exposure


def _fill_additive(case_rows: CaseRows, additive: Array, batch: LoggedBatch) -> None:
    """Write what each slot adds to the weight of its slate in the estimator `pi`. Only slates are written whose logger
    has a list of all slates with their probabilities.

    additive: the array to write to, with an element for each slot."""
    slots = case_rows.rows.slots
    pairs = slots[PAIRS][case_rows.indices]
    has_pairs = np.flatnonzero(pairs >= 0)
    for case, number in np.unique(np.column_stack([case_rows.case, pairs])[has_pairs], axis=0).tolist():
        group = has_pairs[(case_rows.case[has_pairs] == case) & (pairs[has_pairs] == number)]
        block, first_slot = case_rows.blocks[case], case_rows.indices[group[0]]
        eligible = batch.eligible[int(slots["eligible_id"][first_slot])]
        shares = np.zeros((len(block.shares), len(eligible)))
        shares[:, columns_of(block.arms, first_slot, slots, batch)] = block.shares
        slates = pseudo_inverse.slates(*shares.shape)
        coefficients = pseudo_inverse.coefficients(slates, batch.pairs[number], shares)
        shown_index = np.searchsorted(eligible, case_rows.arm[group])
        additive[case_rows.indices[group]] = coefficients[case_rows.position[group] - 1, shown_index]


# -- effects of arms: pages as they were drawn, compared with their expectation --

_COLUMNS = (*log_rows.FIT_COLUMNS, "size", "version_id", "belief_seq", "belief_ordinal", "eligible_id",
            "catalogue_revision", "propensity", "marginal")  # fmt: skip


class EffectUnit(PageUnit[PositionCurve], eq=False):
    """An EffectUnit is a kind of rows in which a row is a complete slate, for a regression on the exposures of arms.
    The exposure of an arm on a slate is how much it is examined there, compared with what was expected before the draw.
    The model of an EffectUnit is the position curve, estimated from the clicks of the log. positions: the length of the
    longest slate."""

    fold: EffectFold
    positions: int
    simulates: ClassVar[bool] = False

    @classmethod
    def prepare(cls, evaluation: Evaluation, estimators: Mapping[str, Effects]) -> EffectUnit:
        n_arms, n_positions = len(evaluation.arms), max(1, evaluation.extent.positions)
        fold = EffectFold(estimators=estimators, spans_batches=evaluation.spans_batches, arms=n_arms)
        return cls(evaluation=evaluation, fold=fold, positions=n_positions)

    @property
    def needs_model(self) -> bool:
        return self.positions > 1

    @property
    def fit_reading(self) -> Reading:
        return Reading(columns=_COLUMNS, support=False, marginals=self.positions)

    @property
    def judge_reading(self) -> Reading:
        return Reading(columns={*self.evaluation.judged_columns, "seed"}, marginals=0, shares=self.positions)

    def model_sums(self, batch: LoggedBatch, rows: CompletePages) -> OverlapSums:
        clicks = (~rows.impressions.default).astype(np.float64)
        slots = position_rows(rows.slots, clicks, self.evaluation.arms)
        return overlap_sums(slots, spans_batches=False)  # its error is not needed

    def fit_model(self, sums: OverlapSums, reward: Reward) -> PositionCurve:
        return PositionCurve(examination=tuple(row.examination for row in chained_curve(sums).positions))

    def batch_of(
        self, batch: LoggedBatch, rows: CompletePages, model: PositionCurve | None
    ) -> Callable[[Scorer], EffectBatch]:
        slots, begins, examination = rows.slots, rows.begins, extend_curve(model, self.positions)
        exposures = self.exposures(batch, rows, examination)
        expectation = exposures.expected_by_row
        reward, count = rows.reward_left[begins], reward_log.sampling_counts(slots)
        shared_columns: dict[str, Any] = {
            "reward": reward, "remaining": remaining_rewards(rows, reward),
            "exposure": exposures.dense_looks, "expectation": expectation,
            "looks": np.add.reduceat(examination[slots["position"] - 1], begins), "cluster": slots["cluster"][begins],
            "count": None if count is None else count[begins],
        }  # fmt: skip
        first_slots = rows.impressions.at(begins)

        def make_batch(scorer: Scorer) -> EffectBatch:
            """Return the slates as a batch for the regression. The batch says how the target of a scorer changes the
            expected exposures."""
            if not scorer.target.is_weighed:  # what it showed is a sample of its own distribution
                return EffectBatch(**shared_columns, change=np.zeros(expectation.shape))
            target_exposure = target_exposures(scorer, first_slots, batch, examination=examination)
            return EffectBatch(**shared_columns, change=target_exposure - expectation)

        return make_batch

    def exposures(self, batch: LoggedBatch, rows: CompletePages, examination: Array) -> Exposures:
        """Return how much each arm is looked at on each slate, in fact and as expected before the draw.

        examination: the examination of each position."""
        slots, arms = rows.slots, self.evaluation.arms
        assert batch.shares is not None
        return Exposures(
            row=np.repeat(np.arange(len(rows)), np.diff(rows.start)), arm=arms.ranks(slots["arm_id"]),
            look=examination[slots["position"] - 1], draw=slots[log_rows.DRAW][rows.begins],
            expected_looks=np.einsum("cka,k->ca", batch.shares, examination),
        )  # fmt: skip


def position_rows(slots: Columns, reward: Array, arms: log_rows.ArmTable) -> PositionRows:
    """Return the slots of slates and their rewards in the form in which rewards at different positions are compared."""
    return PositionRows(
        page=slots["decision_id"], arm=arms.ranks(slots["arm_id"]), position=slots["position"], reward=reward,
        cluster=slots["cluster"], count=1 / slots["keep_probability"], marginals=slots[log_rows.MARGINALS],
    )  # fmt: skip


def extend_curve(curve: PositionCurve | None, positions: int) -> Array:
    """Return the examination of positions 1 to `positions`, (positions,). Positions below the end of the curve have its
    last value. Without a curve, every position has the value 1."""
    examination = (1.0,) if curve is None or not curve.examination else curve.examination
    return np.array([*examination, *[examination[-1]] * positions][:positions])


def remaining_rewards(rows: CompletePages, reward: Array) -> Array:
    """Return for each of s slates its reward plus the rewards of the later slates of the visit, (s,).

    reward (s,): the reward of each slate."""
    session, visit, step = (rows.slots[name][rows.begins] for name in ("session_id", "visit", "step"))
    order = np.lexsort((-step, visit, session))  # from the last page of a visit to the first
    starts, sums = run_starts(session[order], visit[order]), np.cumsum(reward[order])
    earned_before = np.r_[0.0, sums][starts]
    remaining_reward = np.empty(len(reward))
    remaining_reward[order] = sums - np.repeat(earned_before, np.diff(np.r_[starts, len(sums)]))
    remaining_reward[order[starts]] = reward[
        order[starts]
    ]  # after the last page comes nothing, not what rounding leaves
    return remaining_reward
