"""This module collects the contents of a report about a store, from the answers of other commands."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, ParamSpec, TypeVar

from rlrec import times
from rlrec.app.audit.draws import newest
from rlrec.app.audit.integrity import live_versions
from rlrec.app.audit.integrity.findings import Finding, Findings
from rlrec.app.evaluation.checks import CHECKS
from rlrec.app.evaluation.passes.estimates import EstimateRow
from rlrec.app.experiments import compare
from rlrec.app.experiments.compare import VariantComparison
from rlrec.app.inputs import filters, lookup
from rlrec.app.judging import evaluate, exposure, outcomes, positions
from rlrec.app.judging.positions import CurveAnswer
from rlrec.app.log import partitions
from rlrec.app.policies import policy_beliefs
from rlrec.app.policies.policy_beliefs import PolicyBelief
from rlrec.errors import RlrecError, StoreBusy, quantity
from rlrec.ope.checks.reasons import REASONS
from rlrec.records import StoredPolicy, Version
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.database.unit import StoredRows
from rlrec.store.log import activity, selected
from rlrec.store.policies import experiments, policies
from rlrec.store.policies.experiments import Experiment
from rlrec.times import DAY_US, format_time

T = TypeVar("T")
P = ParamSpec("P")
MAX_JUDGED = 100_000  # newest decisions for estimates and exposure
MIN_GAP_DAYS = 28  # days without decisions before which the parts over time begin
MAX_DAYS = {"hour": 2, "day": 45, "week": 728}  # days that are shown by each period, at most
MAX_TARGETS, MAX_BELIEFS, MAX_EXPERIMENTS, MAX_CURVES, MAX_TRAINED = (
    6,
    4,
    5,
    3,
    3,
)  # the most used, or newest, of each that are shown
N_SECTIONS = 8
METRICS_OVER_TIME = ("visits", "returned_1d", "returned_7d", "reward_per_visit")  # metrics that are shown over time
UNIFORM = "uniform"


@dataclass(frozen=True, kw_only=True)
class Request:
    """This record holds the options of `report`.

    policy: the name of a policy, to show only its decisions and beliefs; log: a filter; since: a time in
    microseconds since 1970; reward: the reward of all comparisons, where None means the rewards that the policies
    learn."""

    policy: str | None = None
    log: str | None = None
    since: int | None = None
    reward: str | None = None
    estimates: bool = True

    @property
    def filter(self) -> str:
        """Return a filter of the log that selects the requested decisions."""
        since = None if self.since is None else f"since={format_time(self.since)}"
        return filters.join_filters(self.policy and f"policy={self.policy}", self.log, since)


class PolicyTraffic(NamedTuple):
    """This record holds how much a policy served. A variant in an experiment is a policy by itself.

    newest: the day of the policy's newest decision; live: the number of its live version."""

    policy: str
    decisions: int
    newest: str
    live: int
    kind: str


class Training(NamedTuple):
    """This record holds how a version was trained. `report` has the learning curve, the best epoch, and the test of the
    gate."""

    policy: str
    version: int
    live: bool
    report: Mapping[str, Any]


