"""This module holds the commands of `rlrec experiment`, which create, show, change, stop and list experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.commands.experiments.plan import METRIC, parse_metric, plan
from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import cell
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import (
    CommandGroup,
    Store,
    level_option,
    print_sentences,
    question_of_terminal,
    takes_read_store,
    takes_write_store,
)
from rlrec.cli.text.text import View, truncate
from rlrec.cli.text.values import NAME, ParsedType, parse_name, parse_number, parse_percent
from rlrec.errors import InputError, quantity
from rlrec.sentences import (
    ALARM,
    DEFAULT_REWARD,
    difference_sentence,
    ending_command,
    experiment_sentences,
    guard_sentence,
    is_growing,
    next_looks,
    plan_sentence,
    quoted_options,
)

if TYPE_CHECKING:
    from rlrec.app.evaluation.comparisons.declared import GuardName
    from rlrec.app.evaluation.comparisons.study_figures import OutcomeRow

NESTED_KEYS = ("unit_differences", "passed_by", "remedy")  # keys of a stop that its table leaves out
EXPERIMENT_COLUMNS = ("experiment", "status", "unit", "variants", "created_at", "stopped_at")
DIFFERENCE_KEYS = {  # column of the csv: key of a difference per decision
    "difference": "value", "difference_lower": "lower", "difference_upper": "upper", "p_value": "p_value",
}  # fmt: skip
UNIT_DIFFERENCE_KEYS = {  # column of the csv: key of a difference in reward per unit
    "unit_difference": "value", "unit_difference_lower": "lower", "unit_difference_upper": "upper",
    "unit_p_value": "p_value", "unit_answer": "answer",
}  # fmt: skip
CONSTANT_REASONS = {"no-variation", "no-units", "none-at-risk"}  # reasons of metrics without information so far
DECIDING_METRIC = "reward_per_unit"  # the metric that decides an experiment
_EMPTY_ROW: Mapping[str, Any] = {}
ANONYMOUS_UNITS, DECISIONS_DIFFER = "anonymous-units", "decisions-differ"  # reasons
DROPPED_COLUMNS = (
    "weight",
    "sessions",
    "reward_per_unit",
)  # columns of the table per decision that a narrow terminal leaves out
DEFAULT_LEVEL = 0.95  # of the intervals that `status` repeats
PLANNED_LOOK = "--fixed, at one look that was planned beforehand; at the best of several looks this does not hold:"
INTERVAL_NOTES = {False: "those of differences at every look", True: "for one look that was planned beforehand"}
MIN_SPLIT_P_VALUE = 0.01  # from this p-value on the split is called right
UNKNOWN_TEXT = "not known yet"
PERCENT_PRECISION = 1e-9  # within which percentages must add up to 100


def parse_variant(text: str) -> app.experiment.VariantSpec:
    """Return the variant that LABEL=POLICY[@V][:WEIGHT] describes. Raises InputError for other text."""
    label, equals_sign, policy_and_weight = (piece.strip() for piece in text.partition("="))
    policy, colon, weight = (piece.strip() for piece in policy_and_weight.partition(":"))
    if not (equals_sign and policy):
        hint = "write LABEL=POLICY, LABEL=POLICY@V or LABEL=POLICY:WEIGHT"
        raise InputError(f"'{truncate(text)}' is not a variant", hint=hint)
    try:
        share = parse_number(weight) if colon else 1.0
    except InputError as error:
        raise InputError(f"the weight of variant {label}: {error.message}", hint="write LABEL=POLICY:0.5") from None
    if share <= 0:
        raise InputError(f"the weight of variant {label} is {truncate(weight)}", hint="weights are above 0")
    return app.experiment.VariantSpec(label=parse_name(label), policy=policy, weight=share)


def parse_weight(text: str) -> tuple[str, float, bool]:
    """Return three parts of LABEL=WEIGHT: the label, the weight as a number, and whether it is written in percent. A
    weight is written as 0.2 or 20%."""
    label, equals_sign, weight = (piece.strip() for piece in text.partition("="))
    if not equals_sign:
        raise InputError(f"'{truncate(text)}' is not a weight", hint="write LABEL=0.2")
    return parse_name(label), parse_percent(weight), weight.endswith("%")


def parse_share(text: str) -> float:
    """Return the share of all users or sessions in a text such as 5% or 0.05. It must be above 0 and below 1."""
    if not 0 < (share := parse_percent(text)) < 1:
        hint = "it must be above 0 and below 100 %: write 5% or 0.05"
        raise InputError(f"the share is {100 * share:.12g} %", hint=hint)
    return share


def parse_guard(text: str) -> GuardName:
    """Return the guard that METRIC>=-5% or METRIC:REWARD>=-5% describes. A guard limits how far a metric may fall."""
    from rlrec.app.evaluation.comparisons.declared import GuardName

    metric, comparison_sign, least = (piece.strip() for piece in text.partition(">="))
    if not comparison_sign:
        raise InputError(f"'{truncate(text)}' is not a guard", hint="write METRIC>=-5% or METRIC:REWARD>=-5%")
    return GuardName(*parse_metric(metric), least=parse_percent(least))


REFERENCES = ParsedType("a,b", lambda text: tuple(piece.strip() for piece in text.split(",") if piece.strip()))
SHARE = ParsedType("share", parse_share)
WEIGHT = ParsedType("label=weight", parse_weight)
GUARD_OPTION = click.option(
    "--guard", "guards", type=ParsedType("metric[:reward]>=-n%", parse_guard), multiple=True,
    metavar="METRIC[:REWARD]>=-N%", help="What must not fall by more; repeatable.",
)  # fmt: skip
VARIANT = ParsedType("label=policy[@v][:weight]", parse_variant)


experiment = CommandGroup("experiment")
experiment.add_command(plan)


@experiment.command("create")
@click.argument("name", type=NAME)
@click.option(
    "--variant", "variants", type=VARIANT, multiple=True, metavar="LABEL=POLICY[@V][:WEIGHT]",
    help="The others are compared with the first; at least two, or one and a holdout. @V pins a frozen version; "
    "`uniform` needs no policy.",
)  # fmt: skip
@click.option(
    "--unit", "by", type=click.Choice(["user", "session"]), default="user", show_default=True,
    help="What is assigned to a variant, permanently.",
)  # fmt: skip
@click.option(
    "--holdout-uniform", "holdout", type=SHARE, metavar="SHARE",
    help="Share of all units, 1% or 0.01, for a variant `holdout` with the uniform policy.",
)  # fmt: skip
@click.option(
    "--interleave", type=REFERENCES, default=(), metavar="A,B",
    help="Two frozen versions that fill every slate in turns, in place of variants.",
)  # fmt: skip
@click.option(
    "--layer", type=NAME, metavar="NAME", help="Share no unit with the other running experiments of this layer."
)  # fmt: skip
@click.option(
    "--layer-share", type=SHARE, metavar="SHARE", help="Share of the layer's units [default: all that are left]."
)  # fmt: skip
@click.option(
    "--metric", "metrics", type=METRIC, multiple=True, metavar="METRIC[:REWARD]",
    help="Metric that decides (`rlrec help outcomes`); repeatable [default: reward_per_unit by what the variants "
    "learn].",
)  # fmt: skip
@GUARD_OPTION
@click.option(
    "--best-n", type=int, metavar="N",
    help="Number of units at which intervals are tightest: as many as you expect [default: those of the last 30 "
    "days, else 5,000].",
)  # fmt: skip
@takes_write_store(
    "rlrec experiment create ab --variant a=home --variant b=other --unit session",
    "rlrec experiment create safer --variant a=home --variant b=other --guard 'visits>=-2%'",
    "rlrec experiment create safe --variant a=home --holdout-uniform 1%",
    "rlrec experiment create rank --interleave home@2,other@2",
)
def create(store: Store, show: Show, **request: Any) -> None:
    """Start an A/B test. Each variant serves a copy of its policy's belief and learns only from its own decisions.

    With --interleave, both versions fill every slate (team draft): for every two positions, a coin decides which picks
    first. Each slot logs its team, and its propensity given the coins; `show` credits rewards to teams. Every visitor
    compares both, so far fewer visitors show which one ranks better."""
    show(app.experiment.create(store, app.experiment.Request(**request)))


@experiment.command("show")
@click.argument("name", type=NAME)
@click.option(
    "--reward", "rewards", type=NAME, multiple=True, metavar="NAME",
    help="Reward definition; may be repeated [default: what the variants learn].",
)  # fmt: skip
@level_option
@click.option("--log", metavar="FILTER", help="Filter of the log, as in `evaluate` [default: all of the experiment].")
@click.option("--by", metavar="FIELD", help="Segments, by a context field of each unit's first decision.")
@click.option("--against", "rival", type=NAME, metavar="LABEL", help="Variant to compare with [default: the first].")
@click.option("--fixed", is_flag=True, help="Narrower intervals, valid for one look planned beforehand.")
@click.option("--details", is_flag=True, help="Every metric, and means per decision.")
@plot_option
@takes_read_store("rlrec experiment show ab", "rlrec experiment show ab --reward default --details")
def show_(
    store: Store, show: Show, name: str, rewards: Sequence[str], level: float, log: str | None, by: str | None,
    rival: str | None, fixed: bool, details: bool, plot: str | None,
) -> None:  # fmt: skip
    """Show what each variant's units did, the differences, and the check of the split.

    Look as often as you like: intervals and p-values are valid at every look (confidence sequences, clustered by the
    assigned unit). Only decision metrics have a p-value, corrected for all variants and metrics (Holm); guards are
    one-sided, without correction. Other metrics say better or worse only at a level at which all of them together are
    wrong in 0.1 % of experiments. All describe the variants as they served: policies that learn were still learning.

    A variant that brings people back has more decisions, so a mean per decision is about other visits. If the numbers
    of decisions per unit differ (p below 0.001), the reason is `decisions-differ`, and means per decision (--details)
    are not comparable. These, and the holdout, use the first reward.

    With a uniform holdout, what `uniform` earned there is compared with its estimate from the log of the other variants
    (snips, per impression). If they disagree (Welch's t on both standard errors, clustered by unit), do not trust
    estimates from this log. --log does not apply to the holdout and the check of the split."""
    result = app.compare.show(store, name, rewards=rewards, level=level, log=log, is_fixed=fixed, by=by, rival=rival)
    save_plot(plot, lambda: app.figures.comparison(result))
    app.compare.notice_machines(store, name)
    is_usual = log is None and level == DEFAULT_LEVEL and not fixed and rival is None and by is None
    if is_usual:
        app.compare.note(store, result)
    elif result.get("route"):
        store.notice("`rlrec status` keeps the newest comparison of a holdout without --log, --level and --fixed")
    options = quoted_options(log=log, against=rival)
    table = comparison_view(result, level, details=details, is_fixed=fixed, options=options, is_usual=is_usual)
    show(result, table=table, flat=_csv_records(result))


def comparison_view(
    result: app.compare.VariantComparison, level: float, *, details: bool, is_fixed: bool = False,
    options: str = "", is_usual: bool = True,
) -> View:  # fmt: skip
    """Return the comparison of the variants of an experiment as a table, with sentences above it.

    `level` is the confidence of the intervals. With `details`, the view has every metric. `is_fixed` says whether
    the intervals hold for one planned look only. `options` are the options that quoted commands repeat. `is_usual`
    says whether no option changed the comparison; only then does the view name the command that ends the experiment."""
    next_commands = next_looks(result, options)
    sentences = [*([PLANNED_LOOK] if is_fixed else []), *experiment_sentences(result), *next_commands]
    steps = ending_command(result) if is_usual else []
    if segments := result.get("segments"):
        from rlrec.cli.commands.judging.outcomes import segment_notes

        sentences.append(str(segment_notes(segments)[0]))
    table = _metric_table(result, level, details=details)
    return table._replace(title=[*sentences, *steps, "", *table.title])


def _csv_records(result: app.compare.VariantComparison) -> list[dict[str, Any]]:
    """Return a record for each variant, with its differences from the first variant: in reward per user or session, and
    in reward per decision, for the first reward. In the record of the first variant they are None."""
    unit_differences = (row for row in reversed(result["unit_differences"]) if row["metric"] == DECIDING_METRIC)
    per_unit = {row["group"]: row for row in unit_differences}
    per_decision = {row["variant"]: row for row in result["differences"]}
    return [
        variant
        | {
            column: per_unit.get(variant["variant"], _EMPTY_ROW).get(name)
            for column, name in UNIT_DIFFERENCE_KEYS.items()
        }
        | {
            column: per_decision.get(variant["variant"], _EMPTY_ROW).get(name)
            for column, name in DIFFERENCE_KEYS.items()
        }
        for variant in result["variants"]
    ]


def _metric_table(result: app.compare.VariantComparison, level: float, *, details: bool) -> View:
    status_suffix = f" at {result['stopped_at']}" if result["stopped_at"] else ""
    status_suffix += f", {result['promoted']} promoted as {result['live']}" if "promoted" in result else ""
    title = [
        f"experiment {result['experiment']}, {result['status']}{status_suffix}, by {result['unit']}",
        f"intervals at level {cell(level)}, {INTERVAL_NOTES[result['sequence']['fixed']]}; rewards of mature decisions",
    ]
    if "interleave" in result:
        return _interleaved_table(result, title)
    from rlrec.cli.commands.judging.outcomes import count_units, metric_meanings, outcomes_view, segment_notes

    if n_anonymous := result["anonymous"]:
        units = sum(row["units"] for row in result["variants"])
        title.append(f"{ANONYMOUS_UNITS}: {count_units(result['unit'], units, n_anonymous)}")
    title += [_sample_ratio_line(result["sample_ratio"])]
    if "selected_ratio" in result:
        p_value = result["selected_ratio"]["p_value"]
        alarm = _alarm_text(p_value, "they leave out more of one variant; do not trust the differences")
        title.append(f"exclusions and filters against variants: p {cell(p_value)} at one look{alarm}")
    title += _declaration_lines(result)
    outcome_rows, constant_metrics = _varying_rows(result["outcomes"])
    differences = [row for row in result["unit_differences"] if row["metric"] not in constant_metrics]
    explanations = (
        [f"left out, as nothing varies there yet: {', '.join(constant_metrics)}"]
        if constant_metrics and details
        else []
    )
    if not details:
        shown_metrics = {DECIDING_METRIC, *(row["metric"] for row in (*result["metric"], *result["guards"]))}
        decided_differences = {(row["group"], row["value"]) for row in differences if row["p_value"] is not None}
        sure_rows = (row for row in differences if row["answer"] in ("better", "worse"))
        shown_metrics |= {row["metric"] for row in sure_rows if (row["group"], row["value"]) not in decided_differences}
        outcome_rows = [row for row in outcome_rows if row["metric"] in shown_metrics]
        differences = [row for row in differences if row["metric"] in shown_metrics]
    explanations += app.outcomes.explanations(
        [*outcome_rows, *differences, *(result["differences"] if details else [])]
    )
    explanations += metric_meanings(outcome_rows, result["unit"])
    planned_metrics = {
        (row["metric"], row["reward"]) for row in result["metric"][:1]
    }  # the metric that the plan is for
    deciding_rows = [row for row in result["unit_differences"] if (row["metric"], row["reward"]) in planned_metrics]
    # what is sure so far waits for age, not for more units
    is_open = all(row["answer"] == "unknown" and not is_growing(row) for row in deciding_rows)
    unseen_rewards = result.get("other_rewards", [])[:1]
    notes: list[str | View] = [
        *segment_notes(result.get("segments", []))[1:],
        *explanations,
        *([""] if explanations else []),
        *_phase_lines(result["phases"]),
        *(_per_decision_notes(result) if details else ["--details has every metric, and means per decision"]),
        *(f"other rewards: `rlrec experiment show {result['experiment']} --reward {name}`" for name in unseen_rewards),
        *([] if result["holdout"] is None else ["", _holdout_line(result["holdout"])]),
        *([plan_sentence(planned_units)] if (planned_units := result.get("plan")) and is_open else []),
    ]
    return outcomes_view(outcome_rows, differences)._replace(title=title, notes=notes)


def _declaration_lines(result: app.compare.VariantComparison) -> list[str]:
    """Return lines about the metrics that decide the experiment, and about the guards that hold. Other guards are left
    out, since the sentences of the comparison tell of them."""
    names = " and ".join(filter(None, (":".join(filter(None, row.values())) for row in result["metric"])))
    held_guards = [guard_sentence(row, result["unit"]) for row in result["guards"] if row["answer"] == "holds"]
    return [f"decided by {names}; intervals are tightest at {result['sequence']['best_n']:,} units", *held_guards]


def _phase_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines about the phases of an experiment. A new phase begins when weights change.

    `rows` has a mapping for each phase. The result is empty if `rows` is empty."""
    lines = ["compared within phases, and combined; reward per unit, by intervals that hold for one look:"]
    for row in rows:
        weights = " ".join(f"{label}={cell(weight)}" for label, weight in row["weights"].items())
        text = f"{weights}, {quantity(sum(row['units'].values()), 'unit')}" if weights else "frozen, no new unit"
        lines.append(f"since {row['begun']}: {text}")
        for difference in row["differences"]:
            figures = "{value} [{lower}, {upper}]".format(**{name: cell(value) for name, value in difference.items()})
            text = UNKNOWN_TEXT if difference["value"] is None else figures
            lines.append(f"  {difference['variant']} - {difference['against']}: {text}")
    return [*lines, ""] if rows else []


def _varying_rows(rows: Sequence[OutcomeRow]) -> tuple[list[OutcomeRow], list[str]]:
    """Return the rows of the metrics that vary, within or between variants, and the names of the other metrics. If no
    metric varies, return all rows and no names."""
    by_metric: dict[str, list[OutcomeRow]] = {}
    for row in rows:
        by_metric.setdefault(row["metric"], []).append(row)
    constant_metrics = [
        name for name, metric_rows in by_metric.items()
        if all(CONSTANT_REASONS & {*row["reasons"]} for row in metric_rows)
        and len({row["value"] for row in metric_rows} - {None}) < 2
    ]  # fmt: skip
    return ([*rows], []) if len(constant_metrics) == len(by_metric) else (
        [row for row in rows if row["metric"] not in constant_metrics], constant_metrics
    )  # fmt: skip


def _interleaved_table(result: app.compare.VariantComparison, title: list[str]) -> View:
    title[0] += ", interleaved: both versions fill every slate"
    alarm = _alarm_text(
        result["sample_ratio"]["p_value"], "one team picked first too often; do not trust the difference"
    )
    title += [*map(_difference_line, result["differences"])]
    title += [f"coins: p {cell(result['sample_ratio']['p_value'])}{alarm}"] if alarm else []
    if (ties := result.get("ties")) is not None:
        title.append(f"credit for both teams alike: {quantity(ties, 'unit')}")
    notes = [
        "a mean is the credit of the slots that a team picked, half of each slate: the difference says which ranks "
        "better, not how much more one would earn alone",
        f"there are no outcomes per {result['unit']} to compare: everybody sees both versions",
    ]
    return View.select(result["variants"], list(result["variants"][0]), title=title, notes=notes)


def _per_decision_notes(result: app.compare.VariantComparison) -> list[str | View]:
    """Return lines about the mean reward per decision of each variant, and a table of these means. If a variant differs
    from the first in decisions per user or session, another line says so, since the means then cannot be compared."""
    unit, counts_differ = result["unit"], DECISIONS_DIFFER in result["reasons"]
    texts = [f"means per decision ({'no comparison' if counts_differ else f'decide by the figures per {unit}'}):"]
    for row, difference in zip(result["decisions_per_unit"], result["differences"], strict=True):
        texts += [_difference_line(row, f" decisions per {unit}")] if row["differ"] else []
        texts.append(_difference_line(difference))
    headers = ["per decision" if name == "mean" else name for name in result["variants"][0]]
    return [*texts, View(headers, [[*row.values()] for row in result["variants"]], drop=DROPPED_COLUMNS)]


def _difference_line(row: Mapping[str, Any], unit_suffix: str = " a decision") -> str:
    """Return a line with the difference between two variants. If the variants differ in decisions per user or session,
    the line has no interval, since the compared visits then differ.

    `unit_suffix` is the text after the figures that says what they count."""
    reasons = f" ({', '.join(row['reasons'])})" if row["reasons"] else ""
    value, lower, upper, p_value = (cell(row[name]) for name in ("value", "lower", "upper", "p_value"))
    percent_text = "" if row["relative"] is None else f" ({100 * row['relative']:+.1f} %)"
    figures = f"{value} [{lower}, {upper}]{unit_suffix}{percent_text}" + (
        "" if row["p_value"] is None else f", p {p_value}"
    )
    if row["value"] is None or DECISIONS_DIFFER in row["reasons"]:
        figures = UNKNOWN_TEXT if row["value"] is None else f"{value}{unit_suffix}"
    return f"{row['variant']} - {row['against']}: {figures}{reasons}"


def _sample_ratio_line(sample_ratio: dict[str, float | None]) -> str:
    if (p_value := sample_ratio["p_value"]) is None:
        return f"sample ratio: {UNKNOWN_TEXT}"
    if p_value >= MIN_SPLIT_P_VALUE:
        return "sample ratio: the split is as defined"
    odd_note = f": odd, but no alarm, which is below {cell(ALARM)}"
    verdict = _alarm_text(p_value, "the split is not as defined; do not trust the differences") or odd_note
    return f"sample ratio: p {cell(p_value)} at every look{verdict}"


def _alarm_text(p_value: float | None, warning: str) -> str:
    return f": {warning}" if p_value is not None and p_value < ALARM else ""


def _holdout_line(holdout: dict[str, Any]) -> str:
    figures = {name: cell(value) for name, value in holdout.items()}
    return (
        "holdout ({share} of units): uniform earned {value} [{lower}, {upper}] an impression, estimated {estimate} "
        "[{estimate_lower}, {estimate_upper}]; difference {difference}, p {p_value} ({verdict})".format(**figures)
        + _alarm_text(holdout["p_value"], "the estimates from this log are wrong")
    )


@experiment.command("set")
@click.argument("name", type=NAME)
@click.option(
    "--weight", "weights", type=WEIGHT, multiple=True, required=True, metavar="LABEL=WEIGHT",
    help="Of each variant: 0.2 or 20%.",
)  # fmt: skip
@takes_write_store("rlrec experiment set ab --weight a=1 --weight b=3")
def set_(store: Store, show: Show, name: str, weights: Sequence[tuple[str, float, bool]]) -> None:
    """Change the weights of an experiment: a new phase, also of a frozen one.

    Units keep their variant; new units are assigned by the new weights. In the ramp of a route, the share of the last
    variant can only rise, and the units that it gains move to it when they come next. `show` compares variants within
    each phase and combines the differences."""
    labels, values, are_percentages = zip(*weights, strict=True)
    if repeated_label := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(f"--weight gives {repeated_label} two weights", hint="give each variant one")
    if any(are_percentages) and abs(sum(values) - 1) > PERCENT_PRECISION:
        hint = "write percentages that add up to 100 %, or weights without a % sign"
        raise InputError(f"the weights add up to {100 * sum(values):.6g} %", hint=hint)
    show(app.experiment.set_weights(store, name, dict(zip(labels, values, strict=True))))


@experiment.command("freeze")
@click.argument("name", type=NAME)
@takes_write_store("rlrec experiment freeze ab")
def freeze(store: Store, show: Show, name: str) -> None:
    """Take no new units into an experiment, and go on serving and measuring those that it has.

    New units get the policy of its first variant, or what the route serves; they are in no variant and not counted.
    `experiment set` opens it again."""
    show(app.experiment.freeze(store, name))


@experiment.command("stop")
@click.argument("name", type=NAME)
@click.option("--promote", type=NAME, metavar="LABEL", help="Variant whose belief goes live in its policy.")
@click.option("--anyway", is_flag=True, help="Promote even a variant that is worse, or not yet known to be as good.")
@takes_write_store("rlrec experiment stop ab", "rlrec experiment stop ab --promote b")
def stop(store: Store, show: Show, name: str, promote: str | None, anyway: bool) -> None:
    """Stop serving from an experiment; its log stays.

    With --promote, what the variant has learned becomes the next version of its policy, and goes live; if the variant
    does not learn, the version that it copies goes live. Routes to this policy serve it. A route to another policy does
    not change; the answer names the command that changes it. The route of a ramp serves the promoted variant's policy;
    without --promote, what it served before. `rlrec policy rollback`, and for a ramp `rlrec route rollback`, undo it.
    The result of `experiment show` is repeated. Unless the variant is better than the first one or the same, per unit,
    the command asks on a terminal; without a terminal it exits with 3, unless --anyway is given.
    """
    if anyway and promote is None:
        raise click.UsageError("--anyway is for a variant that is promoted: give --promote LABEL, too")
    result = app.ending.stop(store, name, promote=promote, anyway=anyway, confirm=question_of_terminal())
    unit_differences, passed_by = result.get("unit_differences", []), result.get("passed_by", [])
    shows_nested = show.format in ("json", "ndjson")
    shown_fields: dict[str, Any] = {
        key: value for key, value in result.items() if shows_nested or key not in NESTED_KEYS
    }
    if not shows_nested and "routes" in result:
        shown_fields["routes"] = " and ".join(result["routes"]) or f"none: {result['remedy']}"
    show(shown_fields)
    by_reward = not {row.get("reward") for row in unit_differences} <= {DEFAULT_REWARD, None}
    for row in unit_differences:
        text = difference_sentence(row, result["unit"], by_reward=by_reward)
        print_sentences(show, f"{text}; promoted anyway." if row["answer"] in ("same", "unknown") else f"{text}.")
    has_remedy = bool(result.get("remedy"))
    print_sentences(show, *(f"{line}." for line in passed_by if not (has_remedy and line.startswith("policy "))))


@experiment.command("list")
@takes_read_store("rlrec experiment list")
def list_(store: Store, show: Show) -> None:
    """List experiments with their variants."""
    result = app.experiment.list_experiments(store)
    show(result, table=experiments_view(result), columns=EXPERIMENT_COLUMNS)


def experiments_view(rows: Sequence[app.experiment.ExperimentSummary]) -> View:
    """Return a table with a row for each experiment."""
    return View.select([{**row, "variants": _variant_texts(row)} for row in rows], EXPERIMENT_COLUMNS)


def _variant_texts(row: app.experiment.ExperimentSummary) -> list[str]:
    if "interleave" in row:
        return [f"interleaved {' with '.join(row['interleave'])}"]
    return [
        f"{variant['variant']}={variant['policy']}@{variant['version']}:{cell(variant['weight'])}"
        for variant in row["variants"]
    ]
