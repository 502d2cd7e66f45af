"""rlrec evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.cells import Figures, cell
from rlrec.cli.output.output import Show, View
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import HOW_TO_RUN, GroupedCommand, Store, conclude, option_group, reading
from rlrec.cli.program.workers import workers_options
from rlrec.cli.text.values import NUMBER, Integer
from rlrec.directions import LOG_PRECISION, direction
from rlrec.errors import quantity

if TYPE_CHECKING:
    from rlrec.app.judging.evaluate import Workers

MODEL = click.Path(exists=True, dir_okay=False)
SHOWN = {
    "target": "target", "version": "version", "group": "group", "estimator": "estimator", "unit": "unit",
    "value": "value", "lower": "lower", "upper": "upper", "lift": "lift over served", "ess": "ess", "n": "rows",
    "verdict": "verdict", "reasons": "reasons",
}  # fmt: skip
DROP = ("version", "rows", "unit", "reasons", "ess", "lift over served")
VERDICTS = ("insufficient", "weak", "ok")


@click.command(
    cls=GroupedCommand,
    epilog="`rlrec help evaluate` explains units, verdicts, reasons, keys, options and estimators.",
)  # fmt: skip
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@option_group(
    "What to estimate",
    click.option(
        "--estimator", "estimators", multiple=True, metavar="LIST",
        callback=lambda _ctx, _param, lists: ",".join(lists) or None,
        help="Names, or impression, session, slate, all; repeatable [default: ips,snips,dr].",
    ),
    click.option("--reward", metavar="NAME", help="Reward definition [default: what each target learns]."),
    click.option("--gamma", type=NUMBER, default=1.0, show_default=True, help="Discount per step of a session."),
    click.option("--by", metavar="FIELD", help="One estimate for each position, step, day, arm, context field, ..."),
    click.option("--greedy", is_flag=True, help="The target without its exploration."),
)  # fmt: skip
@option_group(
    "Which log",
    click.option(
        "--log", metavar="FILTER",
        help="Decisions, e.g. policy=home,since=2026-01-01, or parquet:DIR; all counts each row once [default: all "
        "loggers that can tell, weighed].",
    ),
)  # fmt: skip
@option_group(
    "Model of rewards",
    click.option("--reward-model", type=MODEL, metavar="FILE", help="CSV arm,reward [default: fitted on the log]."),
    click.option("--reward-model-by", metavar="FIELD", help="The context field that `value` means in that CSV."),
    click.option(
        "--reward-model-hash", type=Integer(0), default=0, metavar="N",
        help="Columns to hash each arm's contexts into.",
    ),
    click.option("--position", metavar="CURVE", help="Multiply attraction by examination, by this curve."),
)  # fmt: skip
@option_group(
    HOW_TO_RUN,
    click.option(
        "--interval", default="bootstrap-t", show_default=True, metavar="KIND",
        help="bootstrap-t, normal, cressie-read.",
    ),
    click.option("--level", type=NUMBER, default=0.95, show_default=True, help="Confidence of the interval."),
    click.option("--cluster", metavar="UNIT", help="user, session or row [default: user, else session]."),
    click.option(
        "--target-samples", type=Integer(0), default=1_000, show_default=True, metavar="N",
        help="Pages simulated in a context.",
    ),
    click.option("--seed", type=Integer(0), default=0, show_default=True, metavar="N", help="Seed of what is random."),
)  # fmt: skip
@workers_options
@plot_option
@reading(
    "rlrec evaluate home uniform --plot home.svg",
    "rlrec evaluate home@2 --log policy=home,since=2026-01-01 --by position --json",
    "rlrec evaluate home uniform --estimator wdr,pdis --gamma 0.9 --log split=gate",
    "rlrec evaluate home uniform --estimator rips,sn-iips,pbm:home",
    "rlrec evaluate home uniform --jobs 2",
)
def evaluate(store: Store, show: Show, plot: str | None, workers: Workers, **request: Any) -> None:
    """A target is a policy (as it stands now), NAME@V, a variant POLICY@EXPERIMENT/VARIANT, or the built-in `uniform`.
    The mature decisions of every logger that can tell count, by the spread of their weights. Every estimate has an
    interval, an effective sample size (ess), a verdict (ok, weak, insufficient) and the reasons for it."""
    estimates = app.evaluate.evaluate(store, app.evaluate.Request(**request), workers)
    save_plot(plot, lambda: app.figures.estimates(estimates, estimates[0].estimate.unit))
    rows = [row.to_json() for row in estimates]
    show(rows, table=view(rows, request["by"], app.evaluate.explained(estimates)))
    by = request["by"]
    conclude(show, *([_counts(rows, by)] if by else map(_sentence, _best_rows(rows))))


def view(rows: Sequence[Mapping[str, Any]], by: str | None, notes: Sequence[str]) -> View:
    """A table for each unit."""
    views = []
    for unit in dict.fromkeys(row["unit"] for row in rows):
        unit_rows = [row for row in rows if row["unit"] == unit]
        # a table rounds sample sizes, json and csv have every digit
        rounded_rows = [
            {**row, "ess": None if row["ess"] is None else round(row["ess"]), "lift": _lift(row)} for row in unit_rows
        ]
        table = View.select(rounded_rows, [key for key in SHOWN if key != "group" or by], drop=DROP, fixed=True)
        headers = [f"by {by}" if key == "group" else SHOWN[key] for key in table.headers]
        views.append(table._replace(headers=headers, notes=_served(unit_rows)))
    first, *more_tables = views
    notes_below = [item for view in more_tables for item in ("", view._replace(notes=()), *view.notes)]
    return first._replace(notes=[*first.notes, *notes_below, *([""] if more_tables and notes else []), *notes])


def _served(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line with what the rows of these estimates earned as they were served, for each of the rewards."""
    by_reward: dict[str, list[float]] = {}
    for row in rows:
        if row["served"] is not None:
            by_reward.setdefault(row["reward"], []).append(row["served"])
    spans = {
        name: " to ".join(dict.fromkeys((cell(min(served)), cell(max(served))))) for name, served in by_reward.items()
    }
    several_rewards = len(by_reward) > 1
    texts = [f"{span} of reward {name}" if several_rewards else span for name, span in spans.items()]
    lines = [f"per {rows[0]['unit']}: the logged average is {', '.join(texts)}"] if texts else []
    return lines + ["the targets learn different rewards: --reward judges all by one"] * several_rewards


