"""rlrec settle: learn from slots whose window is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rlrec.cli.output import Show
from rlrec.cli.shared import printed, stored

if TYPE_CHECKING:
    from rlrec.app.opening import Store


@click.command()
@printed
@stored
def settle(store: Store, show: Show) -> None:
    """Learn from slots of `settled` rewards whose window is over.

    \b
    Example:
      rlrec settle --json
    """
    from rlrec.app import settle as use_case

    show(use_case.settle(store))
