"""This module estimates three effects of showing an arm: on the reward of the slate, on the rest of the visit, and on
whether the person comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from itertools import combinations
from operator import iadd
from statistics import NormalDist
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from rlrec.app.evaluation.checks import CheckedLog, PropensityBets, WrongPropensities
from rlrec.app.evaluation.passes import passes
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.pages import CompletePages, EffectUnit, extend_curve, remaining_rewards
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation
from rlrec.app.evaluation.passes.request import Request as EvaluationRequest
from rlrec.app.evaluation.rows import groups
from rlrec.app.evaluation.rows.log_rows import LoggedBatch, RowGroup
from rlrec.app.inputs import lookup
from rlrec.app.log import reward_log
from rlrec.app.log.ended_visits import PERSON_VISIT_COLUMNS, PersonVisits
from rlrec.arrays import Array, Flags, Ids, finite_or_none, run_starts, take
from rlrec.compute import Engine
from rlrec.errors import CheckFailed, InputError, quantity
from rlrec.ope.checks.positions import OverlapSums
from rlrec.ope.estimators.shrinkage import ShrunkEffects, add_effects, columns_of, event_rates, shrink, shrink_cells
from rlrec.ope.intervals.tails import t_quantile
from rlrec.ope.sums.exposures import ExposureRegression, Exposures, block_numbers, count_blocks, std_errors
from rlrec.ope.sums.unit_visits import ReturnTimes
from rlrec.records import Record, Reward, Sums, add_each, add_up
from rlrec.store import Unit
from rlrec.store.log import selected
from rlrec.store.log.events import RETURN
from rlrec.store.log.selected import Selection
from rlrec.store.policies import arms, policies
from rlrec.times import DAY_US, SECOND

HORIZON_US = 7 * DAY_US
MOST_ARMS = 5_000
FINEST_GROUPINGS = ("position", "arm", "step")  # groupings that split a page or a visit
MAX_KINDS = 64  # kinds of events whose rates predict effects: the most frequent ones of a portion
_EVENT = "event "  # prefix of the columns with the values of a kind of event
OVERALL = RowGroup(None, None)  # the group of all pages
MAX_DECISIONS = 20_000
MIN_SHARED = 0.05  # decisions from which users are read; the share of users that surfaces have in common
MAX_BYTES = 1 << 30  # of sums by group, in a partition


class Request(Record):
    """This record has the arguments of `effects`.

    log: a filter; reward: the name of a reward, where None stands for the one reward that all policies learn;
    horizon_us: the time within which coming back counts, where None stands for the window of the reward if the
    reward weighs `return`, else for 7 days; position: the name of a position curve, where None stands for a curve
    estimated from the log; by: a field that divides the log into groups with separate effects; level: the level of
    the intervals."""

    log: str | None = None
    reward: str | None = None
    horizon_us: int | None = None
    position: str | None = None
    by: str | None = None
    level: float = 0.95


# An arm in a group. An effect is that of one more look at the arm, in place of what the log shows on average; None:
# cannot be estimated. looks: at the arm; now, later, returning: effects on the reward of the page, on the reward of
# later pages of the visit, and on the probability of coming back; long_run: on all three, where a return counts at its
# value; shrunk: the posterior of long_run.
ArmEffect = TypedDict("ArmEffect", {
    "arm": str, "looks": float, "now": float | None, "later": float | None, "returning": float | None,
    "long_run": float | None, "std_error": float | None, "lower": float | None, "upper": float | None,
    "shrunk": float, "shrunk_sd": float, "shrunk_lower": float, "shrunk_upper": float, "rank_now": int, "rank": int,
    "retired": NotRequired[bool],
})  # fmt: skip
_RAW_KEYS = ("now", "later", "returning", "long_run", "std_error", "lower", "upper")
_SHRUNK_KEYS = ("shrunk", "shrunk_sd", "shrunk_lower", "shrunk_upper")
# horizon_s: at most log_s, the length of the log, since no later return can be in it.
# A group. returned: share of visits after which the person came back within the horizon; return_value: of a return.
GroupEffects = TypedDict("GroupEffects", {
    "by": str | None, "group": Any, "pages": int, "visits": int, "persons": int, "returned": float | None,
    "return_value": float | None, "prior_mean": float, "prior_sd": float, "arms": list[ArmEffect],
})  # fmt: skip
# overall: all groups together, towards which the groups are shrunk; None without groups. left_out: pages for which the
# logger's probability of some arm at some position is not known; surfaces: filters of the parts of the log that are
# served at the same time to the same users, none for one part alone.
Result = TypedDict("Result", {
    "reward": str, "horizon_s": float, "log_s": float, "log": str | None, "examination": list[float], "level": float,
    "groups": list[GroupEffects], "overall": GroupEffects | None, "left_out": int, "surfaces": list[str],
})  # fmt: skip


class FitSums(Sums):
    """This record has the sums of a first pass over the log. overlap: sums that determine the position curve, or None
    if the curve is known; return_times: sums that determine the distribution of the times until people return."""

    overlap: OverlapSums | None
    return_times: ReturnTimes


class EffectSums(Sums):
    """This record has the sums of a part of the log, with b blocks of clusters and k arms in order of their keys.

    pages: the regression of the reward of a slate and of the later reward of its visit; visits: the regression of
    coming back; returns (b,): the number of visits after which the person came back; gains (b,): the reward of the
    later visits, including further returns; counts: the numbers of slates, of visits, of visits of persons with a
    key, and of persons; people: the digest of each person until the partition has been read.

    events: for each kind of event, the sums of the values and of the squared values at the slots of each arm, (k, 2);
    products: for each pair of kinds, the sum over all slots of the product of the two values."""

    pages: ExposureRegression
    visits: ExposureRegression
    returns: Array
    gains: Array
    counts: Ids
    people: frozenset[int]
    events: Mapping[str, Array]
    products: Mapping[tuple[str, str], float]

    @classmethod
    def zeros(cls, arms: int, *, outcomes: int) -> EffectSums:
        """Return the sums of a log without slates.

        arms: the number of arms; outcomes: the number of outcomes in the regression of slates."""
        blocks = np.zeros(count_blocks(arms))
        return cls(
            pages=ExposureRegression.zeros(arms, outcomes=outcomes), visits=ExposureRegression.zeros(arms, outcomes=1),
            returns=blocks, gains=blocks, counts=np.zeros(4, np.int64), people=frozenset(), events={}, products={},
        )  # fmt: skip

    @property
    def looks(self) -> Array:
        """Return the number of looks at each arm, (k,). A look is a slot weighted by the examination of its
        position."""
        return self.pages.looks[0]

    def estimate(self, *, return_weight: float) -> EffectEstimates:
        """Estimate the effects of showing each arm, compared with what the log shows on average.

        return_weight: the weight of a return in the reward."""
        n_returns = float(self.returns.sum())
        mean_gain = float(self.gains.sum()) / n_returns if n_returns else 0.0
        return_value = return_weight + mean_gain
        effect = np.hstack([self.pages.effects, self.visits.effects])  # (k, 3): now, later, returning
        influence = np.concatenate([self.pages.influences, self.visits.influences], axis=2)
        variances = np.column_stack([self.pages.variances, self.pages.variances, self.visits.variances])
        usable = np.column_stack([self.pages.is_varying, self.pages.is_varying, self.visits.is_varying])
        # the average showing is over arms whose effects can be estimated
        shares = self.pages.looks[1][:, None] * usable
        shares = shares / np.maximum(shares.sum(axis=0), 1e-300)
        effect = (effect - (shares * effect).sum(axis=0)) * usable
        influence = (influence - np.einsum("ao,bao->bo", shares, influence)[:, None]) * usable
        return EffectEstimates(
            effect=effect, influence=influence, variances=variances, worth=return_value, has_returns=n_returns > 0,
            worth_influence=(self.gains - mean_gain * self.returns) / max(n_returns, 1.0),
            is_usable=usable, columns=self.pages.n_regressed,
            rates=event_rates(self.events, self.looks, self.pages.is_varying), shares=shares,
        )  # fmt: skip

    def close(self) -> EffectSums:
        counts = np.array([*self.counts[:-1], len(self.people)])
        return replace(self, counts=counts, people=frozenset())


class LogEffects(Sums):
    """This record has the sums of the log. groups: the sums of each group; left_out: the number of slates for which the
    probabilities of all arms before the draw are not known; names: the fields of the log's contexts; bets: the sums of
    bets against the propensities of the log."""

    groups: Mapping[RowGroup, EffectSums]
    left_out: int
    names: frozenset[str]
    bets: PropensityBets | None


class EffectEstimates(Record, eq=False):
    """This record has estimated effects of k arms. effect (k, 3): the effects on the reward of the slate, on the later
    reward of the visit, and on coming back; influence (b, k, 3): the influence of each of b blocks of clusters on each
    effect.

    variances (k, 3): the variance of each effect that follows from the exposures alone, with a noise of 1; worth:
    the value of a return; worth_influence (b,): the influence of each block on this value; has_returns: whether
    anybody came back; is_usable (k, 3): which effects can be estimated (all others are 0); columns: the number of
    regressors in the regression of slates; rates: for each kind of event, its rate at the slots of each arm; shares
    (k, 3): each arm's share of the average look of the log, among the arms whose effects can be estimated."""

    effect: Array
    influence: Array
    variances: Array
    worth: float
    worth_influence: Array
    has_returns: bool
    is_usable: Flags
    columns: int
    rates: Mapping[str, Array]
    shares: Array

    @property
    def varies(self) -> Flags:
        """Tell for each arm whether its long-run effect can be estimated, (k,). This is the sum of its three effects,
        where the effect on coming back is multiplied by the value of a return."""
        return self.is_usable[:, 0] & (self.is_usable[:, 2] | (not self.has_returns))

    @property
    def posteriors(self) -> list[ShrunkEffects]:
        """Return the posteriors of the three effects of arms, in the order of `effect`. They are shrunk towards the
        effects that the events at the arms' slots predict."""
        return self.shrink_effects(columns_of(self.rates, len(self.effect)))

    def shrink_effects(self, predictors: Array | None = None) -> list[ShrunkEffects]:
        """Return the posteriors of the three effects of arms, compared with what the log shows on average. They are
        shrunk towards linear functions of the predictors, or towards the mean of all arms if there are none.

        predictors (k, p): the predictors of each arm, or None."""
        return [
            shrink(*outcome, usable, predictors).centre(share)
            for outcome, usable, share in zip(self.pooled_effects, self.is_usable.T, self.shares.T, strict=True)
        ]

    @property
    def pooled_effects(self) -> Iterator[tuple[Array, Array]]:
        """For each of the three effects, yield the effect of each arm, (k,), and its standard error, (k,). The errors
        follow from the exposures and from one level of noise for all arms.

        If an error came from the rows of one arm alone, it would grow with the effect of the arm. Where nobody has
        bought yet, both the effect and such an error are small, so that weights from such errors would be biased."""
        errors = std_errors(self.influence, columns=self.columns)
        for effect, error, variance, usable in zip(
            self.effect.T, errors.T, self.variances.T, self.is_usable.T, strict=True
        ):
            has_error = usable & (error > 0)
            noise = np.square(error[has_error]) / variance[has_error]
            yield effect, np.where(has_error, np.sqrt(noise.mean() * variance) if len(noise) else 0.0, error)

    def long_run(self, posteriors: Sequence[ShrunkEffects]) -> ShrunkEffects:
        """Return the posterior of the arms' long-run effects, which are sums of the three effects.

        posteriors: the posteriors of the three effects, in the order of `effect`."""
        return add_effects(posteriors, (1.0, 1.0, self.worth))

    @property
    def arm_totals(self) -> tuple[Array, Array]:
        """Return the long-run effect of each arm, (k,), and its standard error, (k,). The error is at least that of
        `pooled_effects`, since an error from the rows of the arm alone is far too small if the arm has few looks."""
        effect, error = self.total(now=1.0)
        now_errors, later_errors, return_errors = (np.nan_to_num(errors) for _, errors in self.pooled_effects)
        return effect, np.maximum(error, np.hypot(np.hypot(now_errors, later_errors), self.worth * return_errors))

    def total(self, *, now: float, weights: Array | None = None) -> tuple[Array, Array]:
        """Return the effect of one look at each arm on all outcomes together, (k,), and the standard errors, (k,). With
        `weights`, return weighted sums of the effects, (j,), and the standard errors of these sums, (j,).

        now: a factor for the effect on the reward of the slate; weights (k, j): j weights of each arm, or None."""
        factors = np.array([now, 1.0, self.worth])
        # the value of a return has an error, too
        effect, influence = self.effect @ factors, self.influence @ factors
        influence += np.outer(self.worth_influence, self.effect[:, 2])
        if weights is not None:
            effect, influence = effect @ weights, influence @ weights
        return effect, std_errors(influence, columns=self.columns)


