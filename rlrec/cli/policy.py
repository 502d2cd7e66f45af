"""rlrec policy: create policies, look into them, and manage their versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli import app
from rlrec.cli.cells import cell
from rlrec.cli.files import plot_option, save_plot
from rlrec.cli.output import Show, View
from rlrec.cli.shared import CommandGroup, Store, by_name, printed, reading, suggest_next, writing
from rlrec.cli.terminal import bar, decimals, interval
from rlrec.cli.values import JSON_FILE, NAME, NUMBER, OBJECT, PAIR
from rlrec.errors import quantity

if TYPE_CHECKING:
    from rlrec.app.policy import Audience, CountingCurve, PolicyVersion
    from rlrec.app.versions import LiveTime, VersionHistory

CURVE_DROP = ("without_baseline", "variance", "clipped", "kl", "entropy", "lr", "value")
N_ARMS = 20  # on a terminal
FILE = click.Path(exists=True, dir_okay=False)
CURVE_HEADERS = {"variance_without_baseline": "without_baseline"}  # headers that differ from the key
CURVE = (
    "epoch", "lr", "value", "gain", "lower", "upper", "ess", "entropy", "kl", "clipped", "variance",
    "variance_without_baseline",
)  # fmt: skip


@click.group(cls=CommandGroup)
def policy() -> None:
    """Create policies, look into them, freeze and promote versions."""


@policy.command()
@printed("rlrec policy kinds")
def kinds(show: Show) -> None:
    """List the kinds of policy, their parameters, and when to use each."""
    result = app.policy.list_kinds()
    rows = [[row["kind"], " ".join(_pair(*pair) for pair in row["parameters"].items()), row["when"]] for row in result]
    show(result, table=View(headers=["kind", "parameters", "when to use it"], rows=rows))


def _parameters(parameters: dict[str, Any]) -> str:
    """The parameters of one policy that have a value, tables as `...`; rare ones where they change something."""
    idle = {"discount": 1.0, "window": 0.0}

    def shows(name: str, value: Any) -> bool:
        undotted = name.rpartition(".")[2]  # that of a stage
        return value not in (None, "") and idle.get(undotted) != value and undotted != "examination"

    used = {name: value for name, value in parameters.items() if shows(name, value)}
    return " ".join(f"{name}=..." if isinstance(value, dict) else _pair(name, value) for name, value in used.items())


def _pair(name: str, value: Any) -> str:
    """A parameter as `--param` takes it; its name alone where it has no value, or a table."""
    if isinstance(value, float):
        return f"{name}={value:g}"
    return f"{name}={value}" if isinstance(value, str) and value else name


@policy.command()
@click.argument("name", type=NAME)
@click.option("--kind", required=True, help="Kind of policy; `rlrec policy kinds` lists them.")
@click.option("--param", "params", type=PAIR, multiple=True, metavar="K=V", help="A parameter of the kind; repeatable.")
@click.option("--reward", default="default", show_default=True, help="Reward definition it learns from.")
@click.option("--prior", type=FILE, help="CSV arm,alpha,beta or arm,mean,variance: replaces the default prior.")
@click.option("--features", type=JSON_FILE, help="JSON: how a contextual kind reads contexts and arms.")
@click.option("--from-log", metavar="FILTER", help="Learn from mature decisions of the log first, e.g. policy=random.")
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
    help="For kind gradient: start as close as it can to what this bandit serves now, with its floor, at least 0.02.",
)  # fmt: skip
@writing(
    "rlrec policy create home --kind thompson --param floor=0.02",
    "rlrec policy create trained --kind gradient --from-policy home",
)
def create(store: Store, show: Show, params: Sequence[tuple[str, str]], **request: Any) -> None:
    """Create a policy; its version 1 is live at once.

    \b
    A file for --features names fields of the context, and of arms for model=shared:
      {"context": {"fields": {"hour": {"type": "number", "mean": 12, "scale": 6}, "device": ["ios", "web"],
                              "new": "flag", "tags": {"list": ["tea", "iced"], "hash": 8}, "taste": {"vector": 8}}},
       "arm": {"fields": {"price": "number", "topic": {"hash": 8}}}}
    A side that it leaves out is fitted: contexts to --from-log, or hashed without it; arms to the catalogue. Missing
    and unknown values count 0. `policy show --json` has the complete object, as `features`. A hash of up to 262144
    columns takes text, for softmax, squarecb and gradient (`rlrec help contexts`).

    With --from-policy version 1 is fitted to what the bandit would serve now to its newest 2,000 requests; `kl` is what
    is left between the two, per slate in nats. `train-pg` goes on from there, on the bandit's log."""
    result = app.policy.create(store, app.policy.Request(parameters=by_name(params, "parameter"), **request))
    show(result)
    if not result["created"]:
        return
    if result["kind"] == "logged":
        suggest_next(show, f"import-log FILE --layout LAYOUT --policy {result['policy']}", "brings the log in")
    else:
        suggest_next(show, f"recommend --policy {result['policy']} --session s1", "draws and logs a slate")


