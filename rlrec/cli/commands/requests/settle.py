"""This module holds the command `rlrec settle`, which learns from slots whose reward window is over."""

from __future__ import annotations

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import GroupedCommand, Store, print_sentences, takes_write_store
from rlrec.errors import quantity


@click.command(cls=GroupedCommand)
@takes_write_store("rlrec settle --json")
def settle(store: Store, show: Show) -> None:
    result = app.settle.settle(store)
    show(result)
    slots_text = quantity(result.settled, "slot")
    print_sentences(show, f"{slots_text} entered the beliefs, {result.open:,} wait for the end of their window.")
