"""This module holds the commands of `rlrec db`, which forget a user, prune old decisions, back up and copy the store,
and print rights for roles."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from rlrec.cli.output.output import Show, write
from rlrec.cli.program import app
from rlrec.cli.program.files import check_target
from rlrec.cli.program.shared import (
    CommandGroup,
    Store,
    current_settings,
    notice,
    print_sentences,
    question_of_terminal,
    takes_output,
    takes_store,
)
from rlrec.cli.text.values import NAME, TIME

Command = Callable[..., Any]
NOTHING_CHANGED = "dry run: nothing was changed"


db = CommandGroup("db")


def asks_question(question: str, *, is_needed: bool = True) -> Callable[[Command], Command]:
    """Return a decorator that makes a command ask a question on the terminal before it runs, and adds --yes and
    --dry-run. With either of them, the command does not ask.

    `question` is the text, in which {store} and the arguments of the command are filled in. `is_needed` says whether
    the command is refused if it cannot ask, since there is no terminal."""

    def add(command: Command) -> Command:
        @click.option("--yes", is_flag=True, help="Do not ask.")
        @click.option("--dry-run", is_flag=True, help="Count what would be done; nothing is changed.")
        @wraps(command)
        def run(*args: Any, yes: bool, dry_run: bool, **kwargs: Any) -> None:
            ask = question_of_terminal()
            if is_needed and not (yes or dry_run or ask):
                raise click.UsageError("this cannot be undone, and there is no terminal to ask: give --yes")
            if ask and not (yes or dry_run or ask(question.format(store=current_settings().db, **kwargs))):
                notice("nothing was changed")
                raise click.exceptions.Exit(1)
            command(*args, dry_run=dry_run, **kwargs)
            if dry_run:
                notice(NOTHING_CHANGED)

        return run

    return add


@db.command()
@click.option("--user", required=True, metavar="KEY", help="The user.")
@asks_question("Delete all rows of user {user!r} from {store}? This cannot be undone.")
@takes_store("rlrec db forget --user u9 --dry-run", "rlrec db forget --user u9 --yes --json")
def forget(store: Store, show: Show, **request: Any) -> None:
    """Delete a user, and what beliefs learned from them.

    It deletes their sessions, visits, decisions, events, keys and assignments, and contexts that no one else had. What
    the user's slots added is subtracted from all beliefs: learning, frozen and retired ones, variants of experiments,
    and those that were fitted to a log. Trained and fitted parameters and priors cannot be unlearned: `retrain` names
    the versions that learned some from the user.

    The file of an SQLite store is rewritten, so that nothing of the user is left in it; no other process may read it at
    that moment. If this was not possible, `doctor` warns until you repeat the command. In PostgreSQL, rows are deleted;
    run VACUUM FULL to erase their bytes, and delete its backups and archives. Delete other backups, exports and files
    of rejected lines yourself; importing a log again brings its users back."""
    removal = app.db_removals.forget(store, **request)
    show(removal)
    if removal["retrain"]:
        versions = ", ".join(removal["retrain"])
        origin_clause = f"parameters of {versions} come from rows of the user and cannot be unlearned"
        notice(f"{origin_clause}: train or create them anew")
    if not request["dry_run"] and "://" in store.address:
        notice("the rows are deleted; VACUUM FULL erases their bytes")


@db.command()
@click.option("--before", type=TIME, required=True, metavar="TIME", help="Delete visits that ended before it.")
@asks_question("Delete the decisions before that time, with their events, from {store}? This cannot be undone.")
@takes_store("rlrec db prune --before 2025-01-01 --dry-run", "rlrec db prune --before 2025-01-01 --yes --json")
def prune(store: Store, show: Show, **request: Any) -> None:
    """Delete old decisions with their events; beliefs stay as they are.

    It deletes visits that ended before the time, are mature for every reward and have entered every belief that learns
    from them (`rlrec settle`), and sessions, users, contexts and keys that are then unused. Beliefs do not change;
    their sums over deleted slots are stored, so that `doctor` can still check them, and changes of beliefs without a
    decision are merged into one per arm. The rules not_after and not_shown no longer see deleted purchases and
    showings: keep as many days as their windows have.

    Estimates, outcomes, experiments and training then see only the visits that are left, and the beliefs of the named
    policies cannot be rebuilt. Feedback for a deleted decision is refused; a deleted request id or imported line counts
    as new. If this matters, run `export-log` or `db backup` first."""
    removal = app.db_removals.prune(store, **request)
    show(removal)
    if removal["decisions"]:
        policies = ", ".join(removal["policies"])
        lost_text = f"estimates, outcomes and training of that time, and rebuilds of {policies}"
        print_sentences(show, f"Lost with these visits: {lost_text}.")


@db.command()
@click.argument("path", type=click.Path(dir_okay=False), metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Say how large it would be; nothing is written.")
@takes_store("rlrec db backup backup.db")
def backup(store: Store, show: Show, path: str, dry_run: bool) -> None:
    """Write a snapshot of an SQLite store to a new file.

    Other processes may read and write meanwhile. The file appears when it is complete; an existing file is never
    replaced. It is a normal store: `rlrec --db FILE doctor` checks it. For PostgreSQL use pg_dump."""
    check_target(path, "FILE")
    show(app.db_copy.backup(store, path, dry_run=dry_run))
    if dry_run:
        notice(NOTHING_CHANGED)


@db.command()
@click.option("--to", required=True, metavar="URL_OR_PATH", help="Where to; a new file or an empty database.")
@asks_question("Copy {store} to {to}?", is_needed=False)
@takes_store("rlrec db copy --to copy.db --json", "rlrec db copy --to postgresql://localhost/rlrec --dry-run")
def copy(store: Store, show: Show, to: str, dry_run: bool) -> None:
    """Copy the store to another database, row by row.

    Stop all writers first: what they store during the copy is not copied. It copies between SQLite and PostgreSQL in
    any direction. Ids, times and contents stay the same, so estimates are equal to the last digit. Rows are written in
    batches; if it was stopped, the same command continues, unless the store has changed. Until it is complete, no
    command accepts the target as a store."""
    show(app.db_copy.copy(store, to, dry_run=dry_run))


@db.command()
@click.option("--prefix", type=NAME, default="rlrec", show_default=True, help="Prefix of the roles' names.")
@takes_output("rlrec db roles > roles.sql && psql shop -f roles.sql", "rlrec db roles --prefix shop --json")
def roles(show: Show, prefix: str) -> None:
    """Print SQL that creates PostgreSQL roles with only the rights that they need.

    PREFIX_reader reads: `evaluate`, `report`, `status`, `doctor`. PREFIX_server serves: `recommend`, `feedback`,
    `pipe`, `serve`, `settle`, `session end`; it cannot change or delete logged rows, or define anything. PREFIX_trainer
    also defines, imports, trains and promotes. `init`, `db forget`, `db prune` and `db copy` are for the owner of the
    tables.

    The roles have no login: `GRANT shop_server TO web` gives a login their rights. Run the script as the owner of the
    tables who may create roles; it may be run again, and should be after each `init` that migrates."""
    grants = app.db_roles.grants(prefix)
    if show.format == "table":
        write("".join(f"{grant.statement}\n" for grant in grants).encode())
    else:
        show(grants)
