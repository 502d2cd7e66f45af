"""This module compares the variants of an experiment, and checks whether users or sessions are split as defined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NotRequired, TypedDict, cast

from rlrec.app import opening
from rlrec.app.audit.draws import machine_sessions
from rlrec.app.evaluation.comparisons import declared, holdout, interleaved, study_figures, unit_outcomes
from rlrec.app.evaluation.comparisons.study_figures import DifferenceRow, OutcomeRow, SequenceRow, StudyFigures
from rlrec.app.experiments import plan
from rlrec.app.experiments.experiment import promotion, shares_of, versions_of
from rlrec.app.inputs import filters, lookup
from rlrec.app.log import lineage, reward_log
from rlrec.arrays import finite_or_none
from rlrec.errors import InputError, quantity
from rlrec.ope.comparisons import comparison
from rlrec.ope.intervals import intervals
from rlrec.ope.intervals.sequences import LookSequence
from rlrec.records import Reward
from rlrec.sentences import DEFAULT_REWARD, WEEK, experiment_sentences
from rlrec.store import Store, Unit
from rlrec.store.database import bulk
from rlrec.store.database.unit import parse
from rlrec.store.log import activity, contents, decisions, selected
from rlrec.store.log.candidates import TEAMS
from rlrec.store.policies import experiments, policies, routes
from rlrec.store.policies.experiments import Experiment, Phase
from rlrec.store.upkeep import removals
from rlrec.times import DAY_US, format_time

INTERVAL = ("value", "relative", "lower", "upper")  # of a difference
DECISIONS_DIFFER = "decisions-differ"
TIME_REASONS = "young-units", "turned"


# The intervals of an answer. fixed: whether they hold for one look only; best_n: units at which they are tightest, for
# intervals that hold at every look; tests: comparisons that decide together; since: the first assignment.
SequenceAnswer = TypedDict("SequenceAnswer", {
    "fixed": bool, "best_n": float, "tests": int, "since": str | None, "intervals": list[SequenceRow],
})  # fmt: skip
# Answer of `experiment show`: outcomes per unit with their differences from the first variant; rewards of the variants
# and their differences per decision, under the first reward; checks of the split. metric: deciding ones; sequence: of
# their differences; reasons: for caution; units_per_day: assigned, by the days of its log; new_units_per_day: of a
# running one, in the second half of these days; plan: how long a running experiment takes, None where too little is
# known; selected_ratio: whether exclusions and filters leave out different shares of the variants; first_at, last_at:
# of its decisions, None without any; route: whose holdout it is; led_to: the policies that the route has served, newest
# last, none where a log is named; led_since: its newest change; has_newcomers: whether units were assigned since then;
# ramp: the route that it is a ramp of; pruned_until: where visits since its beginning were pruned; other_rewards: that
# are defined and not shown; context_fields: texts and flags of the newest context; equal_age_days: the number of first
# days over which units can be compared now, at most a week; promoted, live: the variant that was promoted at its end,
# and the version that went live.
VariantComparison = TypedDict("VariantComparison", {
    "experiment": str, "status": str, "unit": str, "variants": list[dict[str, Any]],
    "differences": list[dict[str, Any]], "sample_ratio": dict[str, float | None], "holdout": dict[str, Any] | None,
    "selected_ratio": NotRequired[dict[str, float | None]],
    "outcomes": list[OutcomeRow], "unit_differences": list[DifferenceRow], "reasons": list[str],
    "decisions_per_unit": list[dict[str, Any]], "created_at": str, "stopped_at": str | None,
    "anonymous": NotRequired[int], "ties": NotRequired[int | None],
    "interleave": NotRequired[list[str]], "units_per_day": NotRequired[float | None],
    "new_units_per_day": NotRequired[float | None],
    "phases": list[dict[str, Any]], "plan": NotRequired[plan.Plan | None],
    "segments": NotRequired[list[study_figures.SegmentRow]],
    "promoted": NotRequired[str], "live": NotRequired[str],
    "first_at": str | None, "last_at": str | None, "route": NotRequired[str], "led_to": NotRequired[list[str]],
    "led_since": NotRequired[str], "has_newcomers": NotRequired[bool],
    "ramp": NotRequired[str], "pruned_until": NotRequired[str],
    "context_fields": NotRequired[list[str]], "other_rewards": NotRequired[list[str]],
    "equal_age_days": NotRequired[int], "metric": list[dict[str, str | None]],
    "guards": list[study_figures.GuardRow], "sequence": SequenceAnswer,
})  # fmt: skip


def show(
    store: Store, name: str, *, rewards: Sequence[str] = (), level: float = 0.95, log: str | None = None,
    is_fixed: bool = False, by: str | None = None, rival: str | None = None,
) -> VariantComparison:  # fmt: skip
    """Compare the variants of an experiment, and check whether the split is as defined. The answer has outcomes per
    user or session under each reward, the differences between variants, and rewards per decision under the first
    reward.

    rewards: the names of rewards (empty: the rewards that the variants learn); log: a filter of the decisions, which
    the checks of the split and of the holdout ignore; is_fixed: whether the intervals hold for one look only; by: a
    field of contexts that makes segments; rival: the variant with which the other variants are compared (None: the
    first one)."""
    intervals.check_level(level)
    with store.read() as unit, bulk.alongside(unit, {row.policy_id for row in lookup.experiment(unit, name).variants}):
        experiment = lookup.experiment(unit, name)
        versions = versions_of(unit, experiment)
        definitions = unit_outcomes.rewards_of(unit, rewards, experiment)
        experiment = lookup.compared_with(experiment, rival)
        study = replace(unit_outcomes.experiment_study(unit, experiment, definitions), segment=by)
        times = selected.times(unit, study.selection)
        if rankers := interleaved.ranker_names(experiment):
            if log or by:
                hint = f"leave out {'--log' if log else '--by'}"
                raise InputError("an interleaved experiment is compared on its whole log", hint=hint)
            return _show_teams(unit, experiment, rankers, definitions[0], level=level, times=times, is_fixed=is_fixed)
        if log:
            study = replace(study, selection=filters.selection(unit, f"experiment={name},{log}"))
        figures = unit_outcomes.collect(unit, study, level=level, is_fixed=is_fixed)
        reward_log.notice_uncounted(unit, store, definitions)
        unit_counts = experiments.count_units(unit, experiment.id)
        phases, promotion_fields = experiments.phases(unit, experiment), promotion(unit, experiment)
        pruned_until, stored_rewards = removals.pruned_until(unit), [] if rewards else policies.rewards(unit)
        first_at, entered_at = experiments.assignment_times(unit, experiment.id)
        route = lookup.route_of_holdout(unit, experiment)
        changes = [] if route is None or log else routes.history(unit, route.route_id)[::-1]
        led_to = [*dict.fromkeys(change.policy for change in changes)][::-1]
        requests = decisions.newest_requests(unit, experiment.variants[0].policy_id, limit=1)
        bodies = contents.context_bodies(unit, [row[1] for row in requests]).values()
        entries = [entry for body in bodies for entry in parse(body, "body of a context").items()]
        fields = [name for name, value in entries if isinstance(value, str | bool) and not name.startswith("@")]
        uniform = holdout.compare_holdout(unit, experiment, definitions[0], level=level)
        span_us = selected.covered_us(unit, replace(study.selection, since=first_at))
        is_running = experiment.status == "running" and not log
        arrivals = plan.NewUnits.count(unit, study) if is_running else None
        time_plan = arrivals and plan.experiment_plan(figures, arrivals, plan.Request(level=level))
        # the time for which the first units have been observed, with the windows of the rewards
        aged_us = min(times[1], unit.now - max(reward.window_us for reward in definitions)) - first_at
        maturity = None
        if unit_counts and not figures.count("sessions", *range(len(experiment.variants))):
            maturity = reward_log.maturity_sentence(unit, study.selection, wait_us=definitions[0].window_us)
    sums = figures.sums
    if sums.n_censored:
        store.notice(f"left out: the rewards of censored slots, in {quantity(sums.n_censored, 'decision')}")
    if maturity is not None:
        store.notice(f"no decision of {name} is mature yet: {maturity}")
    rows, unit_differences = unit_outcomes.rows_of_figures(figures)
    if arrivals is not None:
        arrivals.add_days(unit_differences)
    metric_key = "reward_per_unit", definitions[0].name
    unit_rows = {row["group"]: row for row in unit_differences if (row["metric"], row["reward"]) == metric_key}
    decisions_per_unit, reward_per_decision = comparison.per_decision(0)
    differences, more_decisions = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, variant in enumerate(experiment.variants[1:], start=1):
        difference, unit_row = figures.compare(number, reward_per_decision), unit_rows[variant.label]
        differs = DECISIONS_DIFFER in difference.reasons
        # a mean per decision never contradicts the rewards per unit, and is no more certain than those of young units
        if not differs and {difference.answer.answer, unit_row["answer"]} == {"better", "worse"}:
            difference = difference.with_reasons(DECISIONS_DIFFER)
        difference = difference.with_reasons(*(reason for reason in TIME_REASONS if reason in unit_row["reasons"]))
        names = {"variant": variant.label, "against": experiment.variants[0].label}
        differences.append(names | difference.to_json())
        more_decisions.append(names | figures.compare(number, decisions_per_unit).to_json() | {"differ": differs})
    shares = shares_of(experiment)
    per_unit_values = {row["group"]: row["value"] for row in rows if (row["metric"], row["reward"]) == metric_key}
    variants = [
        {
            "variant": variant.label, "policy": versions[variant.id].policy.name,
            "weight": shares[variant.id], "units": unit_counts.get(variant.id, 0),
            "sessions": figures.count("sessions", number),
            **_earnings(figures.outcomes.value(number, reward_per_decision), level),
            **({"reward_per_unit": per_unit_values[variant.label]} if len(phases) > 1 else {}),
            "learns": versions[variant.id].status == "learning" and lineage.learns(versions[variant.id]),
        }
        for number, variant in enumerate(experiment.variants)
    ]  # fmt: skip
    reasons = [
        *([DECISIONS_DIFFER] if any(row["differ"] for row in more_decisions) else []),
        *([study_figures.ANONYMOUS_UNITS] if sums.n_anonymous else []),
        *(reason for reason in TIME_REASONS if any(reason in row["reasons"] for row in unit_differences)),
    ]
    chi2, p_value = figures.selected_split
    rewards_left = [row.name for row in stored_rewards if row not in definitions and row.name != DEFAULT_REWARD]
    return _result(
        experiment, variants, differences, figures.split, times, holdout=uniform, outcomes=rows,
        unit_differences=unit_differences, reasons=reasons, decisions_per_unit=more_decisions,
        metric=figures.metric_names(), guards=figures.guards(), intervals=figures.deciding_intervals(),
        is_fixed=is_fixed, since=first_at, anonymous=sums.n_anonymous,
        phases=_phases(experiment, phases, figures) if len(phases) > 1 else [],
        equal_age_days=WEEK if aged_us > (WEEK + 1) * DAY_US else max(0, aged_us // (2 * DAY_US)),
        units_per_day=sum(unit_counts.values()) * DAY_US / span_us if span_us > 0 else None,
        new_units_per_day=arrivals and arrivals.pace, plan=time_plan, segments=figures.segments(),
        **({} if p_value != p_value else {"selected_ratio": {"chi2": chi2, "p_value": p_value}}),
        **({} if route is None else {"route": route.route, "led_to": led_to, "led_since": format_time(route.at)}),
        **({} if route is None else {"has_newcomers": entered_at >= route.at}),
        **({"other_rewards": rewards_left} if rewards_left else {}), **({"context_fields": fields} if fields else {}),
        **({"pruned_until": format_time(pruned_until)} if pruned_until > first_at > 0 else {}),
        **({} if (ramp := experiment.declaration.get("route")) is None else {"ramp": ramp}),
        **promotion_fields,
    )  # fmt: skip


def _phases(experiment: Experiment, phases: Sequence[Phase], figures: StudyFigures) -> list[dict[str, Any]]:
    """Return a row for each phase of an experiment, which begins when weights change or the experiment is frozen. The
    row has the weights, and the differences between variants in the first reward, for the users or sessions of this
    phase."""
    reward_row = next(row for row in study_figures.metrics(figures.study) if row.name == "reward_per_unit")
    labels, rows, number = [variant.label for variant in experiment.variants], list[dict[str, Any]](), 0
    for phase in phases:
        row: dict[str, Any] = {"begun": format_time(phase.at), "mode": phase.mode}
        row |= {"weights": {}, "units": {}, "differences": []}
        if phase.mode != experiments.FROZEN:
            outcomes, total = figures.in_phase(number), sum(phase.weights.values())
            number += 1
            row["weights"] = {label: phase.weights[label] / total for label in labels}
            row["units"] = {label: outcomes.units(group, reward_row) for group, label in enumerate(labels)}
            row["differences"] = [
                {"variant": label, "against": labels[0]}
                | {name: getattr(outcomes.compare(group, reward_row), name) for name in INTERVAL}
                for group, label in enumerate(labels) if group
            ]  # fmt: skip
        rows.append(row)
    return rows


def notice_machines(store: Store, name: str) -> None:
    """Print how many users or sessions of an experiment click like machines, and how to leave them out."""
    with store.read() as unit:
        machines = machine_sessions.machines_sentence(unit, selection=filters.selection(unit, f"experiment={name}"))
    if machines is not None:
        store.notice(f"of experiment {name}, {machines}")


def note(store: Store, answer: VariantComparison) -> None:
    """Store the result of a holdout or of a running ramp, so that `status` can show it. Other results are not
    stored."""
    if "route" in answer or ("ramp" in answer and answer["status"] == "running"):
        result = {"sentence": experiment_sentences(answer)[0]}
        opening.note(store, activity.HOLDOUT, {"experiment": answer["experiment"]}, result, noun="comparison")


def _result(
    experiment: Experiment, variants: list[dict[str, Any]], differences: list[dict[str, Any]],
    split: tuple[float, float], times: tuple[int, int], *, intervals: list[SequenceRow], is_fixed: bool, since: int,
    **answer: Any,
) -> VariantComparison:  # fmt: skip
    first_at, last_at = (format_time(at) if at else None for at in times)
    sequence: SequenceAnswer = {
        "fixed": is_fixed, "best_n": declared.expected_units(experiment), "tests": len(intervals),
        "since": format_time(since) if since else None, "intervals": intervals,
    }  # fmt: skip
    result = {
        "experiment": experiment.name, "status": experiment.state, "unit": experiment.unit, "variants": variants,
        "differences": differences, "sample_ratio": _finite({"chi2": split[0], "p_value": split[1]}), "holdout": None,
        "outcomes": [], "unit_differences": [], "reasons": [], "decisions_per_unit": [], "guards": [],
        "metric": [], "sequence": sequence, "phases": [],
        "created_at": format_time(experiment.created_at),
        "stopped_at": None if experiment.stopped_at is None else format_time(experiment.stopped_at), **answer,
        "first_at": first_at, "last_at": last_at,
    }  # fmt: skip
    return cast(VariantComparison, result)


def _show_teams(
    unit: Unit, experiment: Experiment, references: Sequence[str], definition: Reward, *, level: float,
    times: tuple[int, int], is_fixed: bool,
) -> VariantComparison:  # fmt: skip
    """Compare two interleaved rankers by their mean credit per decision. The credit of a ranker in a decision is the
    sum of the rewards of the slots that the ranker filled.

    references: the versions that rank, as POLICY@V; times: the times of the first and the last decision; is_fixed:
    whether the interval holds for one look only."""
    credit = interleaved.team_credit(unit, experiment, definition, level=level)
    picks = [credit.first_picks, credit.decisions - credit.first_picks]
    split = comparison.sample_ratio([((1.0, 1.0), [picks] if credit.decisions else [])])
    n_units = sum(experiments.count_units(unit, experiment.id).values())
    variants = [
        {
            "variant": team, "policy": reference, "weight": 0.5, "units": n_units, "sessions": credit.sessions,
            **_earnings(mean, level), "wins": wins,
        }
        for team, reference, mean, wins in zip(TEAMS, references, credit.means, credit.wins[:2], strict=True)
    ]  # fmt: skip
    sequence = LookSequence.tightest(declared.expected_units(experiment), 1 - level)
    every = credit.difference.at_every_look(sequence)
    difference = credit.difference if is_fixed else every
    difference = difference.with_reasons(*(["sample-ratio"] if comparison.is_unlikely(split) else []))
    interval: SequenceRow = {
        "group": TEAMS[1], "metric": "credit", "reward": definition.name, "lower": every.lower, "upper": every.upper,
        "fixed_lower": credit.difference.lower, "fixed_upper": credit.difference.upper,
    }  # fmt: skip
    row = {"variant": TEAMS[1], "against": TEAMS[0], **difference.to_json()}
    return _result(
        experiment, variants, [row], split, times, reasons=["interleaved"], ties=credit.wins[2],
        interleave=list(references), metric=[{"metric": "credit", "reward": definition.name}], intervals=[interval],
        is_fixed=is_fixed, since=experiments.assignment_times(unit, experiment.id)[0],
    )  # fmt: skip


def _earnings(mean: comparison.MetricValue, level: float) -> dict[str, Any]:
    lower, upper = mean.bounds(level)
    figures = {"reward_per_unit": mean.per_unit, "mean": mean.value, "lower": lower, "upper": upper}
    return {"decisions": round(mean.denominator), **_finite(figures)}


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite_or_none(value) for name, value in figures.items()}
