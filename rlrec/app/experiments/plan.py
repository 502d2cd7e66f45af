"""This module computes how long an experiment takes: how many users or sessions it needs to show a lift, and in how
many days so many come if they come as in the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import ceil, inf
from typing import Any, NotRequired, TypedDict

import numpy as np

from rlrec.app.evaluation.comparisons import declared, holdout, interleaved, unit_outcomes
from rlrec.app.evaluation.comparisons.study_figures import DifferenceRow, Study, StudyFigures
from rlrec.app.experiments.experiment import shares_of
from rlrec.app.inputs import filters, lookup
from rlrec.arrays import Array
from rlrec.errors import CheckFailed, InputError
from rlrec.ope.comparisons import comparison
from rlrec.ope.intervals import intervals, sequences
from rlrec.ope.sums.unit_visits import HORIZON_DAYS
from rlrec.records import Record, Reward
from rlrec.sentences import DEFAULT_REWARD, time_text
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.log import selected
from rlrec.store.log.selected import Selection
from rlrec.store.policies import people
from rlrec.times import DAY_US

WINDOW_US, SHORTEST_US = 30 * DAY_US, 7 * DAY_US  # of the newest traffic, which is read for as long as the plan takes
MIN_SIDE = sequences.MIN_CLUSTERS // 2  # units of a variant that tell how they vary
STRETCHES = 100  # of that time, in which new units are counted
PASTS = 4  # times as long a log, from which newcomers are told apart
MEASURES = 3  # times that the traffic is read at most, to cover as long as an experiment takes
METRICS = {metric.name: metric for metric in comparison.metrics(1)}
RETURN_DAYS = {  # days in which the last units may come again, for metrics that count it
    "visits": 7, "active_days": 7, "retention": 7, **{f"returned_{days}d": days for days in HORIZON_DAYS},
}  # fmt: skip


class Request(Record):
    """This record holds the options of `experiment plan`.

    name: the name of an experiment whose variants and traffic are used; lift: the relative difference to show, as a
    fraction of the first variant's metric; power: the probability of showing it; metric: METRIC[:REWARD], None for
    the metric that decides; weights: the weights of the variants; comparisons: the number of comparisons that share
    the error, None for one less than the variants; rate: the share of users with an event, in place of the metric;
    log: a filter of the traffic."""

    name: str | None = None
    lift: float = 0.1
    power: float = 0.8
    level: float = 0.95
    weights: Sequence[float] = (1.0, 1.0)
    comparisons: int | None = None
    metric: declared.MetricName | None = None
    by: str = "user"
    rate: float | None = None
    log: str | None = None


# The answer of `experiment plan`. per_variant: units of the smallest variant, and total: of all, for one look;
# total_sequential: for any number of looks; adjusted_days: for one look, adjusted for the past of units, None where
# they have none; days_left: for an existing experiment, at any look. Days are None where the traffic never brings so
# many, and include those in which units come again (assumed: return_days).
Plan = TypedDict("Plan", {
    "per_variant": int, "total": int, "total_sequential": int, "days": float | None, "days_sequential": float | None,
    "adjusted_days": float | None, "days_left": NotRequired[float | None], "assumed": dict[str, Any],
})  # fmt: skip


def plan(store: Store, request: Request) -> Plan:
    """Return how many users or sessions, and how many days, an experiment takes to show the lift. Raises InputError if
    no number is enough, or if the log does not show how the metric varies."""
    _check(request)
    try:
        with store.read() as unit, bulk.alongside(unit):
            return _stored_plan(unit, request)
    except CheckFailed as error:  # there is no store, or one of another release
        if request.rate is None or request.log:
            raise
        store.notice(f"days are not known: {error.message}. {error.hint}")
        answer = _plan(request, _shares(request), None, None)
        assert answer is not None
        return answer


def _stored_plan(unit: Unit, request: Request) -> Plan:
    names = [] if request.metric is None else [request.metric]
    declared.check(unit, names, [], first_reward="default")
    experiment = None if request.name is None else lookup.experiment(unit, request.name)
    rewards = unit_outcomes.rewards_of(unit, [row.reward for row in names if row.reward], experiment)
    if experiment is None:
        answer = _traffic_plan(unit, request, rewards)
    else:
        study = replace(unit_outcomes.experiment_study(unit, experiment, rewards), adjust=True)
        figures = unit_outcomes.collect(unit, study, level=request.level)
        answer = experiment_plan(figures, NewUnits.count(unit, study), request)
    if answer is None:
        _check_windows(unit, request, rewards)
        hint = "choose a longer log, or give the --rate of an event"
        metric = request.metric or ("what decides it" if request.name else declared.DEFAULT_METRIC)
        least = f"it takes {MIN_SIDE} of a variant" if request.name else f"it takes {sequences.MIN_CLUSTERS}"
        raise InputError(f"the log does not tell how {metric} varies between units: {least}", hint=hint)
    return answer


def experiment_plan(figures: StudyFigures, arrivals: NewUnits, request: Request) -> Plan | None:
    """Return how long an existing experiment takes, in total and from now on. The result is None if too little is
    known, or if the experiment is interleaved.

    figures: the outcomes of the experiment; arrivals: the users or sessions that have come new to it."""
    experiment = figures.study.experiment
    if experiment is None or interleaved.ranker_names(experiment):
        return None
    shares = shares_of(experiment)
    compared_shares = [shares[variant.id] for variant in experiment.variants if variant.label != holdout.LABEL]
    request = replace(request, by=experiment.unit)
    compared_shares = compared_shares if len(compared_shares) > 1 else [*shares.values()]
    answer = _plan(request, compared_shares, arrivals, figures)
    if answer is not None:
        days = answer["days_sequential"] if experiment.state == "running" else None
        answer["days_left"] = None if days is None else max(0.0, days - answer["assumed"]["traffic_days"])
    return answer


def _traffic_plan(unit: Unit, request: Request, rewards: Sequence[Reward]) -> Plan | None:
    selection = filters.selection(unit, request.log)
    first_at, last_at = selected.times(unit, selection)
    span = min(WINDOW_US, (last_at - first_at) // 2)  # units' past lies before it
    for _ in range(MEASURES):
        newest_log = replace(selection, since=last_at - span)
        study = Study(selection=newest_log, rewards=rewards, adjust=True, unit=request.by)
        figures = None if request.rate else unit_outcomes.collect(unit, study, level=request.level)
        arrivals = NewUnits.count(unit, study).add_population(
            unit, selection, since=max(first_at, last_at - PASTS * span)
        )
        answer = _plan(request, _shares(request), arrivals, figures)
        if answer is None or answer["days"] is None or 2 * answer["days"] * DAY_US > span or span <= SHORTEST_US:
            break
        span = max(SHORTEST_US, ceil(answer["days"] * DAY_US))  # what units do depends on how long they are watched
    return answer


def _shares(request: Request) -> list[float]:
    return [weight / sum(request.weights) for weight in request.weights]


def _plan(
    request: Request, shares: Sequence[float], arrivals: NewUnits | None, figures: StudyFigures | None
) -> Plan | None:
    """Return the plan for a metric or, if `figures` is None, for the rate of an event. The result is None if the
    figures do not show how the metric varies.

    shares: the part of all users that each variant gets; arrivals: the new users or sessions, None if they are not
    known; figures: outcomes from the log."""
    declaration = None if figures is None else figures.declaration
    metric_name, narrowing, wait, n_comparisons = "rate", None, 0, request.comparisons or len(shares) - 1
    best_n = None if declaration is None else declaration.best_n
    if figures is None:
        value = request.rate or 0.0
        base_variance, lifted_variance = (rate * (1 - rate) for rate in (value, value * (1 + request.lift)))
    else:
        name = request.metric or declared.MetricName(declared.DEFAULT_METRIC)
        metric = METRICS[name.metric]
        if request.metric is None and declaration is not None:
            metric, n_comparisons = declaration.success[0], request.comparisons or len(figures.deciding_keys)
            reward = figures.metric_names()[0]["reward"]
            is_usual = reward == DEFAULT_REWARD and len(figures.study.rewards) == 1
            name = declared.MetricName(metric.name, None if is_usual else reward)
        # a small holdout comes first, and the others tell how units vary
        groups, least = (
            (range(len(shares)), MIN_SIDE) if figures.study.experiment else (range(1), sequences.MIN_CLUSTERS)
        )
        means = {group: figures.outcomes.value(group, metric) for group in groups}
        group = next((group for group in groups if means[group].units >= least), 0)
        mean, adjusted_mean = means[group], figures.outcomes.adjusted_value(group, metric)
        if not mean.has_error or not mean.value or mean.units < least:
            return None
        metric_name, wait = str(name), RETURN_DAYS.get(metric.name, 0)
        value, base_variance = mean.value, mean.error**2 * mean.units
        lifted_variance = base_variance * (1 + request.lift)  # a lift by more events, not by larger ones
        narrowing = None if adjusted_mean is None else 1 - adjusted_mean.error / mean.error
    limits = {"alpha": (1 - request.level) / n_comparisons, "power": request.power}
    variance = sequences.variance_of_difference(base_variance, lifted_variance, shares)
    total = sequences.fixed_sample_size(variance, request.lift * value, **limits)
    total_sequential = sequences.sequential_units(variance, request.lift * value, best_n=best_n, **limits)
    totals = [total, total_sequential, *([] if narrowing is None else [total * (1 - narrowing) ** 2])]
    durations = [None if arrivals is None else arrivals.days_until(units) for units in totals]
    days, days_sequential, *adjusted_days = [None if day is None else day + wait for day in durations]
    per_variant = round(total * min(shares))
    return {
        "per_variant": per_variant, "total": round(per_variant / min(shares)),
        "total_sequential": max(sequences.MIN_CLUSTERS, ceil(total_sequential)),
        "days": days, "days_sequential": days_sequential, "adjusted_days": next(iter(adjusted_days), None),
        "assumed": {
            "lift": request.lift, "power": request.power, "level": request.level, "comparisons": n_comparisons,
            "metric": metric_name, "value": value, "variance": base_variance, "shares": [*shares],
            "unit": request.by, "narrowed": narrowing, "return_days": wait,
            "traffic_days": arrivals and arrivals.days, "traffic_units": arrivals and int(arrivals.counts[-1]),
        },
    }  # fmt: skip


class NewUnits(Record, eq=False):
    """This record tells how many users or sessions come that the experiment does not have yet; here both are called
    units.

    counts (STRETCHES,): the number of units that have come by the end of each stretch of time; days: the length of
    all stretches together; by_session: whether units are sessions; population: the number of units that exist,
    including units that came earlier; newcomers: the number of units per day that never came earlier."""

    counts: Array
    days: float
    by_session: bool = False
    population: float = inf
    newcomers: float = 0.0

    @classmethod
    def count(cls, unit: Unit, study: Study) -> NewUnits:
        """Count the new users or sessions of a study. For an experiment on users, the population is the number of users
        in the store."""
        first_at, _ = selected.times(unit, study.selection)
        length = ceil((selected.covered_us(unit, study.selection) + 1) / STRETCHES)
        arrivals = people.arrivals(unit, study.selection, since=first_at, length=length, by_session=study.by_session)
        counts = np.bincount(np.fromiter(arrivals, np.int64), list(arrivals.values()), STRETCHES).cumsum()
        units = cls(counts=counts, days=STRETCHES * length / DAY_US, by_session=study.by_session)
        if study.experiment is None or study.by_session:
            return replace(units, newcomers=units.pace)
        population, n_newcomers = people.count_users(unit, first_at + STRETCHES * length // 2)
        return replace(units, population=float(population), newcomers=min(units.pace, 2 * n_newcomers / units.days))

    def add_population(self, unit: Unit, selection: Selection, *, since: int) -> NewUnits:
        """Return these counts with the population and the newcomers of a longer log, which begins at `since`. Its
        earlier part shows which users or sessions have come before."""
        _, last_at = selected.times(unit, selection)
        half_us = max(1, round(self.days * DAY_US / 2))
        n_stretches = -(-(last_at - half_us - since) // half_us)
        earlier_log = replace(selection, since=since)
        begin_at = last_at - half_us - n_stretches * half_us
        arrivals = people.arrivals(unit, earlier_log, since=begin_at, length=half_us, by_session=self.by_session)
        n_newcomers = sum(count for stretch, count in arrivals.items() if stretch >= n_stretches)
        return replace(self, population=float(sum(arrivals.values())), newcomers=n_newcomers * DAY_US / half_us)

    @property
    def pace(self) -> float:
        """Return the number of new users or sessions per day in the second half of the time. By then, most of those
        that come often have come once."""
        return float(2 * (self.counts[-1] - self.counts[STRETCHES // 2 - 1]) / self.days)

    def add_days(self, rows: Iterable[DifferenceRow]) -> None:
        """Add to each difference the number of days until the experiment has enough users or sessions to show it, or
        None if so many never come. If all came at once, no pace is known, and nothing is added."""
        for row in rows if self.counts[0] < self.counts[-1] else ():
            if n_more := row["needed"] or row["shortage"]:
                end_day = self.days_until(self.counts[-1] + n_more / row.get("share", 1.0))
                row["needed_days"] = None if end_day is None else end_day - self.days

    def days_until(self, units: float) -> float | None:
        """Return the number of days until `units` users or sessions have come, or None if so many never come. Beyond
        the observed number, they come at the pace of the second half; beyond the population, at the pace of
        newcomers."""
        if units <= self.counts[-1]:
            return float(np.interp(units, np.r_[0, self.counts], np.linspace(0, self.days, STRETCHES + 1)))
        limit = max(self.counts[-1], min(units, self.population))  # those who came before come again first
        waits = [(limit - self.counts[-1], self.pace), (units - limit, self.newcomers)]
        if any(wait and not pace for wait, pace in waits):
            return None
        return float(self.days + sum(wait / pace for wait, pace in waits if wait))


def _check_windows(unit: Unit, request: Request, rewards: Sequence[Reward]) -> None:
    """Raise InputError if the traffic that a plan reads is shorter than the window of the reward, so that no reward in
    it is final."""
    metric = METRICS[(request.metric or declared.MetricName(declared.DEFAULT_METRIC)).metric]
    name = request.name
    first_at, last_at = selected.times(unit, filters.selection(unit, f"experiment={name}" if name else request.log))
    since, window_us = first_at if name else last_at - min(WINDOW_US, (last_at - first_at) // 2), rewards[0].window_us
    if metric.reward is not None and last_at and since + window_us > unit.now:
        window, traffic = (time_text(us / DAY_US) for us in (window_us, last_at - since))
        clause = f"the window of reward {rewards[0].name} ({window}) is longer than the newest traffic ({traffic})"
        raise InputError(
            f"{clause}, no reward of which is certain yet", hint="plan later, or give the --rate of an event"
        )


def _check(request: Request) -> None:
    intervals.check_level(request.level)
    if request.name is not None and (request.log is not None or request.rate is not None):
        raise InputError(f"the traffic is that of experiment {request.name}", hint="leave out --log and --rate")
    if not request.lift or not -1 < request.lift <= 100:
        raise InputError(f"the lift is {100 * request.lift:.12g} %", hint="write --lift 5%, or -5% for a loss")
    if not 0.5 <= request.power < 1:
        raise InputError(f"the power is {100 * request.power:.12g} %", hint="it is 50 % or more, and below 100 %")
    if request.rate is not None and not 0 < request.rate * max(1.0, 1 + request.lift) < 1:
        hint = "it lies between 0 and 100 %, with the lift, too"
        raise InputError(f"the rate is {100 * request.rate:.12g} %", hint=hint)
