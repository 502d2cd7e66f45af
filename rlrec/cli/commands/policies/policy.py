"""This module holds the commands of `rlrec policy`, which create policies, show them, and manage their versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from rlrec.cli.commands.policies import policy_view
from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.files import plot_option, save_plot
from rlrec.cli.program.shared import (
    CommandGroup,
    Store,
    mapping_by_name,
    print_sentences,
    suggest_next,
    takes_output,
    takes_read_store,
    takes_write_store,
)
from rlrec.cli.text.values import DURATION, JSON_FILE, NAME, NUMBER, OBJECT, PAIR

FILE = click.Path(exists=True, dir_okay=False)


policy = CommandGroup("policy")


@policy.command()
@takes_output("rlrec policy kinds")
def kinds(show: Show) -> None:
    """List the kinds of policy, their parameters, and when to use each."""
    result = app.policy.list_kinds()
    show(result, table=policy_view.kinds_view(result))


@policy.command()
@click.argument("name", type=NAME)
@click.option("--kind", required=True, help="Kind of policy; `rlrec policy kinds` lists them.")
@click.option("--param", "params", type=PAIR, multiple=True, metavar="K=V", help="A parameter of the kind; repeatable.")
@click.option("--reward", default="default", show_default=True, help="Reward definition it learns from.")
@click.option("--prior", type=FILE, help="CSV arm,alpha,beta or arm,mean,variance: replaces the default prior.")
@click.option("--features", type=JSON_FILE, help="JSON: how a contextual kind reads contexts and arms.")
@click.option(
    "--from-log", metavar="FILTER", help="First learn from mature decisions of this log (a gradient: imitate it)."
)
@click.option(
    "--prior-from", metavar="FILTER",
    help="Start each arm from its mean reward in this log, shrunk to that of all arms.",
)  # fmt: skip
@click.option(
    "--prior-weight", type=NUMBER, metavar="PULLS",
    help="Weight of that start, and of the shrinking, in pulls.  [default: 10]",
)  # fmt: skip
@click.option(
    "--from-policy", metavar="NAME[@V]",
    help="For kind gradient: start by imitating this bandit, with its floor (at least 0.02).",
)  # fmt: skip
@takes_write_store(
    "rlrec policy create home --kind thompson --param floor=0.02",
    "rlrec policy create trained --kind gradient --from-policy home",
)
def create(store: Store, show: Show, params: Sequence[tuple[str, str]], **request: Any) -> None:
    """Create a policy; its version 1 is live at once.

    \b
    A file for --features names fields of the context, and of arms for model=shared or hybrid:
      {"context": {"fields": {"hour": {"type": "number", "mean": 12, "scale": 6}, "device": ["ios", "web"],
                              "new": "flag", "tags": {"list": ["tea", "iced"], "hash": 8}, "taste": {"vector": 8}}},
       "arm": {"fields": {"price": "number", "topic": {"hash": 8}}}}
    Without "context", contexts are fitted to --from-log, else hashed; without "arm", arms are fitted to the catalogue.
    Missing and unknown values count as 0. `policy show --json` has the complete object, as `features`. {"text": 262144}
    hashes the words of a text into so many columns, for softmax, squarecb and gradient (`rlrec help contexts`).

    With --from-policy, version 1 imitates what the bandit would serve now to its newest 2,000 requests (if it served
    none: to those of the log); `kl` is the remaining divergence on these requests, in nats per slate. `train-pg` then
    continues on the bandit's log."""
    result = app.policy.create(store, app.policy.Request(parameters=mapping_by_name(params, "parameter"), **request))
    show(result)
    if not result["created"]:
        return
    if request["from_policy"] and show.format == "table":
        best_sentence = app.best_policy.find(store, by="policy create", policy=result["policy"])
        print_sentences(show, *filter(None, [best_sentence]))
    if result["kind"] == "logged":
        suggest_next(show, f"import-log FILE --layout LAYOUT --policy {result['policy']}", "brings the log in")
    elif result["kind"] == "long-term":
        suggest_next(show, f"policy rebuild {result['policy']}", "learns from the log what keeps people")
    else:
        suggest_next(show, f"recommend --policy {result['policy']} --session s1", "draws and logs a slate")


@policy.command("list")
@takes_read_store("rlrec policy list")
def list_(store: Store, show: Show) -> None:
    """List all policies at their live version."""
    result = app.versions.list_versions(store)
    show(result, table=policy_view.policies_view(result), columns=[*policy_view.POLICY_COLUMNS, "versions"])


@policy.command("versions")
@click.argument("name", metavar="NAME")
@takes_read_store("rlrec policy versions home")
def versions_(store: Store, show: Show, name: str) -> None:
    """List the versions of a policy: what each was made from and learned from, its gate, and when it was live."""
    result = app.versions.history(store, name)
    show(result, table=policy_view.versions_view(result), columns=[*policy_view.VERSION_COLUMNS, "promoted"])


