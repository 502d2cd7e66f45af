"""This module has gates, for routes and for training. A gate tests whether a candidate earns more than the live
version, on visits that the candidate did not learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from rlrec.app.evaluation.checks import find_failures
from rlrec.app.evaluation.passes import estimates, fold, passes, sessions
from rlrec.app.evaluation.passes.request import EmptyLog, Request
from rlrec.app.evaluation.passes.sessions import ReturnUnit, SessionUnit
from rlrec.app.evaluation.targets import targets
from rlrec.app.evaluation.targets.targets import Target
from rlrec.app.inputs import filters, lookup
from rlrec.app.log.splits import GATE
from rlrec.compute import Engine
from rlrec.errors import CheckFailed, InputError
from rlrec.ope.checks.reasons import LEAST_ESS, in_groups, in_order, worst_verdict
from rlrec.ope.checks.verdicts import doubts_of
from rlrec.ope.comparisons.comparison import ALPHA, BEST_NIGHTS, Comparison, compare, gate_alpha, look_alpha
from rlrec.ope.intervals.intervals import Minus, Relative
from rlrec.ope.units.estimate import Estimate, EstimatorFold
from rlrec.ope.units.fold import ImpressionFold
from rlrec.ope.units.sessions import LEAST_SUPPORT, SessionFold
from rlrec.policy.beliefs.reward import slot_reward
from rlrec.records import Event, Record, Reward
from rlrec.sentences import gate_claim, gate_direction
from rlrec.store import Unit
from rlrec.store.log import events, selected
from rlrec.store.log.selected import Selection
from rlrec.store.policies import policies
from rlrec.times import DAY_US, format_time

VISIT_ESTIMATOR, SLOT_ESTIMATOR = "wdr", "dr"
MIN_DECISIONS = 1_000  # decisions of the gate split that are enough by themselves
# share of the largest reward that the lower bound counts as lost: of slots that earn it, half are shown
LOST_SHARE = 0.5
INSUFFICIENT = "insufficient"
ESTIMATED_SENTENCE = "the propensities of its log were not logged, but computed when it was imported"


class Guard(Record):
    """A Guard is a reward that a candidate may not lower. name: the name of the reward; least: the value that the lower
    bound of the relative difference in this reward must exceed."""

    name: str
    least: float


class GateOptions(Record):
    """This record has the options of a gate, the test before a version goes live.

    candidate, current: the references of the versions to compare; reward: the name of a reward, where None stands
    for the reward that the current version learns; log: a filter; gamma: the discount of each further decision of a
    visit; cluster: `user`, `session` or `row`, or None for users where they are known; guards: the rewards that may
    not fall."""

    candidate: str = ""
    current: str = ""
    reward: str | None = None
    log: str | None = None
    gamma: float = 1.0
    cluster: str | None = None
    guards: Sequence[Guard] = ()

    @property
    def gain_options(self) -> dict[str, Any]:
        """Return the options that `Gain.estimate` takes, as keyword arguments."""
        return {"gamma": self.gamma, "log": self.log, "cluster": self.cluster}


# The relative difference in the reward of a guard.
GuardReport = TypedDict("GuardReport", {
    "guard": str, "least": float, "estimator": str, "value": float | None, "lower": float | None, "verdict": str,
    "reasons": list[str], "passed": bool,
})  # fmt: skip
# The same difference estimated by whole visits, where slots decide.
VisitsReport = TypedDict("VisitsReport", {
    "estimator": str, "n": int, "estimate": float | None, "lower": float | None, "upper": float | None,
    "ess": float | None, "verdict": str, "reasons": list[str], "passed": bool,
})  # fmt: skip
# The result of one test of a gate. candidate: its number in this year; alpha: the probability of error; for a route,
# over all tests of this pair of versions.
Judgement = TypedDict("Judgement", {
    "estimator": str, "candidate": int, "alpha": float, "value": float | None, "live_value": float | None,
    "estimate": float | None, "std_error": float | None, "lower": float | None, "upper": float | None,
    "ess": float | None, "verdict": str, "reasons": list[str], "answer": str, "needed": int | None,
    "visits": VisitsReport | None, "passed": bool,
})  # fmt: skip


# The data that all tests under one alpha share. number: of the pair in this year; compared: the versions, how they are
# compared, and from which decision on; best_n: the number of clusters after which bounds are tightest, fixed at the
# first test; looks: tests of this pair so far.
Pair = TypedDict("Pair", {"number": int, "compared": str, "best_n": int, "looks": int})


class RouteGate(Judgement):
    """This record has the result of a test by a route's gate.

    against: the reference of the live version; n: the number of impressions or visits on which both versions were
    evaluated; since_decision: the id of the first of these decisions if earlier decisions were left out because the
    candidate learned from them, else None; pair: the versions, with what all tests of them have in common."""

    reward: str
    against: str
    n: int
    guards: list[GuardReport]
    since_decision: int | None
    pair: Pair


def judge_candidate(unit: Unit, options: GateOptions, *, earlier_tests: Sequence[Mapping[str, Any]]) -> RouteGate:
    """Test the candidate against the version that the route serves, and return the result of the test. Raise
    CheckFailed if the log has no usable rows. earlier_tests: the tests of this gate in this year, oldest first."""
    selection = filters.selection(unit, options.log)
    if selection.splits is not None and list(selection.splits) != [GATE]:
        raise InputError("a gate uses split=gate, which training never uses", hint="leave split out of --log")
    selection = replace(selection, splits=[GATE])
    definitions = {guard.name: _guard_reward(unit, guard.name) for guard in options.guards}
    current, _ = lookup.version(unit, options.current)
    reward = current.reward if options.reward is None else lookup.reward(unit, options.reward)
    first_judged_id = None
    try:
        selection = rows_not_trained_on(unit, selection, options.current)
        gain, visits = _estimate_gains(unit, options, selection, reward)
        if gain.in_sample and (first_judged_id := _first_untaught_id(unit, options.candidate)) is not None:
            selection = replace(selection, first_id=first_judged_id)
            gain, visits = _estimate_gains(unit, options, selection, reward)
        gain_of = {
            guard.name: _estimate_gain(unit, options, selection, definitions[guard.name]) for guard in options.guards
        }
    except EmptyLog as error:
        later_hint = "visits from now on can judge it: let some be served, or begin a ramp (--share 5%)"
        way_out = error.hint if first_judged_id is None else later_hint
        raise CheckFailed(f"the gate has nothing to judge by: {error.message}", hint=way_out) from error
    pair = _find_pair(unit, options, selection, reward, gain.estimates[0], earlier_tests)
    alpha, n_clusters = gate_alpha(pair["number"]), gain.estimates[0].clusters
    look_options: dict[str, Any] = {"best_n": pair["best_n"], "is_first": pair["looks"] == 1}
    figures = judge_gain(
        gain, visits, len(earlier_tests) + 1, alpha, level=look_alpha(alpha, n_clusters, **look_options)
    )
    # each guard must hold at the full alpha: guards do not share it
    guard_level = look_alpha(ALPHA, n_clusters, **look_options)
    guards = [_guard_report(guard, gain_of[guard.name], guard_level) for guard in options.guards]
    return {
        **figures, "reward": reward.name, "against": options.current, "n": gain.estimates[0].n, "guards": guards,
        "passed": figures["passed"] and all(guard["passed"] for guard in guards), "since_decision": first_judged_id,
        "pair": pair,
    }  # fmt: skip


def _find_pair(
    unit: Unit, options: GateOptions, selection: Selection, reward: Reward, candidate: Estimate,
    earlier_tests: Sequence[Mapping[str, Any]],
) -> Pair:  # fmt: skip
    """Return the pair of versions that a test compares. Tests belong to the same pair if they compare the same versions
    in the same way, on a log that has only grown. A new pair gets the next number of the year. Each test of an earlier
    release, which was stored without a pair, counts as a pair.

    candidate: the candidate's estimate in this test."""
    extent = selected.extent(unit, selection)
    versions = " less ".join(lookup.version(unit, side)[0].reference for side in (options.candidate, options.current))
    measure = f"{reward.name} by {candidate.estimator}, gamma {options.gamma:g}, cluster {candidate.cluster}"
    pair_text = f"{versions}: {measure}, log {options.log or filters.ALL} from {format_time(extent.first_at)}"
    pairs: list[Pair | None] = [test.get("pair") for test in earlier_tests]
    if same_pairs := [pair for pair in pairs if pair and pair["compared"] == pair_text]:
        return same_pairs[-1] | {"looks": len(same_pairs) + 1}
    number = 1 + pairs.count(None) + len({pair["compared"] for pair in pairs if pair})
    n_nights = max(extent.span_us / DAY_US, 1.0)
    best_n = round(max(BEST_NIGHTS / n_nights, 1.0) * candidate.clusters)
    return {"number": number, "compared": pair_text, "best_n": best_n, "looks": 1}


