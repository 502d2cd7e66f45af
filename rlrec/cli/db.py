"""rlrec db: forget a user."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import CommandGroup, Store, examples, notice, settings, stored

Command = Callable[..., Any]


@click.group(cls=CommandGroup)
def db() -> None:
    """Forget a user, prune old decisions, back up and copy the store."""


def confirmed(question: str) -> Callable[[Command], Command]:
    """Adds --yes and --dry-run; asks the question on a terminal, and refuses where there is none to ask."""

    def add(command: Command) -> Command:
        @click.option("--yes", is_flag=True, help="Do not ask.")
        @click.option("--dry-run", is_flag=True, help="Count what would be done; nothing is changed.")
        @wraps(command)
        def run(*args: Any, yes: bool, dry_run: bool, **kwargs: Any) -> Any:
            if not (yes or dry_run):
                if not (sys.stdin and sys.stdin.isatty()):
                    raise click.UsageError("this cannot be undone, and there is no terminal to ask: give --yes")
                text = question.format(store=settings().db, **kwargs)
                if not click.confirm(f"{text} This cannot be undone. Go on?", err=True):
                    notice("nothing was changed")
                    raise click.exceptions.Exit(1)
            return command(*args, dry_run=dry_run, **kwargs)

        return run

    return add


@db.command()
@click.option("--user", required=True, metavar="KEY", help="The user.")
@confirmed("Delete all rows of user {user!r} from the store?")
@stored
@examples("rlrec db forget --user u9 --dry-run", "rlrec db forget --user u9 --yes --json")
def forget(store: Store, show: Show, **request: Any) -> None:
    """Delete a user: rows, what beliefs learned from them, and their bytes.

    Their sessions, visits, decisions, events, keys and assignments go, and contexts that no one else had. Beliefs,
    frozen and retired ones too, are corrected by what the user's slots added to them. What a version started from (a
    log, a prior, another policy's belief) and what training made of it cannot be unlearned: `retrain` names the
    versions that were made from rows of the user.

    The file of an SQLite store is written anew, so that nothing of the user is left in it; nobody else may read it at
    that moment. In PostgreSQL the rows are deleted; VACUUM FULL, and the end of its backups and archives, erase their
    bytes. Backups, exports and files of rejected lines are yours to delete; who imports a log again brings its users
    back."""
    from rlrec.app import db_forget as use_case

    forgotten = use_case.forget(store, use_case.Request(**request))
    show(forgotten)
    if forgotten["retrain"]:
        versions = ", ".join(forgotten["retrain"])
        notice(f"{versions} started from rows of the user, which cannot be unlearned: train or create them anew")
    if not request["dry_run"] and "://" in store.where:
        notice("the rows are deleted; VACUUM FULL erases their bytes")
