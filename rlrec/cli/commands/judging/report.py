"""This module holds the command `rlrec report`, which writes an HTML page about the store."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import check_target, write_text
from rlrec.cli.program.shared import GroupedCommand, Store, takes_read_store
from rlrec.cli.text.values import TIME


@click.command(cls=GroupedCommand)
@click.argument("file", metavar="FILE.html|-", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--policy", metavar="NAME[@V]", help="Only this policy with its variants, or POLICY@EXPERIMENT/VARIANT.")
@click.option("--log", metavar="FILTER", help="Filter of the log, as in `evaluate` [default: all].")
@click.option("--reward", metavar="NAME", help="Reward definition of all comparisons [default: what policies learn].")
@click.option("--since", type=TIME, metavar="TIME", help="Only decisions from this time on.")
@click.option("--title", help="Heading of the page [default: What the recommender does].")
@click.option("--estimates/--no-estimates", default=True, help="Whether to estimate what policies would earn.")
@takes_read_store(
    "rlrec report store.html", "rlrec report home.html --policy home --since 2026-01-01 --title 'Front page'"
)
def report(store: Store, show: Show, file: str, title: str | None, **request: Any) -> None:
    """The page is one HTML file without scripts or external files: experiments, what policies would earn, the reward
    and returning visitors over time, beliefs, exposure, position curves, learning curves, and the quick checks of
    `doctor`. Every figure has a table of its data; a figure that cannot be drawn yet says why.

    Estimates and exposure are from the newest 100,000 decisions. The page is written under another name first, and then
    renamed."""
    from rlrec.report.html import page

    check_target(file, "FILE")
    report_request = app.report.Request(**request)
    answer = app.report.report(store, report_request)
    for comparison in answer.experiments:
        app.compare.note(store, comparison)
    log = report_request.filter or None
    rewards = [report_request.reward] if report_request.reward else [answer.reward, app.best_policy.last_reward(store)]
    best_sentences = (app.best_policy.find(store, by="report", reward=name, log=log) for name in rewards if name)
    answer.best = next(filter(None, best_sentences), None)
    text = page(answer, title or "What the recommender does")
    size = write_text(file, text)
    if file != "-":
        show({"file": file, "bytes": size, "decisions": answer.decisions})
