"""This module holds the command `rlrec init`, which creates a store."""

from __future__ import annotations

import click

from rlrec.cli.output.output import Show
from rlrec.cli.program import app
from rlrec.cli.program.shared import (
    NOTHING_STORED,
    GroupedCommand,
    Store,
    dry_run_option,
    notice,
    suggest_next,
    takes_store,
)
from rlrec.cli.text.values import DURATION


@click.command(cls=GroupedCommand)
@click.option(
    "--session-timeout", type=DURATION, help="A visit ends after this long without a decision [default: 30m]."
)
@click.option("--check", is_flag=True, help="Only look: exit 3 where the store is missing or out of date.")
@dry_run_option
@takes_store("rlrec --db shop.db init --session-timeout 45m")
def init(store: Store, show: Show, session_timeout: int | None, check: bool, dry_run: bool) -> None:
    """Safe to repeat, and to run many times at once."""
    if check:
        show(app.init.check(store))
        return
    result = app.init.init(store, session_timeout_us=session_timeout, dry_run=dry_run)
    show(result)
    if dry_run:
        notice(NOTHING_STORED)
    elif result.created:
        suggest_next(show, "arm add KEY", "(or `arm import FILE`) says what can be shown")