class EffectPass(Record, eq=False):
    """An EffectPass is a request with its names looked up, which sums a partition of the log.

    reward: the reward without the weight of a return; return_weight: this weight; horizon_us: the time within which
    coming back counts; examination: the position curve, or None until it has been estimated from the log;
    return_shares: the share of the returns that have come by each age of the visit, or None in the pass that
    estimates these shares."""

    evaluation: Evaluation
    reward: Reward
    return_weight: float
    horizon_us: int
    examination: tuple[float, ...] | None
    return_shares: tuple[float, ...] | None = None

    @classmethod
    def resolve(cls, unit: Unit, request: Request) -> EffectPass:
        """Look up the names in a request, and return the pass that sums the log. Raise InputError for unknown names and
        impossible arguments."""
        if not 0 < request.level < 1:
            raise InputError(f"level is {request.level:g}", hint="it lies between 0 and 1, such as 0.95")
        if request.horizon_us is not None and request.horizon_us <= 0:
            raise InputError("the horizon is 0", hint="give the time within which people come back, such as 7d")
        if request.by in FINEST_GROUPINGS:
            hint = "by policy, version, variant, day or a field of the context"
            raise InputError(f"effects are those of pages, which have no one {request.by}", hint=hint)
        definition = lookup.reward(unit, request.reward)
        curve = lookup.curve(unit, request.position).examination if request.position else None
        evaluation = Evaluation.resolve(unit, EvaluationRequest(targets=(), log=request.log, by=request.by))
        evaluation = replace(evaluation, encode=True)  # for the check of propensities
        if len(evaluation.arms) > MOST_ARMS:
            hint = "narrow the catalogue, or judge whole policies by `rlrec evaluate`"
            raise InputError(f"{len(evaluation.arms):,} arms are more than {MOST_ARMS:,}", hint=hint)
        weights = {kind: weight for kind, weight in definition.weights.items() if kind != RETURN}
        window_us = definition.window_us if RETURN in definition.weights else HORIZON_US
        return cls(
            evaluation=evaluation, reward=definition._replace(weights=weights),
            return_weight=definition.weights.get(RETURN, 0.0),
            horizon_us=min(request.horizon_us or window_us, evaluation.extent.span_us or DAY_US),
            examination=curve or (None if evaluation.extent.positions > 1 else (1.0,)),
        )  # fmt: skip

    @cached_property
    def pages(self) -> EffectUnit:
        """Return the object that reads slates as rows of the regression of effects."""
        return EffectUnit.prepare(self.evaluation, {})

    @property
    def reading(self) -> Reading:
        reading = self.pages.fit_reading if self.return_shares is None else self.pages.judge_reading
        return Reading(columns={*reading.columns, *PERSON_VISIT_COLUMNS})

    def __call__(self, reader: LogReader, /) -> FitSums | LogEffects | None:
        """Return the sums of a partition, or None if the partition has no selected row."""
        visits = PersonVisits.from_batches(reader.batches(Reading(columns=PERSON_VISIT_COLUMNS)), self.reward)
        if not len(visits):
            return None
        if self.return_shares is not None:
            return self._effects(reader, visits)
        watched_time, gap = self._watched_times(visits)[visits.has_user], visits.gap[visits.has_user] / self.horizon_us
        overlap = None if self.examination else add_up(self._overlaps(reader))
        return FitSums(overlap, ReturnTimes.from_visits(watched_time=watched_time, gap=gap))

    def _watched_times(self, visits: PersonVisits) -> Array:
        """Return, for each of v visits, the time after it in which the log would have shown a return, as a multiple of
        the horizon, (v,)."""
        return np.maximum(self.evaluation.extent.last_at - visits.last_at, 0) / self.horizon_us

    def _overlaps(self, reader: LogReader) -> Iterator[OverlapSums]:
        for batch in reader.read(self.pages.fit_reading):
            rows, _ = self.pages.usable_rows(batch, self.reward)
            if len(rows):
                yield self.pages.model_sums(batch, rows)

    def _effects(self, reader: LogReader, visits: PersonVisits) -> LogEffects:
        n_visits, groups_so_far, names = 0, dict[RowGroup, EffectSums](), frozenset[str]()  # visits before the batch
        left_out, bets, evaluation = 0, None, self.evaluation
        for batch in reader.read(self.pages.judge_reading):
            data = CheckedLog(batch=batch, arms=evaluation.arms, extent=evaluation.extent)
            bets = add_up((bets, WrongPropensities().sums(data)))
            slots = batch.log.slots
            starts = run_starts(slots["session_id"], slots["visit"])
            visit = n_visits + np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(slots["visit"])]))
            n_visits += len(starts)
            by_kind = reward_log.event_sums(batch.log, max_kinds=MAX_KINDS)
            values = {_EVENT + kind: column for kind, column in by_kind.items() if kind != RETURN}
            numbered_batch = replace(batch, log=replace(batch.log, slots={**slots, **values, "visit_number": visit}))
            rows, _ = self.pages.usable_rows(numbered_batch, self.reward)
            if len(rows):
                left_out += self._add_pages(groups_so_far, numbered_batch, rows, visits)
            names |= batch.contexts.names
        return LogEffects({group: sums.close() for group, sums in groups_so_far.items()}, left_out, names, bets)

    def _add_pages(
        self, sums: dict[RowGroup, EffectSums], batch: LoggedBatch, rows: CompletePages, visits: PersonVisits
    ) -> int:
        """Add the slates of a batch to the sums by group. Return the number of slates that are left out, because the
        probabilities of their draw are not known.

        sums: the sums by group, which are changed; rows: the slates; visits: the visits of the partition."""
        assert self.examination is not None
        exposures = self.pages.exposures(batch, rows, np.array(self.examination))
        now = rows.reward_left[rows.begins]
        outcomes = np.column_stack([now, remaining_rewards(rows, now) - now])
        drawn_pages = np.flatnonzero(exposures.draw >= 0)
        left_out = len(exposures) - len(drawn_pages)
        if not len(drawn_pages):
            return left_out
        pages, exposures, outcomes = (
            take(rows.slots, rows.begins[drawn_pages]),
            exposures.take(drawn_pages),
            outcomes[drawn_pages],
        )
        members_of: dict[RowGroup, Ids | None] = {OVERALL: None}
        for number, members in groups.group_members(pages["group"], len(batch.groups)):
            members_of[batch.groups[number]] = members
        for group, members in members_of.items():
            if group not in sums:
                if sums and 2 * len(sums) * sums[OVERALL].pages.square.nbytes > MAX_BYTES:
                    limit = f"{exposures.arms:,} arms have effects in {len(sums) - 1:,} groups at most"
                    message = f"{limit}, and {self.evaluation.request.by} makes more"
                    raise InputError(message, hint="choose a coarser field")
                sums[group] = EffectSums.zeros(exposures.arms, outcomes=outcomes.shape[1])
            group_pages = np.arange(len(drawn_pages)) if members is None else members
            arguments = take(pages, group_pages), exposures.take(group_pages), outcomes[group_pages], visits
            sums[group] = self._with_pages(sums[group], *arguments, *self._events(rows, drawn_pages[group_pages]))
        return left_out

    def _events(self, rows: CompletePages, pages: Ids) -> tuple[dict[str, Array], dict[tuple[str, str], float]]:
        """Return sums over the events of the given slates: `events` and `products` of EffectSums.

        pages: the indices of the slates."""
        is_chosen = np.zeros(len(rows), np.bool_)
        is_chosen[pages] = True
        slots = take(rows.slots, np.flatnonzero(np.repeat(is_chosen, np.diff(rows.start))))
        arms = self.evaluation.arms
        arm, count = arms.rank[arms.index(slots["arm_id"])], 1 / slots["keep_probability"]
        events: dict[str, Array] = {}
        columns = {name: slots[name] for name in slots if name.startswith(_EVENT) and slots[name].any()}
        for name, column in columns.items():
            sums = [
                np.bincount(arm, weights=weight, minlength=len(arms)) for weight in (count * column, count * column**2)
            ]
            events[name.removeprefix(_EVENT)] = np.column_stack(sums)
        products = {
            (first, second): float(count @ (columns[_EVENT + first] * columns[_EVENT + second]))
            for first in events for second in events
        }  # fmt: skip
        return events, products

    def _with_pages(
        self, sums: EffectSums, pages: Mapping[str, Any], exposures: Exposures, outcomes: Array, visits: PersonVisits,
        events: Mapping[str, Array], products: Mapping[tuple[str, str], float],
    ) -> EffectSums:  # fmt: skip
        """Return the sums with n further slates added, whose probabilities of the draw are known.

        pages: the columns of the slates; exposures: the looks of the slates at each arm; outcomes (n, 2): the reward
        of each slate and the later reward of its visit; visits: the visits of the partition; events, products: the
        values that `_events` returns for the slates."""
        assert self.return_shares is not None
        visit, count = pages["visit_number"], 1 / pages["keep_probability"]
        # pages: baseline covariates are the place of the page in its visit and the visit's number
        baseline = np.column_stack([np.ones(len(visit)), np.log1p(pages["step"]), np.log(visits.number[visit])])
        root_weight = np.sqrt(count)
        sums.pages.add_rows(
            baseline * root_weight[:, None],
            exposures,
            outcomes * root_weight[:, None],
            factor=root_weight,
            cluster=visits.cluster[visit],
        )
        # visits of persons with a key, all of whose pages are here
        first_pages = run_starts(visit)
        number_of_pages = np.diff(np.r_[first_pages, len(visit)])
        is_usable = visits.has_user[visit[first_pages]] & (number_of_pages == visits.pages[visit[first_pages]])
        index, root_weight = visit[first_pages][is_usable], root_weight[first_pages][is_usable]
        exposures = exposures.merge_rows(np.repeat(np.arange(len(first_pages)), number_of_pages)).take(
            np.flatnonzero(is_usable)
        )
        has_return = visits.gap[index] <= self.horizon_us
        # the probability that a return has come by now, by the age of the visit
        arrival_share = np.interp(
            self._watched_times(visits)[index], np.linspace(0, 1, len(self.return_shares)), self.return_shares
        )
        number, factor, cluster = visits.number[index], arrival_share * root_weight, visits.cluster[index]
        baseline = np.column_stack([np.ones(len(index)), np.log(number), number == 1])
        sums.visits.add_rows(
            baseline * factor[:, None], exposures, (has_return * root_weight)[:, None], factor=factor, cluster=cluster
        )
        weight = np.where(has_return, np.square(root_weight), 0.0)
        gain, n_blocks = (
            visits.later_reward[index] + self.return_weight * visits.returns_after[index],
            len(sums.returns),
        )
        block = block_numbers(cluster, blocks=n_blocks)
        return replace(
            sums, returns=sums.returns + np.bincount(block, weights=weight, minlength=n_blocks),
            gains=sums.gains + np.bincount(block, weights=weight * gain, minlength=n_blocks),
            counts=sums.counts + np.array([len(visit), len(first_pages), len(index), 0]),
            people=sums.people | frozenset(visits.cluster[visit[first_pages]].tolist()),
            events=add_each(sums.events, events), products=add_each(sums.products, products),
        )  # fmt: skip

    # -- figures --

    def estimate(self, sums: EffectSums) -> EffectEstimates:
        """Estimate the effects of showing each arm, compared with what the log shows on average."""
        return sums.estimate(return_weight=self.return_weight)

    def cell_posteriors(self, overall: EffectSums, cells: Sequence[EffectSums]) -> list[Sequence[ShrunkEffects]]:
        """Return, for each cell (a part of the log), the posteriors of the three effects of arms. They are shrunk
        towards the posteriors of the whole log.

        overall: the sums of the whole log; cells: the sums of each cell."""
        estimates, looks = [self.estimate(cell) for cell in cells], np.array([cell.looks for cell in cells])
        usable, events = np.array([cell.is_usable for cell in estimates]), dict[str, Array]()
        # kinds that the slots of a cell have more or less often than the whole log has
        for kind, sums in overall.events.items():
            usual_rate = sums[:, 0] / np.maximum(overall.looks, 1e-300)
            tables = np.array([cell.events.get(kind, np.zeros_like(sums)) for cell in cells])
            events[kind] = np.column_stack([(tables[..., 0] - looks * usual_rate).ravel(), tables[..., 1].ravel()])
        rates = columns_of(event_rates(events, looks.ravel(), usable[..., 0].ravel()), looks.size)
        outcomes = zip(self.estimate(overall).posteriors, *(cell.pooled_effects for cell in estimates), strict=True)
        by_outcome: list[list[ShrunkEffects]] = []
        for number, (posterior, *by_cell) in enumerate(outcomes):
            effect, error = (np.array(columns) for columns in zip(*by_cell, strict=True))
            # against the average showing of all cells
            effect += np.array([cell.shares[:, number] @ posterior.mean for cell in estimates])[:, None]
            by_outcome.append(shrink_cells(posterior, effect, error, usable[..., number], rates))
        return list(zip(*by_outcome, strict=True))

    @property
    def arm_keys(self) -> list[str]:
        """Return the keys of the arms, in the order of the effects."""
        arms = self.evaluation.arms
        return np.array([arms.keys[key] for key in arms.ids.tolist()])[np.argsort(arms.rank)].tolist()

    def figures(
        self, sums: EffectSums, group: RowGroup, level: float, posteriors: Sequence[ShrunkEffects] = ()
    ) -> GroupEffects:
        """Return the effects in a group, with a row of the answer for each arm.

        sums: the sums of the group; level: the level of the intervals; posteriors: the posteriors of the three
        effects in the group, by default from the sums of the group alone."""
        estimates, people = self.estimate(sums), int(sums.counts[3])
        effect, usable = estimates.effect, estimates.is_usable
        long_run, error = estimates.arm_totals
        posteriors = posteriors or estimates.posteriors
        total = estimates.long_run(posteriors)
        rank, rank_now = _ranks(total.mean), _ranks(posteriors[0].mean)
        t_factor = t_quantile(1 - (1 - level) / 2, max(1, min(people, len(estimates.influence)) - 1))
        normal_factor = NormalDist().inv_cdf((1 + level) / 2)
        keys, weight = self.arm_keys, sums.visits.square[:, 0, 0].sum()  # the weight of the visits
        raw = np.column_stack([effect, long_run, error, long_run - t_factor * error, long_run + t_factor * error])
        shrunk = np.column_stack(
            [total.mean, total.sd, total.mean - normal_factor * total.sd, total.mean + normal_factor * total.sd]
        )
        raw[:, :3] = np.where(usable & [True, True, estimates.has_returns], raw[:, :3], np.nan)
        raw[~estimates.varies, 3:] = np.nan
        rows = [
            {
                "arm": keys[row], "looks": float(sums.looks[row]),
                **dict(zip(_RAW_KEYS, map(finite_or_none, raw[row].tolist()), strict=True)),
                **dict(zip(_SHRUNK_KEYS, shrunk[row].tolist(), strict=True)),
                "rank_now": int(rank_now[row]), "rank": int(rank[row]),
            }
            for row in np.argsort(rank).tolist()
        ]  # fmt: skip
        return {
            "by": self.evaluation.request.by, "group": group.label, "pages": int(sums.counts[0]),
            "visits": int(sums.counts[1]), "persons": people,
            "returned": min(float(sums.visits.cross[:, 0, 0].sum() / weight), 1.0) if weight else None,
            "return_value": estimates.worth if estimates.has_returns else None,
            "prior_mean": total.prior_mean, "prior_sd": total.prior_sd,
            "arms": cast(list[ArmEffect], rows),
        }  # fmt: skip


