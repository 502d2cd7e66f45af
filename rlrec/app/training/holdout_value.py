"""This module estimates the value of parameters on visits that were not used for training. This value decides which
epoch is chosen. The module also computes how many effective visits the gate will need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from math import sqrt
from operator import add
from typing import Any, TypedDict

import numpy as np

from rlrec import ope
from rlrec.app.evaluation.models.reward_models import Decisions, ReturnModel, ReturnSums, TargetSlates
from rlrec.app.evaluation.rows.groups import group_members
from rlrec.app.training.dataset import DatasetSplit, DecisionBlock, VisitRows, blocks
from rlrec.arrays import Array
from rlrec.ope.checks.reasons import LEAST_ESS
from rlrec.ope.checks.verdicts import LEAST_MEAN_WEIGHT
from rlrec.ope.comparisons.comparison import Comparison, compare
from rlrec.ope.sums.visits import VisitBatch
from rlrec.ope.units.estimate import Estimate, FinishOptions
from rlrec.ope.units.fold import RowSums, WeightSpread
from rlrec.ope.units.sessions import LEAST_SUPPORT, SessionFold, n_visits
from rlrec.ope.units.strata import (
    Stratum,
    Weighting,
    negligible_loggers,
    strata_left_out,
    stratum_factors,
    uncounted_strata,
)
from rlrec.policy.gradients import reinforce, returns
from rlrec.policy.gradients.gradient import ARM_PARAMETERS, Gradient, Parameters, score_states
from rlrec.policy.slates import plackett_luce
from rlrec.records import add_each

ESTIMATOR = "wdr"
VISITS = 500  # visits per batch in the held-out splits
MAX_CELLS = 1 << 19  # scores that are computed at a time, so that they stay in the processor's cache
CHANCE_FACTOR = 3.0  # times the root of an ESS, added to the gate's minimum, since splits differ by chance
# What a logger earned. users: the number of its users, and of its sessions without a user; value: the mean reward of a
# visit or of a slot; std_error: the standard error of this mean over users.
LoggedValue = TypedDict("LoggedValue", {"logger": str, "users": int, "value": float, "std_error": float})
ByStratum = Mapping[Stratum, RowSums]
GAIN_REPLICATES = 50  # replicates of an interval that is not used


def fit_values(split: DatasetSplit, *, gamma: float, arms: int) -> ReturnModel:
    """Return the model of returns, fitted to the visits of a split.

    gamma: the discount of later rewards; arms: the number of arms."""
    sums = (
        ReturnSums.from_decisions(_decisions(rows), rows.reward, gamma=gamma, arms=arms) for rows in split.batches()
    )
    return reduce(add, sums).finish()


def _decisions(rows: VisitRows) -> Decisions:
    """Return the decisions of these visits in the form that the model of returns takes."""
    state = rows.state()
    return Decisions(
        start=rows.start, cluster=rows.cluster, top=rows.shown_arm[rows.first[:-1]], x=rows.x, row=state.row,
        arm=state.arm, memory=state.memory,
    )  # fmt: skip


def _logged_slots(rows: VisitRows) -> Array:
    """Return the logarithm of the logged probability of each slot, given the slots above, (i,). Where this probability
    is not known, the result is an equal part of the logarithm for the slate."""
    parts = np.repeat(rows.log_propensity / rows.size, rows.size)
    return np.where(np.isnan(rows.log_conditional), parts, rows.log_conditional)


class HoldoutValue:
    """A HoldoutValue computes the value of parameters on visits that were not used for training, compared with
    reference parameters. Pages whose request had rules count as they were served, whatever the parameters.

    left_out: the strata whose visits do not count; wanted_ess: the number of effective visits that parameters need
    here, so that the gate can judge them; reference_ess: the effective sample size of the reference; clusters: the
    number of users, and of sessions without a user. Where slots are judged separately, the effective visits are at
    most `expected_ess`."""

    def __init__(
        self, split: DatasetSplit, policy: Gradient, reference: Parameters, *, gamma: float, values: ReturnModel,
        max_visits: int | None = None, gate_visits: int | None = None, by_position: Array | None = None,
    ) -> None:  # fmt: skip
        """Compute the value of the reference.

        reference: the parameters to compare with; gamma: the discount of later rewards; values: the model of
        returns; max_visits: the number of first visits to use, or None for all; gate_visits: the number of visits of
        the gate that will judge later, where None means as many as here; by_position: the mean reward of each
        position, where slots are judged separately, else None."""
        self.split, self.policy, self.reference, self.values = split, policy, reference, values
        self.max_visits, self.by_position = max_visits, by_position
        self._exploration: dict[str, Any] = {"temperature": policy.temperature, "floor": policy.exploration}
        estimators = ope.parse(ESTIMATOR).sessions
        self.fold = SessionFold(
            estimators=estimators, gamma=gamma, horizon=split.max_length, spans_batches=split.spans_batches
        )
        self._reference_partials = self.partials(reference)
        partials = self._reference_partials
        self.left_out = uncounted_strata(partials, strata_left_out(self.fold, partials))
        counts = np.array([stratum not in self.left_out for stratum in split.strata], np.float64)
        if by_position is not None:
            self._slots_of_reference = self._slot_values(reference)
            columns = [
                (rows.cluster, counts[rows.stratum], np.add.reduceat(rows.size, rows.start[:-1]))
                for rows in split.batches(max_visits)
            ]
            clusters, self._counts, slots = map(np.concatenate, zip(*columns, strict=True))
            self._slots = self._counts * slots
            self._cluster = np.unique(clusters, return_inverse=True)[1]
        rows = {stratum: float(n_visits(partial)) for stratum, partial in self._reference_partials.items()}
        visits = sum(rows.values())
        counted_visits = sum(number for stratum, number in rows.items() if stratum not in self.left_out)
        min_ess = max(LEAST_ESS * visits / (gate_visits or visits), LEAST_SUPPORT * counted_visits)
        self.wanted_ess = min_ess + CHANCE_FACTOR * sqrt(min_ess)
        estimate = self._estimate(self._reference_partials)
        self.reference_ess, self.clusters = estimate.ess or 0.0, estimate.clusters

    def point(self, parameters: Parameters, *, z: float) -> dict[str, Any]:
        """Return the figures of parameters for the learning curve, by name. The bounds of the gain are z standard
        errors away from the gain. Where slots are judged separately, the gain is the result of `slot_gain`, whose
        standard error is a tenth of that for whole visits. This gain is correct to first order, as long as enough
        visits are effective."""
        partial, (entropy, kl) = self.partials(parameters), self._entropy_and_divergence(parameters)
        estimate = self._estimate(partial)
        ess = estimate.ess
        if self.by_position is None:
            comparison = self.difference(partial, alpha=0.025, replicates=GAIN_REPLICATES)
            gain, error = comparison.value, comparison.std_error
        else:
            gain, error = self.slot_gain(parameters)
            ess = min(ess or 0.0, self.expected_ess(parameters))
        return {
            "value": estimate.value, "gain": gain, "std_error": error, "ess": ess, "entropy": entropy, "kl": kl,
            "lower": None if error is None or gain is None else gain - z * error,
            "upper": None if error is None or gain is None else gain + z * error,
        }  # fmt: skip

    def teaching_factors(self, *, by_slot: bool, clip: float) -> tuple[Array, Array]:
        """Return the factor with which the decisions of each stratum count in training, (strata,), and the number of
        visits or slots of each stratum, (strata,). The factor is smaller, the more the weights of the stratum vary
        under the reference. It is 0 for loggers whose log cannot tell anything about the reference.

        by_slot: whether weights are those of slots, given the slots above; clip: the largest weight."""
        strata, sums = self.split.strata, np.zeros((4, len(self.split.strata)))
        for rows in self.split.batches():
            log_slots, stratum = self._log_slots(rows, self.reference), np.repeat(rows.stratum, rows.length)
            log_ratio = np.add.reduceat(log_slots, rows.first[:-1]) - rows.log_propensity
            if by_slot:
                log_ratio, stratum = log_slots - rows.log_conditional, np.repeat(stratum, rows.size)
            weight = np.exp(np.minimum(log_ratio, reinforce.MAX_LOG_WEIGHT))
            columns = np.ones(len(weight)), weight, weight**2, np.minimum(weight, clip) ** 2
            sums += [np.bincount(stratum, column, len(strata)) for column in columns]
        by_logger = {logger: sums[:, [s.logger == logger for s in strata]].sum(axis=1) for logger, _ in strata}
        unsupported_loggers = frozenset(
            logger for logger, (n, weight, squares, _) in by_logger.items()
            if n and weight / n + 3 * np.sqrt(max(squares / n - (weight / n) ** 2, 0.0) / n) < LEAST_MEAN_WEIGHT
        )  # fmt: skip
        spread = {
            stratum: WeightSpread(*(np.array([column]) for column in (n, weight, clipped_squares, n)))
            for stratum, (n, weight, _, clipped_squares) in zip(strata, sums.T, strict=True) if n
        }  # fmt: skip
        sizes = {
            logger: (weight**2 / squares, int(n)) for logger, (n, weight, squares, _) in by_logger.items()
            if squares and logger not in unsupported_loggers
        }  # fmt: skip
        absent = unsupported_loggers | negligible_loggers(sizes) if sizes else frozenset()
        factors = stratum_factors(spread, frozenset(stratum for stratum in spread if stratum.logger in absent))
        return np.array([factors[stratum][0] if stratum in factors else 0.0 for stratum in strata]), sums[0]

    def slot_gain(self, parameters: Parameters) -> tuple[float | None, float | None]:
        """Return the gain per slot of the parameters over the reference, in the states of the log, and the standard
        error of this gain over clusters. The error is None with fewer than two clusters. The gain is the mean over
        slots of (weight under the parameters - weight under the reference) x (reward - mean reward of the position)."""
        gain = self._counts * (self._slot_values(parameters) - self._slots_of_reference)
        slots = np.bincount(self._cluster, self._slots)
        mean = float(gain.sum() / slots.sum())
        if len(slots) < 2:
            return mean, None
        deviation = np.bincount(self._cluster, gain) - mean * slots
        return mean, float(np.sqrt((deviation**2).sum()) / slots.sum())

    def logged_values(self, *, by_slot: bool) -> list[LoggedValue]:
        """Return what each logger of these visits earned, highest mean first. A logger with a single user is left out.

        by_slot: whether the mean is the reward of a slot; otherwise it is the discounted sum of a visit."""
        columns = []
        for rows in self.split.batches(self.max_visits):
            reward = rows.reward if by_slot else rows.reward * self.fold.gamma ** returns.steps(rows.start)
            units = np.add.reduceat(rows.size, rows.start[:-1]) if by_slot else np.ones(len(rows))
            columns.append((rows.stratum, rows.cluster, np.add.reduceat(reward, rows.start[:-1]), units))
        stratum, cluster, reward, units = map(np.concatenate, zip(*columns, strict=True))
        loggers = [logger for logger, _ in self.split.strata]
        values = list[LoggedValue]()
        for name in dict.fromkeys(filter(None, loggers)):
            rows_of_logger = np.flatnonzero(np.array([logger == name for logger in loggers])[stratum])
            user = np.unique(cluster[rows_of_logger], return_inverse=True)[1]
            if (n := int(user.max(initial=-1)) + 1) > 1:
                total, mean = units[rows_of_logger].sum(), reward[rows_of_logger].sum() / units[rows_of_logger].sum()
                deviation = np.bincount(user, reward[rows_of_logger] - mean * units[rows_of_logger])
                error = np.sqrt(np.square(deviation).sum() * n / (n - 1)) / total
                values.append({"logger": name, "users": n, "value": float(mean), "std_error": float(error)})
        return sorted(values, key=lambda row: -row["value"])

    def difference(self, partials: ByStratum, **options: Any) -> Comparison:
        """Return the value from these sums minus the value of the reference. Both values have the same weights of
        loggers.

        partials: the sums of the parameters, as `partials` returns them; options: the options of `compare`."""
        weighting = Weighting.from_strata(self.fold, partials, self._reference_partials, left_out=self.left_out)
        sides = (self.fold.estimator_folds(weighting.total(sums))[0] for sums in (partials, self._reference_partials))
        return compare(*sides, **options)

    def _estimate(self, partials: ByStratum) -> Estimate:
        total = Weighting.from_strata(self.fold, partials, left_out=self.left_out).total(partials)
        return self.fold.finish(total, FinishOptions(interval="normal"))[0]

    def partials(self, parameters: Parameters) -> ByStratum:
        """Return the sums of the visits under the parameters, by stratum."""
        strata = self.split.strata
        partials: ByStratum = {}
        for rows in self.split.batches(self.max_visits):
            decisions, log_slots, is_ruled = _decisions(rows), _logged_slots(rows), rows.is_ruled > 0
            predictions = self.values.predict(decisions)
            expectations = self.values.predict_mean(decisions, self._distributions(rows, parameters, log_slots))
            expectations[is_ruled] = predictions[is_ruled]
            log_ratio = np.add.reduceat(log_slots, rows.first[:-1]) - rows.log_propensity
            batch = VisitBatch(
                start=rows.start, reward=rows.reward, log_ratio=log_ratio, cluster=rows.cluster,
                predicted=predictions, expected=expectations, largest=-rows.lowest,
                default=rows.default > 0,
            )  # fmt: skip
            for number, visits in group_members(rows.stratum, len(strata)):
                stratum_batch = batch if visits is None else batch.take(visits)
                partials = add_each(partials, {strata[number]: self.fold.row_sums(stratum_batch)})
        return partials

    def _distributions(self, rows: VisitRows, parameters: Parameters, log_slots: Array) -> Iterator[TargetSlates]:
        """Yield the distributions of slates under the parameters, in portions of the decisions. The logarithm of the
        probability of each shown slot, given the slots above, is written into log_slots, (i,)."""
        for block in self._portions(rows):
            score, at, slates = self._score(parameters, block), block.rows, block.slates
            probability = plackett_luce.probabilities(score, block.eligible, **self._exploration)
            if slates.shape[1] == 1:
                with np.errstate(divide="ignore"):
                    log_shown = np.log(probability[np.arange(len(at)), slates[:, 0]])[:, None]
            else:
                log_shown = plackett_luce.log_conditionals(score, slates, block.eligible, **self._exploration)
            log_slots[rows.first[at][:, None] + np.arange(slates.shape[1])] = log_shown
            cases = np.arange(len(at))
            yield TargetSlates(rows=at, log_slate=log_shown.sum(axis=1), arms=block.arms, share=probability, case=cases)

    def _log_slots(self, rows: VisitRows, parameters: Parameters) -> Array:
        """Return the logarithm of the probability of each shown slot under the parameters, given the slots above,
        (i,)."""
        log_slots = _logged_slots(rows)
        for _ in self._distributions(rows, parameters, log_slots):
            pass
        return log_slots

    def log_slates(self, rows: VisitRows, parameters: Parameters) -> Array:
        """Return the logarithm of the probability of each slate of these visits under the parameters, (n,)."""
        return np.add.reduceat(self._log_slots(rows, parameters), rows.first[:-1])

    def _slot_values(self, parameters: Parameters) -> Array:
        """Return for each visit the sum of weight x (reward - mean reward of the position) over its slots, (visits,).
        Weights are those of slots under the parameters."""
        assert self.by_position is not None
        values = []
        for rows in self.split.batches(self.max_visits):
            mean = self.by_position[np.minimum(returns.steps(rows.first), len(self.by_position) - 1)]
            log_ratio = self._log_slots(rows, parameters) - rows.log_conditional
            weighed_gain = np.exp(np.minimum(log_ratio, reinforce.MAX_LOG_WEIGHT)) * (rows.slot_reward - mean)
            values.append(np.add.reduceat(weighed_gain, rows.first[rows.start[:-1]]))
        return np.concatenate(values)

    def expected_ess(self, parameters: Parameters) -> float:
        """Return the number of effective visits that the parameters would be expected to have in a log of the
        reference. The number is computed from the divergence of every slot in the visits. The weights of shown slots
        alone would miss the rare slots that have most of the variance."""
        n_visits, second_moment = 0, 0.0
        for rows in self.split.batches(self.max_visits):
            growth = np.zeros(len(rows.eligible))
            for block in self._portions(rows):
                scores = self._score(parameters, block), self._score(self.reference, block)
                divergences = plackett_luce.chi_squares(*scores, block.slates, block.eligible, **self._exploration)
                growth[block.rows] = np.log1p(divergences).sum(axis=1)
            visit_growth = np.add.reduceat(growth, rows.start[:-1])
            n_visits += len(visit_growth)
            second_moment += float(np.exp(np.minimum(visit_growth, reinforce.MAX_LOG_WEIGHT)).sum())
        return n_visits**2 / second_moment

    def _portions(self, rows: VisitRows) -> Iterator[DecisionBlock]:
        for block in blocks(rows):
            step = max(1, MAX_CELLS // len(block.arms))
            for start in range(0, len(block.rows), step):
                yield block.slice_rows(start, start + step)

    def _entropy_and_divergence(self, parameters: Parameters) -> tuple[float, float]:
        """Return the mean entropy of the parameters at position 1, and the mean KL(reference || parameters) of slates.
        Both are in nats, and use the first batch alone."""
        sums = np.zeros(3)
        for block in self._portions(next(self.split.batches())):
            scores = self._score(parameters, block), self._score(self.reference, block)
            first = plackett_luce.probabilities(scores[0], block.eligible, **self._exploration)
            kl = plackett_luce.divergences(*scores, block.slates, block.eligible, **self._exploration)
            entropy = -(first * np.log(np.maximum(first, 1e-30))).sum()
            sums += [len(block.rows), float(entropy), float(kl.sum())]
        return float(sums[1] / max(1.0, sums[0])), float(sums[2] / max(1.0, sums[0]))

    def _score(self, parameters: Parameters, block: DecisionBlock) -> Array:
        arm_parameters = {name: parameters[name][block.arms] for name in ARM_PARAMETERS}
        return score_states(self.policy.arm_weights({**parameters, **arm_parameters}, block.features), block.state)