@policy.command("list")
@reading("rlrec policy list")
def list_(store: Store, show: Show) -> None:
    """List all policies at their live version."""
    result = app.policy.listing(store)
    headers = ["policy", "version", "kind", "params", "reward", "status"]
    table = View.of([{**row, "params": _parameters(row["params"])} for row in result], headers)
    show(result, table=table, columns=[*headers, "versions"])


@policy.command("versions")
@click.argument("name", metavar="NAME")
@reading("rlrec policy versions home")
def versions_(store: Store, show: Show, name: str) -> None:
    """List the versions of a policy: what each was made from and learned from, its gate, and when it was live."""
    result = app.versions.history(store, name)
    gates = {row["version"]: None if row["gate"] is None else _verdict(row["gate"]) for row in result}
    rows = [{**row, "learned_from": _learned_from(row), "gate": gates[row["version"]]} for row in result]
    headers = ["version", "status", "live", "parent", "created_at", "learned_from", "gate"]
    times = sorted((time["at"], row["version"], time) for row in result for time in row["promoted"])
    notes = [_live_time(version, time) for _, version, time in times]
    show(
        result, table=View.of(rows, headers, notes=notes, drop=["parent", "created_at"]), columns=[*headers, "promoted"]
    )


def _learned_from(row: VersionHistory) -> str:
    """The log that a version learned from, in a few words."""
    record = row["learned_from"]
    texts = [f"version {record['rebuilt_from']} again"] if "rebuilt_from" in record else []
    if "sessions" in record:
        texts.append(quantity(record["sessions"], "session"))
    elif "slots" in record:
        texts.append(quantity(record["slots"], "slot"))
    if record.get("filter"):
        texts.append(f"of {record['filter']}")
    if row["status"] == "learning":
        texts.append("its own decisions")
    elif "last_id" in record and not texts:
        texts.append(f"decisions up to {record['last_id']}")
    return ", ".join(texts) or "-"


def _verdict(gate: Mapping[str, Any]) -> str:
    return f"{'passed' if gate['passed'] else 'not passed'}: {cell(gate['estimate'])} above {cell(gate['lower'])}"


def _live_time(version: int, time: LiveTime) -> str:
    until = "" if time["until"] is None else f" to {time['until']} ({time['ended_by']})"
    return f"version {version} {'is' if not until else 'was'} live from {time['at']} ({time['by']}){until}"


