"""Functions here make the figures of a report. Each function turns the answer of a command into a Figure: a drawing
with its data, and a title that states the finding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec import sentences
from rlrec.errors import quantity
from rlrec.report.svg import Bar, Drawing, Interval, PlotPoint, Series, bars, chart, forest, interval, number
from rlrec.times import DAY_US, date, day_of, parse

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.study_figures import OutcomeRow
    from rlrec.app.evaluation.passes.estimates import EstimateRow
    from rlrec.app.experiments.compare import VariantComparison
    from rlrec.app.judging.effects import Result as Effects
    from rlrec.app.judging.exposure import Result as Exposure
    from rlrec.app.judging.outcomes import Result as Outcomes
    from rlrec.app.judging.positions import CurveAnswer
    from rlrec.app.policies.policy_beliefs import PolicyBelief

MAX_CONTEXT = 60  # characters of a context in a title
MAX_ROWS = 15  # rows of a figure
UNKNOWN_NOTE = "cannot tell"
VERDICT_CLASSES = {"ok": "s1", "weak": "s2", "insufficient": "no"}  # CSS classes
VARIANTS_SENTENCE = "An experiment answers for its variants: here each is compared with all that was logged."
BOUND_NAMES = ("value", "lower", "upper")
# CSS classes of answers, in the order of a summary
ANSWER_CLASSES = {"better": "s1", "worse": "s2", "same": "s3", "unknown": "no"}
METRIC_NAMES = {
    "reward_per_unit": "reward per {unit}", "reward_per_visit": "reward per visit", "visits": "visits per {unit}",
    "retention": "{unit}s who came again", "returned_1d": "came back within a day",
    "returned_7d": "came back within 7 days", "returned_28d": "came back within 28 days",
    "decisions_per_visit": "decisions per visit", "credit": "credit a decision",
}  # fmt: skip
COMPARED_METRICS = ("reward_per_unit", "reward_per_visit", "visits", "retention", "returned_7d")
# days; the first of these known for most periods is shown, else the last one
RETURN_DAYS = {"returned_7d": 7, "returned_1d": 1}
PERIOD_US = {"hour": DAY_US // 24, "day": DAY_US, "week": 7 * DAY_US}
MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Figure(NamedTuple):
    """A Figure is a drawing with its data, for a report.

    title: a sentence that states the finding; description: what the drawing shows, for screen readers; headers,
    rows: the table of the data; findings: sentences for a summary, in place of the title; lines: lines of text below
    the title."""

    title: str
    drawing: Drawing
    description: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    findings: Sequence[str] | None = None
    lines: Sequence[str] = ()

    @property
    def heading(self) -> str:
        """Return the title followed by all findings and lines, for a figure that is shown alone."""
        return ". ".join([self.title, *(self.findings or ()), *self.lines])


def percent(share: float | None) -> str:
    """Return a share as text in percent. A smaller share has more decimals. A share of None becomes a dash."""
    if share is None:
        return "\u2013"
    return f"{100 * share:.{0 if abs(share) >= 0.995 else 1 if abs(share) >= 0.001 or not share else 2}f}\u00a0%"


# -- over time --


def over_time(
    answer: Outcomes, metric: str = "reward_per_visit", *, until: int | None = None, weeks: Outcomes | None = None
) -> Figure | None:
    """Draw how a metric changed by hour, day or week, for the first reward. The result is None if no period has a
    value.

    answer: the answer of `outcomes`; until: a time, after which no drawn period may end; weeks: the answer of
    `outcomes` by whole weeks, from which the title compares the newest week with the first week."""
    rows = _by_period(answer, metric, until)
    if all(row["value"] is None for row in rows):
        return None
    period, name = str(answer["by"]), METRIC_NAMES[metric].format(unit=answer["unit"])
    scale, unit = (100, ", % of visits") if metric in RETURN_DAYS else (1, f" ({rows[0]['reward']})")
    reward_text = f" by {rows[0]['reward']}" if rows[0]["reward"] not in (None, sentences.DEFAULT_REWARD) else ""
    points = [
        PlotPoint(parse(str(row["group"])) / 3.6e9, *_figures(row, scale), _day(str(row["group"]))) for row in rows
    ]
    years = sorted({str(rows[0]["group"])[:4], str(rows[-1]["group"])[:4]})
    level, x_name = f"{100 * answer['level']:g} %", f"{period} (UTC), {' to '.join(years)}"
    change = _change(answer if weeks is None else weeks, metric, until) or _change(answer, metric, until)
    return Figure(
        title=f"{name[0].upper()}{name[1:]}{reward_text}, all visits together: {change}",
        drawing=chart([Series(name, points)], x_name=x_name, y_name=f"{name}{unit}; band: {level}"),
        description=f"A line over {quantity(len(points), period)} with its interval of {level}, "
        f"clustered by {answer['unit']}.",
        headers=[f"{period} from", name, "lower", "upper", f"{answer['unit']}s", "notes"],
        rows=[
            [row["group"], row["value"], row["lower"], row["upper"], row["units"], ", ".join(row["reasons"])]
            for row in rows
        ],
    )  # fmt: skip


def _by_period(answer: Outcomes, metric: str, until: int | None) -> list[OutcomeRow]:
    """Return the rows of a metric for the first reward. No period may end after `until`, unless it is None."""
    rows = [row for row in answer["outcomes"] if row["metric"] == metric]
    length = PERIOD_US[str(answer["by"])]
    return [
        row for row in rows
        if row["reward"] == rows[0]["reward"] and (until is None or parse(str(row["group"])) + length <= until)
    ]  # fmt: skip


def _figures(row: OutcomeRow, scale: float) -> tuple[float | None, float | None, float | None]:
    """Return the value, the lower bound and the upper bound of a row, each multiplied by `scale`. A missing figure
    stays None."""
    bounds = row["value"], row["lower"], row["upper"]
    value, lower, upper = (None if figure is None else scale * figure for figure in bounds)
    return value, lower, upper


def _day(label: str) -> str:
    """Return the name of a period for an axis. It is the hour if the period is an hour, otherwise the day and month."""
    return label[11:16] if "T" in label else f"{int(label[8:10])}\u00a0{MONTH_NAMES[int(label[5:7]) - 1]}"


def _change(answer: Outcomes, metric: str, until: int | None) -> str | None:
    """Return words for the value in the newest complete period, or None if no period has a value. If the period is a
    week, the words also compare it with the first week. Days and hours are not compared, since they differ from each
    other anyway. No period may end after `until`."""
    period, rows = str(answer["by"]), [row for row in _by_period(answer, metric, until) if row["value"] is not None]
    if not rows:
        return None
    complete_rows = [row for row in rows if f"partial-{period}" not in row["reasons"]]
    newest_row, is_share = (complete_rows or rows)[-1], metric in RETURN_DAYS
    scale, unit = (100, "\u00a0%") if is_share else (1, "")
    preposition = {"hour": "at", "day": "on", "week": "in the week of"}[period]
    figure_text = f"{interval(*_figures(newest_row, scale), unit=unit)} {preposition} {_day(str(newest_row['group']))}"
    row_key = newest_row["group"], newest_row["metric"], newest_row["reward"]
    rows_of_key = (row for row in answer["differences"] if (row["group"], row["metric"], row["reward"]) == row_key)
    row = next(rows_of_key, None) if period == "week" else None
    if row is None or row["lower"] is None or row["upper"] is None:
        return figure_text
    direction, first_week = sentences.difference_direction(row), _day(str(row["against"]))
    if direction not in ("more", "less"):
        return f"{figure_text}, no sure change since the week of {first_week}"
    points_text = f"{abs(100 * (row['value'] or 0)):.1f} points"
    change_text = points_text if is_share else "" if row["relative"] is None else percent(abs(row["relative"]))
    return f"{figure_text}, {change_text} {direction} than {preposition} {first_week}"


def return_rates(answer: Outcomes, log_end: str | None, weeks: Outcomes | None = None) -> Figure | None:
    """Draw over time which share of visits was followed by another visit of the same user. Only periods that ended
    early enough before the end of the log are drawn. The result is None if nobody returned, if nobody could have
    returned yet, or if there are no users.

    log_end: the time of the end of the log, or None for an empty log; weeks: the answer of `outcomes` by whole
    weeks, from which the title compares the newest week with the first week."""
    if "no-users" in answer["reasons"] or log_end is None or nobody_returned(answer):
        return None
    n_periods = len({row["group"] for row in answer["outcomes"]})
    end_by_metric = {metric: parse(log_end) - days * DAY_US for metric, days in RETURN_DAYS.items()}
    figures = [
        *filter(None, (over_time(answer, metric, until=end_by_metric[metric], weeks=weeks) for metric in RETURN_DAYS))
    ]
    return next((figure for figure in figures if len(figure.rows) > n_periods / 2), figures[-1] if figures else None)


def nobody_returned(answer: Outcomes) -> bool:
    """Tell whether no period has a share of returns above 0. The result is False if the share is not known for any
    period."""
    shares = [row["value"] for row in answer["outcomes"] if row["metric"] in RETURN_DAYS and row["value"] is not None]
    return bool(shares) and not any(shares)


# -- estimates --


def estimates(rows: Sequence[EstimateRow], steps: Mapping[str, str] = {}) -> Figure | None:
    """Draw the estimates for policies as a forest plot, in which intervals stand one below the other. The result is
    None if there are no estimates.

    rows: the estimates, of which those with the same unit (impression, slate or session) as the first row are drawn;
    steps: words for what to do next, by the name of the target."""
    rows = [row for row in rows if row.estimate.unit == rows[0].estimate.unit]
    if not rows:
        return None
    names_estimator = len({row.estimate.estimator for row in rows}) > 1
    intervals, table = list[Interval](), list[list[Any]]()
    for row in rows[:MAX_ROWS]:
        estimate, claim = row.estimate, row.claim
        value, verdict = estimate.value, estimate.verdict
        name = row.name if row.by is None else f"{row.name}, {row.by} {row.group.label}"
        label = f"{name}, {estimate.estimator}" if names_estimator else name
        # a value next to an unknown answer would be taken for the answer
        judgement = row.judgement
        finding = judgement["answer"] if value is None else f"{number(value)}, {verdict}"
        note = UNKNOWN_NOTE if claim.answer == "unknown" else str(finding)
        intervals.append(Interval(label, value, estimate.lower, estimate.upper, note, VERDICT_CLASSES[verdict]))
        shows_lift = claim.answer != "unknown" or claim.needed is not None
        lift = (claim.value, claim.lower, claim.upper) if shows_lift else (None, None, None)
        table.append([
            name, judgement["answer"], *(bound if bound is None else 100 * bound for bound in lift), value,
            estimate.lower, estimate.upper, estimate.served, judgement["verdict"], ", ".join(judgement["reasons"]),
            estimate.ess, estimate.estimator,
        ])  # fmt: skip
    logged_averages, per_unit = {row.estimate.served for row in rows}, rows[0].claim.basis
    logged_average = logged_averages.pop() if len(logged_averages) == 1 else None
    rewards = ", ".join(sorted({row.reward for row in rows}))
    earned_text = "" if logged_average is None else f"; {sentences.LOGGED} earned {number(logged_average)}"
    rows_in_order = sorted(rows, key=lambda row: [*ANSWER_CLASSES].index(row.claim.answer))
    claims = (
        (row, VARIANTS_SENTENCE if "@" in row.target else row.claim.sentence) for row in rows_in_order if row.by is None
    )
    finding_flags = {sentence: sentence != VARIANTS_SENTENCE and _is_finding(row) for row, sentence in claims}
    # a step that several share is stated once
    sentence_of = {
        steps[row.name]: row.claim.sentence for row in rows_in_order if row.name in steps and _is_finding(row)
    }
    next_by_sentence = {sentence: step for step, sentence in sentence_of.items()}
    return Figure(
        title=f"Reward {rewards} {per_unit}{f' by {rows[0].by}' if rows[0].by else earned_text}",
        drawing=forest(
            intervals, level=logged_average,
            x_name=f"reward {per_unit} ({rewards}){'' if logged_average is None else '; dashed: the logged average'}",
        ),
        description=f"One interval a policy at level {rows[0].estimate.level:g}; circles are ok, squares weak, grey "
        "ones insufficient.",
        headers=[
            "policy", "answer", "lift in percent", "lower", "upper", "value", "lower", "upper", "logged average",
            "verdict", "reasons", "effective sample size", "estimator",
        ],
        rows=table,
        findings=[
            ". Next: ".join(filter(None, [sentence, next_by_sentence.get(sentence)]))
            for sentence, is_finding in finding_flags.items() if is_finding
        ],
        lines=[sentence for sentence, is_finding in finding_flags.items() if not is_finding],
    )  # fmt: skip


def _is_finding(row: EstimateRow) -> bool:
    """Tell whether the answer about a target is worth telling in a summary.

    A known answer is worth telling, unless the target is the policy that served. An unknown answer is worth telling
    if the log has wrong propensities. Otherwise it is not worth telling in three cases: the target is built in; the
    target has served the log; or no log could give an answer (the reason is in-sample, and no sweep judges the kind
    of the policy)."""
    claim, reasons = row.claim, row.estimate.reasons
    if claim.answer == "unknown":
        is_idle = row.has_served or ("in-sample" in reasons and row.sweep_version is None)
        return "wrong-propensities" in reasons or (row.version is not None and not is_idle)
    return not row.target_loggers and sentences.SAME_POLICY not in claim.sentence


# -- experiments --


def comparison(answer: VariantComparison) -> Figure | None:
    """Draw how the variants of an experiment differ from the first variant, per user or session and in percent. For
    an experiment with interleaved slates, draw the difference in credit. The result is None if no difference is
    known yet."""
    rows = [row for row in answer["unit_differences"] if row["metric"] in COMPARED_METRICS]
    rows = [row for row in rows if "no-variation" not in row["reasons"]] or rows  # as in `experiment show`
    rows.sort(key=lambda row: COMPARED_METRICS.index(row["metric"]))
    credit_rows = (
        [] if rows else [{**row, "group": row["variant"], "metric": "credit"} for row in answer["differences"]]
    )
    lines = list[tuple[Interval, list[Any]]]()
    for row in [*rows, *credit_rows]:
        relative, name, verdict = row["relative"], _metric(row, answer), row["answer"]
        scale = 1.0 if credit_rows else 100 * relative / row["value"] if relative and row["value"] else None
        bounds = [None if scale is None or row[side] is None else scale * row[side] for side in BOUND_NAMES]
        figure_text = f"{100 * relative:+.1f}\u00a0%, {verdict}" if relative else verdict
        note = UNKNOWN_NOTE if verdict == "unknown" else figure_text
        cells = [
            row["group"],
            name,
            *(row[side] for side in BOUND_NAMES),
            relative and 100 * relative,
            sentences.shown_p(row),
        ]
        line = Interval(f"{row['group']}: {name}", bounds[0], bounds[1], bounds[2], note, ANSWER_CLASSES[verdict])
        lines.append((line, [*cells, verdict, ", ".join(row["reasons"])]))
    intervals = [line for line, _ in lines if line.value is not None]
    if not intervals:
        return None
    prefix = "" if "route" in answer else f"{answer['experiment']}: "  # a holdout belongs to a route
    percent_text, first_variant = "" if credit_rows else ", in percent of it", answer["variants"][0]["variant"]
    return Figure(
        title=f"{answer['experiment']}, {_period_text(answer)}: variants against {first_variant}",
        drawing=forest(intervals[:MAX_ROWS], x_name=f"difference from {first_variant}{percent_text}", level=0),
        description=f"Intervals hold at every look, clustered by {answer['unit']}; those that cross 0 are unknown.",
        headers=["variant", "metric", "difference", "lower", "upper", "in percent", "p", "answer", "notes"],
        rows=[cells for _, cells in lines],
        findings=[prefix + sentence for sentence in _conclusions(answer)],
    )


def _conclusions(answer: VariantComparison) -> list[str]:
    """Return the conclusions from an experiment as sentences, and the commands that tell more."""
    return [*sentences.experiment_sentences(answer), *sentences.next_looks(answer)]


def _period_text(answer: VariantComparison) -> str:
    """Return words for the days from the first to the last decision of an experiment."""
    first_day, last_day = _days(answer)
    return f"{first_day} to {last_day}" if first_day != last_day else first_day or "without a decision"


def _days(answer: VariantComparison) -> list[str]:
    """Return two texts: the dates of the first and of the last decision of an experiment. They are empty if there is no
    decision."""
    return [
        date(day_of(parse(time_text))) if time_text else "" for time_text in (answer["first_at"], answer["last_at"])
    ]


def _metric(row: Mapping[str, Any], answer: VariantComparison) -> str:
    """Return the name of a row's metric. If the experiment has several rewards, the name includes the reward."""
    names_reward = len({difference["reward"] for difference in answer["unit_differences"]} - {None}) > 1
    name = METRIC_NAMES[row["metric"]].format(unit=answer["unit"])
    return f"{name} ({row['reward']})" if names_reward and row["reward"] else name


