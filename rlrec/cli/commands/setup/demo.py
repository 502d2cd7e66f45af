"""This module holds the command `rlrec demo`, which shows on a real log how policies are judged and improved, and
copies the sample files."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import GroupedCommand, notice, takes_output
from rlrec.cli.text.values import Integer

NO_FOLDER = ""  # for a folder without a name


@click.command(cls=GroupedCommand)
@click.option("--keep", type=click.Path(file_okay=False), metavar="FOLDER", help="Work in this folder, and keep it.")
@click.option(
    "--data", type=click.Path(file_okay=False), metavar="[FOLDER]", is_flag=False, flag_value=NO_FOLDER,
    help="Print the folder of the sample files, or copy them to another one, and end.",
)  # fmt: skip
@click.option(
    "--audience", type=click.Path(exists=True, dir_okay=False), metavar="CSV",
    help="Play the audience: answers of `recommend` on stdin, lines for `feedback` on stdout.",
)  # fmt: skip
@click.option("--seed", type=Integer(0), default=0, show_default=True, help="Seed of the audience.")
@click.option("--dry-run", is_flag=True, help="List the commands, or the files of --data, and write none.")
@takes_output("rlrec demo", "rlrec demo --data sample_data", 'ls "$(rlrec demo --data)"')
def demo(show: Show, keep: str | None, data: str | None, audience: str | None, seed: int, dry_run: bool) -> None:
    """It works in a temporary store, and shows every command that it runs."""
    if data == NO_FOLDER:
        folder = str(app.demo.samples())
        show(folder if show.format == "table" else {"folder": folder})
        return
    if data is not None:
        show(app.demo.copy_samples(Path(data), dry_run=dry_run))
        return
    if audience is not None:
        for line in app.demo.clicks(Path(audience), sys.stdin, seed=seed):
            click.echo(line)
        return
    is_table = show.format == "table"
    report = partial(click.echo, nl=False) if is_table else lambda text: None
    if dry_run:
        results = app.demo.plan(report=report)
    else:
        with _work_folder(keep) as folder:
            is_terminal, has_colour = is_table and show.screen.width is not None, show.screen.colour
            results = list(app.demo.run(Path(folder), report=report, terminal=is_terminal, colour=has_colour))
            notice(f"the store is {folder}/rlrec.db" if keep else "the store is gone; --keep FOLDER leaves it to you")
        notice("next: `rlrec help first-steps` begins one of your own")
    if not is_table:
        show(results)


def _work_folder(keep: str | None) -> AbstractContextManager[str]:
    if keep is None:
        return TemporaryDirectory(prefix="rlrec-demo-")
    Path(keep).mkdir(parents=True, exist_ok=True)
    return nullcontext(keep)
