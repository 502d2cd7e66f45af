"""rlrec settle."""

from __future__ import annotations

from typing import Any

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import printed, stored


@click.command()
@printed
@stored
def settle(store: Any, show: Show) -> None:
    """Learn from slots of `settled` rewards whose window is over.

    \b
    Example:
      rlrec settle --json
    """
    from rlrec.app import settle as use_case

    show(use_case.settle(store))
