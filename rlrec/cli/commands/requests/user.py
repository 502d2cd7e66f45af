"""This module holds the commands of `rlrec user`, which merge the keys that stand for one person, and show a user."""

from __future__ import annotations

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import CommandGroup, Store, print_sentences, takes_read_store, takes_write_store
from rlrec.cli.text.values import KEY

user = CommandGroup("user")


@user.command("merge")
@click.argument("key", type=KEY)
@click.option("--into", type=KEY, required=True, help="The user that the key means from now on.")
@takes_write_store("rlrec user merge cookie-81 --into u1")
def merge(store: Store, show: Show, key: str, into: str) -> None:
    """Let both keys mean one user from now on. Past sessions move to --into, the person keeps the variant that either
    key had first in an experiment, and events `return` are derived again. The key may be new. A merge cannot be undone.
    `rlrec db forget` deletes the user with all keys."""
    answer = app.user.merge(store, key, into)
    show(answer)
    text = "exclusion {} leaves out all keys of {} from now on: `rlrec log list` shows it"
    print_sentences(show, *(text.format(name, answer["into"]) for name in answer["excluded_by"]))


@user.command("show")
@click.argument("key", type=KEY)
@takes_read_store("rlrec user show u1")
def show_(store: Store, show: Show, key: str) -> None:
    """Show the user that a key means, and all keys of this user."""
    show(app.user.show(store, key))