@policy.command("show")
@click.argument("reference", metavar="NAME[@V]")
@click.option(
    "--context", type=OBJECT, default="{}", metavar="JSON|@FILE", help="The context, for a kind that reads one."
)
@click.option("--all", "every", is_flag=True, help=f"All arms on a terminal, not just the {N_ARMS} most likely ones.")
@click.option("--curve", is_flag=True, help="The learning curve of a version made by train-pg, epoch by epoch.")
@plot_option
@reading("rlrec policy show home", "rlrec policy show visits --curve")
def show_(
    store: Store, show: Show, reference: str, context: dict[str, Any], every: bool, curve: bool, plot: str | None
) -> None:
    """Show what a policy believes about each arm, what it would serve now, and its versions.

    pending counts served slots whose rewards may still come: their window is open, or they wait to be settled; all
    others without a reward have earned nothing. p_best is the probability that the arm is the best one under the
    belief; probability is that of being served at position 1, floor included. Both are exact. ipw_mean is the mean of
    the arm's mature rewards weighted by 1 / sqrt(propensity): a learning policy gives up arms that began badly, so that
    their plain means are too low.
    A version made by train-pg has what became of its training and the figures of the gate below.

    On a terminal arms stand by their probability, the likeliest first, and means with their intervals; in a pipe, in
    csv and in json all of them in the order of the catalogue, a column a figure. ndjson has a line an arm."""
    result = app.policy.show(store, reference, context)
    if plot is not None:
        from rlrec.report.curves import learned
        from rlrec.report.figures import believed

        training = result["training"]
        live = result["version"] == result["live"]
        curve_of = None if training is None else learned(result["policy"], result["version"], training, live=live)
        save_plot(plot, curve_of or believed(result))
    headers = [
        "arm", "status", "served", "pending", "pulls", "reward_sum", "mean", "lower", "upper", "ipw_mean", "p_best",
        "probability",
    ]  # fmt: skip
    title = [
        f"{result['policy']} version {result['version']} ({result['status']}; live: {result['live']}), "
        f"kind {result['kind']} {_parameters(result['params'])}".rstrip(),
        f"learns reward {result['reward']}{_counting(result['counting'])}",
        f"versions: {', '.join(map(_version, result['version_list']))}",
    ]
    if "features" in result:
        shown_for = (
            f"shown for the context {cell(context)}" if context else "shown for an empty context (see --context)"
        )
        title.append(f"reads {_fields(result['features']['context'])}; {shown_for}")
    title += _exposure(result["exposure"], sum(arm["status"] == "active" for arm in result["arms"]))
    notes = [*_training(result["training"], curve=curve), *map(_drift, result["drift"])]
    arms, table = result["arms"], View.of(result["arms"], headers)
    if show.screen.width is not None:
        arms, table = _likeliest(arms, None if every else N_ARMS)
        notes = [*_others(result["arms"], arms), *notes]
    notes += [f"weights of {row['arm']}: {_largest(row['weights'])}" for row in arms if "weights" in row]
    of_version = {"policy": result["policy"], "version": result["version"]}
    lines = ({**of_version, **arm} for arm in result["arms"])
    show(result, table=table._replace(title=title, notes=notes), lines=lines)


def _likeliest(arms: Sequence[dict[str, Any]], most: int | None) -> tuple[list[dict[str, Any]], View]:
    """The arms that are likeliest to be served, and a table of them for a terminal."""
    ranked = sorted(arms, key=lambda arm: -(arm["probability"] or 0.0))[:most]
    places = decimals(arm[name] for arm in ranked for name in ("mean", "lower", "upper"))
    largest = max((arm["probability"] or 0.0 for arm in ranked), default=0.0) or 1.0
    rows = [
        {
            **arm, "mean [95 %]": interval(arm["mean"], arm["lower"], arm["upper"], places),
            "": bar((arm["probability"] or 0.0) / largest),
        }
        for arm in ranked
    ]  # fmt: skip
    retired = any(arm["status"] != "active" for arm in ranked)
    headers = ["arm", *(["status"] if retired else []), "served", "pending", "pulls", "reward_sum"]
    headers += [
        *(["mean [95 %]"] if any(arm["mean"] is not None for arm in ranked) else []),
        "ipw_mean",
        "p_best",
        "probability",
        "",
    ]
    drop = ["ipw_mean", "reward_sum", "pending", "p_best", "pulls", "status", "served"]
    return ranked, View.of(rows, headers, drop=drop, fixed=True)