def judge_gain(
    gain: Gain, visits: Gain | None, candidate: int, alpha: float, *, level: float | None = None,
    supported_elsewhere: bool = False,
) -> Judgement:  # fmt: skip
    """Decide whether a candidate passes a gate, by its gain on slots or on whole visits. If slots decide, the gain on
    whole visits must also not speak against the candidate.

    gain: the gain that decides; visits: the gain on whole visits, or None if slots do not decide; candidate: the
    number of the candidate in this year; alpha: the probability of error; level: the probability of error at this
    test, or None for alpha; supported_elsewhere: whether other visits have shown that the candidate shows nearly
    what the log shows."""
    level = alpha if level is None else level
    gap = gain.judge(Minus, level)
    visits_report = None if visits is None else _visits_report(visits, level, supported_elsewhere)
    # whole visits cover the effect on later states, which slots leave out
    answer_text, n_needed = (gap if visits is None else gap.without_group("state")).answer
    has_passed = answer_text == "better" and (visits_report is None or visits_report["passed"])
    base, difference = gap.base, gap.value  # of the same rows, which weigh alike for both
    return {
        "estimator": gain.estimates[0].estimator, "candidate": candidate, "alpha": alpha,
        "value": None if base is None or difference is None else base + difference, "live_value": base,
        "estimate": difference, "std_error": gap.std_error, "lower": gap.lower, "upper": gap.upper,
        "ess": gap.ess, "verdict": gap.verdict, "reasons": [*gap.reasons],
        "answer": "unknown" if answer_text == "better" and not has_passed else answer_text, "needed": n_needed,
        "visits": visits_report, "passed": has_passed,
    }  # fmt: skip