def _ranks(effect: Array) -> Ids:
    """Return the rank of each arm, (k,), with rank 1 for the largest effect. Arms with equal effects are in order of
    key."""
    rank = np.empty(len(effect), np.int64)
    rank[np.argsort(-effect, kind="stable")] = np.arange(len(effect)) + 1
    return rank


def sum_log(
    unit: Unit, request: Request, engine: Engine | None = None
) -> tuple[EffectPass, dict[RowGroup, EffectSums], int]:  # fmt: skip
    """Sum the log for estimates of effects. Return the pass, with the position curve and the times of returns that it
    uses, the sums by group, and the number of slates left out. The key OVERALL has the sums of all groups together.
    Raise CheckFailed for a log with too few data."""
    effect_pass = EffectPass.resolve(unit, request)
    evaluation = effect_pass.evaluation
    fit_evaluation = replace(evaluation, request=replace(evaluation.request, by=None))
    fit_pass = replace(effect_pass, evaluation=fit_evaluation)
    # the log is read once and serves both passes
    reader, judge_pass = LogReader(unit, evaluation), replace(effect_pass, return_shares=())
    log_partitions = reader.partitions(Reading.union([fit_pass.reading, judge_pass.reading]), times=2)
    fit_sums = add_up(passes.results(LogReader(unit, fit_evaluation), fit_pass, engine, log_partitions))
    if fit_sums is None:
        raise effect_pass.evaluation.nothing_selected("page")
    examination = effect_pass.examination
    if examination is None:
        curve = None if fit_sums.overlap is None else effect_pass.pages.fit_model(fit_sums.overlap, effect_pass.reward)
        examination = tuple(extend_curve(curve, effect_pass.pages.positions).tolist())
    effect_pass = replace(
        effect_pass, examination=examination, return_shares=tuple(fit_sums.return_times.shares.tolist())
    )
    partials: Iterator[Any] = filter(None, passes.results(reader, effect_pass, engine, log_partitions))
    total: LogEffects = reduce(iadd, partials)
    page_groups = [name for name in groups.FIELDS if name not in FINEST_GROUPINGS]
    groups.check_field(request.by, total.names, groups=page_groups)
    if not total.groups:
        selection, wait_us = replace(evaluation.selection, imported=False), effect_pass.reward.window_us
        if selected.extent(unit, selection).decisions:
            maturity = reward_log.maturity_sentence(unit, selection, wait_us=wait_us)
            if maturity is not None:
                raise EmptyLog("no page has waited for its reward", hint=maturity)
        hint = (
            "log by a policy of the store with a floor: `rlrec policy create NAME --kind thompson --param floor=0.05`; "
            "an imported log seldom has them; `model=shared` and rules of a page (`most`, `least`) leave no marginals "
            "below position 1"
        )
        raise CheckFailed("no page that counts has the probabilities of all arms before its draw", hint=hint)
    _check_data(total.groups[OVERALL])
    if total.bets is not None and total.bets.raises_alarm:
        hint = "`rlrec doctor` names the arm, and `rlrec evaluate uniform` how to import a log anew"
        raise CheckFailed("some arm was shown more often than its logged propensities allow", hint=hint)
    return effect_pass, {group: total.groups[group] for group in groups.sort_groups(total.groups)}, total.left_out


