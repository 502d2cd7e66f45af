"""This module trains a policy by gradient ascent, in epochs over batches of visits. It chooses the best epoch by visits
that were not used for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from itertools import chain
from typing import Any

import numpy as np

from rlrec.app.training.dataset import ArrayFile, DatasetSplit, VisitRows, blocks
from rlrec.app.training.holdout_value import HoldoutValue
from rlrec.arrays import Array, Ids
from rlrec.errors import RlrecError
from rlrec.policy.gradients import reinforce, returns
from rlrec.policy.gradients.gradient import Gradient, Parameters
from rlrec.policy.gradients.natural import BIAS, FoldGradients, MeanFeatures, NaturalSteps
from rlrec.policy.gradients.reinforce import LoggedSlates, Objective
from rlrec.records import add_each

GAIN_Z = 2.0  # the bounds of a gain are this many standard errors away,
SLOT_Z = 1.0  # or this many where slots are judged separately: their error is small, and the gate is strict
N_SIGN_DRAWS = 3  # of random signs in place of gains, from which the diagonal of the Fisher matrix is estimated
AUTO, SLOT, SLATE = "auto", "slot", "slate"
WEIGHT_KINDS = (AUTO, SLOT, SLATE)
TOP_K = "top-k"  # slots as draws with replacement, with --top-k
# effective share of decisions, with weights of slates before any step, below which slots are weighted
MIN_ESS_SHARE = 0.5
MIN_SLOT_SHARE = 0.1  # share of the rewards that is earned by slots, from which on slots are weighted
MAX_CLIPPED_SHARE = 0.05  # share of these weights removed by clipping, above which slots are weighted
RATE_GROWTH, MAX_RATE = 2.0, 1.0  # of a step after an epoch with a gain, and its limit
MIN_BOLD_ESS = 5  # effective tuning visits below which not even a bold step is justified
MAX_RETRIES = 5  # consecutive halved steps without gain after which the ascent ends
# iterations towards the direction of largest curvature, and the size of the change that probes it
N_POWER_STEPS, PROBE_SIZE = 10, 0.1
KICK_SIZE = 1.0  # change of log probabilities (root mean square) with which the ascent leaves a saddle


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """This record holds the options of the ascent.

    gamma: the discount of later rewards; discounted: whether gamma^t multiplies the gradient at step t; batch: the
    largest number of visits in a batch, which gives one natural step (`natural.py`); lr: the initial size of a step;
    entropy: the weight of the policy's entropy; clip_weight: the largest importance weight, where None means no
    limit; no_correction: whether gains have no importance weights; bold: whether an epoch may be chosen that no gate
    (the test before a version goes live) could judge; patience: the number of epochs without improvement after which
    the ascent ends; kl_stop: the mean KL(start || now) at which the ascent ends; shaping: the weight of each feature
    of a state in the potential, by name.

    weights: "slate" if each slate has one weight, or "slot" if each slot has a weight, given the slots above; top_k: if
    above 0, each slot has a weight whatever the slots above show, as one of top_k draws with replacement."""

    gamma: float = 1.0
    baseline: str = "value"
    epochs: int = 60
    lr: float = 0.005
    entropy: float = 0.0
    clip_weight: float | None = 20.0
    top_k: int = 0
    weights: str = SLATE
    no_correction: bool = False
    bold: bool = False
    discounted: bool = True
    kl_stop: float | None = None
    patience: int = 20
    batch: int = 500
    shaping: Mapping[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> Objective:
        clip = np.inf if self.clip_weight is None else self.clip_weight
        return Objective(
            clip=clip, entropy=self.entropy, uses_weights=not self.no_correction, top_k=self.top_k,
            is_by_slot=self.weights == SLOT,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An Epoch is a point of the learning curve, measured on the tuning visits, which choose the best epoch.

    lr: the step size; supported: whether a gate could judge the policy, by the ESS of the tuning visits; value: the
    value of the policy; gain: this value minus the value of the start, with `std_error` and the bounds `lower` and
    `upper`; entropy, kl: the entropy and the KL divergence in nats; clipped: the part of the gradients that clipping
    removed; variance, variance_without_baseline: the variance of the gradient with the baseline, and without it."""

    epoch: int
    lr: float
    supported: bool
    value: float | None
    gain: float | None
    std_error: float | None
    lower: float | None
    upper: float | None
    ess: float | None
    entropy: float | None
    kl: float | None
    clipped: float
    variance: float
    variance_without_baseline: float

    def is_accepted(self, *, bold: bool) -> bool:
        """Tell whether enough tuning visits are effective. With `bold`, a number is enough that is too low for a
        gate."""
        return self.supported or (bold and (self.ess or 0.0) >= MIN_BOLD_ESS)

    def is_better(self, earlier: Epoch, *, bold: bool) -> bool:
        """Tell whether this epoch is better than an earlier epoch. An epoch with enough effective visits is better than
        one without. Of two such epochs, the gain decides: it must be larger by more than one standard error of the
        difference. This error is taken as the difference of the two standard errors, which grow together along one
        path."""
        if self.is_accepted(bold=bold) != earlier.is_accepted(bold=bold):
            return self.is_accepted(bold=bold)
        if self.gain is None or earlier.gain is None:
            return self.gain is not None
        return self.gain - earlier.gain > max(0.0, (self.std_error or 0.0) - (earlier.std_error or 0.0))


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingResult:
    """This record holds the parameters of the best epoch, and the learning curve.

    best: the number of the best epoch, where 0 means the start; is_promising: whether the tuning visits show that the
    best epoch is better than the start; path: the parameters from which the ascent reached the best epoch, and the
    step size of each epoch since then."""

    parameters: Parameters
    best: int
    curve: list[Epoch]
    is_promising: bool
    path: tuple[Parameters, Sequence[float]]

    @property
    def best_epoch(self) -> Epoch | None:
        """Return the point of the learning curve for the best epoch, or None where the start is best."""
        return self.curve[self.best - 1] if self.best else None

    @property
    def is_bold(self) -> bool:
        """Tell whether the best epoch is one that no gate could judge."""
        return self.best_epoch is not None and not self.best_epoch.supported

    @property
    def is_supported(self) -> bool:
        """Tell whether a gate could judge at least one epoch."""
        return any(point.supported for point in self.curve)