def _guard_reward(unit: Unit, name: str) -> Reward:
    """Return the reward that a guard names. If the store does not define the name `return`, it stands for the share of
    visits after which the same user comes back. Raise InputError for any other undefined name."""
    if name == events.RETURN and all(definition.name != name for definition in policies.rewards(unit)):
        return sessions.RETURN_REWARD
    return lookup.reward(unit, name)


def _first_untaught_id(unit: Unit, candidate: str) -> int | None:
    """Return the id of the first decision that comes after all decisions of the gate split from which a candidate has
    learned. The result is None if the candidate still learns, or has learned from no such decisions."""
    (target,) = targets.resolve(unit, [candidate], reward=None, greedy=False)
    gate_lessons = (lesson for lesson in target.lessons if lesson.splits is None or GATE in lesson.splits)
    selections = [lesson.selection for lesson in gate_lessons]
    selections = [selection for selection in selections if selection.splits is None or GATE in selection.splits]
    last_ids = [selection.last_id for selection in selections if selection.last_id is not None]
    return max(last_ids) + 1 if last_ids and len(last_ids) == len(selections) else None


def rows_not_trained_on(unit: Unit, selection: Selection, serving: str) -> Selection:
    """Return the decisions of `selection` that come after all decisions from which the live version has learned. If too
    few remain, return all of `selection`.

    Earlier decisions may be decisions of the bandit from which the live version started. They favour the live
    version, and rarely show nearly what it would show.

    serving: the reference of the live version."""
    first_id = _first_untaught_id(unit, serving)
    if first_id is None:
        return selection
    later_selection = replace(selection, first_id=max(first_id, selection.first_id or 0))
    n_gate = sum(selected.version_counts(unit, replace(later_selection, splits=[GATE])).values())
    return later_selection if n_gate >= MIN_DECISIONS else selection


def _estimate_gains(unit: Unit, options: GateOptions, selection: Selection, reward: Reward) -> tuple[Gain, Gain | None]:
    """Return the gain that decides, and the gain on whole visits, which is None if slots do not decide."""
    if selected.extent(unit, selection).positions < 2:
        return _estimate_gain(unit, options, selection, reward), None
    return page_gains(unit, _gate_targets(unit, options, reward), selection, **options.gain_options)


def _gate_targets(unit: Unit, options: GateOptions, reward: Reward) -> list[Target]:
    sides = targets.resolve(unit, [options.candidate, options.current], reward=None, greedy=False)
    return [replace(side, reward=reward) for side in sides]


