"""This module holds the commands of `rlrec log`, which exclude parts of the log and include them again."""

from __future__ import annotations

from itertools import chain
from typing import Any

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import CommandGroup, Store, print_sentences, takes_read_store, takes_write_store
from rlrec.cli.text.text import View
from rlrec.cli.text.values import NAME
from rlrec.errors import quantity

EXCLUSION_COLUMNS = ("exclusion", "filter", "users", "sessions", "created_at")

log = CommandGroup("log")


@log.command()
@click.argument("name", type=NAME)
@click.option("--where", metavar="FILTER", help="The decisions, as in the --log of `evaluate`.")
@click.option("--machines", is_flag=True, help="The users and sessions that `doctor` takes for bots.")
@takes_write_store("rlrec log exclude bots --machines", "rlrec log exclude staff --where user=u1+u2 --dry-run --json")
def exclude(store: Store, show: Show, **request: Any) -> None:
    """Leave decisions out of everything that reads the log, until `log include`.

    Estimates, outcomes, experiments, curves, training and exports leave them out; --log included=NAME or included=all
    brings them back for one command. Users in them are served as before, and nothing is deleted. Beliefs do not learn
    from new decisions of this kind. What a belief learned from earlier ones (and from their later events) stays, until
    `policy rebuild` makes a version without them and `policy promote` lets it serve: the answer names these
    commands."""
    _show_exclusion(show, app.exclusions.exclude(store, **request), "excluded", "has learned from them")


@log.command()
@click.argument("name", type=NAME)
@takes_write_store("rlrec log include bots")
def include(store: Store, show: Show, name: str) -> None:
    """End an exclusion: its decisions count again.

    Beliefs that left them out learn from them by `policy rebuild`, whose version serves after `policy promote`."""
    _show_exclusion(show, app.exclusions.include(store, name), "included again", "left them out")


@log.command("list")
@takes_read_store("rlrec log list", "rlrec log list --json")
def list_(store: Store, show: Show) -> None:
    """List the exclusions. Users and sessions are counted; --json names them."""
    rows = app.exclusions.list_exclusions(store)
    flat = [_with_counts(row) for row in rows]
    show(rows, table=View.select(flat, EXCLUSION_COLUMNS), flat=flat)


def _with_counts(row: Any) -> dict[str, Any]:
    return {**row, **{name: len(row[name]) if row[name] is not None else None for name in ("users", "sessions")}}


def _show_exclusion(show: Show, answer: app.exclusions.Excluded, verb: str, belief_clause: str) -> None:
    commands = [_with_promotion(command) for command in answer["rebuild"]]
    flat = _with_counts(answer) | {"rebuild": "; ".join(chain.from_iterable(commands))}
    show(answer if "json" in show.format else {name: value for name, value in flat.items() if name != "variants"})
    count_text = f"{answer['decisions']:,} of {quantity(answer['total'], 'decision')}"
    sentences = [f"`{'`, then `'.join(steps)}`: its belief {belief_clause}" for steps in commands]
    for variant, command in answer["variants"].items():
        steps = "`, then `".join(_with_promotion(command))
        sentences.append(
            f"{variant} {belief_clause}, and no rebuild replaces it while its experiment runs; promoted: `{steps}`"
        )
    print_sentences(show, f"{verb}: {count_text}", *sentences)


def _with_promotion(command: str) -> list[str]:
    """Return the commands to run: `command` and, if it rebuilds a policy, the one that promotes the rebuilt version.
    Without promotion, the version serves nobody."""
    program_prefix, is_rebuild, policy = command.partition("policy rebuild ")
    return [command, f"{program_prefix}policy promote {policy}@VERSION"] if is_rebuild else [command]