@dataclass(frozen=True, kw_only=True)
class PageWeights:
    """This record describes the importance weights of whole slates before the first step.

    ess_share: the ESS divided by the number of decisions; clipped_share: the part of the sum of weights that
    clipping removes; max_positions: the number of positions of the longest slate; has_missing_propensities: whether
    the propensity of a slot is unknown; earned_by_slots: the part of all rewards that single slots earned, rather
    than whole pages."""

    ess_share: float
    clipped_share: float
    max_positions: int
    has_missing_propensities: bool
    earned_by_slots: float

    @classmethod
    def from_visits(cls, rows: VisitRows, log_joint: Array, *, clip: float) -> PageWeights:
        """Compute the record from these visits.

        log_joint (n,): the logarithm of the probability of each slate, under the policy in training; clip: the
        largest weight."""
        weight = np.exp(np.minimum(log_joint - rows.log_propensity, reinforce.MAX_LOG_WEIGHT))
        total, squares = float(weight.sum()), float((weight**2).sum())
        slots = float(np.abs(rows.slot_reward).sum())
        pages = float(np.abs(rows.reward - np.add.reduceat(rows.slot_reward, rows.first[:-1])).sum())
        return cls(
            ess_share=total**2 / squares / len(weight) if squares else 0.0,
            clipped_share=float(np.maximum(weight - clip, 0.0).sum()) / total if total else 0.0,
            max_positions=int(rows.size.max(initial=0)), earned_by_slots=slots / (slots + pages) if slots else 0.0,
            has_missing_propensities=bool(np.isnan(rows.log_conditional).any()),
        )  # fmt: skip

    @property
    def auto_weights(self) -> str:
        """Return "slot" or "slate", the kind of weights that the option `auto` stands for with these visits. The reward
        of a slot does not depend on the slate above, so weights by slot have less noise, and are exact on the policy's
        own log. The reward of a page depends on the whole slate."""
        is_hopeless = self.ess_share < MIN_ESS_SHARE or self.clipped_share > MAX_CLIPPED_SHARE
        by_slot = self.earned_by_slots >= MIN_SLOT_SHARE or is_hopeless
        return SLOT if self.max_positions > 1 and by_slot and not self.has_missing_propensities else SLATE

    def sentence(self, weights: str) -> str:
        """Return a sentence that names the weights in use, and the reason for this choice."""
        prefix = f"slots earn {self.earned_by_slots:.0%} of the rewards, pages as a whole the rest"
        shares = f"{prefix}; weights of whole slates: {self.ess_share:.1%} effective, {self.clipped_share:.1%} clipped"
        return f"weights: by {weights} ({shares})"