def page_gains(unit: Unit, sides: Sequence[Target], selection: Selection, **options: Any) -> tuple[Gain, Gain | None]:
    """Return the gain that decides on slates of several positions, and a second gain on whole visits, or None.

    Slots decide. If slots earn no reward, whole visits decide, without a second gain. The second gain is also None
    if neither side reads the state of a visit, rewards do not depend on earlier slates or count returns, and events
    of whole slates earn almost nothing.

    The product of the weights of all slots of a visit leaves almost no effective visits. Weights by slot, in the states
    of the log, give the gain of a candidate near the log with a tenth of the error, correct to first order. But weights
    by slot miss what follows a slot. Therefore whole visits must not show that the candidate is worse.

    sides: the candidate and the live version; options: the keyword arguments of `Gain.estimate`."""
    slot_gain = Gain.estimate(SLOT_ESTIMATOR, unit, sides, selection, **options)
    if not any(estimate.value for estimate in slot_gain.estimates):
        return Gain.estimate(VISIT_ESTIMATOR, unit, sides, selection, **options), None
    reads_visits = any(side.is_stateful for side in sides) or events.RETURN in sides[0].reward.weights
    sees_reward = slot_gain.estimates[0].reward_seen >= fold.MIN_REWARD_SHARE
    if sees_reward and not slot_gain.carries_over and not reads_visits:
        return slot_gain, None
    return slot_gain, Gain.estimate(VISIT_ESTIMATOR, unit, sides, selection, **options)


def _visits_report(visits: Gain, alpha: float, supported_elsewhere: bool) -> VisitsReport:
    """Return the report on whole visits for a test that slots decide. The report passes if the visits do not show that
    the candidate is worse, and if the candidate is close to the log. Either enough effective visits show that it is
    close, or other visits have shown it.

    visits: the gain on whole visits; alpha: the probability of error; supported_elsewhere: whether other visits have
    shown that the candidate is close to the log."""
    gap, n = visits.judge(Minus, alpha), visits.estimates[0].n
    ess, upper = gap.ess or 0.0, gap.upper
    return {
        "estimator": VISIT_ESTIMATOR, "n": n, "estimate": gap.value, "lower": gap.lower, "upper": upper,
        "ess": gap.ess, "verdict": gap.verdict, "reasons": [*gap.reasons],
        "passed": (supported_elsewhere or ess >= _least_visits(n)) and (upper is None or upper >= 0),
    }  # fmt: skip


def _estimate_gain(unit: Unit, options: GateOptions, selection: Selection, reward: Reward) -> Gain:
    """Return the gain on impressions or, if impressions miss effects, on whole visits. They miss effects if the
    candidate or the live version reads the state of a visit, or if rewards depend on earlier parts of a visit or count
    returns."""
    sides = _gate_targets(unit, options, reward)
    if not any(side.is_stateful for side in sides) and events.RETURN not in reward.weights:
        gain = Gain.estimate(SLOT_ESTIMATOR, unit, sides, selection, **options.gain_options)
        if not gain.carries_over:
            return gain
    gain_options = options.gain_options | ({"gamma": 1.0} if reward is sessions.RETURN_REWARD else {})
    return Gain.estimate(VISIT_ESTIMATOR, unit, sides, selection, **gain_options)


def _guard_report(guard: Guard, gain: Gain, alpha: float) -> GuardReport:
    gap = gain.judge(Relative, alpha)
    lower = gap.lower
    return {
        "guard": guard.name, "least": guard.least, "estimator": gain.estimates[0].estimator, "value": gap.value,
        "lower": lower, "verdict": gap.verdict, "reasons": [*gap.reasons],
        "passed": lower is not None and lower > guard.least and gap.is_reliable,
    }  # fmt: skip


