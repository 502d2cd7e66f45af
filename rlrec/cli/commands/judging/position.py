"""This module holds the commands of `rlrec position`, which estimate and show the probability that each position of a
slate is examined."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.output.tables import cell
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import CommandGroup, Store, takes_read_store, takes_write_store, workers_options
from rlrec.cli.text.text import View
from rlrec.cli.text.values import NAME
from rlrec.errors import quantity

position = CommandGroup("position")


@position.command()
@click.argument("name", type=NAME)
@click.option("--log", metavar="FILTER", help="Filter of the log, or parquet:DIR, as in `evaluate` [default: all].")
@click.option("--reward", default="default", show_default=True, help="Reward definition whose events are clicks.")
@click.option(
    "--positions", type=click.IntRange(min=2), metavar="K", help="Last position.  [default: the longest page]"
)
@click.option(
    "--model", type=click.Choice(["pbm", "cascade", "dcm"]), default="pbm", show_default=True,
    help="Click model: by position, down to the first click, or on after a click with a probability.",
)  # fmt: skip
@workers_options
@plot_option
@takes_write_store(
    "rlrec position fit home --log policy=home", "rlrec policy create home2 --kind thompson --param position=home"
)
def fit(store: Store, show: Show, plot: str | None, workers: app.evaluate.Workers, **request: Any) -> None:
    """Estimate the examination of each position relative to the first one, and store the curve as the next version.

    pbm compares neighbouring positions on the arms that the logger could have put at either, with overlap weights from
    its marginals (method overlap). Imported logs without marginals need arms at several positions in equal contexts
    (method em, without intervals). The curve ends above the first position that cannot be compared; if this is position
    2, nothing is stored, and the exit code is 3. Curves never change: NAME is the newest version, NAME@N a fixed one.

    Click models are compared by their likelihood on held-out pages."""
    _show_curve(show, app.positions.fit(store, app.positions.Request(**request), workers), plot)


@position.command("list")
@takes_read_store("rlrec position list")
def list_(store: Store, show: Show) -> None:
    """List all curves."""
    columns = ["curve", "number", "model", "method", "reward", "positions", "created_at"]
    show(app.positions.list_curves(store), columns=columns)


@position.command("show")
@click.argument("reference", metavar="NAME[@N]")
@plot_option
@takes_read_store("rlrec position show home", "rlrec position show home --plot home.svg")
def show_(store: Store, show: Show, reference: str, plot: str | None) -> None:
    """Show a curve, its intervals, and which click model the log preferred."""
    _show_curve(show, app.positions.show(store, reference), plot)


@position.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@takes_read_store("rlrec position diff home@1 home@2")
def diff(store: Store, show: Show, first: str, second: str) -> None:
    """Compare two curves; a difference is B minus A."""
    result = app.positions.diff(store, first, second)
    columns = ["position", "examination_a", "examination_b", "difference"]
    show(result, table=View.select(result, columns, title=[f"a: {first}", f"b: {second}"]), columns=columns)


def _show_curve(show: Show, result: app.positions.CurveAnswer, plot: str | None) -> None:
    save_plot(plot, lambda: app.figures.examination([result]))
    title = [
        f"curve {result['curve']}@{result['number']}, model {result['model']}, method {result['method']}, "
        f"reward {result['reward']}, {quantity(result['clusters'], 'cluster')}",
        f"estimated at {result['created_at']} from {result['log'] or 'the log'}",
    ]
    notes = app.positions.explain_curve(result)
    if log_likelihoods := result["log_likelihood"]:
        best_model, preferred_model = max(log_likelihoods, key=lambda name: log_likelihoods[name]), result["preferred"]
        verdict = (
            f"prefers {best_model}"
            if best_model == preferred_model
            else f"does not tell {preferred_model} from {best_model}"
        )
        figures = ", ".join(f"{name} {cell(value)}" for name, value in log_likelihoods.items())
        notes.append(f"the log {verdict}: log-likelihood a slot, held out, the larger the better: {figures}")
    headers = ["position", "examination", "lower", "upper", "rewards", "slots"]
    show(result, table=View.select(result["positions"], headers, title=title, notes=notes))