def variants(answers: Sequence[VariantComparison]) -> tuple[list[str], list[list[Any]]]:
    """Return the headers and the rows of a table of experiments. A row says, for a variant and a reward, how many users
    or sessions count, and how much reward they brought."""
    headers = [
        "experiment", "from", "to", "status", "split", "variant", "policy", "share now", "got it so far", "reward",
        "per unit", "lower", "upper", "per 1,000", "in total",
    ]  # fmt: skip
    rows = list[list[Any]]()
    for answer in answers:
        units_by_group = {row["group"]: row["units"] for row in answer["outcomes"] if row["metric"] == "visits"}
        for variant in answer["variants"]:
            n_units = units_by_group.get(variant["variant"], variant["units"])
            units = quantity(n_units, answer["unit"])
            reward_cells = [
                [
                    units if row["units"] == n_units else f"{units}, {row['units']:,} mature", row["reward"],
                    *_figures(row, 1), *(row["value"] and row["value"] * n for n in (1000, row["units"])),
                ]
                for row in answer["outcomes"]
                if (row["metric"], row["group"]) == ("reward_per_unit", variant["variant"])
            ]  # fmt: skip
            p_value = answer["sample_ratio"]["p_value"]
            split_text = None if p_value is None else "as defined" if p_value >= sentences.ALARM else "not as defined"
            row_start = [answer["experiment"], *_days(answer), answer["status"], split_text]
            row_start += [variant["variant"], variant["policy"], percent(variant["weight"])]
            rows += [[*row_start, *figures] for figures in reward_cells or [[units, *[None] * 6]]]
    return headers, rows


