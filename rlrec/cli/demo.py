"""rlrec demo."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import printed
from rlrec.cli.values import Whole


@click.command()
@click.option("--keep", type=click.Path(file_okay=False), metavar="FOLDER", help="Work there and leave everything.")
@click.option(
    "--audience", type=click.Path(exists=True, dir_okay=False), metavar="CSV",
    help="Play the audience: answers of `recommend` on stdin, lines for `feedback` on stdout.",
)  # fmt: skip
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the audience.")
@printed
def demo(show: Show, keep: str | None, audience: str | None, seed: int) -> None:
    """Show the whole loop on a real log, in under a minute.

    Works in a throwaway store, and says every command that it runs.

    \b
    Example:
      rlrec demo
    """
    from rlrec.app import demo as use_case

    if audience is not None:
        for line in use_case.clicks(Path(audience), sys.stdin, seed=seed):
            click.echo(line)
        return
    with _folder(keep) as folder:
        told = show.format == "table"
        done = use_case.run(folder, say=_say if told else _nothing, shown=_shown if told else _nothing)
        steps = [{"command": step.command, "output": step.output} for step in done]
    if not told:
        show(steps)


def _folder(keep: str | None) -> Any:
    if keep is None:
        return _throwaway()
    Path(keep).mkdir(parents=True, exist_ok=True)
    return contextlib.nullcontext(Path(keep))


@contextlib.contextmanager
def _throwaway() -> Any:
    with tempfile.TemporaryDirectory(prefix="rlrec-demo-") as folder:
        yield Path(folder)


def _say(step: Any) -> None:
    click.echo(f"\n# {step.why.replace(chr(10), chr(10) + '# ')}")
    click.echo(f"$ {step.command}")


def _shown(output: str) -> None:
    click.echo(output, nl=False)


def _nothing(_: object) -> None:
    pass
