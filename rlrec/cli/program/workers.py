"""The options that say who works on the partitions of a log."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from rlrec.cli.program import app
from rlrec.cli.program.shared import HOW_TO_RUN, option_group
from rlrec.cli.text.values import Integer

ENGINES = ("local", "dask")
_OPTIONS = (
    click.option(
        "--jobs", type=Integer(1), default=1, show_default=True, metavar="N",
        help="Processes that share a log of more than 50,000 decisions.",
    ),
    click.option(
        "--engine", type=click.Choice(ENGINES), default="local", show_default=True, metavar="ENGINE",
        help="local processes, or a cluster: dask.",
    ),
    click.option("--scheduler", metavar="ADDRESS", help="A running Dask cluster, e.g. tcp://127.0.0.1:8786."),
)  # fmt: skip


def workers_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `workers`, as its options name them; write it above what gives it the store."""

    @wraps(command)
    def run(*args: Any, jobs: int, engine: str, scheduler: str | None, **kwargs: Any) -> Any:
        workers = app.evaluate.Workers(jobs=jobs, engine=engine, scheduler=scheduler)
        return command(*args, workers=workers, **kwargs)

    return option_group(HOW_TO_RUN, *_OPTIONS)(run)
