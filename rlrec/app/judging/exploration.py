"""This module computes the cost and yield of exploration. It compares a policy with a greedy policy, which has the same
beliefs but does not explore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from math import nan
from operator import add
from typing import TypedDict

import numpy as np

from rlrec import times
from rlrec.app.audit.integrity import live_versions
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import EmptyLog, Evaluation
from rlrec.app.evaluation.passes.request import Request as EvaluationRequest
from rlrec.app.evaluation.rows import log_rows
from rlrec.app.evaluation.rows.groups import day_numbers
from rlrec.app.evaluation.rows.log_rows import ImpressionRows, LoggedBatch
from rlrec.app.evaluation.targets.logger_marginals import WITHOUT_MARGINALS, LoggerMarginals
from rlrec.app.inputs import filters, lookup
from rlrec.arrays import Array, finite_or_none
from rlrec.errors import InputError, quantity
from rlrec.ope.checks.reasons import LEAST_ESS, LEAST_REWARDS, VERDICTS
from rlrec.ope.comparisons.comparison import Comparison
from rlrec.ope.estimators.weighting import Snips
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.intervals import Minus
from rlrec.ope.sums.moments import Moments, moments
from rlrec.policy import TEAM_DRAFT
from rlrec.records import Sums
from rlrec.sentences import rounding
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import selected
from rlrec.store.policies import policies

N_PERIODS = 20  # of equal length, from the first decision to the last; probabilities are compared over them
COMPARED_COLUMNS = ("greedy_reward", "greedy_weight", "reward", "rows")  # columns that are compared
COLUMNS = (
    *COMPARED_COLUMNS,
    "lost",
    "lost_squares",
    "earning",
)  # lost: how much rarer a row would be without exploration

KINDS_WITHOUT_BELIEF = ("uniform", "fixed")


@dataclass(frozen=True, kw_only=True)
class Request:
    """This record holds the arguments of `exploration`.

    policy: the name of the policy, where None means the policy that the filter names, or else the only policy that
    has served; log: a filter of the policy's decisions; reward: the name of the reward, where None means the reward
    that the policy learns."""

    policy: str | None = None
    log: str | None = None
    reward: str | None = None
    level: float = 0.95
    seed: int = 0


# The reward per row lost to exploration, greedy minus served; answer: whether greedy is better.
CostFigures = TypedDict("CostFigures", {
    "cost": float | None, "lower": float | None, "upper": float | None, "answer": str, "needed": int | None,
})  # fmt: skip
RisenArm = TypedDict("RisenArm", {"arm": str, "probability_then": float, "probability_now": float})
TargetEss = TypedDict("TargetEss", {"target": str, "ess": float, "without_floor": float})


class DayCost(CostFigures):
    day: str
    rows: int


PolicyFigures = TypedDict("PolicyFigures", {
    "policy": str, "reward": str, "rows": int, "mean": float, "total": float | None, "verdict": str,
    "reasons": list[str], "by_day": list[DayCost], "risen": list[RisenArm], "ess": list[TargetEss], "left_out": int,
    "left_out_reason": str | None,
})  # fmt: skip


class Result(PolicyFigures, CostFigures):
    """This record holds what the exploration of a policy costs and brings.

    mean: the reward per row as served; total: the cost over all rows."""


class ExplorationSums(Sums, kw_only=True):
    """This record holds sums over rows of the log, which can be added. A row is an impression (one slot).

    cost: the sums of COLUMNS over clusters; days: the same sums by day; left_out: the number of rows whose
    probability with or without exploration is not known; n_waiting: the number of rows that are not mature.

    weights (targets, 4): for each target, the sums of w, w^2, w and w^2 / q over rows, where w is the weight of the
    target and q the weight of the greedy policy. The last sum is what the sum of squares would be in a log of the
    greedy policy.

    served_sums, greedy_sums, n_eligible (N_PERIODS, arms): sums over the decisions of each period. They are the
    probability of each arm at position 1 as served, the same without exploration, and the number of decisions in which
    the arm was eligible."""

    cost: Moments
    days: Mapping[int, Moments]
    weights: Array
    served_sums: Array
    greedy_sums: Array
    n_eligible: Array
    left_out: int
    n_waiting: int


def exploration(store: Store, request: Request) -> Result:
    """Return the cost and the benefits of a policy's exploration, from the mature decisions of this policy.

    Raises InputError for unknown names, a level outside (0, 1), and an empty log."""
    intervals.check_level(request.level)
    with store.read() as unit, bulk.alongside(unit):
        comparison = FloorComparison.resolve(unit, request)
        for sentence in live_versions.notice_successors(store, unit, [comparison.name]).values():
            store.notice(sentence)
        # with the seeds, which targets with samples need
        reading = Reading(columns=comparison.evaluation.judged_columns, marginals=0)
        sums = list(map(comparison.sums, comparison.reader.read(reading)))
        if not sums:
            raise comparison.evaluation.nothing_selected("impression of the policy")
        total = reduce(add, sums)
        if not total.cost.summary().n_clusters[3]:
            if total.n_waiting:
                count_text = f"{quantity(total.n_waiting, 'impression')} of {comparison.name}"
                raise comparison.evaluation.shared_rows[0].immature_log(count_text)
            message = f"no impression of {comparison.name} has a probability to compare"
            raise EmptyLog(message, hint=f"{WITHOUT_MARGINALS} have none by position")
        return comparison.answer(total)


def _only_policy(unit: Unit) -> str:
    """Return the name of the only policy that has served. Raises InputError where no policy or several policies have
    served."""
    ids = policies.serving_ids(unit)
    choices = (policy for policy in policies.all_policies(unit) if policy.id in ids and policy.kind != TEAM_DRAFT)
    # a holdout that is not a copy of a policy explores nothing
    names = sorted({policy.base for policy in choices if policy.base_id is not None or policy.name == policy.base})
    if not names:
        raise InputError("no policy has served yet", hint="serve with `rlrec recommend`")
    if len(names) > 1:
        raise InputError(f"{len(names)} policies have served", hint=f"name one of them: --policy {names[0]}")
    return names[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class FloorComparison:
    """A FloorComparison compares a policy with its greedy form, which does not explore, on the policy's own log.

    name, kind: the name and the kind of the policy; positions: the number of positions of the longest slate; start,
    period_us: the start of the first period, and the length of each period."""

    request: Request
    evaluation: Evaluation
    reader: LogReader
    name: str
    kind: str
    positions: int
    start: int
    period_us: int

    @classmethod
    def resolve(cls, unit: Unit, request: Request) -> FloorComparison:
        """Look up the names of a request, and return the comparison. Raises InputError for unknown names, and for kinds
        without a greedy form."""
        pairs = filters.parse(request.log or "")
        name = request.policy or pairs.get("policy") or _only_policy(unit)
        version = lookup.version(unit, name)[0]
        log = filters.join_filters(None if pairs.get("policy") == name else f"policy={name}", request.log)
        rows = [policy for policy in policies.all_policies(unit) if policy.id != version.policy.id]
        kinds = ("logged", "gradient", TEAM_DRAFT)
        targets = sorted(policy.name for policy in rows if policy.base_id is None and policy.kind not in kinds)
        reward = request.reward or version.reward.name
        evaluation = Evaluation.resolve(unit, EvaluationRequest(targets=["uniform", *targets], log=log, reward=reward))
        since, until = selected.times(unit, evaluation.selection)
        return cls(
            request=request, evaluation=evaluation, reader=LogReader(unit, evaluation), name=name,
            kind=version.policy.kind, positions=max(1, evaluation.extent.positions), start=since,
            period_us=(until - since) // N_PERIODS + 1,
        )  # fmt: skip

    def sums(self, batch: LoggedBatch) -> ExplorationSums:
        """Return the sums of one batch."""
        rows, n_waiting = log_rows.usable_rows(batch.log, self.evaluation.targets[0].reward, now=self.evaluation.now)
        weight, vectors = self._greedy_weights(rows, batch)
        is_usable = ~np.isnan(weight)
        left_out, rows, weight = int((~is_usable).sum()), rows.take(is_usable), weight[is_usable]
        loss, has_reward = np.maximum(1.0 - weight, 0.0), rows.reward != self.evaluation.targets[0].reward.default
        sides = weight * rows.reward, weight, rows.reward, np.ones(len(rows))
        terms = np.column_stack([*sides, loss, loss**2, has_reward])
        cluster = rows.slots["cluster"]
        day = day_numbers(rows.slots["at"])
        days = [(number, day == number) for number in np.unique(day).tolist()]
        sum_clusters = partial(moments, columns=COLUMNS, spans_batches=self.evaluation.spans_batches)
        return ExplorationSums(
            cost=sum_clusters(terms, cluster),
            days={number: sum_clusters(terms[day_rows], cluster[day_rows]) for number, day_rows in days},
            weights=self._weights(rows, weight, batch), n_waiting=n_waiting,
            served_sums=vectors[0], greedy_sums=vectors[1], n_eligible=vectors[2], left_out=left_out,
        )  # fmt: skip

    def _greedy_weights(self, rows: ImpressionRows, batch: LoggedBatch) -> tuple[Array, Array]:
        """Return the weight of each of n rows for the policy without exploration, (n,), which is NaN where it is not
        known. Return also the sums `served_sums`, `greedy_sums` and `n_eligible` of ExplorationSums, stacked (3,
        N_PERIODS, arms)."""
        slots, weight = rows.slots, np.full(len(rows), np.nan)
        vectors = np.zeros((3, N_PERIODS, len(self.evaluation.arms)))
        period, top = (slots["at"] - self.start) // self.period_us, slots["position"] == 1
        arguments = slots, batch.contexts, batch.eligible
        greedy_cases = LoggerMarginals(self.reader.loggers, greedy=True).cases(*arguments, positions=self.positions)
        served_cases = self.reader.marginals.cases(*arguments, positions=self.positions)
        for case, served_case in zip(greedy_cases, served_cases, strict=False):
            position, arm = slots["position"][case.rows], np.searchsorted(case.arms, slots["arm_id"][case.rows])
            weight[case.rows] = case.marginals[position - 1, arm] / slots["marginal"][case.rows]
            index = self.evaluation.arms.index(case.arms)
            decisions = np.bincount(period[case.rows[top[case.rows]]], minlength=N_PERIODS)[:, None]
            for sums, probability in zip(vectors, (served_case.marginals[0], case.marginals[0], 1.0), strict=True):
                sums[:, index] += decisions * probability
        return weight, vectors

    def _weights(self, rows: ImpressionRows, greedy_weight: Array, batch: LoggedBatch) -> Array:
        """Return sums of the weights of the rows for each target, (targets, 4): the field `weights` of ExplorationSums.

        greedy_weight: the weight of each row for the policy without exploration."""
        sums = np.zeros((len(self.evaluation.targets), 4))
        for number, scorer in (member for group in self.evaluation.shared_rows for member in group.members):
            weight = scorer.log_batch(rows=rows, batch=batch, values=None).weight
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                squares = np.where(weight > 0, weight**2 / greedy_weight, 0.0)
            sums[number] = weight.sum(), (weight**2).sum(), weight.sum(), squares.sum()
        return sums

    def answer(self, total: ExplorationSums) -> Result:
        """Return the figures of the policy, computed from the sums of the log."""
        cost, column_sums = self._cost(total.cost), total.cost.summary().total
        # without a floor, such a policy is its own greedy form, and draws at random all the same
        has_belief = self.kind not in KINDS_WITHOUT_BELIEF or (cost.lower, cost.upper) != (0.0, 0.0)
        n, weights = round(column_sums[3]), zip(self.evaluation.targets, total.weights.tolist(), strict=True)
        return {
            "policy": self.name, "reward": self.evaluation.targets[0].reward.name, "rows": n,
            "mean": float(column_sums[2] / column_sums[3]), "total": None if cost.value is None else cost.value * n,
            **_figures(cost), "verdict": cost.verdict,
            "reasons": [*cost.reasons, *([] if has_belief else ["no-belief"])],
            "by_day": [
                {"day": times.date(day), "rows": round(sums.summary().total[3]), **_figures(self._cost(sums))}
                for day, sums in sorted(total.days.items())
            ],
            "risen": self._find_risen_arms(total),
            "ess": [
                {"target": target.name, "ess": _ratio(weight_sum**2, square_sum),
                 "without_floor": 0.0 if np.isinf(squares) else _ratio(weight_sum**2, squares)}
                for target, (weight_sum, square_sum, _, squares) in weights
            ],
            "left_out": total.left_out, "left_out_reason": WITHOUT_MARGINALS if total.left_out else None,
        }  # fmt: skip

    def _cost(self, sums: Moments) -> Comparison:
        """Return the reward per row lost to exploration. This is the self-normalised mean reward without exploration,
        minus the mean reward as served, on the same rows."""
        summary, contrast = sums.summary(), Minus(Snips())
        sample = intervals.studentised_bootstrap(
            contrast, summary.units[:, : len(COMPARED_COLUMNS)], seed=self.request.seed
        )
        lower, upper = sample.bounds(self.request.level)
        rows, loss, squares, n_rewards = summary.total[3:]
        base = contrast.base(summary.total[: len(COMPARED_COLUMNS)])
        ess = finite_or_none(summary.total[1] ** 2 / summary.moment[1, 1])
        is_small, explores = (ess or 0.0) < LEAST_ESS, not np.allclose(summary.units[:, 1], summary.units[:, 3])
        is_equal = abs(sample.value) <= rounding(base)
        # rewards to be expected of the effective rows that exploration added: an error without any is too small
        is_rare = explores and loss**2 * n_rewards <= LEAST_REWARDS * squares * rows
        if is_equal or is_rare:  # where the choice matters and all rows shown earned the same, other rows may differ
            lower = upper = nan if explores else 0.0
        reasons = {"low-ess": is_small, "few-rewards": is_rare, "no-variation": is_equal and explores}
        return Comparison.from_figures(
            value=sample.value, base=base, std_error=sample.error, lower=lower, upper=upper, ess=ess,
            clusters=int(summary.n_clusters[3]), verdict=VERDICTS[0 if is_small or is_rare else -1],
            reasons=[name for name, applies in reasons.items() if applies],
        )  # fmt: skip

    def _find_risen_arms(self, total: ExplorationSums) -> list[RisenArm]:
        """Return the arms that exploration brought up. In some earlier period, the probability of such an arm without
        exploration was less than half of its probability as served. In the last period, its probability as served is
        larger than an equal share. All probabilities are at position 1."""
        with np.errstate(divide="ignore", invalid="ignore"):
            p_served, p_greedy = total.served_sums / total.n_eligible, total.greedy_sums / total.n_eligible
        periods = np.flatnonzero(total.n_eligible.any(axis=1))
        last_period = periods[-1]
        arms = np.flatnonzero(total.n_eligible[last_period])
        min_probability = np.where(p_greedy < p_served / 2, p_served, np.inf)[periods[:-1]].min(axis=0, initial=np.inf)
        risen_arms = arms[np.isfinite(min_probability[arms]) & (p_served[last_period, arms] > 1 / len(arms))]
        rows = risen_arms[np.argsort(-p_served[last_period, risen_arms], kind="stable")]
        keys = [self.evaluation.arms.keys[arm] for arm in self.evaluation.arms.ids[rows].tolist()]
        figures = zip(keys, min_probability[rows].tolist(), p_served[last_period, rows].tolist(), strict=True)
        return [{"arm": key, "probability_then": p_then, "probability_now": p_now} for key, p_then, p_now in figures]


def _figures(cost: Comparison) -> CostFigures:
    answer, n_needed = cost.answer
    return {"cost": cost.value, "lower": cost.lower, "upper": cost.upper, "answer": answer, "needed": n_needed}


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