class Gain(Record, kw_only=False, eq=False):
    """This record has a candidate and the live version, evaluated on the same rows with one estimator and one reward.

    sides: the summed rows of the candidate and of the live version. If there is no second side, the log stands for
    the live version. estimates: the estimate of each; in_sample: whether the candidate has learned from any of the
    rows (the live version may have learned from its own log, which favours it and makes the gate stricter);
    has_missing_propensities: whether rows without propensities were left out; carries_over: whether the rewards of
    impressions depend on the earlier part of the visit; loss: LOST_SHARE times the largest reward that one event has
    brought; replicas: both sides with each part of the simulated slates, if a side has simulated slates."""

    sides: Sequence[EstimatorFold]
    estimates: Sequence[Estimate]
    in_sample: bool
    has_missing_propensities: bool
    carries_over: bool
    loss: float = 0.0
    replicas: Sequence[tuple[EstimatorFold, EstimatorFold | None]] = ()

    @classmethod
    def estimate(
        cls, estimator: str, unit: Unit, sides: Sequence[Target], selection: Selection, *, gamma: float = 1.0,
        log: str | None = None, cluster: str | None = None, progress: Callable[[], None] = lambda: None,
        engine: Engine | None = None, supported_elsewhere: bool = False,
    ) -> Gain:  # fmt: skip
        """Evaluate the candidate and the live version with one estimator, and return the gain.

        sides: the candidate and the live version, with the same reward; log, cluster: as in `evaluate`; progress: a
        function that is called before each batch; engine: the engine that reads the log in parallel, or None;
        supported_elsewhere: whether other visits have shown that the candidate is close to the log, so that no
        minimum number of effective visits is needed here."""
        request = Request(targets=(), estimators=estimator, interval="normal", gamma=gamma, log=log, cluster=cluster)
        estimator_choice = estimates.estimators(request)
        evaluation, (rows, *check_rows), log_reader = estimates.prepare(
            unit, request, estimator_choice, selection, sides=sides
        )
        log_reader.progress = progress
        if sides[0].reward is sessions.RETURN_REWARD:
            rows = ReturnUnit(**vars(rows), followed_visits=sessions.followed_visits(unit))
        if supported_elsewhere and isinstance(rows, SessionUnit):
            rows = replace(rows, fold=replace(rows.fold, least_support=0.0))
        partials = passes.sum_log([rows, *check_rows], log_reader, engine)
        partial, failures = partials[rows], find_failures(partials[[rows, *check_rows][-1]].checks)
        estimates_by_group = fold.estimates(rows, partial, failures=failures, cluster=evaluation.cluster)
        estimate_of = {number: estimate for (number, _), (estimate,) in estimates_by_group.items()}
        # the weights of loggers are the same for both sides
        weightings = fold.weigh_loggers(rows, partial, (0, 1))
        sums = [side for number in (0, 1) for side in fold.over_loggers(partial, number, weightings).values()]
        assert isinstance(rows.fold, ImpressionFold | SessionFold)
        estimator_folds = [rows.fold.estimator_folds(side.sums)[0] for side in sums]
        numbers = sorted(sums[0].replicas.keys() | sums[1].replicas.keys())
        candidate, reference = (
            [rows.fold.estimator_folds(side.by_replica(number))[0] for number in numbers] for side in sums
        )
        return cls(
            sides=estimator_folds, estimates=[estimate_of[0], estimate_of[1]], in_sample="in-sample" in sums[0].reasons,
            has_missing_propensities=any(counts.silent for counts in partial.counts.values())
            or any(side.weights.left_out for side in estimator_folds),
            carries_over=any(check.reason == "carry-over" for checks in failures.values() for check in checks),
            loss=LOST_SHARE * _largest_reward(unit, sides[0].reward, slots_alone=estimator == SLOT_ESTIMATOR),
            replicas=list(zip(candidate, reference, strict=True)),
        )  # fmt: skip

    @property
    def over_served(self) -> Gain:
        """Return the gain of the candidate over the log itself, in place of the live version."""
        replicas = [(candidate, None) for candidate, _ in self.replicas]
        return replace(self, sides=self.sides[:1], estimates=self.estimates[:1], replicas=replicas)

    def judge(self, measure: type[Minus], alpha: float) -> Comparison:
        """Return the difference between the candidate and the live version, with the worse verdict of the two and the
        reasons for doubt of both. The difference is unknown if rows without propensities were left out.

        measure: whether the difference is absolute (`Minus`) or relative; alpha: the probability of error."""
        if self.has_missing_propensities:
            reasons = (*(["in-sample"] if self.in_sample else []), "no-propensity")
            return Comparison(verdict=INSUFFICIENT, reasons=reasons)
        candidate, reference = self.sides[0], self.sides[1] if len(self.sides) > 1 else None
        result = compare(candidate, reference, measure=measure, alpha=alpha, replicas=self.replicas, reward=self.loss)
        serving_reasons = {reason for side in self.estimates[1:] for reason in side.reasons} - {"in-sample"}
        return replace(
            result, verdict=worst_verdict((result.verdict, *(side.verdict for side in self.estimates))),
            reasons=in_order((*result.reasons, *self.estimates[0].reasons, *serving_reasons)),
        )  # fmt: skip


