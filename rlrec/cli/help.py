"""rlrec help: the pages of the manual, and the help of a command."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from rlrec.cli.output import Show, View, write
from rlrec.cli.shared import examples, printed
from rlrec.errors import InputError, suggest

FOLDER = Path(__file__).resolve().parent.parent / "help"
ORDER = (
    "first-steps", "overview", "contexts", "rewards", "own-logs", "judging", "experiments", "visits", "cron",
    "back-end", "notebooks", "postgresql", "data", "commands", "formats", "schema", "exit-codes", "environment",
    "speed", "glossary",
)  # fmt: skip


class ManualPage(NamedTuple):
    """A page of the manual: its file name without the ending, its first paragraph, and its Markdown."""

    topic: str
    summary: str
    text: str


def pages() -> list[ManualPage]:
    """All pages, in the order in which one would read them; those that ORDER lacks come last."""
    ranks = {topic: rank for rank, topic in enumerate(ORDER)}
    paths = sorted(FOLDER.glob("*.md"), key=lambda path: (ranks.get(path.stem, len(ranks)), path.stem))
    return [_page(path.stem, path.read_text(encoding="utf-8")) for path in paths]


def _page(topic: str, text: str) -> ManualPage:
    paragraphs = text.split("\n\n", 2)
    return ManualPage(topic, " ".join(paragraphs[1].split()), text)


def for_terminal(markdown: str) -> str:
    """A page as plain text: blocks are indented, links name the command that shows their page."""
    chunks = re.split(r"^```.*\n", markdown, flags=re.MULTILINE)
    chunks[1::2] = [re.sub(r"^(?=.)", "    ", block, flags=re.MULTILINE) for block in chunks[1::2]]
    return re.sub(r"\[([^]]+)\]\(([\w-]+)\.md\)", r"\1 (rlrec help \2)", "".join(chunks))


def _complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    names = [page.topic for page in pages()] + context.find_root().command.list_commands(context)  # type: ignore[attr-defined]
    return [name for name in names if name.startswith(incomplete)]


@click.command("help")
@click.argument("words", nargs=-1, metavar="[TOPIC | COMMAND...]", shell_complete=_complete)
@printed
@examples("rlrec help", "rlrec help judging", "rlrec help policy create")
def show_help(show: Show, words: Sequence[str]) -> None:
    """Show a page of the manual, or the help of a command.

    Without a word it lists the pages."""
    if not words:
        listed = [{"topic": page.topic, "summary": page.summary} for page in pages()]
        notes = ["rlrec help TOPIC shows a page, rlrec help COMMAND what rlrec COMMAND -h shows."]
        show(listed, table=View.of(listed, ["topic", "summary"], notes=notes))
        return
    page = next((page for page in pages() if [page.topic] == [*words]), None)
    text = for_terminal(page.text) if page else _command_help(words)
    if show.format != "table":
        show(page or {"command": " ".join(words), "text": text})
    elif sys.stdin.isatty() and sys.stdout.isatty():
        os.environ.setdefault("LESS", "-FRX")
        click.echo_via_pager(text)
    else:
        write(text.encode())


def _command_help(words: Sequence[str]) -> str:
    """The help of a command. Raises InputError for one that does not exist."""
    context = click.get_current_context().find_root()
    for word in words:
        group = context.command
        command = group.get_command(context, word) if isinstance(group, click.Group) else None
        if command is None:
            names = group.list_commands(context) if isinstance(group, click.Group) else []
            names += [page.topic for page in pages()] if context.parent is None else []
            hint = suggest(word, names) or "`rlrec help` lists the pages, `rlrec -h` the commands"
            raise InputError(f"no page or command '{' '.join(words)}'", hint=hint)
        context = click.Context(command, info_name=word, parent=context)
    return context.get_help() + "\n"
