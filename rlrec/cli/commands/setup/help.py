"""This module holds the command `rlrec help`, which shows the pages of the manual and the help of a command."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click

from rlrec import __version__
from rlrec.cli.output.output import Show, write
from rlrec.cli.program.shared import GroupedCommand, takes_output
from rlrec.cli.text.text import View, terminal_columns
from rlrec.errors import InputError, suggest

MANUAL_FOLDER = Path(__file__).resolve().parents[3] / "help"
PAGE_ORDER = (
    "first-steps", "overview", "contexts", "eligible", "rewards", "own-logs", "judging", "experiments", "visits",
    "llm-routing", "cron", "back-end", "screen", "notebooks", "postgresql", "machines", "scale", "data", "commands",
    "formats", "schema", "exit-codes", "environment", "speed", "glossary", "evaluate", "train-pg", "outcomes",
    "import-log", "simulate",
)  # fmt: skip


class ManualPage(NamedTuple):
    """A ManualPage is a page of the manual.

    `topic` is the name of its file without the ending, `summary` its first paragraph, and `text` the whole page in
    Markdown."""

    topic: str
    summary: str
    text: str


def manual_pages() -> list[ManualPage]:
    """Return all pages of the manual in the order of PAGE_ORDER. Pages that PAGE_ORDER lacks come last."""
    ranks = {topic: rank for rank, topic in enumerate(PAGE_ORDER)}
    paths = sorted(MANUAL_FOLDER.glob("*.md"), key=lambda path: (ranks.get(path.stem, len(ranks)), path.stem))
    return [_parse_page(path.stem, path.read_text(encoding="utf-8")) for path in paths]


def _parse_page(topic: str, text: str) -> ManualPage:
    paragraphs = text.split("\n\n", 2)
    return ManualPage(topic, " ".join(paragraphs[1].split()), text)


def full_text(page: ManualPage) -> str:
    """Return the Markdown of a page. For the page `evaluate`, a list of the estimators is added at the end."""
    if page.topic != "evaluate":
        return page.text
    from rlrec.app.evaluation import descriptions

    # wrapped as in the pages
    wrap_item = partial(textwrap.fill, width=120, subsequent_indent="  ", break_on_hyphens=False)
    sections = [
        f"## Estimators per {unit}\n\n" + "\n".join(wrap_item(f"- `{name}`: {text}") for name, text in estimators)
        for unit, estimators in descriptions().items()
    ]
    return "\n\n".join([page.text.rstrip("\n"), *sections]) + "\n"


def plain_text(markdown: str, width: int = 0) -> str:
    """Return a page of the manual as plain text. Blocks of code are indented, and a link becomes the command that shows
    the linked page.

    `width` is the width of lines outside blocks, or 0 to keep the lines of the page."""
    chunks = re.split(r"^```.*\n", markdown, flags=re.MULTILINE)
    chunks[1::2] = [re.sub(r"^(?=.)", "    ", block, flags=re.MULTILINE) for block in chunks[1::2]]
    chunks[::2] = [
        "\n\n".join(_wrap_paragraph(text, width) for text in _replace_links(chunk).split("\n\n"))
        for chunk in chunks[::2]
    ]
    return "".join(chunks)


def _replace_links(text: str) -> str:
    """Return a text in which each link to a page is replaced by the command that shows the page."""
    return re.sub(r"\[([^]]+)\]\(([\w-]+)\.md\)", r"\1 (rlrec help \2)", text)


def _wrap_paragraph(text: str, width: int) -> str:
    """Return a paragraph, a list or a table with its lines wrapped to a width."""
    if not width or not text.strip("\n") or text.lstrip("\n").startswith(("#", "    ")):
        return text
    items = re.split(r"\n(?=- |\|)", text.strip("\n"))
    lines = [
        textwrap.fill(
            " ".join(piece.strip("| ").split()), width, break_on_hyphens=False,
            subsequent_indent={"-": "  ", "|": "    "}.get(piece[0], ""),
        )
        for piece in items
        if not re.fullmatch(r"[|\s:-]+", piece)
    ]  # fmt: skip
    n_before, n_after = (len(text) - len(strip_newlines("\n")) for strip_newlines in (text.lstrip, text.rstrip))
    return "\n" * n_before + "\n".join(lines) + "\n" * n_after


def manual_in_roff(program_help: str) -> str:
    """Return all pages of the manual as one page for `man`, in roff.

    `program_help` is the text that `rlrec -h` shows."""
    title_lines = [f'.TH RLREC 1 "" "rlrec {__version__}"', ".SH NAME", "rlrec \\- exploration for recommenders"]
    lines = [*title_lines, ".SH COMMANDS", ".nf", *map(_escape_roff, program_help.splitlines()), ".fi"]
    for page in manual_pages():
        for number, chunk in enumerate(re.split(r"^```.*\n", full_text(page), flags=re.MULTILINE)):
            if number % 2:
                lines += [".PP", ".RS 4", ".nf", *map(_escape_roff, chunk.splitlines()), ".fi", ".RE"]
            else:
                lines += [
                    line for text in _replace_links(chunk).strip("\n").split("\n\n") for line in _roff_paragraph(text)
                ]
    return "\n".join(lines) + "\n"


def _roff_paragraph(text: str) -> list[str]:
    if heading := re.match(r"(##?) (.*)", text):
        return [f"{'.SS' if heading[1] == '##' else '.SH'} {_escape_roff(heading[2])}"]
    pieces = [piece for piece in re.split(r"\n(?=- |\|)", text) if not re.fullmatch(r"[|\s:-]*", piece)]
    is_list = text.startswith(("- ", "|"))
    return [
        line for piece in pieces for line in (".IP \\(bu 2" if is_list else ".PP", _escape_roff(piece.strip("-| ")))
    ]


def _escape_roff(text: str) -> str:
    """Return a text with escapes for the characters that roff would interpret."""
    line = " ".join(text.split()) if "\n" in text else text
    line = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _complete_word(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    names = [page.topic for page in manual_pages()] + context.find_root().command.list_commands(context)  # type: ignore[attr-defined]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


@click.command("help", cls=GroupedCommand)
@click.argument("words", nargs=-1, metavar="[TOPIC | COMMAND...]", shell_complete=_complete_word)
@click.option("--man", is_flag=True, help="Write all pages as one for `man`.")
@takes_output("rlrec help", "rlrec help judging", "rlrec help policy create", "rlrec help --man > rlrec.1")
def help(show: Show, words: Sequence[str], man: bool) -> None:  # noqa: A001 (the name of the command)
    """Without TOPIC it lists the pages. Five commands also have a page of their name; their COMMAND -h is short."""
    if man:
        write(manual_in_roff(click.get_current_context().find_root().get_help()).encode())
        return
    if not words:
        topics = [{"topic": page.topic, "summary": page.summary} for page in manual_pages()]
        notes = ["rlrec help TOPIC shows a page, rlrec help COMMAND what rlrec COMMAND -h shows."]
        show(topics, table=View.select(topics, ["topic", "summary"], notes=notes))
        return
    page = next((page for page in manual_pages() if [page.topic] == [*words]), None)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    width = min(terminal_columns(), 100) if is_terminal else 0
    text = plain_text(full_text(page), width) if page else _command_help(words)
    if show.format != "table":
        show(page._replace(text=full_text(page)) if page else {"command": " ".join(words), "text": text})
    elif is_terminal:
        os.environ.setdefault("LESS", "-FRX")
        click.echo_via_pager(text)
    else:
        write(text.encode())


def _command_help(words: Sequence[str]) -> str:
    """Return the help of a command. Raises InputError if the command does not exist.

    words: the names by which the command is called."""
    context = click.get_current_context().find_root()
    for word in words:
        group = context.command
        command = group.get_command(context, word) if isinstance(group, click.Group) else None
        if command is None:
            names = group.list_commands(context) if isinstance(group, click.Group) else []
            names += [page.topic for page in manual_pages()] if context.parent is None else []
            hint = suggest(word, names) or "`rlrec help` lists the pages, `rlrec -h` the commands"
            raise InputError(f"no page or command '{' '.join(words)}'", hint=hint)
        context = click.Context(command, info_name=word, parent=context)
    return context.get_help() + "\n"