def _largest_reward(unit: Unit, definition: Reward, *, slots_alone: bool) -> float:
    """Return the largest amount by which one event of the log has moved a reward from its default.

    slots_alone: whether only events of slots count, not events of whole slates."""
    if definition is sessions.RETURN_REWARD:
        return 1.0
    values = events.largest_values(unit, definition.weights, slots_only=slots_alone).items()
    single_events = [Event(0, 1, kind, sign * value, 0, 0) for kind, value in values for sign in (-1, 1)]
    rewards = (slot_reward(definition, [event], served_at=0) for event in single_events)
    return max((abs(reward - definition.default) for reward in rewards), default=0.0)


# The figures of a test that depend only on what it compares and on the log, not on its number.
_EVIDENCE_KEYS = (
    "estimator", "reward", "against", "value", "live_value", "estimate", "std_error", "ess", "n", "sessions",
    "since_decision",
)  # fmt: skip


LATER_KEYS = {"answer", "needed", "pair"}  # keys that tests of earlier releases lack


def is_repeated(gate: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Tell whether a test repeats an earlier test of the same candidate. A repeated test compares the same versions on
    the same rows, so all figures of the two tests are equal.

    gate: the test; earlier: the earlier test."""
    sides = [
        [test.get(name) for name in _EVIDENCE_KEYS]
        + [[guard[name] for name in ("guard", "least", "estimator", "value")] for guard in test.get("guards", ())]
        for test in (gate, earlier)
    ]
    return earlier.keys() | LATER_KEYS == gate.keys() | LATER_KEYS and sides[0] == sides[1]


def refusal_sentence(gate: Mapping[str, Any], rival: str | None = None) -> str | None:
    """Return a sentence that says why a gate (of a route or of training) rejected a candidate, or None if the candidate
    passed.

    gate: the result of the test; rival: the name of what the candidate was compared with."""
    reasons, visits = gate["reasons"] or [], gate["visits"]
    if gate["passed"]:
        return None
    if "estimated-propensity" in reasons:
        return ESTIMATED_SENTENCE
    if "in-sample" in reasons:
        copy_hint = "; a copy by `rlrec policy freeze` learns no more: visits after that can judge it"
        copy_hint = copy_hint if "guards" in gate else ""
        return f"it has learned from visits that the gate judges by, and may have from every later one{copy_hint}"
    is_more = gate["verdict"] != INSUFFICIENT and gate_direction(gate) == "more"
    if is_more and visits is not None and not visits["passed"]:
        return _visits_refusal(visits)
    broken_guard = next((_broken_sentence(guard) for guard in gate.get("guards", ()) if not guard["passed"]), None)
    if is_more and gate["answer"] == "better":
        return broken_guard
    way_out = "; --cluster session says that every session is another person" if "no-users" in reasons else ""
    if gate.get("since_decision") is not None:
        way_out = f"; only visits after those that taught it count{way_out}"
    return gate_claim(gate, rival=rival, groups=in_groups(doubts_of(reasons))).sentence + way_out


def _least_visits(n: int) -> float:
    """Return the effective number of visits, out of n, that a gate requires."""
    return max(LEAST_ESS, LEAST_SUPPORT * n)


def _visits_refusal(visits: VisitsReport) -> str:
    """Return a sentence that says why the gate rejects a candidate, by the report on whole visits."""
    if visits["upper"] is not None and visits["upper"] < 0:
        return f"whole visits say that it is worse: its gain by {VISIT_ESTIMATOR} is at most {visits['upper']:.4g}"
    n, ess = visits.get("n", 0), visits["ess"] or 0.0  # tests of earlier releases have no n
    total_text = f" of {n:,}" if n else ""
    shortage = f"{ess:.0f}{total_text} visits are effective, where {_least_visits(n):.0f} are wanted"
    return f"it is too far from what was logged: {shortage}"


def _broken_sentence(guard: GuardReport) -> str:
    name, least = guard["guard"], f"{100 * guard['least']:.4g} %"
    if guard["verdict"] == INSUFFICIENT or doubts_of(guard["reasons"]):
        return f"of guard {name} the log cannot tell ({', '.join(guard['reasons'])})"
    figures = guard["value"], guard["lower"]
    value, lower = ("unknown" if figure is None else f"{100 * figure:.3g} %" for figure in figures)
    return f"guard {name} changes by {value} with the lower bound {lower}, which is not above {least}"