def _lift(row: Mapping[str, Any]) -> Figures | None:
    if row["lift"] is None:
        return None
    low, high = ("-" if bound is None else _percent(bound) for bound in (row["lift_lower"], row["lift_upper"]))
    return Figures(f"{_percent(row['lift'])} % [{low}, {high}]")


def _percent(share: float) -> str:
    """A share in percent: whole ones from 10 % on."""
    return f"{100 * share:+.{0 if abs(share) >= 0.1 else 1}f}".replace("-0.0", "+0.0")


def _best_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For each target the estimate with the best verdict of those of the first unit; of equal ones the last, whose
    estimator does the most. One without a valid interval stands for no other."""
    best_rows: dict[Any, Mapping[str, Any]] = {}
    unit_rows = [row for row in rows if row["unit"] == rows[0]["unit"]]
    for row in [row for row in unit_rows if row["std_error"] is not None] or unit_rows:
        best = best_rows.get(key := (row["target"], row["version"]))
        if best is None or VERDICTS.index(row["verdict"]) >= VERDICTS.index(best["verdict"]):
            best_rows[key] = row
    return list(best_rows.values())


def _counts(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    """How much of the estimates by group can be relied on."""
    groups, verdicts = len({row["group"] for row in rows}), [row["verdict"] for row in rows]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in reversed(VERDICTS) if verdict in verdicts)
    return f"{quantity(len(rows), 'estimate')} by {by}, {quantity(groups, 'group')}: {counts}."


def _sentence(row: Mapping[str, Any]) -> str:
    """An estimate in plain words."""
    name = row["target"] if row["version"] is None else f"{row['target']}@{row['version']}"
    if row["verdict"] == "insufficient" or row["value"] is None:
        nothing = f"; no row earned anything by reward {row['reward']}" if row["served"] == 0 else ""
        return f"{name}: this log cannot tell ({', '.join(row['reasons'])}){nothing}"
    low, high = (f"{100 * row['level']:g} % {cell(row['lower'])}", cell(row["upper"]))
    text = f"{name} would earn {cell(row['value'])} per {row['unit']} ({low} to {high}, {row['estimator']})"
    if row["lift"] is not None and None not in (row["lift_lower"], row["lift_upper"]):
        sign = direction(row["lift_lower"], row["lift_upper"], tolerance=LOG_PRECISION)
        words = {"equal": "equal to", "unsure": "not surely more or less than"}.get(sign, f"{sign} than")
        surely = "surely " if sign in ("more", "less") and row["verdict"] == "ok" else ""
        text += f": {surely}{words} the logged average ({_percent(row['lift'])} %)"
    return text + (f"; weak: {', '.join(row['reasons'])}" if row["verdict"] == "weak" else "")