def answer(unit: Unit, request: Request, engine: Engine | None = None) -> Result:
    """Return the answer to a request of `effects`. unit: an open transaction; engine: the engine that reads the log in
    parallel, or None to work in this process."""
    effect_pass, cells, left_out = sum_log(unit, request, engine)
    overall = cells.pop(OVERALL)
    overall_figures = effect_pass.figures(overall, OVERALL, request.level)
    posteriors = effect_pass.cell_posteriors(overall, list(cells.values())) if cells else []
    cell_figures = [
        effect_pass.figures(sums, cell, request.level, posterior)
        for (cell, sums), posterior in zip(cells.items(), posteriors, strict=True)
    ]
    retired_keys = (
        {arm.key for arm in arms.all_arms(unit) if arm.retired_at is not None} if unit.folder is None else set()
    )
    for row in (
        row for group in (overall_figures, *cell_figures) for row in group["arms"] if row["arm"] in retired_keys
    ):
        row["retired"] = True
    return {
        "reward": effect_pass.reward.name, "horizon_s": effect_pass.horizon_us / SECOND,
        "log_s": effect_pass.evaluation.extent.span_us / SECOND, "log": request.log,
        "examination": list(effect_pass.examination or ()), "level": request.level,
        "groups": cell_figures or [overall_figures], "overall": overall_figures if cells else None,
        "left_out": left_out, "surfaces": shared_surfaces(unit, effect_pass.evaluation.selection),
    }  # fmt: skip


