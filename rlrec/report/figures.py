"""The figures of a report: each answer of a command as a drawing, with a title that says the finding, and its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec.directions import LOG_PRECISION, difference_direction, direction
from rlrec.errors import quantity
from rlrec.report.svg import Bar, Drawing, Interval, PlotPoint, Series, bars, chart, forest, interval, number
from rlrec.times import DAY_US, parse

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.unit_outcomes import DifferenceRow, OutcomeRow
    from rlrec.app.evaluation.passes.estimates import EstimateRow
    from rlrec.app.experiments.compare import VariantComparison
    from rlrec.app.judging.exposure import Result as Exposure
    from rlrec.app.judging.outcomes import Result as Outcomes
    from rlrec.app.policies.policy_beliefs import PolicyBelief

MAX_ROWS = 15  # rows of a figure
ALARM = 1e-3  # p-value of the split of an experiment
VERDICTS = {"ok": ("can be trusted", "s1"), "weak": ("read with care", "s2"), "insufficient": ("cannot be told", "no")}
UNITS = {"impression": "impression", "session": "visit", "slate": "page"}
METRICS = {
    "reward_per_unit": "reward per {unit}", "reward_per_visit": "reward per visit", "visits": "visits per {unit}",
    "retention": "{unit}s who came again", "returned_1d": "came back within a day",
    "returned_7d": "came back within 7 days", "returned_28d": "came back within 28 days",
    "decisions_per_visit": "decisions per visit",
}  # fmt: skip
COMPARED = ("reward_per_unit", "reward_per_visit", "visits", "retention", "returned_7d")
RETURNED = {"returned_7d": 7, "returned_1d": 1}  # days; the first of these that most periods have, else the last
PERIOD_US = {"hour": DAY_US // 24, "day": DAY_US, "week": 7 * DAY_US}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Figure(NamedTuple):
    """A drawing with its finding, a description in words, and the data that it shows."""

    title: str
    drawing: Drawing
    description: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]


def percent(share: float | None) -> str:
    """A share in percent, with a digit behind the point where it is small."""
    if share is None:
        return "\u2013"
    return f"{100 * share:.{0 if abs(share) >= 0.995 else 1 if abs(share) >= 0.001 or not share else 2}f}\u00a0%"


# -- over time --


def over_time(answer: Outcomes, metric: str = "reward_per_visit", *, until: int | None = None) -> Figure | None:
    """A metric of `outcomes` by hour, day or week, of the first reward; None where no period has it. until: the end of
    the last period, at most."""
    rows = [row for row in answer["outcomes"] if row["metric"] == metric]
    rows = [row for row in rows if row["reward"] == rows[0]["reward"]]
    if until is not None:
        rows = [row for row in rows if parse(str(row["group"])) + PERIOD_US[str(answer["by"])] <= until]
    if all(row["value"] is None for row in rows):
        return None
    period, name = str(answer["by"]), METRICS[metric].format(unit=answer["unit"])
    scale, unit = (100, ", % of visits") if metric in RETURNED else (1, f" ({rows[0]['reward']})")
    points = [
        PlotPoint(parse(str(row["group"])) / 3.6e9, *_scaled(row, scale), _day(str(row["group"]))) for row in rows
    ]
    years = sorted({str(rows[0]["group"])[:4], str(rows[-1]["group"])[:4]})
    level, x_name = f"{100 * answer['level']:g} %", f"{period} (UTC), {' to '.join(years)}"
    return Figure(
        title=f"{name[0].upper()}{name[1:]}: {_change(rows, answer['differences'], period, share=scale == 100)}",
        drawing=chart([Series(name, points)], x_name=x_name, y_name=f"{name}{unit}; band: {level}"),
        description=f"A line over {quantity(len(points), period)} with its interval of {level}, "
        f"clustered by {answer['unit']}.",
        headers=[f"{period} from", name, "lower", "upper", f"{answer['unit']}s", "notes"],
        rows=[
            [row["group"], row["value"], row["lower"], row["upper"], row["units"], ", ".join(row["reasons"])]
            for row in rows
        ],
    )  # fmt: skip


def _scaled(row: OutcomeRow, scale: float) -> tuple[float | None, float | None, float | None]:
    """A value with its bounds, times a number."""
    figures = row["value"], row["lower"], row["upper"]
    value, lower, upper = (None if figure is None else scale * figure for figure in figures)
    return value, lower, upper


def _day(label: str) -> str:
    """A period as short as an axis wants it: its hour, or its day."""
    return label[11:16] if "T" in label else f"{int(label[8:10])}\u00a0{MONTHS[int(label[5:7]) - 1]}"


def _change(rows: Sequence[OutcomeRow], differences: Sequence[DifferenceRow], period: str, *, share: bool) -> str:
    """The newest full period, and how it compares with the first one."""
    complete_rows = [row for row in rows if row["value"] is not None and f"partial-{period}" not in row["reasons"]]
    last = complete_rows[-1] if complete_rows else next(row for row in reversed(rows) if row["value"] is not None)
    scale, unit = (100, "\u00a0%") if share else (1, "")
    begins = {"hour": "at", "day": "on", "week": "in the week of"}[period]
    figures = f"{interval(*_scaled(last, scale), unit=unit)} {begins} {_day(str(last['group']))}"
    key = last["group"], last["metric"], last["reward"]
    row = next((row for row in differences if (row["group"], row["metric"], row["reward"]) == key), None)
    if row is None or row["lower"] is None or row["upper"] is None:
        return figures
    first = _day(str(row["against"]))
    sign = difference_direction(row)
    if sign not in ("more", "less"):
        return f"{figures}, no sure change since {'the week of ' if period == 'week' else ''}{first}"
    points = f"{abs(100 * (row['value'] or 0)):.1f} points"
    change = points if share else "" if row["relative"] is None else percent(abs(row["relative"]))
    return f"{figures}, {change} {sign} than {begins} {first}"


def return_rates(answer: Outcomes, log_end: str | None) -> Figure | None:
    """Returning visitors over time, as long before the end of the log as they have to come again; None where nobody
    could have come again yet, or no user is known."""
    if "no-users" in answer["reasons"] or log_end is None:
        return None
    periods = len({row["group"] for row in answer["outcomes"]})
    until = {metric: parse(log_end) - days * DAY_US for metric, days in RETURNED.items()}
    figures = present_figures(over_time(answer, metric, until=until[metric]) for metric in RETURNED)
    return next((figure for figure in figures if len(figure.rows) > periods / 2), figures[-1] if figures else None)


# -- estimates --


def estimates(rows: Sequence[EstimateRow], unit: str) -> Figure | None:
    """Estimates of one unit as a forest plot; None where nothing of that unit was estimated."""
    unit_rows = [row for row in rows if row.estimate.unit == unit]
    if not unit_rows:
        return None
    names_estimator = len({row.estimate.estimator for row in unit_rows}) > 1
    intervals, table = list[Interval](), list[list[Any]]()
    for row in unit_rows[:MAX_ROWS]:
        estimate, look, words = row.estimate, VERDICTS[row.estimate.verdict][1], _verdict(row)
        value, lower, upper = estimate.value, estimate.lower, estimate.upper
        name = row.target if row.version is None else f"{row.target}@{row.version}"
        name = name if row.by is None else f"{name}, {row.by} {row.group.label}"
        label = f"{name}, {estimate.estimator}" if names_estimator else name
        intervals.append(Interval(label, value, lower, upper, f"{number(value)}, {words}", look))
        table.append([
            name, estimate.estimator, value, lower, upper, words, ", ".join(estimate.reasons), estimate.ess, estimate.n,
            estimate.served,
        ])  # fmt: skip
    return Figure(
        title=_best_policy_sentence(unit_rows, UNITS[unit]),
        drawing=forest(
            intervals, level=_logged_average(unit_rows),
            x_name=f"reward per {UNITS[unit]} ({', '.join(sorted({row.reward for row in unit_rows}))})"
            f"{'' if _logged_average(unit_rows) is None else '; dashed: the logged average'}",
        ),
        description=f"One interval a policy at level {unit_rows[0].estimate.level:g}; circles can be trusted, squares "
        "are to be read with care, grey ones cannot be told from this log.",
        headers=[
            "policy", "estimator", "value", "lower", "upper", "verdict", "reasons", "effective sample size", "rows",
            "logged average",
        ],
        rows=table,
    )  # fmt: skip


def _verdict(row: EstimateRow) -> str:
    """The verdict in words."""
    verdict, reasons = row.estimate.verdict, row.estimate.reasons
    return "learned from this log" if verdict == "weak" and "in-sample" in reasons else VERDICTS[verdict][0]


def _logged_average(rows: Sequence[EstimateRow]) -> float | None:
    """The mean reward of these rows as they were served; None where that is not one number for all."""
    served = {row.estimate.served for row in rows}
    return served.pop() if len(served) == 1 else None


def _best_policy_sentence(rows: Sequence[EstimateRow], unit: str) -> str:
    """A sentence on the policy that would earn most, against the logged average. Policies that learned from this log
    cannot be judged by it."""
    judged_rows = [row for row in rows if row.estimate.verdict != "insufficient" and row.estimate.value is not None]
    independent_rows = [row for row in judged_rows if "in-sample" not in row.estimate.reasons]
    if not independent_rows:
        served, learned = _logged_average(rows), [row.target for row in judged_rows]
        earned = "" if served is None else f"; the logged average is {number(served)} per {unit}"
        if not learned:
            return f"The log cannot tell yet what these policies would earn per {unit}{earned}"
        names = " and ".join(dict.fromkeys(learned))
        return f"{names} learned from this very log, so that it cannot judge what they would earn{earned}"
    row = max(independent_rows, key=lambda row: row.estimate.value or 0.0)
    estimate = row.estimate
    bounded_value = interval(estimate.value, estimate.lower, estimate.upper)
    text = f"{row.target} would earn {bounded_value} per {unit} ({_verdict(row)})"
    if estimate.served is None or estimate.lift_lower is None or estimate.lift_upper is None:
        return text
    if estimate.verdict != "ok":
        return f"{text}; the logged average is {number(estimate.served)}"
    sign = direction(estimate.lift_lower, estimate.lift_upper, tolerance=LOG_PRECISION)
    comparison = {"equal": "equal to", "unsure": "not surely more than"}.get(sign, f"{sign} than")
    return f"{text}, {comparison} the logged average ({number(estimate.served)})"


# -- experiments --


def comparison(answer: VariantComparison) -> Figure | None:
    """The variants of an experiment against the first one, per unit, in percent; None where nothing differs yet."""
    if "interleave" in answer:
        return _credit_difference(answer)
    rows = [row for row in answer["unit_differences"] if row["metric"] in COMPARED]
    rows.sort(key=lambda row: COMPARED.index(row["metric"]))
    intervals = list[Interval]()
    names_variant = len({row["group"] for row in rows}) > 1
    for row in rows:
        if row["relative"] is None or not row["value"]:
            continue
        scale = 100 * row["relative"] / row["value"]
        lower, upper = (None if bound is None else bound * scale for bound in (row["lower"], row["upper"]))
        sure, look = _direction_and_look(row)
        name = _metric(row, answer)
        label = f"{row['group']}: {name}" if names_variant else name
        intervals.append(Interval(label, 100 * row["relative"], lower, upper, _note(row["relative"], sure), look))
    if not intervals:
        return None
    return Figure(
        title=f"{answer['experiment']}: {_reward_sentence(answer)}",
        drawing=forest(intervals[:MAX_ROWS], x_name=f"difference from {rows[0]['against']}, in percent of it", level=0),
        description=f"One interval of 95 % a metric, clustered by {answer['unit']}; those that cross 0 are not sure.",
        headers=["variant", "metric", "difference", "lower", "upper", "in percent", "p", "notes"],
        rows=[
            [
                row["group"], _metric(row, answer), row["value"], row["lower"], row["upper"],
                 row["relative"] and 100 * row["relative"], row["p_value"], ", ".join(row["reasons"]),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _metric(row: DifferenceRow, answer: VariantComparison) -> str:
    """A metric in words, with its reward where there are several."""
    names_reward = len({difference["reward"] for difference in answer["unit_differences"]} - {None}) > 1
    name = METRICS[row["metric"]].format(unit=answer["unit"])
    return f"{name} ({row['reward']})" if names_reward and row["reward"] else name


def _direction_and_look(row: Mapping[str, Any]) -> tuple[str, str]:
    return {"more": ("more", "s1"), "less": ("less", "s2")}.get(difference_direction(row), ("not sure", "no"))


def _credit_difference(answer: VariantComparison) -> Figure | None:
    """The two versions that fill every slate in turns: the difference of their credits a decision."""
    row = answer["differences"][0]
    bounds = row["value"], row["lower"], row["upper"]
    if row["value"] is None:
        return None
    policies = {variant["variant"]: variant["policy"] for variant in answer["variants"]}
    names = f"{policies[row['variant']]} less {policies[row['against']]}"
    sure, look = _direction_and_look(row)
    figures, credit = interval(*bounds), Interval(names, *bounds, sure, look)
    headers = ["value", "lower", "upper", "p_value"]
    return Figure(
        title=f"{answer['experiment']}: {names}, {figures} a decision ({sure})",
        drawing=forest([credit], x_name="difference of the credit a decision", level=0.0),
        description="One interval of 95 %; if it crosses 0, nothing is sure.",
        headers=["difference", *headers],
        rows=[[names, *(row[header] for header in headers)]],
    )  # fmt: skip


def _note(relative: float, sure: str) -> str:
    return f"{percent(abs(relative))} {sure}" if sure != "not sure" else f"{100 * relative:+.1f}\u00a0%, not sure"


def _reward_sentence(answer: VariantComparison) -> str:
    """A sentence on the reward per unit, variant by variant."""
    p_value, texts = answer["sample_ratio"]["p_value"], list[str]()
    for row in answer["unit_differences"]:
        if row["metric"] == "reward_per_unit":
            sure, _ = _direction_and_look(row)
            change = "" if row["relative"] is None else f" {percent(abs(row['relative']))}"
            figures = f"{interval(row['value'], row['lower'], row['upper'])} {_metric(row, answer).split(' ', 1)[1]}"
            verdict = f"earns{change} {sure} than {row['against']}"
            verdict = f"is not surely different from {row['against']}" if sure == "not sure" else verdict
            texts.append(f"{row['group']} {verdict} ({figures}{', so far' if 'young-units' in row['reasons'] else ''})")
    doubt = "the split is not as defined, do not trust it: " if p_value is not None and p_value < ALARM else ""
    return doubt + "; ".join(texts)


# -- beliefs and exposure --


def beliefs(answer: PolicyBelief) -> Figure | None:
    """The beliefs of a version about the arms that it shows most; None in an empty catalogue."""
    arms = [row for row in answer["arms"] if row["status"] == "active"] or answer["arms"]
    arms = sorted(arms, key=lambda row: (-(row["probability"] or 0.0), -(row["mean"] or 0.0)))
    shown, name = arms[:MAX_ROWS], f"{answer['policy']}@{answer['version']}"
    if not shown:
        return None
    top, chance = shown[0], "at position 1"
    context = "With an empty context, " if "features" in answer else ""
    if any(row["mean"] is not None for row in shown):
        notes = [f"shown {percent(row['probability'])}" for row in shown]
        pairs = zip(shown, notes, strict=True)
        intervals = [Interval(row["arm"], row["mean"], row["lower"], row["upper"], note) for row, note in pairs]
        drawing = forest(intervals, x_name=f"believed mean reward ({answer['reward']}) of a slot", zero=True)
        belief = f", believed to earn {interval(top['mean'], top['lower'], top['upper'])}"
    else:
        chances = [Bar(row["arm"], 100 * (row["probability"] or 0.0)) for row in shown]
        drawing = bars(chances, x_name=f"probability {chance}", unit="\u00a0%")
        belief = ""
    extent = f"the {MAX_ROWS} of {len(arms)} arms that are shown most" if len(arms) > MAX_ROWS else "all active arms"
    headers = ["arm", "probability", "mean", "lower", "upper", "pulls", "served"]
    highest, lowest = (arms[end]["probability"] or 0.0 for end in (0, -1))
    return Figure(
        title=f"{context}{name} shows all {len(arms)} arms about as often"
        if len(arms) > 1 and lowest > 0.95 * highest
        else f"{context}{name} shows {top['arm']} most ({percent(top['probability'])} {chance}){belief}",
        drawing=drawing,
        description=f"One interval of 95 % an arm; {extent}; kind {answer['kind']}.",
        headers=headers,
        rows=[[row[header] for header in headers] for row in shown],
    )


def exposure(answer: Exposure) -> Figure:
    """How much of the slots each arm had, realised and expected."""
    slots, arms = max(1, answer["slots"]), answer["arms"]
    shown, effective_arms = arms[:MAX_ROWS], answer["catalogue"]["effective_arms"]
    half, total = 0, 0
    for row in arms:
        if total >= slots / 2:
            break
        half, total = half + 1, total + row["realised"]
    shares = [
        Bar(row["arm"], 100 * row["realised"] / slots, row["expected"] and 100 * row["expected"] / slots)
        for row in shown
    ]
    is_single = effective_arms is None or number(effective_arms) == "1"
    spread = "" if is_single else f"; all in all it is as if {number(effective_arms)} were shown equally often"
    return Figure(
        title=f"Half of the slots went to {half} of {quantity(len(arms), 'arm')}{spread}",
        drawing=bars(shares, x_name="share of the slots; tick: as probabilities expect", unit="\u00a0%"),
        description=f"One bar an arm, the {len(shown)} with the most of {quantity(answer['slots'], 'slot')}.",
        headers=["arm", "slots", "expected", "mean reward", "lower", "upper"],
        rows=[[row["arm"], row["realised"], row["expected"], row["rate"], row["lower"], row["upper"]] for row in shown],
    )


def evenness(answer: Exposure) -> Figure | None:
    """Effective arms of each day: that many, shown equally often, are as even; None for fewer than three days."""
    days = answer.get("days", [])
    if len(days) < 3:
        return None
    points = [PlotPoint(parse(day["day"]) / 3.6e9, day["effective_arms"], label=_day(day["day"])) for day in days]
    counts = [day["effective_arms"] for day in days if day["effective_arms"] is not None]
    span = f"{number(min(counts))} to {number(max(counts))}" if counts else "an unknown number of"
    x_name = f"day (UTC), {days[-1]['day'][:4]}"
    headers = ("day", "decisions", "slots", "effective_arms", "coverage", "gini", "floor_share")
    return Figure(
        title=f"On a day it is as if {span} arms were shown equally often; on {_day(days[-1]['day'])}, "
        f"{number(days[-1]['effective_arms'])}",
        drawing=chart([Series("effective arms", points)], x_name=x_name, y_name="arms, were they shown equally often"),
        description=f"A line over {quantity(len(points), 'day')}.",
        headers=[header.replace("_", " ") for header in headers],
        rows=[[*map(dict(day).get, headers)] for day in days],
    )  # fmt: skip


def present_figures(figures: Iterable[Figure | None]) -> list[Figure]:
    """The figures that there are."""
    return [figure for figure in figures if figure is not None]