# -- beliefs and exposure --


def beliefs(answer: PolicyBelief) -> Figure | None:
    """Draw what a version believes about the arms that it shows most. The drawing has mean rewards or, if the version
    has no such means, probabilities. The result is None if the catalogue is empty."""
    arms = [row for row in answer["arms"] if row["status"] == "active"] or answer["arms"]
    arms = sorted(arms, key=lambda row: (-(row["probability"] or 0.0), -(row["mean"] or 0.0)))
    shown_arms, name = arms[:MAX_ROWS], f"{answer['policy']}@{answer['version']}"
    if not shown_arms:
        return None
    likeliest_arm, position_text = shown_arms[0], "at position 1"
    fields = ", ".join(f"{name} {value}" for name, value in answer.get("context", {}).items())
    context = f"In the newest context{f' ({fields})' if len(fields) <= MAX_CONTEXT else ''}, " if fields else ""
    if any(row["mean"] is not None for row in shown_arms):
        notes = [f"shown {percent(row['probability'])}" for row in shown_arms]
        pairs = zip(shown_arms, notes, strict=True)
        intervals = [Interval(row["arm"], row["mean"], row["lower"], row["upper"], note) for row, note in pairs]
        is_effect = answer["kind"] == "long-term"
        believed_figure = "effect of a look in the long run" if is_effect else "mean reward of a slot"
        drawing = forest(intervals, x_name=f"believed {believed_figure} ({answer['reward']})", zero=True)
        believed_verb = "to add, against the average of its log," if is_effect else "to earn"
        mean_text = interval(likeliest_arm["mean"], likeliest_arm["lower"], likeliest_arm["upper"])
        belief_text = f", believed {believed_verb} {mean_text}"
    else:
        chances = [Bar(row["arm"], 100 * (row["probability"] or 0.0)) for row in shown_arms]
        drawing = bars(chances, x_name=f"probability {position_text}", unit="\u00a0%")
        belief_text = ""
    extent_text = (
        f"the {MAX_ROWS} of {len(arms)} arms that are shown most" if len(arms) > MAX_ROWS else "all active arms"
    )
    headers = ["arm", "probability", "mean", "lower", "upper", "pulls", "served"]
    highest, lowest = (arms[end]["probability"] or 0.0 for end in (0, -1))
    finding = (
        f"shows {likeliest_arm['arm']} most ({percent(likeliest_arm['probability'])} {position_text}){belief_text}"
    )
    if likeliest_arm["probability"] is None:
        source = "those of the log" if answer["kind"] == "logged" else "those that the request states"
        finding = f"has no probabilities of its own: they are {source}"
    elif len(arms) > 1 and lowest > 0.95 * highest:
        finding = f"shows all {len(arms)} arms about as often"
    return Figure(
        title=f"{context}{name} {finding}",
        drawing=drawing,
        description=f"One interval of 95 % an arm; {extent_text}; kind {answer['kind']}.",
        headers=headers,
        rows=[[row[header] for header in headers] for row in shown_arms],
        lines=sentences.prior_sentences(answer),
    )


