"""rlrec policy: policies and their versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import Group, printed, stored
from rlrec.cli.values import JSON_FILE, NAME, NUMBER, OBJECT, PAIR
from rlrec.cli.view import View, cells
from rlrec.errors import InputError

FILE = click.Path(exists=True, dir_okay=False)


@click.group(cls=Group)
def policy() -> None:
    """Create policies, look into them, freeze and promote versions."""


@policy.command()
@printed
def kinds(show: Show) -> None:
    """List the kinds of policy, their parameters, and when to use each.

    \b
    Example:
      rlrec policy kinds
    """
    from rlrec.app import policy as use_case

    found = use_case.list_kinds()
    rows = [[one["kind"], _pairs(one["parameters"]), one["when"]] for one in found]
    show(found, table=View(headers=["kind", "parameters", "when to use it"], rows=rows))


def _pairs(parameters: dict[str, Any]) -> str:
    return " ".join(_pair(name, value) for name, value in parameters.items())


def _given(parameters: dict[str, Any]) -> str:
    """The parameters of one policy: those that have a value, of a table only that there is one; of forgetting only
    where it forgets."""
    idle = {"discount": 1.0, "window": 0.0}
    known = {name: value for name, value in parameters.items() if value is not None and idle.get(name) != value}
    return " ".join(f"{name}=..." if isinstance(value, dict) else _pair(name, value) for name, value in known.items())


def _pair(name: str, value: Any) -> str:
    """A parameter as it is given; without its value where that is none, or a table."""
    if isinstance(value, float):
        return f"{name}={value:g}"
    return f"{name}={value}" if isinstance(value, str) else name


@policy.command()
@click.argument("name", type=NAME)
@click.option("--kind", required=True, help="What kind of policy; `rlrec policy kinds` lists them.")
@click.option("--param", "params", type=PAIR, multiple=True, metavar="K=V", help="A parameter of the kind; repeatable.")
@click.option("--reward", default="default", show_default=True, help="The reward it learns from.")
@click.option("--prior", type=FILE, help="CSV arm,alpha,beta or arm,mean,variance: replaces the default prior.")
@click.option("--features", type=JSON_FILE, help="JSON: how a contextual kind reads contexts and arms.")
@click.option("--from-log", metavar="FILTER", help="Teach its belief from mature decisions, e.g. policy=random.")
@click.option(
    "--prior-from",
    metavar="FILTER",
    help="Start each arm from its mean reward in this log, shrunk to that of all arms.",
)
@click.option(
    "--prior-weight",
    type=NUMBER,
    metavar="PULLS",
    help="What such a start is worth, and how far it is shrunk, in pulls.  [default: 10]",
)
@printed
@stored
def create(
    store: Any, show: Show, name: str, kind: str, params: Sequence[tuple[str, str]], reward: str, prior: str | None,
    features: dict[str, Any] | None, from_log: str | None, prior_from: str | None, prior_weight: float | None,
) -> None:  # fmt: skip
    """Create a policy; its version 1 is live at once.

    \b
    A file for --features names fields of the context, and of arms for model=shared:
      {"context": {"fields": {"hour": {"type": "number", "mean": 12, "scale": 6}, "device": ["ios", "web"],
                              "new": "flag", "tags": {"list": ["tea", "iced"], "hash": 8}, "taste": {"vector": 8}}},
       "arm": {"fields": {"price": "number", "topic": {"hash": 8}}}}
    What it leaves out is fitted: contexts to --from-log, or else hashed, arms to the catalogue. Missing and unknown
    values count 0. `policy show --json` has the whole of it, as `features`.

    \b
    Example:
      rlrec policy create home --kind thompson --param floor=0.02
    """
    from rlrec.app import policy as use_case

    parameters: dict[str, str] = {}
    for key, value in params:
        if key in parameters:
            raise InputError(f"parameter {key!r} is given twice")
        parameters[key] = value
    request = use_case.Request(
        name=name, kind=kind, parameters=parameters, reward=reward, prior=prior, features=features, from_log=from_log,
        prior_from=prior_from, prior_weight=prior_weight,
    )  # fmt: skip
    show(use_case.create(store, request))


@policy.command("list")
@printed
@stored
def list_(store: Any, show: Show) -> None:
    """List all policies at their live version.

    \b
    Example:
      rlrec policy list
    """
    from rlrec.app import policy as use_case

    found = use_case.listing(store)
    headers = ["policy", "version", "kind", "params", "reward", "status"]
    rows = [cells({**row, "params": _given(row["params"])}, headers) for row in found]
    show(found, table=View(headers=headers, rows=rows), columns=[*headers, "versions"])


@policy.command("show")
@click.argument("reference", metavar="NAME[@V]")
@click.option("--context", type=OBJECT, default="{}", metavar="JSON|@FILE", help="Where it reads one: in this context.")
@printed
@stored
def show_(store: Any, show: Show, reference: str, context: dict[str, Any]) -> None:
    """Show what a policy believes of each arm, and what it would serve now.

    p_best is the probability that the arm is the best one under the belief; probability is what would be served at
    position 1, floor included. Both are exact. ipw_mean is the mean of the arm's mature rewards weighed by
    1 / sqrt(propensity): a learning policy gives up arms that began badly, so that their plain means are too low.
    What train-pg made has its learning curve and the gate's figures below.

    \b
    Example:
      rlrec policy show home
    """
    from rlrec.app import policy as use_case
    from rlrec.cli import learned
    from rlrec.cli.tables import cell

    found = use_case.show(store, reference, context)
    headers = [
        "arm", "status", "served", "pulls", "reward_sum", "mean", "lower", "upper", "ipw_mean", "p_best", "probability",
    ]  # fmt: skip
    title = [
        f"{found['policy']} version {found['version']} ({found['status']}; live: {_live(found)}), "
        f"kind {found['kind']} {_given(found['params'])}".rstrip(),
        f"learns reward {found['reward']}",
    ]
    if "features" in found:
        title.append(f"reads {_read(found['features']['context'])}; here in the context {cell(context)}")
    rows = [[one[name] for name in headers] for one in found["arms"]]
    notes = [*learned.told(found["training"]), *(_changed(one) for one in found["drift"])]
    notes += [f"weights of {one['arm']}: {_heaviest(one['weights'])}" for one in found["arms"] if "weights" in one]
    show(found, table=View(headers=headers, rows=rows, title=title, notes=notes))


def _live(found: dict[str, Any]) -> str:
    """Which version is live, and of how many where there are others."""
    others = len(found["versions"]) - 1
    return f"{found['live']} of versions 1 to {others + 1}" if others else f"{found['live']}"


def _read(encoder: dict[str, Any]) -> str:
    """What an encoder looks at."""
    return ", ".join(encoder["fields"]) or ("the whole context, hashed" if encoder.get("hash") else "nothing")


def _changed(change: dict[str, Any]) -> str:
    where = "of the policy" if change["arm"] is None else f"of {change['arm']}"
    since = f"since decision {change['decision_id']} of {change['at']}"
    return f"drift: the mean reward {where} changed from {change['before']:.4g} to {change['after']:.4g} {since}"


def _heaviest(weights: dict[str, float]) -> str:
    """The ten weights that say most."""
    chosen = sorted(weights.items(), key=lambda one: (-abs(one[1]), one[0]))[:10]
    return ", ".join(f"{name} {weight:+.3g}" for name, weight in chosen if weight) or "none but 0"


@policy.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@printed
@stored
def diff(store: Any, show: Show, first: str, second: str) -> None:
    """Compare what two policies, or two versions of one, say of each arm.

    A and B are NAME or NAME@V; a difference is that of B above A.

    \b
    Example:
      rlrec policy diff home home@2
    """
    from rlrec.app import policy as use_case

    found = use_case.diff(store, first, second)
    columns = ["arm", "status", *(f"{name}_{side}" for name in use_case.COMPARED for side in ("a", "b", "difference"))]
    rows = [[one[name] for name in columns] for one in found]
    view = View(headers=columns, rows=rows, title=[f"a: {first}", f"b: {second}"])
    show(found, table=view, columns=columns)


@policy.command()
@click.argument("reference", metavar="NAME[@V]")
@click.option("--reward", help="Learn this reward instead of its own.")
@click.option("--features", type=JSON_FILE, help="JSON: read contexts and arms like this instead.")
@click.option(
    "--after-drift", type=click.Choice(["adwin", "page-hinkley"]),
    help="Hold only decisions since rewards last changed; without a change, nothing is done.",
)  # fmt: skip
@printed
@stored
def rebuild(store: Any, show: Show, reference: str, **request: Any) -> None:
    """Compute a belief anew from the stored events, as a new version that goes on learning; it is not live.

    The past enters in ranges, so that others can work meanwhile; a rebuild that was killed goes on where it was when
    the same is asked for again. A logistic model is expanded around what the log says now.

    \b
    Example:
      rlrec policy rebuild home --reward default
    """
    from rlrec.app import rebuild as use_case

    show(use_case.rebuild(store, use_case.Request(reference=reference, **request)))


@policy.command()
@click.argument("reference", metavar="NAME@V")
@printed
@stored
def retire(store: Any, show: Show, reference: str) -> None:
    """End the learning of a version that is not live; its belief stays as it is.

    \b
    Example:
      rlrec policy retire home@3
    """
    from rlrec.app import rebuild as use_case

    show(use_case.retire(store, reference))


@policy.command()
@click.argument("reference", metavar="NAME[@V]")
@printed
@stored
def freeze(store: Any, show: Show, reference: str) -> None:
    """Copy a belief, without the slots that are not mature, into an immutable version; it is not live.

    \b
    Example:
      rlrec policy freeze home
    """
    from rlrec.app import versions as use_case

    show(use_case.freeze(store, reference))


@policy.command()
@click.argument("reference", metavar="NAME@V")
@printed
@stored
def promote(store: Any, show: Show, reference: str) -> None:
    """Make a version live.

    \b
    Example:
      rlrec policy promote home@2
    """
    from rlrec.app import versions as use_case

    show(use_case.promote(store, reference))


@policy.command()
@click.argument("name")
@printed
@stored
def rollback(store: Any, show: Show, name: str) -> None:
    """Return to the version that was live before the last promote.

    \b
    Example:
      rlrec policy rollback home
    """
    from rlrec.app import versions as use_case

    show(use_case.rollback(store, name))
