"""rlrec route: names that callers use, and that outlive a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.experiment import SHARE
from rlrec.cli.output import Show, View
from rlrec.cli.shared import CommandGroup, Store, examples, stored
from rlrec.cli.values import NAME

if TYPE_CHECKING:
    from rlrec.app.route import RouteSummary

COLUMNS = ("route", "policy", "version", "experiment", "since", "live", "reference")
HISTORY = ("at", "reference", "experiment", "by")

to_option = click.option(
    "--to", required=True, metavar="POLICY[@V]",
    help="The policy that it leads to. POLICY follows its live version, POLICY@V stays with one.",
)  # fmt: skip


@click.group(cls=CommandGroup)
def route() -> None:
    """Lead callers to a policy by a name that stays; switch, roll back.

    Callers write `rlrec recommend --policy ROUTE`.
    """


@route.command()
@click.argument("name", type=NAME)
@to_option
@stored
@examples("rlrec route create front --to home")
def create(store: Store, show: Show, **request: Any) -> None:
    """Create a route. Routes and policies share one namespace."""
    from rlrec.app import route as use_case

    show(use_case.create(store, use_case.Request(**request)))


@route.command("set")
@click.argument("name", type=NAME)
@to_option
@click.option(
    "--share", type=SHARE, metavar="SHARE",
    help="Begin a ramp: an experiment on this share of the route's users, 5% or 0.05.",
)  # fmt: skip
@stored
@examples("rlrec route set front --to home@2", "rlrec route set front --to home@2 --share 5%")
def set_(store: Store, show: Show, **request: Any) -> None:
    """Lead a route to another policy or version, from the next decision on.

    With --share it goes on serving what it does, and an experiment gives the other policy to a share of its users
    (sessions without a user are split by session): variants `current` and `candidate`, each with a copy of its belief
    that learns from its own decisions. `rlrec experiment show` compares them; `rlrec experiment stop NAME --promote
    candidate` ends it, and the route serves the belief that this variant has learned. Callers never notice.
    """
    from rlrec.app import route as use_case

    show(use_case.set_route(store, use_case.Request(**request)))


@route.command("show")
@click.argument("name", type=NAME)
@stored
@examples("rlrec route show front")
def show_(store: Store, show: Show, name: str) -> None:
    """Show what a route serves, since when and why, and what it served before, newest first."""
    from rlrec.app import route as use_case

    result = use_case.show(store, name)
    show(result, table=_view(result))


def _view(result: RouteSummary) -> View:
    history = result["history"]
    follows = "the live version, now" if result["live"] else "version"
    title = [
        f"route {result['route']} serves {result['policy']}, {follows} {result['version']}",
        f"since {result['since']}, by `{history[0]['by']}`",
        *([f"ramp {result['experiment']} runs"] if result["experiment"] else []),
    ]
    return View.of(history, HISTORY, title=title)


@route.command("list")
@stored
@examples("rlrec route list")
def list_(store: Store, show: Show) -> None:
    """List routes with what they serve."""
    from rlrec.app import route as use_case

    show(use_case.listing(store), columns=COLUMNS)


@route.command()
@click.argument("name", type=NAME)
@stored
@examples("rlrec route rollback front")
def rollback(store: Store, show: Show, name: str) -> None:
    """Serve again what the route served before its last change; once more goes back one more. A ramp ends with it."""
    from rlrec.app import route as use_case

    show(use_case.rollback(store, name))
