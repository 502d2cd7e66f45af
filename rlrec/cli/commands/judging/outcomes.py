"""This module holds the command `rlrec outcomes`, which shows the visits, returns and rewards of users or sessions, and
compares groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import GroupedCommand, Store, level_group, option_group, takes_read_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import DURATION, NAME, TIME
from rlrec.errors import quantity
from rlrec.sentences import DEFAULT_REWARD, earned_sentences, newer_units, quoted_options, shown_p
from rlrec.times import format_duration

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.study_figures import DifferenceRow, OutcomeRow, SegmentRow

PERIODS = ("hour", "day", "week")
DIFFERENCE_KEYS = {  # column of the csv: key of a difference
    "against": "against", "difference": "value", "relative": "relative", "difference_lower": "lower",
    "difference_upper": "upper", "p_value": "p_value", "answer": "answer", "needed": "needed", "narrowed": "narrowed",
}  # fmt: skip
DIFFERENCE_COLUMNS = (
    "value",
    "lower",
    "upper",
    "relative",
    "p_value",
    "answer",
)  # keys of a difference that a table shows
DIFFERENCE_HEADERS = {"value": "minus {}", "relative": "%", "p_value": "p", "narrowed": "narrower by %"}
PERCENT_COLUMNS = ("relative", "narrowed")
_EMPTY_DIFFERENCE: Mapping[str, Any] = {}


@click.command(cls=GroupedCommand, epilog="`rlrec help outcomes` explains metrics, groups and reasons.")
@option_group(
    "What to compare",
    click.option(
        "--by", metavar="GROUPS",
        help="Groups to compare with the first one: variant, policy, version, hour, day, week or users (new, "
        "returning); a context field: segments of an experiment [default: variant, with --experiment].",
    ),
    click.option(
        "--reward", "rewards", type=NAME, multiple=True, metavar="NAME",
        help="Reward definition; repeatable [default: what the variants learn, or all policies, or `default`].",
    ),
    click.option("--against", "rival", type=NAME, metavar="LABEL", help="Variant to compare with [default: first]."),
    click.option("--adjust", is_flag=True, help="Reduce variance by the units' past (CUPED)."),
)  # fmt: skip
@option_group(
    "Which log",
    click.option("--experiment", type=NAME, metavar="NAME", help="Only the decisions of this experiment, by its unit."),
    click.option("--log", metavar="FILTER", help="Filter of the log, as in `evaluate` [default: all]."),
    click.option(
        "--users", type=click.Choice(["new", "returning", "named"]), metavar="WHICH",
        help="new: units without earlier visits; returning: with some; named: no sessions without a user.",
    ),
    click.option(
        "--entered-since", "entered_us", type=TIME, metavar="TIME",
        help="Only units that were assigned, or first served, from then on.",
    ),
    click.option("--age", "age_us", type=DURATION, help="Only the first days of each unit, such as 14d."),
)  # fmt: skip
@level_group
@plot_option
@takes_read_store(
    "rlrec outcomes --by week --plot week.svg",
    "rlrec outcomes --experiment ab --reward default --json",
    "rlrec outcomes --experiment ab --adjust --age 7d",
)
def outcomes(store: Store, show: Show, plot: str | None, **request: Any) -> None:
    """A unit is a user, or a session without a user; an experiment defines its own. Variants are compared as in
    `experiment show`: valid at every look, with a p-value for the decision metric. Other intervals are valid one by
    one.

    If a variant causes more visits, its means per visit are about other visits: decide by the metrics per unit."""
    period = request["by"] if request["by"] in PERIODS else None
    if plot is not None and period is None:
        raise click.UsageError("--plot draws the reward of a visit over time: add --by hour, day or week")
    result = app.outcomes.outcomes(store, app.outcomes.Request(**request))
    if period:
        save_plot(plot, lambda: app.figures.over_time(result))
    notes = app.outcomes.explanations([*result["outcomes"], *result["differences"]], result["reasons"])
    notes += metric_meanings(result["outcomes"], result["unit"])
    segments = segment_notes(result["segments"])
    table = (
        _periods_view(result["outcomes"], period)
        if period
        else outcomes_view(result["outcomes"], result["differences"])
    )
    if period:
        notes.append(f"+-: half the interval; *: partial-{period}; --json has differences from the first {period}")
    title = _title_lines(result)
    if result["by"] == "variant":
        deciding_metrics, rows = [[*row.values()] for row in result["metric"]], result["differences"]
        deciding_rows = [row for row in rows if [row["metric"], row["reward"]] in deciding_metrics]
        equal_ages = request["age_us"] is not None
        new_units_per_day = result.get("new_units_per_day")
        earned_texts = earned_sentences(
            deciding_rows, rows, result["unit"], newest_per_day=new_units_per_day, equal_ages=equal_ages
        )
        title = [
            *earned_texts,
            *newer_units(result, quoted_options(log=request["log"], against=request["rival"])),
            "",
            *title,
        ]
    if (age_us := request["age_us"]) is not None:
        title.insert(0, f"over the first {format_duration(age_us)} of each {result['unit']}, without younger ones:")
    show(result, table=table._replace(title=title, notes=[*segments, *notes]), flat=_csv_records(result))


def _title_lines(result: app.outcomes.Result) -> list[str]:
    experiment_clause = f" of experiment {result['experiment']}" if result["experiment"] else ""
    group_clause, earlier_visits = (
        f" by {result['by']}" if result["by"] else "",
        "visits before it" if experiment_clause else "earlier visits",
    )
    n_new, n_returning, unit = result["new"], result["returning"], result["unit"]
    units = count_units(unit, n_new + n_returning, result["anonymous"])
    rewards = list(dict.fromkeys(row["reward"] for row in result["outcomes"] if row["reward"]))
    reward_clause = f"reward {rewards[0]}" if len(rewards) == 1 and rewards != [DEFAULT_REWARD] else "rewards"
    return [
        f"outcomes{experiment_clause}{group_clause}: {units}, {n_new:,} new, {n_returning:,} with {earlier_visits}",
        f"intervals at level {result['level']:g}, clustered by {unit}; {reward_clause} of mature decisions",
    ]


def metric_meanings(rows: Sequence[OutcomeRow], unit: str) -> list[str]:
    """Return lines that explain the difference between the metrics `retention` and `returned_7d`, which are easily
    confused. The list is empty unless both have values.

    `unit` is user or session."""
    valued_metrics = {row["metric"] for row in rows if row["value"] is not None}
    if not {"retention", "returned_7d"} <= valued_metrics:
        return []
    returned_meaning = "returned_7d: the share of visits with another one within 7 days"
    return [f"retention: the share of {unit}s who have come back so far; {returned_meaning}"]


def count_units(unit: str, units: int, n_anonymous: int) -> str:
    """Return a text with the number of users or sessions, and how many of them are sessions without a user.

    `unit` is user or session. `units` is the number of all, and `n_anonymous` that of sessions without a user."""
    anonymous_text = (
        f" ({n_anonymous:,} of them sessions without a user: {100 * n_anonymous / units:.3g} %)" if n_anonymous else ""
    )
    return f"{quantity(units, 'unit' if n_anonymous else unit)}{anonymous_text}"


def _csv_records(result: app.outcomes.Result) -> list[dict[str, Any]]:
    """Return a record for each outcome, with its difference from the first group. The difference of the first group is
    None."""
    differences: dict[Any, Mapping[str, Any]] = {_row_key(row): row for row in result["differences"]}
    return [
        {
            **{name: value for name, value in row.items() if name != "reasons"},
            **{column: differences.get(_row_key(row), {}).get(name) for column, name in DIFFERENCE_KEYS.items()},
        }
        for row in result["outcomes"]
    ]


def _row_key(row: OutcomeRow | DifferenceRow) -> tuple[str | None, str, str | None]:
    return row["group"], row["metric"], row["reward"]


def segment_notes(rows: Sequence[SegmentRow]) -> list[str | View]:
    """Return a line about the segments (such as a country) in which two groups surely differ, and a table of the
    comparisons in all segments. The list is empty without segments."""
    if not rows:
        return []
    sure_texts = [
        f"{row['segment']}: {row['group']} {row['answer']} than {row['against']}"
        for row in rows if row["answer"] in ("better", "worse")
    ]  # fmt: skip
    text = "; ".join(sure_texts) or "no segment surely differs"
    if n_untested := sum(row["p_value"] is None for row in rows):
        text += f"; {n_untested} of {quantity(len(rows), 'comparison')} without a verdict so far"
    table = View.select(rows, ("segment", "group", "units", *DIFFERENCE_COLUMNS), drop=("p_value", "units"))
    has_opposite_answers = {"better", "worse"} <= {row["answer"] for row in rows}
    advice = "each can be served its own: `rlrec help contexts`" if has_opposite_answers else "decide by all units"
    return [f"by {rows[0]['by']}: {text} (corrected for {len(rows)} of them; {advice})", table, ""]


def outcomes_view(rows: Sequence[OutcomeRow], differences: Sequence[DifferenceRow]) -> View:
    """Return a table of the outcomes, metric by metric. A metric without a value in any group gets one row.

    `differences` are the differences from the first group, which become further columns, if there are any."""
    differences_by_key: dict[Any, Mapping[str, Any]] = {_row_key(row): row for row in differences}
    has_several_rewards = len({row["reward"] for row in rows} - {None}) > 1
    is_adjusted = any("narrowed" in row for row in differences)
    difference_columns = (
        [*DIFFERENCE_COLUMNS, "narrowed"] if is_adjusted else [*DIFFERENCE_COLUMNS] if differences else []
    )
    headers = ["metric", *([rows[0]["by"] or ""] if differences else []), "value", "lower", "upper", "units"]
    headers += [DIFFERENCE_HEADERS.get(name, name).format(differences[0]["against"]) for name in difference_columns]
    table_rows, previous_name = list[list[Any]](), None
    metric_order = list(dict.fromkeys(map(_metric_key, rows)))
    valued_metrics = {_metric_key(row) for row in rows if row["value"] is not None}
    for row in sorted(rows, key=lambda row: metric_order.index(_metric_key(row))):
        name = f"{row['metric']} {row['reward']}" if has_several_rewards and row["reward"] else row["metric"]
        has_value = _metric_key(row) in valued_metrics
        if name == previous_name and not has_value:
            continue
        group = [row["group"] if has_value else ""] if differences else []
        line: list[Any] = ["" if name == previous_name else name, *group]
        line += [row["value"], row["lower"], row["upper"], row["units"]]
        difference = differences_by_key.get(_row_key(row), _EMPTY_DIFFERENCE)
        difference = {**difference, "p_value": shown_p(difference) if difference else None}
        line += [
            _rounded_percent(difference.get(name)) if name in PERCENT_COLUMNS else difference.get(name)
            for name in difference_columns
        ]
        table_rows.append(line)
        previous_name = name
    return View(headers, table_rows, drop=("narrower by %", "units", "p", "%"))


def _periods_view(rows: Sequence[OutcomeRow], period: str) -> View:
    """Return a table with a row for each period, and a column for each metric.

    `period` is hour, day or week."""
    metrics = list(dict.fromkeys(map(_metric_key, rows)))
    cells = {(row["group"], *_metric_key(row)): row for row in rows}
    has_several_rewards = len({reward for _, reward in metrics} - {None}) > 1
    names = [f"{metric} {reward}" if has_several_rewards and reward else metric for metric, reward in metrics]
    table_rows = [
        [
            f"{start} *" if f"partial-{period}" in cells[start, *metrics[0]]["reasons"] else start,
            cells[start, *metrics[0]]["units"],
            *(_interval_cell(cells[start, *metric]) for metric in metrics),
        ]
        for start in dict.fromkeys(row["group"] for row in rows)
    ]
    return View([period, "units", *names], table_rows)


def _interval_cell(row: OutcomeRow) -> str | None:
    if row["value"] is None or row["lower"] is None or row["upper"] is None:
        return None if row["value"] is None else f"{row['value']:.3g}"
    return f"{row['value']:.3g} +-{(row['upper'] - row['lower']) / 2:.2g}"


def _metric_key(row: OutcomeRow) -> tuple[str, str | None]:
    return row["metric"], row["reward"]


def _rounded_percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)