def _others(arms: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line about the arms that are not shown; none where all are."""
    if len(shown) == len(arms):
        return []
    mass = sum(arm["probability"] or 0.0 for arm in arms) - sum(arm["probability"] or 0.0 for arm in shown)
    return [f"{quantity(len(arms) - len(shown), 'more arm')} with {mass:.1%} of the probability; --all shows all", ""]


def _exposure(exposure: Mapping[str, Mapping[str, float | None]], arms: int) -> list[str]:
    """One line on how evenly the catalogue was shown, and would be now."""
    texts = {"served": "so far", "now": "now, at position 1,"}
    described = [
        f"{texts[name]} as even as {effective:.3g} of {quantity(arms, 'arm')} shown equally often "
        f"(Gini {figures['gini']:.2f})"
        for name, figures in exposure.items()
        if figures["gini"] is not None and (effective := figures["effective_arms"]) is not None
    ]
    return [f"exposure: {'; '.join(described)}"] if described else []


def _counting(counting: CountingCurve | None) -> str:
    """The words that say by which curve pulls count; none where each is one."""
    if counting is None:
        return ""
    held = "in" if counting["in_bounds"] else "not in"
    return (
        f"; pulls count by the examination of their position, curve {counting['curve']}: its error is {held} the bounds"
    )


def _version(row: PolicyVersion) -> str:
    return f"{row['version']} {row['status']}{' (live)' if row['live'] else ''}"


def _training(training: dict[str, Any] | None, *, curve: bool) -> list[str | View]:
    """Lines about the training of a version; none where it was not trained. curve: epoch by epoch."""
    if training is None:
        return []
    best = f"the best is epoch {training['best']}" if training["best"] else "none is better than the start"
    points = (
        training["curve"] if curve else [point for point in training["curve"] if point["epoch"] == training["best"]]
    )
    rows = [[point.get(name) for name in CURVE] for point in points]
    headers = [CURVE_HEADERS.get(name, name) for name in CURVE]
    grid = [View(headers, rows, drop=CURVE_DROP)] if rows else []
    epochs = f"{quantity(len(training['curve']), 'epoch')}{'' if curve else ' (--curve shows them)'}"
    text = f"learning curve, estimated on the tuning split of the log: {epochs}, {best}"
    return [text, *grid, _gate(training["gate"]), ""]


def _gate(gate: dict[str, Any]) -> str:
    if gate["candidate"] is None:
        return "gate: not used for this version"
    shown = {name: cell(value) for name, value in gate.items()}
    sessions = quantity(gate["sessions"] or 0, "session")
    reasons = f": {shown['reasons']}" if gate["reasons"] else ""
    return (
        f"gate: {'passed' if gate['passed'] else 'not passed'}, gain over version {shown['against']} "
        f"{shown['estimate']} in [{shown['lower']}, {shown['upper']}] (value {shown['value']} against "
        f"{shown['live_value']}) by {shown['estimator']} on {sessions}, ess {shown['ess']}, "
        f"candidate {shown['candidate']} at alpha {shown['alpha']}, {shown['verdict']}{reasons}"
    )


def _fields(encoder: dict[str, Any]) -> str:
    return ", ".join(encoder["fields"]) or ("the whole context, hashed" if encoder.get("hash") else "nothing")


def _drift(change: dict[str, Any]) -> str:
    where = "" if change["arm"] is None else f"of {change['arm']} "
    learning = "; learning does that, too" if change["arm"] is None else ""
    return (
        f"drift: the mean reward {where}at position 1 went from {change['before']:.4g} to {change['after']:.4g} at "
        f"about decision {change['decision_id']} of {change['at']}{learning}"
    )


def _largest(weights: dict[str, float]) -> str:
    """The ten weights of the largest size."""
    largest = sorted(weights.items(), key=lambda pair: (-abs(pair[1]), pair[0]))[:10]
    return ", ".join(f"{name} {weight:+.3g}" for name, weight in largest if weight) or "all 0"


@policy.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@reading("rlrec policy diff home home@2")
def diff(store: Store, show: Show, first: str, second: str) -> None:
    """Compare what two policies, or two versions of one policy, believe about each arm, and whom they serve.

    A and B are NAME or NAME@V; a difference is B minus A."""
    result = app.policy.diff(store, first, second)
    sides = {"a": first, "b": second}
    columns = ["arm", "status", *(f"{name}_{side}" for name in app.policy.COMPARED for side in (*sides, "difference"))]
    audiences = {side: app.policy.audience(store, name) for side, name in sides.items()}
    title = [f"{side}: {name}{_counting(audiences[side]['counting'])}" for side, name in sides.items()]
    title += [f"{side} {_audience(audience)}" for side, audience in audiences.items()]
    changes = [row["probability_difference"] for row in result]
    if result and None not in changes:
        moved = sum(map(abs, changes)) / 2
        title.append(f"b in place of a would show {moved:.1%} of requests another arm at position 1")
    drop = ("status", "pulls_difference", "mean_difference", "pulls_a", "pulls_b", "mean_a", "mean_b")
    show(result, table=View.of(result, columns, title=title, drop=drop), columns=columns)


def _audience(audience: Audience) -> str:
    """The words behind a version that say whom it serves."""
    through = f" through {', '.join(audience['routes'])}" if audience["routes"] else ""
    served = (
        f"is live: {quantity(audience['decisions_24h'], 'decision')} in 24 h" if audience["live"] else "is not live"
    )
    return served + through


@policy.command()
@click.argument("reference", metavar="NAME[@V]")
@click.option("--reward", help="Reward definition to learn, instead of its own.")
@click.option("--features", type=JSON_FILE, help="JSON: read contexts and arms like this instead.")
@click.option("--position", metavar="CURVE", help="Count pulls by the examination of their position.")
@click.option(
    "--after-drift", type=click.Choice(["adwin", "page-hinkley"]),
    help="Use only decisions since rewards last changed; without a change, nothing is done.",
)  # fmt: skip
@writing("rlrec policy rebuild home --reward default", "rlrec policy rebuild home --position home")
def rebuild(store: Store, show: Show, reference: str, **request: Any) -> None:
    """Compute a belief again from the stored events, as a new version that goes on learning; it is not live.

    The past enters in ranges, so that other commands can work meanwhile. A rebuild that was killed continues where it
    stopped when the same command is run again. A logistic model is expanded around its present weights."""
    show(app.rebuild.rebuild(store, app.rebuild.Request(reference=reference, **request)))


@policy.command()
@click.argument("reference", metavar="NAME@V")
@writing("rlrec policy retire home@3")
def retire(store: Store, show: Show, reference: str) -> None:
    """End the learning of a version that is not live; its belief stays as it is."""
    show(app.versions.retire(store, reference))


@policy.command()
@click.argument("reference", metavar="NAME[@V]")
@writing("rlrec policy freeze home")
def freeze(store: Store, show: Show, reference: str) -> None:
    """Copy a belief, without the slots that are not mature, into an immutable version; it is not live."""
    show(app.versions.freeze(store, reference))


@policy.command()
@click.argument("reference", metavar="NAME@V")
@writing("rlrec policy promote home@2")
def promote(store: Store, show: Show, reference: str) -> None:
    """Make a version live."""
    show(app.versions.promote(store, reference))


@policy.command()
@click.argument("route", type=NAME)
@click.argument("challenger", metavar="[POLICY[@V]]", required=False)
@click.option("--stop", is_flag=True, help="End the challenger; what was weighed stays.")
@writing("rlrec policy shadow front other")
def shadow(store: Store, show: Show, route: str, challenger: str | None, stop: bool) -> None:
    """Log beside every decision of a route the probability that a challenger would have given to the slate shown.

    The challenger never serves. Its probability is exact, and null where it has none (samples, two stages, contexts
    that it cannot read). `rlrec route show` has the mean weight, near 1 where what is served supports the challenger,
    and the effective sample size (ESS) so far.
    """
    if stop == (challenger is not None):
        raise click.UsageError("give a challenger, or --stop")
    show(app.shadow.stop(store, route) if challenger is None else app.shadow.start(store, route, challenger))


@policy.command()
@click.argument("name")
@writing("rlrec policy rollback home")
def rollback(store: Store, show: Show, name: str) -> None:
    """Return to the version that was live before the last promote."""
    show(app.versions.rollback(store, name))
