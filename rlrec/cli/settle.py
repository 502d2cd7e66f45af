"""rlrec settle: learn from slots whose window is over."""

from __future__ import annotations

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import Store, stored


@click.command()
@stored
def settle(store: Store, show: Show) -> None:
    """Learn from slots of `settled` rewards whose window is over.

    \b
    Example:
      rlrec settle --json
    """
    from rlrec.app import settle as use_case

    show(use_case.settle(store))