class Trainer:
    """A Trainer trains a policy once, on the training visits.

    later_factor: the factor, from 0 to 1, with which the rewards after a slot count for this slot if weights are by
    slot (see `agreement`)."""

    def __init__(
        self, train: DatasetSplit, policy: Gradient, options: TrainingOptions, start: Parameters,
        factors: Array | None = None,
    ) -> None:  # fmt: skip
        """Prepare the baseline, the decisions and the steps.

        start: the parameters from which the ascent starts; factors: the weight of the decisions of each stratum,
        where None means 1 for all."""
        self.policy, self.options, self.start, self._factors = policy, options, start, factors
        self._sums = partial(reinforce.sums, policy, objective=options.objective)
        self._potential = np.array([options.shaping.get(name, 0.0) for name in policy.names])
        self._prepare_baseline(train)
        self._credit_factors = 0.0, 1.0
        gradients = (self._sums(start, self.slates(rows)).gradient for rows in train.batches())
        self.later_factor = agreement(gradients) if options.objective.is_by_slot else 1.0
        self._credit_factors = 1.0, self.later_factor
        self._file = ArrayFile()  # data that every epoch reads, computed once
        for rows in train.batches():
            self._file.add([pack_mask(slates) for slates in self.slates(rows)])
        self._means, self._decisions, self._slots = self._mean_features()
        self._set_steps(start)

    def _batches(self) -> Iterator[list[LoggedSlates]]:
        for number in range(len(self._file)):
            yield [unpack_mask(slates) for slates in self._file.read(number)]

    def _set_steps(self, parameters: Parameters) -> None:
        """Create the natural steps at these parameters. The diagonal of the Fisher matrix is estimated by random signs
        (Bekas, Kokiopoulou & Saad 2007)."""
        rng, fisher = np.random.default_rng(0), Parameters()

        def gradients() -> Iterator[Parameters]:
            nonlocal fisher
            for slates in self._batches():
                # the gains of slates, and random ones of 1 or -1
                draws = [[rng.choice((-1.0, 1.0), slate.gain.shape) for slate in slates] for _ in range(N_SIGN_DRAWS)]
                pairs = [(slate, [slate.gain, *signs]) for slate, *signs in zip(slates, *draws, strict=True)]
                sums = reinforce.gradients(
                    self.policy, parameters, pairs, self.options.objective, number=1 + N_SIGN_DRAWS
                )
                gradient, *samples = map(self._means.centre_gradient, sums)
                squares = ({name: values**2 / N_SIGN_DRAWS for name, values in sample.items()} for sample in samples)
                fisher = reduce(add_each, squares, fisher)
                yield gradient

        folds = FoldGradients(gradients())
        self._fisher = fisher
        self._steps = NaturalSteps.from_gradients(
            folds, fisher, self._means, decisions=self._decisions, slots=self._slots
        )

    def _mean_features(self) -> tuple[MeanFeatures, int, int]:
        """Return the means of the features over the decisions, the number of decisions, and the number of slots."""
        n_decisions, n_slots, n_features = 0, 0, len(self.policy.names)
        state = np.zeros(n_features + len(self.policy.design.columns))
        memory = np.zeros(self.start["own"].shape)
        for group in chain.from_iterable(self._batches()):
            state[:n_features] += group.state.x.sum(axis=0, dtype=np.float64)
            if (words := group.state.words) is not None:
                np.add.at(state, n_features + words.column, words.value.astype(np.float64))
            np.add.at(memory, group.arms[group.state.arm], group.state.memory.astype(np.float64))
            n_decisions, n_slots = n_decisions + len(group), n_slots + group.shown_arms.size
        return MeanFeatures(state / max(1, n_decisions), memory / max(1, n_decisions)), n_decisions, n_slots

    def close(self) -> None:
        """Close the temporary file that holds the decisions."""
        self._file.close()

    def _prepare_baseline(self, train: DatasetSplit) -> None:
        total, count = 0.0, 0
        sums: returns.ValueSums | None = None
        if self.options.baseline in ("mean", "value"):
            for rows in train.batches():
                raw_gain = self._returns(rows)
                total, count = total + float(raw_gain.sum()), count + len(raw_gain)
                if self.options.baseline == "value":
                    batch_sums = returns.value_sums(rows.x.astype(np.float64), raw_gain, self._fold(rows))
                    sums = batch_sums if sums is None else sums + batch_sums
        self._mean_return = total / max(1, count)
        self.by_position = mean_by_position(train) if self.options.objective.is_by_slot else None
        self._value_coefficients = None if sums is None else returns.fit(sums)

    def slates(self, rows: VisitRows) -> Iterator[LoggedSlates]:
        """Yield the decisions of these visits in groups. Each decision has its gain (return minus baseline), which does
        not depend on the parameters."""
        raw_gain = self._returns(rows)
        step = returns.steps(rows.start)
        scale: Array = np.power(self.options.gamma, step) if self.options.discounted else np.ones(len(step))
        if self._factors is not None:
            scale = scale * np.repeat(self._factors[rows.stratum], rows.length)
        gain = raw_gain - self._baseline(rows, raw_gain)
        return group_slates(
            rows, gain, raw_gain, scale, is_by_slot=self.options.top_k > 0, by_position=self.by_position,
            credit=self._credit_factors,
        )  # fmt: skip

    def _fold(self, rows: VisitRows) -> Ids:
        """Return the cross-fitting fold of each decision, (n,), which follows from the digest of the decision's
        cluster."""
        fold = (rows.cluster.view(np.uint64) >> np.uint64(8)) % np.uint64(returns.N_FOLDS)
        return np.repeat(fold.astype(np.int64), rows.length)

    def _returns(self, rows: VisitRows) -> Array:
        raw_gain = returns.discount_rewards(rows.reward, rows.start, gamma=self.options.gamma)
        return returns.shape_returns(raw_gain, rows.x @ self._potential) if self._potential.any() else raw_gain

    def _baseline(self, rows: VisitRows, raw_gain: Array) -> Array:
        if self._value_coefficients is not None:
            return returns.values(rows.x, self._fold(rows), self._value_coefficients)
        if self.options.baseline == "rloo":
            return returns.rloo(raw_gain, returns.steps(rows.start))
        return np.full(len(raw_gain), self._mean_return)

    def train(self, tune: HoldoutValue | None, *, progress: Callable[[Epoch], None] | None = None) -> TrainingResult:
        """Ascend from the start. Returns the best epoch and the learning curve.

        After an epoch with a gain, steps are doubled. An epoch that lost, or that the tuning visits no longer
        support, is undone, and steps are halved. Where halved steps lead nowhere, and whole pages earn rewards, the
        ascent continues from a point beside the saddle.

        tune: the value of parameters on the tuning visits, or None without tuning visits, where the last epoch is
        taken; progress: a function called with each epoch."""
        parameters, rate, options, bold = self.start, self.options.lr, self.options, self.options.bold
        is_supported = tune is not None and tune.reference_ess >= (MIN_BOLD_ESS if bold else tune.wanted_ess)
        best_epoch, best_end, curve = None, self.start, list[Epoch]()
        has_pages = any(group.shown_arms.shape[1] > 1 for group in self._file.read(0))
        path: tuple[Parameters, list[float]] = self.start, []
        best_path, gain, n_failures, is_saddle = path, 0.0, 0, options.weights == SLATE and has_pages
        for epoch in range(1, options.epochs + 1):
            end, point = self._epoch(epoch, parameters, rate, tune)
            curve.append(point)
            if progress is not None:
                progress(point)
            if point.kl is not None and options.kl_stop is not None and point.kl > options.kl_stop:
                break
            if tune is None or best_epoch is None or point.is_better(best_epoch, bold=bold):
                best_epoch, best_end, best_path = point, end, (path[0], [*path[1], rate])
            elif epoch - best_epoch.epoch >= options.patience:
                break
            has_gained = point.gain is not None and point.gain > gain and point.is_accepted(bold=bold)
            if not is_supported or has_gained:
                path[1].append(rate)
                rate = min(RATE_GROWTH * rate, max(rate, MAX_RATE)) if has_gained else rate
                parameters, is_supported, gain, n_failures = end, point.is_accepted(bold=bold), point.gain or 0.0, 0
                continue
            rate, n_failures = rate / 2, n_failures + 1
            if n_failures <= MAX_RETRIES:
                continue
            if not is_saddle or tune is None:
                break
            parameters, gain = self._leave_saddle(parameters, tune)
            self._set_steps(parameters)
            path, rate, n_failures, is_saddle = (parameters, []), options.lr, 0, False
        is_promising = tune is None or bool(best_epoch and best_epoch.supported and (best_epoch.lower or 0.0) > 0)
        number = 0 if best_epoch is None else best_epoch.epoch
        return TrainingResult(parameters=best_end, best=number, curve=curve, is_promising=is_promising, path=best_path)

    def follow(self, rates: Iterable[float], *, progress: Callable[[], None]) -> Parameters:
        """Return the parameters after epochs with these step sizes.

        progress: a function called after each epoch."""
        parameters = self.start
        for number, rate in enumerate(rates, 1):
            parameters, _ = self._epoch(number, parameters, rate, None)
            progress()
        return parameters

    def _leave_saddle(self, parameters: Parameters, tune: HoldoutValue) -> tuple[Parameters, float]:
        """Return parameters beside a point without an ascending gradient, and the gain of these parameters. The biases
        are moved in the direction of largest upward curvature, to the side with the larger gain.

        The direction is found by power iteration on differences of gradients, in which common noise cancels. The
        method is derived here."""
        information = self._fisher[BIAS]
        has_information = information > 0
        direction = np.random.default_rng(0).normal(size=len(information)) * has_information
        for _ in range(N_POWER_STEPS):
            direction = self._unit(direction)
            ends = [self._shift_biases(parameters, size * direction) for size in (PROBE_SIZE, -PROBE_SIZE)]
            curvature = np.zeros_like(direction)
            for slates in self._batches():
                up, down = (self._sums(end, slates).gradient[BIAS] for end in ends)
                curvature += up - down
            curvature = np.divide(curvature, information, out=np.zeros_like(curvature), where=has_information)
            # after enough iterations, no direction of downward curvature is left
            direction = direction + self._unit(curvature)
        sides = [self._shift_biases(parameters, size * self._unit(direction)) for size in (KICK_SIZE, -KICK_SIZE)]
        gains = [tune.point(side, z=GAIN_Z)["gain"] or 0.0 for side in sides]
        return max(zip(sides, gains, strict=True), key=lambda side: side[1])

    def _unit(self, change: Array) -> Array:
        """Return the change of biases, scaled so that the logarithms of probabilities change by 1 (root mean
        square)."""
        size = float(self._fisher[BIAS] @ change**2)
        return change * np.sqrt(self._slots / size) if size else change

    @staticmethod
    def _shift_biases(parameters: Parameters, change: Array) -> Parameters:
        return {**parameters, BIAS: parameters[BIAS] + change}

    def _epoch(
        self, number: int, parameters: Parameters, rate: float, tune: HoldoutValue | None
    ) -> tuple[Parameters, Epoch]:
        """Return the parameters after one pass over the batches, and the point of the learning curve for these
        parameters.

        number: the number of the epoch; parameters: the parameters before it; rate: the step size."""
        total = reinforce.zero_sums(parameters)
        for slates in self._batches():
            sums = self._sums(parameters, slates)
            del slates  # before the next ones are mapped into memory
            if not sums.is_finite:
                raise RlrecError("the parameters became infinite", hint=f"--lr {self.options.lr:g} is too large")
            parameters = self._steps.step(parameters, sums.mean, rate=rate)
            total = total + sums
        names = ("value", "gain", "std_error", "lower", "upper", "ess", "entropy", "kl")
        figures: dict[str, Any] = dict.fromkeys(names)
        if tune is not None:
            figures = tune.point(parameters, z=GAIN_Z if tune.by_position is None else SLOT_Z)
        variance, without_baseline = total.variances
        return parameters, Epoch(
            epoch=number, lr=rate, supported=tune is None or (figures["ess"] or 0.0) >= tune.wanted_ess, **figures,
            clipped=total.clipped_share, variance=variance, variance_without_baseline=without_baseline,
        )  # fmt: skip