@dataclass(kw_only=True)
class Result:
    """This record holds the contents of the report. If a part is None or empty, the entry of `remarks` under its name
    has sentences that say why.

    log: the filter of the decisions; reward: the reward of `over_time`, of `exposure` and of the comparison with
    uniform, or None if the report shows no policy; earlier, excluded: the numbers of decisions that `since` and
    exclusions leave out; period: the period of `over_time`: an hour, day or week; weeks: the outcomes by whole
    weeks, or None if there are fewer than two weeks; judged: the number of newest decisions that estimates and
    exposure use, or None if they use all; steps: what to do next, by target; best: the sentence that names the best
    known policy; audit: what `doctor` found last."""

    created_at: str
    log: str
    decisions: int
    first: str | None
    last: str | None
    reward: str | None = None
    earlier: int = 0
    excluded: int = 0
    traffic: list[PolicyTraffic] = field(default_factory=list)
    period: str = "day"
    over_time: outcomes.Result | None = None
    weeks: outcomes.Result | None = None
    estimates: list[EstimateRow] = field(default_factory=list)
    judged: int | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    best: str | None = None
    experiments: list[VariantComparison] = field(default_factory=list)
    beliefs: list[PolicyBelief] = field(default_factory=list)
    exposure: exposure.Result | None = None
    curves: list[CurveAnswer] = field(default_factory=list)
    trained: list[Training] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    audit: str | None = None
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def report(store: Store, request: Request) -> Result:
    """Return the contents of a report about the store. A section that cannot be computed has a remark that says why.
    Raises InputError for unknown names."""
    # exposure and estimates use the same decisions
    with store.snapshot() as unit, bulk.alongside(unit), partitions.share_partitions(unit):
        return _Gathering(store, unit, request).result()


def quick_findings(store: Store) -> list[Finding]:
    """Return the findings of checks that do not read the whole log."""
    with store.snapshot() as unit:
        counts = {key: log.decisions for key, log in activity.policy_logs(unit).items()}
        return _Ranking(unit, counts).quick_findings(on_its_clock=store.now is None)


def newest_filter(store: Store) -> str | None:
    """Return a filter of the newest decisions, as many as the estimates of a report use. The result is None if the log
    has no more decisions than this."""
    with store.read() as unit:
        since = selected.newest_at(unit, filters.selection(unit, ""), MAX_JUDGED)
    return filters.with_since(None, since)


class _Ranking:
    """A _Ranking puts the policies of a store in order, by the number of decisions that each policy served.

    policy: the policy that the request names, or None; counts: the number of decisions by the id of the policy."""

    policy: StoredPolicy | None = None

    def __init__(self, unit: Unit, counts: Mapping[int, int]) -> None:
        self.unit, self.decision_counts = unit, Counter(counts)
        self.policies = {policy.id: policy for policy in policies.all_policies(unit)}
        live = policies.live(unit, [policy.name for policy in self.policies.values()])
        self.live = {policy.version.policy.id: policy.version for policy in live.values()}

    def _rankers(self) -> list[int]:
        """Return the ids of the policies in order. If the request names a policy, these are this policy and its
        variants. Otherwise they are the policies that served, most decisions first, followed by other policies that can
        serve, newest first. Policies of imported logs are left out."""
        ids = [key for key, _ in self.decision_counts.most_common()]
        if self.policy is None:
            served_ids = {*ids, *(self.policies[key].base_id for key in ids)}
            roots = (policy for policy in self.policies.values() if policy.base_id is None)
            waiting = [policy.id for policy in roots if policy.id not in served_ids and policy.kind != UNIFORM]
            ids += sorted(waiting, key=lambda key: -self.live[key].id)
        elif not ids:
            ids = [self.policy.id]
        return [key for key in ids if self.policies[key].kind != "logged"]

    def _shown_policies(self) -> list[StoredPolicy]:
        """Return the policies whose beliefs the report shows, and whose newest decisions are checked."""
        rankers = [self.policies[key] for key in self._rankers()]
        return [policy for policy in rankers if policy.kind != UNIFORM][:MAX_BELIEFS]

    def quick_findings(self, *, on_its_clock: bool) -> list[Finding]:
        """Return the findings of checks that do not read the whole log.

        on_its_clock: whether the store uses the clock of the database, and no other time given by the user."""
        findings = Findings()
        live_versions.check(self.unit, findings=findings, policy=None if self.policy is None else self.policy.name)
        return [*newest.check(self.unit, self._shown_policies(), on_its_clock=on_its_clock), *findings.in_order()]


