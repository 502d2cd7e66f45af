"""This module completes names of arms, policies and other things in a shell, as values of options and arguments."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import click
from click.shell_completion import CompletionItem

from rlrec.cli.program import app
from rlrec.cli.program.shared import Settings, walk

# the kinds of names that an option takes, by its name or metavar
OPTIONS = {
    "--policy": ("policy", "route"), "--from-policy": ("policy",), "POLICY[@V]": ("policy",), "--kind": ("kind",),
    "--experiment": ("experiment",), "--reward": ("reward",), "--arms": ("arm",), "--arm": ("arm",),
    "--estimator": ("estimator",), "CURVE": ("curve",),
}  # fmt: skip
# the kinds of names that an argument takes, by its name, by the path of its command, or by that of its group
ARGUMENTS = {
    "environment": "environment", "route": "route", "arm": "arm", "policy": "policy", "experiment": "experiment",
    "events": "event", "position": "curve", "reward": "reward", "evaluate": "policy", "train-pg": "policy",
}  # fmt: skip
NEW = {"add", "import", "create", "fit", "define"}  # commands that take a new name, which cannot be completed
LISTS = {"--arms", "--estimator"}  # options with several names between commas


def attach(command: click.Command, name: str) -> None:
    """Add completion to the parameters of a command and of its subcommands."""
    for names, leaf in walk(command, name):
        for param in leaf.params:
            if sorts := _sorts(param, *names):
                complete = partial(_items, sorts, bool(LISTS.intersection(param.opts)))
                setattr(param, "shell_complete", complete)  # noqa: B010


def _sorts(param: click.Parameter, group: str, name: str = "") -> tuple[str, ...]:
    if isinstance(param, click.Option):
        return next((OPTIONS[key] for key in (*param.opts, param.metavar) if key in OPTIONS), ())
    if name in NEW:
        return ()
    sort = next((ARGUMENTS[key] for key in (param.name, group) if key in ARGUMENTS), None)
    return () if sort is None else (sort,)


def _items(sorts: tuple[str, ...], is_list: bool, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    head, comma, word = incomplete.rpartition(",") if is_list else ("", "", incomplete)
    names = [name for sort in sorts for name in _names(ctx, sort) if name.startswith(word)]
    return [CompletionItem(f"{head}{comma}{name}") for name in names]


def _names(ctx: click.Context, sort: str) -> list[str]:
    """Return the names of a kind, or none if the store cannot be read."""
    from rlrec.app.opening import open_store
    from rlrec.errors import RlrecError

    if sort not in app.names.IN_STORE:
        return app.names.program_names(sort)
    db = vars(ctx.ensure_object(Settings)).get("db") or ctx.find_root().params.get("db") or Settings.db
    with suppress(RlrecError), open_store(db, now=None, notice=lambda _: None) as store:
        return app.names.stored_names(store, sort)
    return []
