"""This module completes values of options and arguments in a shell, such as the names of arms and policies."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import click
from click.shell_completion import CompletionItem

from rlrec.cli.program import app
from rlrec.cli.program.shared import Settings, walk_commands

# the kinds of names that an option takes, by its name or metavar
OPTION_KINDS = {
    "--policy": ("policy", "route"), "--from-policy": ("policy",), "POLICY[@V]": ("policy",), "--kind": ("kind",),
    "--experiment": ("experiment",), "--reward": ("reward",), "--arms": ("arm",), "--arm": ("arm",),
    "--estimator": ("estimator",), "CURVE": ("curve",),
}  # fmt: skip
# the kinds of names that an argument takes, by its name, by the path of its command, or by that of its group
ARGUMENT_KINDS = {
    "environment": "environment", "route": "route", "arm": "arm", "policy": "policy", "experiment": "experiment",
    "events": "event", "position": "curve", "reward": "reward", "evaluate": "policy", "train-pg": "policy",
}  # fmt: skip
NAMING_COMMANDS = {
    "add",
    "import",
    "create",
    "fit",
    "define",
}  # commands that take a new name, which cannot be completed
LIST_OPTIONS = {"--arms", "--estimator"}  # options with several names between commas


def attach_completion(command: click.Command, name: str) -> None:
    """Add completion in a shell to the parameters of a command and of its subcommands."""
    for names, leaf in walk_commands(command, name):
        for param in leaf.params:
            if kinds := _name_kinds(param, *names):
                complete = partial(_completions, kinds, bool(LIST_OPTIONS.intersection(param.opts)))
                setattr(param, "shell_complete", complete)  # noqa: B010


def _name_kinds(param: click.Parameter, group: str, name: str = "") -> tuple[str, ...]:
    if isinstance(param, click.Option):
        return next((OPTION_KINDS[key] for key in (*param.opts, param.metavar) if key in OPTION_KINDS), ())
    if name in NAMING_COMMANDS:
        return ()
    kind = next((ARGUMENT_KINDS[key] for key in (param.name, group) if key in ARGUMENT_KINDS), None)
    return () if kind is None else (kind,)


def _completions(kinds: tuple[str, ...], is_list: bool, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    head, comma, word = incomplete.rpartition(",") if is_list else ("", "", incomplete)
    names = [name for kind in kinds for name in _names_of_kind(ctx, kind) if name.startswith(word)]
    return [CompletionItem(f"{head}{comma}{name}") for name in names]


def _names_of_kind(ctx: click.Context, kind: str) -> list[str]:
    """Return all names of one kind for completion, or no name if the store cannot be read.

    kind: what the names stand for, such as arms or policies."""
    from rlrec.app.opening import open_store
    from rlrec.errors import RlrecError

    if kind not in app.names.IN_STORE:
        return app.names.program_names(kind)
    db = vars(ctx.ensure_object(Settings)).get("db") or ctx.find_root().params.get("db") or Settings.db
    with suppress(RlrecError), open_store(db, now=None, notice=lambda _: None) as store:
        return app.names.stored_names(store, kind)
    return []