class _Gathering(_Ranking):
    """A _Gathering collects the contents of a report in one snapshot. It first reads the state of the store, then fills
    in one part after the other."""

    def __init__(self, store: Store, unit: Unit, request: Request) -> None:
        super().__init__(unit, {})
        self.store, self.request = store, request
        self.selection = filters.selection(unit, request.filter)
        self.policy = None if request.policy is None else lookup.version(unit, request.policy)[0].policy
        self.days, since = selected.day_counts_and_newest(unit, self.selection, MAX_JUDGED)
        n_decisions = sum(row.decisions for row in self.days)
        first_at, last_at = selected.times(unit, self.selection)
        self.answer = Result(
            created_at=format_time(unit.now), log=request.filter, decisions=n_decisions,
            first=format_time(first_at) if n_decisions else None, last=format_time(last_at) if n_decisions else None,
        )  # fmt: skip
        if self.selection.without:
            counts = selected.version_counts(unit, replace(self.selection, without=()))
            self.answer.excluded = sum(counts.values()) - n_decisions
        if self.selection.since is not None:
            earlier_log = replace(self.selection, since=None, until=self.selection.since)
            self.answer.earlier = sum(selected.version_counts(unit, earlier_log).values())
        self.decision_counts, self._parts = self._count_traffic(), set[str]()
        if request.reward is not None:
            self.answer.reward = lookup.reward(unit, request.reward).name
        elif owner := next(iter([*self._rankers(), *self.decision_counts]), None):
            self.answer.reward = self.live[owner].reward.name
        self.answer.judged = None if since is None else MAX_JUDGED
        self._judged_log = filters.with_since(request.filter, since)

    def _count_traffic(self) -> Counter[int]:
        """Fill in the answer's table of traffic, and return the number of decisions of each policy, by the id of the
        policy."""
        versions = policies.versions(self.unit, list(self.policies))
        owners = StoredRows("version", ((version.id, version) for version in versions))
        count, day = Counter[int](), dict[int, int]()
        for row in self.days:
            key = owners[row.version_id].policy.id
            count[key] += row.decisions
            day[key] = row.day
        self.answer.traffic = [
            PolicyTraffic(
                policy=self.policies[key].name, kind=self.policies[key].kind, live=self.live[key].number,
                decisions=decisions, newest=format_time(day[key] * DAY_US)[:10],
            )
            for key, decisions in count.most_common()
        ]  # fmt: skip
        return count

    def result(self) -> Result:
        """Fill in the parts of the report one by one, and return the report."""
        answer, fill = self.answer, self._fill
        if answer.decisions:
            answer.over_time = fill("time", self._over_time)
            request = exposure.Request(log=self._judged_log, reward=answer.reward, expected=False)
            answer.exposure = fill("exposure", exposure.exposure, self.store, request)
            if self.request.estimates:
                fill("estimates", self._estimates)
        answer.experiments = fill("experiments", self._experiments) or []
        answer.curves = fill("positions", self._curves) or []
        answer.trained = fill("training", self._newest_trainings) or []
        beliefs = (fill("beliefs", policy_beliefs.show, self.store, policy.name) for policy in self._shown_policies())
        answer.beliefs = [belief for belief in beliefs if belief is not None]
        if (run := activity.last_run(self.unit, "doctor")) is not None:
            errors, warnings = (quantity(run.result[f"{name}s"], name) for name in ("error", "warning"))
            answer.audit = f"{errors} and {warnings} at {format_time(run.at)[:16]}Z"
        findings = fill("health", self.quick_findings, on_its_clock=self.store.now is None) or []
        checks = {finding.check for finding in findings}
        answer.findings = [*findings, *(row for row in self._failed_checks() if row.check not in checks)]
        return answer

    def _fill(self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return the result of `work`, which computes a part of the report. If `work` fails, the result is None, and a
        remark on the part says why.

        name: the name of the part; args, kwargs: the arguments of `work`."""
        self._parts.add(name)
        self.unit.progress(f"of {N_SECTIONS} parts of the page", len(self._parts), None)
        try:
            return work(*args, **kwargs)
        except StoreBusy:
            raise
        except RlrecError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._remark(name, f"{error.message}{hint}")
            return None

    def _remark(self, name: str, text: str) -> None:
        """Add a remark to a part of the report, unless the part has this remark already. name: the name of the part."""
        if text not in self.answer.remarks[name]:
            self.answer.remarks[name].append(text)

    # -- parts --

    def _over_time(self) -> outcomes.Result:
        """Return visits, returns and rewards by hour, day or week, and set the answer's period and weeks. They begin
        after the last long gap in the log."""
        days = sorted({row.day for row in self.days})
        start = max((next_day for day, next_day in pairwise(days) if next_day - day > MIN_GAP_DAYS), default=days[0])
        span = days[-1] - start + 1
        self.answer.period = next((period for period, max_days in MAX_DAYS.items() if span <= max_days), "week")
        start = max(start, days[-1] - MAX_DAYS["week"] + 1)
        monday = start + (-3 - start) % 7  # 1970-01-01 was a Thursday
        if self.answer.period == "week":
            start = monday
        if start > days[0]:
            day = format_time(start * DAY_US)[:10]
            self._remark("time", f"Nothing from before {day} is shown over time: see --since.")
        since = max(times.midnight(start), self.selection.since or 0) if start > days[0] else self.selection.since
        starts = [(self.answer.period, since)]
        if self.answer.period != "week" and days[-1] - max(monday, times.day_of(since or 0)) >= 2 * 7 - 1:
            starts.append(("week", max(since or 0, times.midnight(monday))))
        log, rewards = self.request.filter, [str(self.answer.reward)]
        over_time, *weeks = outcomes.answer_requests(self.store, [
            outcomes.Request(by=period, log=filters.with_since(log, start), rewards=rewards, metrics=METRICS_OVER_TIME)
            for period, start in starts
        ])  # fmt: skip
        self.answer.weeks = over_time if self.answer.period == "week" else next(iter(weeks), None)
        return over_time

    def _estimates(self) -> None:
        """Fill in the estimates of the targets. Targets that learn the same reward are evaluated together, as by
        `evaluate`. If another policy of the store has served, `uniform` is a further target and shown last. It is also
        the target of an imported log that has no other target."""
        answer, by_reward = self.answer, defaultdict[str, list[str]](list)
        for version in self._targets():
            by_reward[self.request.reward or version.reward.name].append(version.policy.name)
        kinds = {self.policies[key].kind for key in self.decision_counts} - {UNIFORM}
        if kinds - {"logged"} or (kinds and not by_reward):  # an imported log alone is checked, too
            by_reward[str(answer.reward)].append(UNIFORM)
        for reward, targets in by_reward.items():
            answer.estimates += self._fill("estimates", self._judge, reward, targets) or []
        if kinds == {"logged"}:  # an imported log of `uniform` itself needs no answer
            answer.estimates = [row for row in answer.estimates if row.answer[0] != "same"]
        answer.estimates.sort(key=lambda row: row.target == UNIFORM)
        answer.estimates = evaluate.comparable_rows(answer.estimates)
        answer.steps = evaluate.steps(answer.estimates)
        answer.reasons = evaluate.reasons_in_words(answer.estimates) if answer.estimates else []

    def _judge(self, reward: str, targets: list[str]) -> list[EstimateRow]:
        """Return one estimate for each target and group, by the estimator that answers. If the targets cannot be
        evaluated together, they are evaluated one by one."""
        request = evaluate.Request(targets=targets, log=self._judged_log, reward=reward)
        try:
            return evaluate.answering_rows(evaluate.evaluate(self.store, request))
        except RlrecError:
            if len(targets) == 1:
                raise
        return [row for name in targets for row in self._fill("estimates", self._judge, reward, [name]) or []]

    def _failed_checks(self) -> list[Finding]:
        """Return a finding for each check of the log that fails in an estimate, with the affected targets. Checks of
        logs or models that differ from each other have the severity info, because `doctor` does not make these
        checks."""
        severities = {check.reason: "warning" for check in CHECKS} | {"models-differ": "info", "unlike-loggers": "info"}
        rows = self.answer.estimates
        return [
            Finding(check=reason, severity=severity, subject=", ".join(names), detail=REASONS[reason].text)
            for reason, severity in severities.items()
            if (names := [row.name for row in rows if reason in row.estimate.reasons])
        ]

    def _targets(self) -> list[Version]:
        """Return the live versions of the policies to evaluate, most decisions first. Policies that draw uniformly,
        such as holdouts, are left out, since `uniform` is evaluated anyway."""
        live = policies.live(self.unit, [self.policies[key].name for key in self._rankers()])
        targets, log = list[Version](), {"log": self.request.filter} if self.request.filter else {}
        for version, head in (live[self.policies[key].name] for key in self._rankers()):
            sentence = live_versions.successors_sentence(self.unit, version) or live_versions.untaught_sentence(
                self.unit, version, head, log
            )
            targets += [] if sentence else [version]
            if sentence := sentence or live_versions.waiting_sentence(self.unit, version):
                self._remark("estimates", sentence)
        return [version for version in targets if version.policy.name.partition("@")[0] != UNIFORM][:MAX_TARGETS]

    def _experiments(self) -> list[VariantComparison]:
        rows = experiments.all_experiments(self.unit)
        if self.policy is not None:  # those with a variant that is the policy, or a copy of it
            ids = {self.policy.id, *(key for key, policy in self.policies.items() if policy.base_id == self.policy.id)}
            rows = [row for row in rows if not ids.isdisjoint(variant.policy_id for variant in row.variants)]
        sorted_rows = sorted(rows, key=self._order_of)
        if len(sorted_rows) > MAX_EXPERIMENTS:
            count_text = quantity(len(sorted_rows) - MAX_EXPERIMENTS, "older one")
            self._remark("experiments", f"{count_text}: see `rlrec experiment list`.")
        names = [experiment.name for experiment in sorted_rows[:MAX_EXPERIMENTS]]
        rewards = [*filter(None, [self.request.reward])]
        comparisons = (self._fill("experiments", compare.show, self.store, name, rewards=rewards) for name in names)
        return [comparison for comparison in comparisons if comparison is not None]

    def _order_of(self, experiment: Experiment) -> tuple[bool, bool, int]:
        """Return the sort key of an experiment in the report. Running experiments come before stopped experiments, and
        holdouts of routes before other experiments."""
        is_running = experiment.status == "running"
        return not is_running, lookup.route_of_holdout(self.unit, experiment) is None, -experiment.created_at

    def _curves(self) -> list[CurveAnswer]:
        newest_of = {row["curve"]: row["number"] for row in positions.list_curves(self.store)}
        if len(newest_of) > MAX_CURVES:
            self._remark(
                "positions", f"{quantity(len(newest_of) - MAX_CURVES, 'more curve')}: see `rlrec position list`."
            )
        return [positions.show(self.store, f"{name}@{number}") for name, number in [*newest_of.items()][-MAX_CURVES:]]

    def _newest_trainings(self) -> list[Training]:
        """Return the newest training of each trained policy."""
        ids = self.policies if self.policy is None else [self.policy.id]
        owners = [key for key in ids if self.policies[key].kind == "gradient" and self.policies[key].base_id is None]
        trainings: dict[int, Training] = {}
        for version in policies.versions(self.unit, owners):
            if (report := policies.report(self.unit, version.id)) is not None:
                is_live = self.live[version.policy.id].id == version.id
                trainings[version.policy.id] = Training(version.policy.name, version.number, is_live, report)
        return list(trainings.values())[:MAX_TRAINED]