@policy.command("show")
@click.argument("reference", metavar="NAME[@V]")
@click.option(
    "--context", type=OBJECT, metavar="JSON|@FILE", help="The context, of a kind that reads one [default: the newest]."
)
@click.option("--all", "all_arms", is_flag=True, help="All arms, with weights, on a terminal; ipw_mean of a long log.")
@click.option("--curve", is_flag=True, help="The learning curve of a version made by train-pg, epoch by epoch.")
@plot_option
@takes_read_store("rlrec policy show home", "rlrec policy show visits --curve")
def show_(
    store: Store, show: Show, reference: str, context: dict[str, Any] | None, all_arms: bool, curve: bool,
    plot: str | None,
) -> None:  # fmt: skip
    """Show what a policy believes about each arm, what it would serve now, and its versions.

    pending counts served slots whose rewards may still come: their window is open, or they wait for `settle`. All other
    slots without a reward have earned nothing. p_best is the probability that the arm is the best one under the belief;
    probability is that of being served at position 1, with the floor and rules of the page. Both are exact. ipw_mean is
    the mean of the arm's mature rewards weighted by 1 / sqrt(propensity): a learning policy drops arms that began
    badly, so their plain means are too low. At most 20,000 decisions, spread over the log, are read for it, unless
    --all is given. For a version of train-pg, the result of its training and the figures of the gate follow.

    Arms are sorted by probability, in csv and json as in the catalogue; ndjson has one line per arm. A policy of kind
    logged has no belief: `rlrec exposure --policy NAME` shows the rates of its arms."""
    result = app.policy_beliefs.show(store, reference, context, sample=not all_arms)
    policy_version, is_live = (result["policy"], result["version"]), result["version"] == result["live"]
    save_plot(
        plot,
        lambda: app.figures.training(*policy_version, result["training"], live=is_live) or app.figures.beliefs(result),
    )
    is_terminal = show.screen.width is not None
    table = policy_view.belief_view(
        result, all_arms=all_arms, curve=curve, for_terminal=is_terminal, sorts_arms=show.format == "table",
        is_newest=context is None,
    )  # fmt: skip
    version_fields = {"policy": result["policy"], "version": result["version"]}
    lines = ({**version_fields, **arm} for arm in result["arms"])
    show(result, table=table, lines=lines)


@policy.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@takes_read_store("rlrec policy diff home home@2")
def diff(store: Store, show: Show, first: str, second: str) -> None:
    """Compare what two policies, or two versions of one policy, believe about each arm, and whom they serve.

    A and B are NAME or NAME@V; a difference is B minus A."""
    result = app.policy_beliefs.diff(store, first, second)
    sides = ("a", "b", "difference")
    columns = ["arm", "status", *(f"{name}_{side}" for name in app.policy_beliefs.COMPARED_FIGURES for side in sides)]
    audiences = [(name, app.policy_beliefs.audience(store, name)) for name in (first, second)]
    show(result, table=policy_view.difference_view(result, columns, audiences), columns=columns)


@policy.command()
@click.argument("reference", metavar="NAME[@V]")
@click.option("--reward", help="Reward definition to learn, instead of its own.")
@click.option("--features", type=JSON_FILE, help="JSON: read contexts and arms like this instead.")
@click.option("--position", metavar="CURVE", help="Count pulls by the examination of their position.")
@click.option(
    "--after-drift", type=click.Choice(["adwin", "page-hinkley"]),
    help="Use only decisions since rewards last changed; without a change, nothing is done.",
)  # fmt: skip
@click.option("--log", metavar="FILTER", help="Log to learn from, for kind long-term [default: all].")
@click.option("--horizon", "horizon_us", type=DURATION, help="Within which people come back, for kind long-term.")
@takes_write_store("rlrec policy rebuild home --reward default", "rlrec policy rebuild home --position home")
def rebuild(store: Store, show: Show, reference: str, **request: Any) -> None:
    """Compute a belief again from the stored events, as a new version that goes on learning; it is not live.

    The past is read in batches, so that other commands can work meanwhile. A rebuild that was killed continues where it
    stopped when the same command is run again. A logistic model is expanded around its present weights.

    A policy of kind long-term learns the figures of `rlrec effects`, from the log of any policy, as a frozen
    version."""
    answer = app.rebuild.rebuild(store, app.rebuild.Request(reference=reference, **request))
    show(answer)
    if answer["rebuilt"]:
        version = f"{answer['policy']}@{answer['version']}"
        suggest_next(show, f"policy promote {version}", "makes it live; until then it does not serve")


@policy.command()
@click.argument("reference", metavar="NAME@V")
@takes_write_store("rlrec policy retire home@3")
def retire(store: Store, show: Show, reference: str) -> None:
    """End the learning of a version that is not live; its belief stays as it is."""
    show(app.versions.retire(store, reference))


@policy.command()
@click.argument("reference", metavar="NAME[@V]")
@takes_write_store("rlrec policy freeze home")
def freeze(store: Store, show: Show, reference: str) -> None:
    """Copy a belief, without the slots that are not mature, into an immutable version; it is not live."""
    show(app.versions.freeze(store, reference))


@policy.command()
@click.argument("reference", metavar="NAME@V")
@takes_write_store("rlrec policy promote home@2")
def promote(store: Store, show: Show, reference: str) -> None:
    """Make a version live."""
    show(app.versions.promote(store, reference))


@policy.command()
@click.argument("route", type=NAME)
@click.argument("challenger", metavar="[POLICY[@V]]", required=False)
@click.option("--stop", is_flag=True, help="End the challenger; its logged probabilities stay.")
@takes_write_store("rlrec policy shadow front other")
def shadow(store: Store, show: Show, route: str, challenger: str | None, stop: bool) -> None:
    """Log beside every decision of a route the probability that a challenger would have given to the slate shown.

    The challenger never serves. Its probability is exact, or null if it has none (samples, two stages, contexts that it
    cannot read). `rlrec route show` has the mean weight (near 1 if the log supports the challenger) and the effective
    sample size (ESS) so far.
    """
    if stop == (challenger is not None):
        raise click.UsageError("give a challenger, or --stop")
    show(app.shadow.stop(store, route) if challenger is None else app.shadow.start(store, route, challenger))


@policy.command()
@click.argument("name")
@takes_write_store("rlrec policy rollback home")
def rollback(store: Store, show: Show, name: str) -> None:
    """Return to the version that was live before the last promote."""
    show(app.versions.rollback(store, name))