def effects(answer: Effects) -> Figure:
    """Draw the arms with the largest and with the smallest effects on the long-run reward. The effects are over all
    groups together or, if these are not known, in the first group."""
    arms = (answer["overall"] or answer["groups"][0])["arms"]
    arms_per_end = MAX_ROWS // 2
    shown_arms = arms if len(arms) <= MAX_ROWS else [*arms[:arms_per_end], *arms[-arms_per_end:]]
    intervals = [
        Interval(row["arm"], row["shrunk"], row["shrunk_lower"], row["shrunk_upper"], f"now rank {row['rank_now']}")
        for row in shown_arms
    ]
    extent_text = (
        "all arms"
        if shown_arms is arms
        else f"the {arms_per_end} best and the {arms_per_end} worst of {len(arms)} arms"
    )
    headers = [name for name in shown_arms[0] if name != "retired"]
    return Figure(
        title=sentences.effect_sentence(arms, answer["level"]),
        drawing=forest(intervals, x_name=f"effect of one look in the long run ({answer['reward']})", zero=True),
        description=f"One interval of {answer['level']:.0%} an arm; {extent_text}.",
        headers=headers,
        rows=[[row.get(name) for name in headers] for row in shown_arms],
    )


def exposure(answer: Exposure) -> Figure:
    """Draw the share of slots that each arm had, and the share that its probabilities would give on average."""
    n_slots, arms = max(1, answer["slots"]), answer["arms"]
    shown_arms, effective_arms = arms[:MAX_ROWS], answer["catalogue"]["effective_arms"]
    arms_with_half = bisect_left([*accumulate(row["realised"] for row in arms)], n_slots / 2) + 1
    shares = [
        Bar(row["arm"], 100 * row["realised"] / n_slots, row["expected"] and 100 * row["expected"] / n_slots)
        for row in shown_arms
    ]
    is_single = effective_arms is None or number(effective_arms) == "1"
    spread_text = "" if is_single else f"; all in all it is as if {number(effective_arms)} were shown equally often"
    return Figure(
        title=f"Half of the slots went to {arms_with_half} of {quantity(len(arms), 'arm')}{spread_text}",
        drawing=bars(shares, x_name="share of the slots; tick: as probabilities expect", unit="\u00a0%"),
        description=f"One bar an arm, the {len(shown_arms)} with the most of {quantity(answer['slots'], 'slot')}.",
        headers=["arm", "slots", "expected", "mean reward", "lower", "upper"],
        rows=[
            [row["arm"], row["realised"], row["expected"], row["rate"], row["lower"], row["upper"]]
            for row in shown_arms
        ],
    )