def agreement(gradients: Iterable[Parameters]) -> float:
    """Return how far the gradients of batches agree, as a number from 0 to 1. This is the part of the squared length of
    their sum that is surely not noise. For one batch it is 0.

    The rewards after a slot have far more noise than the slot's own reward. If the gradients of these later rewards
    disagree, counting such rewards would only hide the slot's own reward."""
    folds = FoldGradients(gradients)
    square = reinforce.squared_length(folds.total)
    return folds.signal(*folds.total) / square if square else 0.0


def pack_mask(slates: LoggedSlates) -> LoggedSlates:
    """Return the slates with the mask `eligible` packed to eight arms per byte, the form in which slates are
    written."""
    eligible = slates.eligible
    return slates if eligible is None else replace(slates, eligible=np.packbits(eligible, axis=1).view(np.bool_))


def unpack_mask(slates: LoggedSlates) -> LoggedSlates:
    """Return the slates with the mask `eligible` as one flag per arm again."""
    if slates.eligible is None:
        return slates
    bits = np.unpackbits(slates.eligible.view(np.uint8), axis=1, count=len(slates.arms))
    return replace(slates, eligible=bits.view(np.bool_))


def group_slates(
    rows: VisitRows, gain: Array, raw_gain: Array, scale: Array, *, is_by_slot: bool = False,
    by_position: Array | None = None, credit: tuple[float, float] = (1.0, 1.0),
) -> Iterator[LoggedSlates]:  # fmt: skip
    """Yield groups of decisions as inputs of the gradient.

    With `is_by_slot`, each slot is a row of its own. The return of a slot is its own reward plus the rewards of later
    slates. With `by_position`, the probability of each slot is conditional on the slots above it, and the return of
    a slot is its own reward plus the rewards of lower slots and of later slates.

    gain: the return of each decision minus the baseline; raw_gain: the return of each decision; scale: the weight of
    each decision; by_position: the mean reward of each position, or None; credit: the factor of the slot's own reward,
    and the factor of the rewards after it."""
    for block in blocks(rows):
        at = rows.first[block.rows][:, None] + np.arange(block.slates.shape[1])
        log_p, slot_gain, slot_raw = rows.log_propensity[block.rows], gain[block.rows], raw_gain[block.rows]
        if is_by_slot:
            log_p, difference = rows.log_marginal[at], rows.divided_reward[at] - rows.reward[block.rows][:, None]
            slot_gain, slot_raw = slot_gain[:, None] + difference, slot_raw[:, None] + difference
        elif by_position is not None:
            log_p, slot_reward, mean = rows.log_conditional[at], rows.slot_reward[at], by_position[: at.shape[1]]
            slot_raw, surplus = slot_raw[:, None] - _sums_above(slot_reward), slot_reward - mean
            slot_gain = credit[0] * surplus + credit[1] * (slot_gain[:, None] - _sums_above(surplus) - surplus)
        yield LoggedSlates(
            state=block.state, arms=block.arms, arm_features=block.features, shown_arms=block.slates,
            gain=slot_gain, returns=slot_raw, log_propensity=log_p, scale=scale[block.rows], eligible=block.eligible,
        )  # fmt: skip


def _sums_above(values: Array) -> Array:
    """Return for each position the sum of the values at the positions above it, (n, k)."""
    return np.cumsum(values, axis=1) - values


def mean_by_position(split: DatasetSplit) -> Array:
    """Return the mean reward of each position of slates, (positions,)."""
    total = np.zeros((2, 1))
    for rows in split.batches():
        position = returns.steps(rows.first)
        n_positions = max(total.shape[1], int(position.max(initial=0)) + 1)
        sums = [np.bincount(position, terms, n_positions) for terms in (rows.slot_reward, np.ones(len(position)))]
        total = np.pad(total, ((0, 0), (0, n_positions - total.shape[1]))) + np.array(sums)
    mean: Array = total[0] / np.maximum(total[1], 1)
    return mean
