"""This module holds the command `rlrec simulate`, which serves a simulated audience."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import (
    HOW_TO_RUN,
    GroupedCommand,
    Store,
    dry_run_option,
    mapping_by_name,
    option_group,
    refuses_future_clock,
    rehearsal,
    takes_store,
)
from rlrec.cli.text.values import PAIR, Integer

MAX_N = 10_000_000  # sessions, steps or runs, at most


@click.command(cls=GroupedCommand, epilog="`rlrec help simulate` explains every audience, its parameters and figures.")
@click.argument("environment", metavar="ENV")
@option_group(
    "What to simulate",
    click.option("--env", "parameters", type=PAIR, multiple=True, metavar="K=V", help="Parameter of ENV; repeatable."),
    click.option("--policy", metavar="NAME[@V]", help="Policy or route to draw from."),
    click.option("--experiment", metavar="NAME", help="Experiment to draw for, in place of a policy."),
    click.option("--sessions", type=Integer(1, MAX_N), metavar="N", help="How many sessions [with --ephemeral: 1]."),
    click.option("--steps", type=Integer(1, MAX_N), metavar="N", help="Decisions of a session [default: 1]."),
    click.option("-k", "--size", type=Integer(1), default=1, show_default=True, metavar="K", help="Slots of a page."),
)  # fmt: skip
@option_group(
    "Study in memory",
    click.option("--ephemeral", is_flag=True, help="Study in memory; the store does not change."),
    click.option("--runs", type=Integer(1, MAX_N), default=1, show_default=True, metavar="N", help="Number of runs."),
    click.option("--kind", help="Kind of policy to study, in place of --policy."),
    click.option(
        "--param", "params", type=PAIR, multiple=True, metavar="K=V", help="A parameter of that kind; repeatable.",
    ),
)  # fmt: skip
@option_group(
    HOW_TO_RUN,
    click.option(
        "--group", type=Integer(1, 1000), default=1, show_default=True, metavar="N",
        help="Sessions at a time, from one belief.",
    ),
    click.option("--seed", type=Integer(0, 2**64 - 1), metavar="N", help="Seed of all draws [default: random]."),
    dry_run_option,
)  # fmt: skip
@takes_store(
    "rlrec simulate bernoulli --policy home --sessions 200 --env rates=0.5,0.4,0.3,0.2,0.1",
    "rlrec simulate drift --ephemeral --kind thompson --param discount=0.9975 --runs 20 --steps 2000",
    "rlrec simulate shop --ephemeral --kind thompson -k 5 --sessions 50 --runs 20",
    "rlrec simulate barista --ephemeral --kind uniform --runs 20 --sessions 50",
    "rlrec simulate bernoulli --experiment ab --sessions 200 --env rates=0.5,0.4,0.3,0.2,0.1",
)
@refuses_future_clock
def simulate(store: Store, show: Show, ephemeral: bool, dry_run: bool, **options: Any) -> None:
    """ENV, one arm a decision: bernoulli, drift, delayed, contextual. Pages: pbm, cascade, page. Visitors with memory:
    barista, choc-kale, corridor, and shop and news, which have pages, too. Through the store, the clock starts at its
    newest decision, and an empty catalogue gets the audience's arms. The regret is the expected reward of the best
    pages (with memory: of the optimum) minus that of the pages shown."""
    app.simulate.check_environment(options["environment"])
    for option in ("parameters", "params"):
        options[option] = mapping_by_name(options[option], "parameter")
    request = app.simulate.Request(**options | {"sessions": options["sessions"] or 1})
    if ephemeral:
        _check_study(request, dry_run=dry_run)
        show(app.simulate.study(store, request))
        return
    _check_serving(request)
    if options["sessions"] is None:
        raise click.UsageError("Missing option '--sessions'.")
    with rehearsal(store) if dry_run else nullcontext():
        result = app.simulate.simulate(store, request)
    show(result)


def _check_serving(request: app.simulate.Request) -> None:
    if request.kind is not None or request.params or request.runs != 1:
        raise click.UsageError("--kind, --param and --runs go with --ephemeral")
    if request.policy is not None and request.experiment is not None:
        raise click.UsageError("name a policy or an experiment, not both")
    if request.policy is None and request.experiment is None:
        raise click.UsageError("Missing option '--policy' or '--experiment'.")


def _check_study(request: app.simulate.Request, *, dry_run: bool) -> None:
    if dry_run:
        raise click.UsageError("--ephemeral stores nothing: leave out --dry-run")
    if request.experiment is not None:
        raise click.UsageError("--experiment needs the store: leave out --ephemeral")
    if request.group != 1:
        raise click.UsageError("--group needs the store: leave out --ephemeral")
    if request.params and request.kind is None:
        raise click.UsageError("--param goes with --kind: a stored policy has its own parameters")
