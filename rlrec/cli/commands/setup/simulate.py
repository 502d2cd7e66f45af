"""rlrec simulate."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import Store, by_name, drawing, dry_run_option, rehearsal, stored
from rlrec.cli.text.values import PAIR, Integer

LIMIT = 10_000_000  # of sessions, steps, runs


@click.command()
@click.argument("environment", metavar="ENV")
@click.option(
    "--env", "parameters", type=PAIR, multiple=True, metavar="K=V", help="A parameter of the audience; repeatable."
)
@click.option("--policy", metavar="NAME[@V]", help="Policy or route to draw from.")
@click.option("--experiment", metavar="NAME", help="Experiment to draw for, in place of a policy.")
@click.option("--sessions", type=Integer(1, LIMIT), help="How many sessions [with --ephemeral: 1].")
@click.option(
    "--steps", type=Integer(1, LIMIT), help="Decisions of a session, where it does not end by itself [default: 1]."
)
@click.option("-k", "--size", type=Integer(1), default=1, show_default=True, help="Positions of a page.")
@click.option(
    "--group", type=Integer(1, 1000), default=1, show_default=True, help="Sessions at a time, from one belief."
)
@click.option("--seed", type=Integer(0, 2**64 - 1), help="Seed of draws and audience [default: 64 random bits].")
@click.option("--ephemeral", is_flag=True, help="Study in memory; the store does not change.")
@click.option("--runs", type=Integer(1, LIMIT), default=1, show_default=True, help="Runs of the study.")
@click.option("--kind", help="Kind of policy to study, in place of --policy.")
@click.option(
    "--param", "params", type=PAIR, multiple=True, metavar="K=V", help="A parameter of that kind; repeatable."
)
@stored(
    "rlrec simulate bernoulli --policy home --sessions 200 --env rates=0.5,0.4,0.3,0.2,0.1",
    "rlrec simulate drift --ephemeral --kind thompson --param discount=0.9975 --runs 20 --steps 2000",
    "rlrec simulate shop --ephemeral --kind thompson -k 5 --sessions 50 --runs 20",
    "rlrec simulate barista --ephemeral --kind uniform --runs 20 --sessions 50",
    "rlrec simulate bernoulli --experiment ab --sessions 200 --env rates=0.5,0.4,0.3,0.2,0.1",
)
@drawing
@dry_run_option
def simulate(store: Store, show: Show, ephemeral: bool, dry_run: bool, **options: Any) -> None:
    """Serve a simulated audience whose best arm or policy is known.

    ENV and its parameters: bernoulli (rates), drift (rates, jumps=ARM:RATE:FROM:TO,... or none, swing, period),
    delayed (rates, delay, shape) and contextual (model, arms, features, seed). rates are numbers, as 0.9,0.8, or a CSV
    arm,rate. Times are counted in decisions, which are a second apart. A click is the event `click`; a contextual
    audience sends the context {"x": [...]}.

    Pages: visitors of pbm (rates, power) look at position k with probability k^-power; those of cascade (rates, resume)
    read from the top, and after a click go on with probability `resume`; those of page (rates, topics) want one topic,
    arm a being about topic a modulo `topics`, and click the page as a whole where some arm of it attracts them.

    A shop (arms, categories, bait, rate, lure, power, fade, purchase, levels, loyalty, stay, cap, away, daily) has
    pages, and visitors with memory. Clickbait, the last `bait` arms, is clicked more often (lure against rate), but a
    click on it costs trust; items that are looked at satiate their category for the visit. A purchase, the event
    `purchase`, follows a click on another item with probability `purchase`, and raises trust. Trust decides whether a
    visitor comes again, some days later; `daily` new ones come every day. The reward is clicks: optimum_per_session is
    the most of a visit, which clickbait earns, and optimum_per_visitor the most of all visits of a visitor, which needs
    trust. Both are exact for one arm a decision, and bounds for pages.

    Other visitors with memory: their sessions end by themselves, or after `cap` decisions, and --steps is refused.
    barista (rates, fade, patience, cap): items satiate, and a bored visitor leaves. choc-kale (chocolate, kale, levels,
    low, high, loyalty, away, cap): quick pleasure makes visits shorter, and fewer visitors return. corridor (cap): the
    short corridor of Sutton and Barto, example 13.1; each step is the event `reward` with value -1, which the reward
    `default` does not see: `rlrec reward define steps 'reward=1' --clip -1,0` does. The optimum is that of the best
    policy (corridor: of the best that cannot tell positions apart), context_free_per_session that of the best policy
    that always draws from the same distribution.

    Through the store, the clock starts at its newest decision (or at --now). In an empty catalogue the audience's arms
    are added. The regret is the mean reward of the best pages (with memory: of the optimum) less that of the pages
    shown; coverage, gini and effective_arms say how evenly the arms were shown (see `rlrec exposure`). Visitors with
    memory are users, each visit is a session, retention is the share of visitors who came again, events are sums by
    kind, and `ended_at` is when every decision is mature. With --ephemeral, figures are means over all runs, with
    standard errors; every run starts from nothing, whatever --policy has learned, and visitors who return do so at
    once.

    With --dry-run, other writers wait until all sessions are served."""
    app.simulate.check_environment(options["environment"])
    for option in ("parameters", "params"):
        options[option] = by_name(options[option], "parameter")
    if ephemeral:
        if dry_run:
            raise click.UsageError("--ephemeral stores nothing: leave out --dry-run")
        show(app.study.study(store, app.study.Request(**_study(**options))))
        return
    request = app.simulate.Request(**_request(**options))
    with rehearsal(store) if dry_run else nullcontext():
        result = app.simulate.simulate(store, request)
    show(result)


def _request(*, kind: str | None, params: dict[str, str], runs: int, **options: Any) -> dict[str, Any]:
    if kind is not None or params or runs != 1:
        raise click.UsageError("--kind, --param and --runs go with --ephemeral")
    if options["policy"] is not None and options["experiment"] is not None:
        raise click.UsageError("name a policy or an experiment, not both")
    if options["policy"] is None and options["experiment"] is None:
        raise click.UsageError("Missing option '--policy' or '--experiment'.")
    if options["sessions"] is None:
        raise click.UsageError("Missing option '--sessions'.")
    return options


def _study(
    *, params: dict[str, str], group: int, sessions: int | None, experiment: str | None, **options: Any
) -> dict[str, Any]:
    if experiment is not None:
        raise click.UsageError("--experiment needs the store: leave out --ephemeral")
    if group != 1:
        raise click.UsageError("--group needs the store: leave out --ephemeral")
    if params and options["kind"] is None:
        raise click.UsageError("--param goes with --kind: a stored policy has its own parameters")
    return options | {"kind_parameters": params, "sessions": sessions or 1}