def shared_surfaces(unit: Unit, selection: Selection) -> list[str]:
    """Return a filter for each surface that serves the same users at the same time as another surface. A surface is an
    experiment, or a policy outside of experiments. Visits to one such surface are followed by visits to another. The
    list is empty if no two surfaces share users."""
    if unit.folder is not None:
        return []
    names = {policy.id: policy.name for policy in policies.all_policies(unit)}
    rows = np.array(selected.newest_users(unit, selection, MAX_DECISIONS), np.int64).reshape(-1, 3)
    policy_ids, policy = np.unique(rows[:, 0], return_inverse=True)
    name_parts = [names[key].partition("@") for key in policy_ids.tolist()]
    surfaces = [f"experiment={name.partition('/')[0]}" if name else f"policy={base}" for base, _, name in name_parts]
    by_surface = {surface: rows[np.array(surfaces)[policy] == surface, 1:] for surface in surfaces}
    users = {surface: np.unique(table[:, 1]) for surface, table in by_surface.items()}
    starts, ends = ({surface: end(table[:, 0]) for surface, table in by_surface.items()} for end in (np.min, np.max))
    pairs = [
        {first, other_surface}
        for first, other_surface in combinations(by_surface, 2)
        if max(starts[first], starts[other_surface]) < min(ends[first], ends[other_surface])
        and len(np.intersect1d(users[first], users[other_surface], assume_unique=True))
        > MIN_SHARED * min(len(users[first]), len(users[other_surface]))
    ]
    return sorted(set[str]().union(*pairs))


def _check_data(sums: EffectSums) -> None:
    """Raise CheckFailed for a log with too few data to tell the effects of the arms apart."""
    if sums.pages.square.any(axis=(1, 2)).sum() < 2 * sums.pages.n_regressed:  # the number of blocks that have rows
        persons, arms = quantity(int(sums.counts[3]), "person"), quantity(len(sums.looks), "arm")
        hint = "collect more pages, or judge whole policies by `rlrec evaluate`"
        raise CheckFailed(f"{persons} cannot tell {arms} apart", hint=hint)
    if not sums.pages.is_varying.any():
        raise CheckFailed("what was shown never differed from what was expected", hint="log by a policy with a floor")
