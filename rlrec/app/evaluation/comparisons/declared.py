"""This module reads what experiments declare at their start: the metrics that decide, the guards (limits of losses),
and the number of users or sessions at which intervals are tightest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rlrec.app.inputs import lookup
from rlrec.errors import InputError
from rlrec.records import Record, Reward
from rlrec.store import Unit
from rlrec.store.policies import experiments
from rlrec.store.policies.experiments import Experiment
from rlrec.times import DAY_US

if TYPE_CHECKING:
    from rlrec.ope.comparisons.comparison import Metric

METRIC, GUARDS, BEST_N = "metric", "guards", "best_n"  # keys of a definition
DEFAULT_METRIC, DEFAULT_SIZE, LEAST_SIZE, MOST_SIZE = "reward_per_unit", 5_000, 100, 1_000_000_000
TRAFFIC_US = 30 * DAY_US


class MetricName(NamedTuple):
    """This record holds the name of a metric as a user writes it. reward: the name of the reward that the metric is
    computed from. None stands for the first reward that the variants learn; metrics without a reward ignore it."""

    metric: str
    reward: str | None = None

    def __str__(self) -> str:
        return self.metric if self.reward is None else f"{self.metric}:{self.reward}"


class GuardName(NamedTuple):
    """This record names a guard: a metric that may fall only by a given fraction of the first variant's value. least:
    minus this fraction, such as -0.05 or 0; reward: as in `MetricName`."""

    metric: str
    reward: str | None
    least: float

    def __str__(self) -> str:
        return f"{MetricName(self.metric, self.reward)}>={100 * self.least:.12g}%"


class Declaration(Record):
    """This record states how an experiment is decided. success: the deciding metrics; guards: the metric of each guard,
    and minus the fraction by which it may fall; best_n: the number of users or sessions at which intervals are
    tightest; weights: the weight of each variant at the start."""

    success: Sequence[Metric]
    guards: Sequence[tuple[Metric, float]] = ()
    best_n: float = DEFAULT_SIZE
    weights: Sequence[float]

    def share(self, *variants: int) -> float:
        """Return the planned share of all users or sessions that these variants together receive.

        variants: the index of each variant."""
        return sum(self.weights[number] for number in variants) / sum(self.weights)

    @classmethod
    def from_definition(
        cls, experiment: Experiment, metrics: Sequence[Metric], rewards: Sequence[Reward], first_reward: str | None,
        weights: Mapping[str, float],
    ) -> Declaration:  # fmt: skip
        """Return the declaration of an experiment. If the experiment declares no metric, the reward per user or session
        decides, for each reward.

        metrics: the metrics of the answer, which include the declared metrics; rewards: the rewards of the answer;
        first_reward: the name of the reward that the variants learn; weights: the weight of each variant at the
        start, by label."""
        definition = experiment.declaration

        def find_metric(name: str, reward: str | None) -> Metric:
            return next(
                metric for metric in metrics
                if metric.name == name
                and (metric.reward is None or rewards[metric.reward].name == (reward or first_reward))
            )  # fmt: skip

        success = [find_metric(*row) for row in definition.get(METRIC, [])]
        return cls(
            success=success or [metric for metric in metrics if metric.name == DEFAULT_METRIC],
            guards=[(find_metric(name, reward), least) for name, reward, least in definition.get(GUARDS, [])],
            best_n=expected_units(experiment),
            weights=[weights[variant.label] for variant in experiment.variants],
        )


def expected_units(experiment: Experiment) -> int:
    """Return the number of users or sessions at which the intervals of an experiment are tightest."""
    return int(experiment.declaration.get(BEST_N, DEFAULT_SIZE))


def reward_names(experiment: Experiment, first_reward: str | None) -> list[str]:
    """Return the names of the rewards that an experiment declares, in its deciding metrics and then in its guards.

    first_reward: the name of the reward that the variants learn, which stands for the reward of a metric without
    one."""
    from rlrec.ope.comparisons import comparison

    definition = experiment.declaration
    reward_metrics = {metric.name for metric in comparison.metrics(1) if metric.reward is not None}
    names = [
        reward or first_reward
        for name, reward, *_ in (*definition.get(METRIC, []), *definition.get(GUARDS, []))
        if name in reward_metrics
    ]
    return [*dict.fromkeys(name for name in names if name is not None)]


def check(unit: Unit, success: Sequence[MetricName], guards: Sequence[GuardName], *, first_reward: str) -> None:
    """Raise InputError if a metric or a reward is unknown, if a metric both decides and guards, if a metric is named
    twice, or if a guard's limit is not between -100% and 0%.

    success: the metrics that decide; first_reward: the name of the reward that the variants learn."""
    from rlrec.ope.comparisons import comparison

    takes_reward = {metric.name: metric.reward is not None for metric in comparison.metrics(1)}
    roles = dict[MetricName, str]()
    for role, name in (
        *(("metric", row) for row in success or [MetricName(DEFAULT_METRIC)]),
        *(("guard", MetricName(*row[:2])) for row in guards),
    ):
        if name.metric not in takes_reward:
            hint = f"one of {', '.join(takes_reward)}"
            raise lookup.unknown("metric", name.metric, takes_reward, hint=hint)
        if name.reward is not None and not takes_reward[name.metric]:
            raise InputError(f"{role} {name}: {name.metric} has no reward", hint=f"write {name.metric}")
        if name.reward is not None:
            lookup.reward(unit, name.reward)
        full_name = name._replace(reward=name.reward or first_reward) if takes_reward[name.metric] else name
        if (earlier_role := roles.get(full_name)) is not None:
            text = f"is a {role} twice" if earlier_role == role else "is the metric that decides, and no guard of it"
            raise InputError(f"{full_name} {text}", hint="name each metric once")
        roles[full_name] = role
    for guard in guards:
        if not -1 < guard.least <= 0:
            raise InputError(f"guard {guard} is not between -100% and 0%", hint="write METRIC>=-5%")


def check_size(best_n: int | None) -> None:
    """Raise InputError if `best_n`, the number of users or sessions at which intervals are tightest, is out of
    range."""
    if best_n is not None and not LEAST_SIZE <= best_n <= MOST_SIZE:
        hint = f"it lies between {LEAST_SIZE} and {MOST_SIZE:,}: the units that you expect by the end"
        raise InputError(f"--best-n is {best_n}", hint=hint)


def expected_size(unit: Unit, by: str) -> int:
    """Return the number of users or sessions that came within the last 30 days. If it is small, return a default that
    suits many experiments. by: what to count, "user" or "session"."""
    size = experiments.count_visitors(unit, by, since=unit.now - TRAFFIC_US)
    return size if size >= LEAST_SIZE else DEFAULT_SIZE