# -- curves: the examination of positions, and the training of versions --


def examination(answers: Sequence[CurveAnswer]) -> Figure:
    """Draw the probability that each position is examined, relative to position 1, as one line for each of up to three
    curves."""
    series = [
        Series(f"{answer['curve']}@{answer['number']}", _points(answer["positions"], "position", "examination"))
        for answer in answers
    ]
    last_position = answers[0]["positions"][-1]
    times_text = interval(last_position["examination"], last_position["lower"], last_position["upper"])
    headers = ["position", "examination", "lower", "upper", "rewards", "slots"]
    return Figure(
        title=f"Position {last_position['position']} is looked at {times_text} times as often as position 1 "
        f"({series[0].name})",
        drawing=chart(series, x_name="position from the top", y_name="examination, against position 1", level=1.0),
        description="A line with its interval of 95 % for each curve.",
        headers=["curve", *headers],
        rows=[
            [curve.name, *(row[header] for header in headers)]
            for curve, answer in zip(series, answers, strict=True)
            for row in answer["positions"]
        ],
    )


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[PlotPoint]:
    """Return a point for each row. The columns named `x` and `y` have the place on the axis, and the value."""
    return [PlotPoint(row[x], row[y], row["lower"], row["upper"], str(row[x])) for row in rows]


