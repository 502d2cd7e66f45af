"""This module runs studies in memory. Many runs of a policy on an audience are simulated together in arrays, without a
store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlrec import simulate
from rlrec.arrays import Array, Flags, Ids, Index
from rlrec.policy import learns_from_contexts
from rlrec.policy.beliefs import solving
from rlrec.policy.beliefs.base import Belief, Policy
from rlrec.policy.beliefs.statistics import CONTEXT, ORDINAL, POSITION, PROPENSITY, Forgetting, SlotColumns
from rlrec.policy.contexts.encoder import Design, Encoder
from rlrec.policy.kinds.linear import HYBRID, SHARED
from rlrec.policy.kinds.odds import FEATURES
from rlrec.policy.scores.floors import at_positions
from rlrec.policy.scores.scores import ExactScores, Scores
from rlrec.records import Record
from rlrec.simulate.base import Audience, Info, Visitors

NO_CONTEXT: dict[str, Any] = {}
N_COUNT_COLUMNS = 3  # columns of statistics common to all kinds


class Totals(Record, eq=False):
    """This record holds sums for each run, as arrays (runs,).

    reward: the sum of rewards; optimum: the sum of the mean rewards of the best arms; regret: the sum of the regrets
    of the chosen arms; decisions: the number of decisions; shows (runs, arms): the number of slots that showed each
    arm; visitors, returners: the number of visitors, and of visitors who came again, or None where the audience does
    not recognise visitors."""

    reward: Array
    optimum: Array
    regret: Array
    decisions: Array
    shows: Array
    visitors: Array | None = None
    returners: Array | None = None


def study(
    policy: Policy, audience: Audience, *, runs: int, sessions: int = 1, steps: int = 1, seed: int,
    names: Sequence[str] | None = None, size: int = 1,
) -> Totals:  # fmt: skip
    """Return the totals of each run. A run has `sessions` sessions one after another, each of `steps` decisions. If the
    audience recognises visitors, a session is a visit that is played to its end, and a visitor who comes again does so
    at once. The totals of a run do not change after its last session. The regret compares means (pseudo-regret),
    without the noise of rewards.

    names: the names of the arms; size: the length of a slate."""
    simulation = Runs(policy, audience, runs=runs, seed=seed, names=names, size=size)
    visitors = _Arrivals(audience, runs) if isinstance(audience, Visitors) else None
    turns_left = np.full(runs, sessions if visitors else sessions * steps)
    reward, optimum, expectation, decisions = np.zeros((4, runs))
    while (is_playing := turns_left > 0).any():
        gain, has_ended, info = simulation.step()
        reward += np.where(is_playing, gain, 0.0)
        expectation += np.where(is_playing, info["expected"], 0.0)
        decisions += is_playing
        if visitors is None:
            optimum += info["optimum"]
            turns_left -= 1
        else:
            turns_left -= has_ended
            visitors.follow(has_ended, has_ended & (turns_left > 0), will_return=info["again"] > 0)
    if visitors is not None:
        optimum = np.full(runs, visitors.audience.optimum(size) * sessions)
    return Totals(
        reward=reward, optimum=optimum, regret=optimum - expectation, decisions=decisions, shows=simulation.shows,
        visitors=None if visitors is None else visitors.count,
        returners=None if visitors is None else visitors.returners,
    )  # fmt: skip


class _Arrivals:
    """An _Arrivals object admits the next visitor of each run when a visit ends: the same visitor again, or a new
    visitor.

    count, returners (runs,): the number of visitors so far, and the number of visitors who came again."""

    def __init__(self, audience: Visitors, runs: int) -> None:
        self.audience, self.count, self.returners = audience, np.ones(runs), np.zeros(runs)
        self._earlier_visits = np.zeros(runs, np.int64)  # of the present visitor
        self._n_visitors = runs

    def follow(self, has_ended: Flags, is_continued: Flags, *, will_return: Flags) -> None:
        """Admit the next visitor of each run whose visit ended, and count the visitors.

        has_ended (runs,): whether the visit ended; is_continued: whether it ended and the run has further visits;
        will_return: whether the visitor comes again."""
        self.returners += is_continued & will_return & (self._earlier_visits == 0)
        self.count += is_continued & ~will_return
        self._earlier_visits = np.where(has_ended & ~will_return, 0, self._earlier_visits + has_ended)
        new_runs = np.flatnonzero(has_ended & ~will_return)
        self.audience.admit(new_runs, np.arange(self._n_visitors, self._n_visitors + len(new_runs)))
        self._n_visitors += len(new_runs)


class Runs:
    """A Runs object plays many runs of a policy on an audience together, one decision at a time. A decision shows a
    slate of `size` arms."""

    def __init__(
        self, policy: Policy, audience: Audience, *, runs: int, seed: int, names: Sequence[str] | None, size: int = 1
    ) -> None:
        self.size = size
        self.policy, self.audience, self.shape = policy, audience, (runs, audience.arms)
        seeds = np.random.SeedSequence(seed).spawn(2)
        self._draws, audience_rng = (np.random.Generator(np.random.SFC64(words)) for words in seeds)
        self._names = simulate.arm_names(audience.arms) if names is None else names
        self.beliefs = RunBeliefs(policy, runs, self._names)
        self._observation = audience.reset(runs, audience_rng)
        self.shows, self._first_cells = np.zeros(self.shape), np.arange(runs)[:, None] * audience.arms
        self._floors = at_positions(policy.exploration, size)
        self._constant = np.ones((runs, 1))
        self._steps = 0

    def step(self) -> tuple[Array, Flags, Info]:
        """Play one decision of every run. Returns the reward of each run, (runs,), whether the visit of each run ended,
        (runs,), and what the audience tells about the decision."""
        self.beliefs.add_due_rewards(self._steps)
        x = np.hstack([self._constant, self._observation]) if self.audience.features else self._constant
        policy, belief = self.policy, self.beliefs.belief()
        if learns_from_contexts(policy):
            scores = policy.scores_at(belief, x)
        else:
            scores = policy.scores(belief, arms=self._names, context=NO_CONTEXT)
        slates = draw_slates(scores, self.shape, floors=self._floors, rng=self._draws)
        self.shows.reshape(-1)[self._first_cells + slates] += 1
        propensity = None
        if PROPENSITY in self.beliefs.needed_columns:
            propensity = arm_probability(scores, slates[:, 0], floor=self._floors.item())
        shown_arms = slates if self.size > 1 else slates[:, 0]
        self._observation, reward, is_terminated, is_truncated, info = self.audience.step(shown_arms)
        self.beliefs.add(shown_arms, reward, x, info.get("delay"), propensity=propensity)
        self._steps += 1
        if self.size > 1:
            info = info | {"expected": info["expected"].sum(axis=1)}
            reward = reward.sum(axis=1) + info.get("page", 0.0)
        return reward, is_terminated | is_truncated, info


def design(audience: Audience, names: Sequence[str], *, model: str | None) -> Design:
    """Return the design of a contextual kind for an audience. The design has a constant and the observation. For models
    that share weights between arms, it also has the names of arms."""
    arm = {"arm": list(names)} if model in (SHARED, HYBRID, FEATURES) else {}
    context = {"x": {"type": "vector", "length": audience.features}} if audience.features else {}
    return Design(context=Encoder.parse({"fields": context}), arm=Encoder.parse({"fields": arm}))


def draw_slates(scores: Scores, shape: tuple[int, int], *, floors: Array, rng: np.random.Generator) -> Index:
    """Return a drawn slate for each run, as arm indices (runs, k). At every position, an arm is drawn uniformly with
    the probability of the position's floor. Otherwise the arm with the best noisy score is taken. No arm is drawn
    twice. Correlated scores get new noise at every position.

    shape: the numbers of runs and of arms; floors (k,): the floor of each position."""
    n_runs, m = shape
    slates, row = np.empty((n_runs, len(floors)), np.intp), np.arange(n_runs)[:, None]
    values = scores.noise(shape, rng)
    if values.shape != shape:  # scores without noise, the same for every run
        values = np.broadcast_to(values, shape)
    for position, floor in enumerate(floors.tolist()):
        if position:
            values = np.array(scores.noise(shape, rng) if scores.samples else values)
            values[row, slates[:, :position]] = -np.inf
        arms = _best_arms(values, rng)
        if floor:
            is_explored = rng.random(n_runs) < floor
            uniform = rng.random(shape) if position else rng.integers(m, size=n_runs)
            if position:
                uniform[row, slates[:, :position]] = -1.0
                uniform = uniform.argmax(axis=1)
            arms = np.where(is_explored, uniform, arms)
        slates[:, position] = arms
    return slates


def arm_probability(scores: Scores, arms: Index, *, floor: float) -> Array:
    """Return the probability with which the policy chose the arm of each run, (runs,). arms (runs,): the chosen arms;
    floor: the share of uniform draws."""
    assert isinstance(scores, ExactScores)  # kinds that need a propensity have no other scores
    best_chances = scores.best_of_each()
    p_best: Array = best_chances[np.arange(len(arms)), arms] if best_chances.ndim > 1 else best_chances[arms]
    return floor / best_chances.shape[-1] + (1 - floor) * p_best


def _best_arms(values: Array, rng: np.random.Generator) -> Index:
    """Return the index of the largest value in each row. If several values are the largest, one of them is drawn at
    random."""
    arms = values.argmax(axis=1)
    is_top = values == values.max(axis=1, keepdims=True)
    if np.count_nonzero(is_top) > len(arms):
        ties = np.flatnonzero(np.count_nonzero(is_top, axis=1) > 1)
        arms[ties] = np.where(is_top[ties], rng.random((len(ties), values.shape[1])), -1.0).argmax(axis=1)
    return arms


class RunBeliefs:
    """A RunBeliefs object holds the beliefs of all runs. When a decision is drawn, it enters the belief with the reward
    0. A reward that arrives later corrects the belief, with the weight that the decision has by then. Rewards are 0 or
    1, or 0 or -1.

    A cell is an arm of a run. Its index in arrays of cells is the index of the run, times the number of arms, plus
    the index of the arm."""

    def __init__(self, policy: Policy, runs: int, names: Sequence[str]) -> None:
        self.policy, self.needed_columns, self.shape = policy, policy.needed_columns, (runs, len(names))
        self.alpha, self.beta = (np.full(len(names), value) for value in policy.prior)
        self.ordinal = 0  # of the newest decision
        self._first_cells = np.arange(runs) * len(names)
        self._sums = ForgettingSums(policy.forgetting, runs * len(names), policy.width)
        # by the step at which they arrive, the rewards of decisions: their ordinal, cells, and slots with the reward 0
        self._rewards: dict[int, list[tuple[int, Index, SlotColumns]]] = defaultdict(list)
        self._arm_features: Array | None = None  # features of the arms themselves, (arms, p)
        if learns_from_contexts(policy):
            self._arm_features = policy.design.arm.encode([{"arm": name} for name in names])

    def belief(self) -> Belief:
        sums = self._sums.now.reshape(*self.shape, -1)
        pulls, rewards, squares = (sums[..., column] for column in range(N_COUNT_COLUMNS))
        extra = sums[..., N_COUNT_COLUMNS:] if sums.shape[-1] > N_COUNT_COLUMNS else None
        moments: solving.ArmMoments | None = None
        if extra is not None and learns_from_contexts(self.policy):
            moments = solving.unpack(extra, len(self.policy.design.context.names))
            moments = replace(moments, arm_features=self._arm_features)
        return Belief(
            pulls=pulls, reward_sum=rewards, reward_squares=squares, alpha=self.alpha, beta=self.beta,
            total=pulls.sum(axis=1, keepdims=True), extra=extra, moments=moments,
        )  # fmt: skip

    def add(
        self, arms: Index, reward: Array, x: Array, delay: Array | None, *, propensity: Array | None = None
    ) -> None:
        """Add a decision of every run to the beliefs.

        arms: the arm shown in each run, (runs,), or the arm at each position, (runs, k); reward: the rewards in the
        same shape; x: the contexts, (runs, q); delay: the number of steps until each reward arrives, or None if
        rewards arrive at once; propensity: the propensities, for kinds that need propensities."""
        self.ordinal += 1
        self._sums.advance(self.ordinal)
        arms, reward = arms.reshape(len(x), -1), reward.reshape(len(x), -1)
        delays = None if delay is None else delay.astype(np.int64).reshape(len(x), -1)
        for column, (arm, gain) in enumerate(zip(arms.T, reward.T, strict=True)):
            cells = self._first_cells + arm
            slots = SlotColumns(
                arm_id=arm, reward=gain if delays is None else np.zeros(len(arm)),
                ordinal=np.full(len(arm), self.ordinal) if ORDINAL in self.needed_columns else None,
                position=np.full(len(arm), column + 1) if POSITION in self.needed_columns else None,
                propensity=propensity,
                context=x if CONTEXT in self.needed_columns else None,
            )  # fmt: skip
            self._sums.add(cells, self.policy.statistics(slots), self.ordinal)
            if delays is not None:
                self._delay(cells, slots, gain, delays[:, column])

    def _delay(self, cells: Index, slots: SlotColumns, reward: Array, delay: Ids) -> None:
        reward_rows = np.flatnonzero(reward)
        order = reward_rows[np.argsort(delay[reward_rows], kind="stable")]
        for rows in np.split(order, np.flatnonzero(np.diff(delay[order])) + 1):
            if len(rows):
                self._rewards[self.ordinal + int(delay[rows[0]])].append((self.ordinal, cells[rows], slots.take(rows)))

    def add_due_rewards(self, step: int) -> None:
        """Add the rewards that arrive before decision number `step` to the beliefs."""
        for ordinal, cells, slots in self._rewards.pop(step, ()):
            reward_slots = replace(slots, reward=np.ones(len(slots)))
            self._sums.add(cells, self.policy.statistics(reward_slots) - self.policy.statistics(slots), ordinal)


class ForgettingSums:
    """A ForgettingSums object holds sums for each cell, which is an arm of a run. The sums forget older decisions as
    `Forgetting` defines, where age is counted in decisions (ordinals)."""

    def __init__(self, forgetting: Forgetting, *shape: int) -> None:
        self.forgetting = forgetting
        self.now = np.zeros(shape)
        n_buckets = forgetting.bucket(int(forgetting.window)) + 2 if forgetting.window else 0
        self._buckets = np.zeros((n_buckets, *shape))
        self._oldest_bucket = self._ordinal = 0

    def advance(self, ordinal: int) -> None:
        """Move on to the decision number `ordinal`, so that older decisions count less, or no longer."""
        self._ordinal = ordinal
        if self.forgetting.discount < 1:
            self.now *= self.forgetting.discount
        oldest_bucket = self.forgetting.oldest_bucket(ordinal)
        if oldest_bucket > self._oldest_bucket:
            self._buckets[self._oldest_bucket % len(self._buckets)] = 0
            self._oldest_bucket = oldest_bucket
            self.now = self._buckets.sum(axis=0)

    def add(self, cells: Index, values: Array, ordinal: int) -> None:
        """Add values to the sums of cells, at most one cell per run.

        cells (n,): the indices of the cells; values: a row for each cell; ordinal: the number of the decisions to
        which the values belong."""
        if self.forgetting.discount < 1:
            values = values * self.forgetting.discount ** (self._ordinal - ordinal)
        if self.forgetting.window:
            bucket = self.forgetting.bucket(ordinal)
            if bucket < self._oldest_bucket:
                return
            self._buckets[bucket % len(self._buckets)][cells] += values
        self.now[cells] += values
