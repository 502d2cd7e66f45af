"""Experiments that are looked at every day: how often equal variants seem to differ, and how soon a true lift is found.

Users come one after the other and return later, so that what a user has earned grows from look to look. The sums of
each look go through the functions that `experiment show` uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from rlrec.app.evaluation.comparisons.declared import Declaration
from rlrec.app.evaluation.comparisons.study_figures import NOTHING, Groups, Study, StudyFigures, metrics
from rlrec.arrays import Array
from rlrec.ope.comparisons.comparison import COLUMNS, Metric, sample_ratio
from rlrec.ope.comparisons.outcomes import OutcomeSums
from rlrec.ope.sums.moments import BlockSums, Moments
from rlrec.records import Reward
from rlrec.store.log.selected import Selection
from tests.benchmarks.measure import Figure, Setting

RUNS, LIFTS, USERS, EVERY = 1_000, 200, 10_000, 100
SEGMENTS = 5  # whose users come in turn
REWARD = Reward(
    id=1, name="default", weights={"click": 1.0}, window_us=0, default=0.0, clip_low=None, clip_high=None,
    learn="served", late="drop",
)  # fmt: skip
ERRORS = 2.9  # a sequence at .05 is nowhere narrower than 3.03 errors
EVENTS = ("reward_per_unit", "visits")


@dataclass(frozen=True, kw_only=True)
class World:
    """Variants with weights and click rates; tail: of lognormal amounts of a click, 0 for 1."""

    weights: tuple[float, ...]
    rates: tuple[float, ...]
    users: int = USERS
    tail: float = 0.0

    def sums(self, rng: np.random.Generator) -> dict[str, Array]:
        """Running sums by metric, (looks, variants, 4): units, non-zero ones, sum, and sum of squares."""
        visits = rng.geometric(0.4, self.users)
        user = np.repeat(np.arange(self.users), visits)
        first = np.r_[0, np.cumsum(visits)[:-1]]
        variant = rng.choice(len(self.weights), self.users, p=np.array(self.weights) / sum(self.weights))
        # users come one a tick, and their visits follow each other by chance
        gap = rng.exponential(0.15 * self.users, len(user))
        gap[first] = 0.0
        at = np.cumsum(gap)
        at = at - np.repeat(at[first], visits) + user
        rate = np.array(self.rates)[variant]
        click = 1.0 * (rng.random(len(user)) < rng.beta(4 * rate, 4 * (1 - rate))[user])
        if self.tail:
            click *= rng.lognormal(0.0, self.tail, len(user))
        look = np.minimum((at // EVERY).astype(np.int64), self.users // EVERY)
        arrival = np.bincount(np.arange(self.users) // EVERY * len(self.weights) + variant, minlength=self._cells)
        sums = {}
        for name, amount in zip(EVENTS, (click, np.ones(len(user))), strict=True):
            total = np.cumsum(amount)
            earlier = total - amount - np.repeat((total - amount)[first], visits)
            columns = [(earlier == 0) & (amount > 0), amount, amount * (2 * earlier + amount)]
            cell = look * len(self.weights) + variant[user]
            counted = [np.bincount(cell, weights=column, minlength=self._cells) for column in columns]
            rows = np.stack([arrival, *counted], axis=1).reshape(-1, len(self.weights), 4)
            sums[name] = rows.cumsum(axis=0)[: self.users // EVERY]
        return sums

    @property
    def _cells(self) -> int:
        return (self.users // EVERY + 1) * len(self.weights)


def moments(row: Array) -> Moments:
    """The sums of a metric of a variant at a look, as the log would give them."""
    units, rewarded, total, squares = row.tolist()
    both = np.array([total, units])
    return Moments(COLUMNS, False, BlockSums(
        n_clusters=np.array([int(rewarded), int(units)]), moment=np.array([[squares, total], [total, units]]),
        largest_sums=both, absolute_sums=both, units=both[None],
    ))  # fmt: skip


def figures(world: World, sums: dict[str, Array], look: int, *, best_n: float) -> StudyFigures:
    """What `experiment show` finds at a look."""
    study = Study(selection=Selection(), rewards=[REWARD], by="variant")
    by_name = {metric.name: metric for metric in metrics(study)}
    groups = {
        (number, by_name[name]): moments(row) for name in EVENTS for number, row in enumerate(sums[name][look])
    }  # fmt: skip
    units = sums[EVENTS[0]][look, :, 0].astype(int).tolist()
    return StudyFigures(
        study=study, sums=replace(NOTHING, outcomes=OutcomeSums(groups=groups, pairs={})),
        groups=Groups(labels=[f"v{number}" for number in range(len(world.weights))]), level=0.95, any_user=True,
        split=sample_ratio([(world.weights, [units])]),
        declaration=Declaration(success=[by_name[EVENTS[0]]], best_n=best_n, weights=world.weights),
    )  # fmt: skip


def answers(world: World, sums: dict[str, Array], look: int, *, best_n: float) -> list[str]:
    """The answers about every variant and metric."""
    shown = figures(world, sums, look, best_n=best_n)
    compared: list[tuple[int, Metric]] = [(number, metric) for number, metric in shown.outcomes.sums.groups if number]
    return [shown.compare(number, metric).answer.answer for number, metric in compared]


def telling_looks(sums: dict[str, Array]) -> list[int]:
    """The looks at which some variant is so many errors off the first one that a sequence may tell."""
    furthest = np.zeros(len(sums[EVENTS[0]]))
    for rows in sums.values():
        units, _, total, squares = np.moveaxis(rows, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / units
            variance = (squares / units - mean**2) / units
            off = np.abs(mean[:, 1:] - mean[:, :1]) / np.sqrt(variance[:, 1:] + variance[:, :1])
        furthest = np.fmax(furthest, np.nanmax(np.where(np.isfinite(off), off, np.inf), axis=1))
    return np.flatnonzero(furthest >= ERRORS).tolist()


def is_alarm(world: World, sums: dict[str, Array], *, best_n: float) -> bool:
    """Whether equal variants surely differ at some look."""
    return any({"better", "worse"} & {*answers(world, sums, look, best_n=best_n)} for look in telling_looks(sums))


def names_a_segment(world: World, rng: np.random.Generator, *, best_n: float) -> bool:
    """Whether, at some look, equal variants surely differ within one of SEGMENTS segments of as many users."""
    by_segment = {f"s{number}": world.sums(rng) for number in range(SEGMENTS)}
    for look in sorted({look for sums in by_segment.values() for look in telling_looks(sums)}):
        segments = {name: figures(world, sums, look, best_n=best_n).sums.outcomes for name, sums in by_segment.items()}
        first = figures(world, by_segment["s0"], look, best_n=best_n)
        shown = replace(
            first, study=replace(first.study, segment="device"), sums=replace(first.sums, segments=segments)
        )
        if any(row["answer"] in ("better", "worse") for row in shown.segments()):
            return True
    return False


def users_until_sure(world: World, sums: dict[str, Array], *, best_n: float) -> float:
    """After how many users the second variant is better, infinite where it never is."""
    for look in telling_looks(sums):
        if answers(world, sums, look, best_n=best_n)[0] == "better":
            return float((look + 1) * EVERY)
    return np.inf


def planned_users(world: World, rng: np.random.Generator) -> float:
    """The users of both variants that a look planned beforehand needs to find the lift with probability .8."""
    units, _, total, squares = np.sum([world.sums(rng)[EVENTS[0]][-1] for _ in range(20)], axis=0).T
    mean = total / units
    return float(2 * 2.8016**2 * (squares / units - mean**2).sum() / (mean[1] - mean[0]) ** 2)


def looks(setting: Setting) -> Iterator[Figure]:
    """Alarms of equal variants: at most 5 %, and far fewer where many looks are spread over few users."""
    runs, rng = setting.size(RUNS), np.random.default_rng(31)
    for name, world in (
        ("four equal variants, a click in ten", World(weights=(1, 1, 1, 1), rates=(0.1,) * 4)),
        ("four equal variants, a click in a hundred", World(weights=(1, 1, 1, 1), rates=(0.01,) * 4)),
        ("a ramp of 5 %, orders of any size", World(weights=(0.95, 0.05), rates=(0.1, 0.1), tail=1.5)),
    ):
        alarms = sum(is_alarm(world, world.sums(rng), best_n=5_000) for _ in range(runs))
        yield Figure(name=f"{name}: sure at some look, of {runs}", value=alarms, unit="", at_most=0.05 * runs)
    for variants, rate in ((2, 0.1), (4, 0.1), (2, 0.01)):
        world = World(weights=(1,) * variants, rates=(rate,) * variants, users=USERS // SEGMENTS)
        named = sum(names_a_segment(world, np.random.default_rng(seed), best_n=5_000) for seed in range(runs))
        name = f"{variants} equal variants, {SEGMENTS} segments, rate {rate:g}: one named at some look, of {runs}"
        yield Figure(name=name, value=named, unit="", at_most=0.05 * runs)
    lift = World(weights=(1, 1), rates=(0.3, 0.33), users=20_000)
    planned = planned_users(lift, rng)
    waits = [users_until_sure(lift, lift.sums(rng), best_n=planned) for _ in range(setting.size(LIFTS))]
    median = float(np.median(waits))
    yield Figure(name="users until +10 % is found, median", value=median, unit="", reference=planned, at_most=1.6)
    share = float(np.mean(np.array(waits) <= 1.91 * planned))
    yield Figure(name="+10 % found within 1.91 times the users of a planned look", value=share, unit="", at_least=0.8)