def training(policy: str, version: int, training: Mapping[str, Any] | None, *, live: bool) -> Figure | None:
    """Draw how much a version gained after each epoch of its training. The result is None if the version was not
    trained, or if no epoch was stored."""
    if training is None or not training["curve"]:
        return None
    curve, best_epoch, gate = training["curve"], training["best"], training["gate"]
    points = _points(curve, "epoch", "gain")
    marked_index = next((count for count, row in enumerate(curve) if row["epoch"] == best_epoch), None)
    headers, name = ["epoch", "gain", "lower", "upper", "ess", "entropy", "kl"], f"{policy}@{version}"
    sentence = f"{name}: not judged, since the tuning visits show no gain or do not support one"
    if gate["candidate"] is not None:
        sentence = sentences.gate_claim(gate, name).sentence
    return Figure(
        title=f"{sentence}; {'live' if live else 'not live'}",
        drawing=chart(
            [Series("gain", points, marked_index)], x_name="epoch; the ring: the one that was taken",
            y_name="gain over the start, per visit or slot (tuning visits)", level=0.0,
        ),
        description=f"A line over {quantity(len(points), 'epoch')} with its interval of 95 %, "
        "on visits that did not teach.",
        headers=["epoch", "gain", "lower", "upper", "effective sample size", "entropy", "KL"],
        rows=[[row.get(header) for header in headers] for row in curve],
    )  # fmt: skip
