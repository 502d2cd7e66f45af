"""This module holds the command `rlrec screen`, which serves pages for a browser on this machine."""

from __future__ import annotations

import asyncio
import signal
from functools import partial

import click

from rlrec.cli.doors.serve import open_listener, run_until_signal
from rlrec.cli.output.output import Show
from rlrec.cli.program import signals
from rlrec.cli.program.shared import GroupedCommand, Store, notice, takes_read_store
from rlrec.errors import InputError

DEFAULT_ADDRESS = "127.0.0.1:8090"
REMOTE_SCREEN_HINT = "`rlrec serve --screen` is for other machines: it has a token"


@click.command(cls=GroupedCommand, epilog="`rlrec help screen` explains its pages.")
@click.option(
    "--listen", "address", default=DEFAULT_ADDRESS, show_default=True, metavar="HOST:PORT",
    help="A port of this machine; port 0 takes a free one.",
)  # fmt: skip
@takes_read_store("rlrec screen", "rlrec screen --listen 127.0.0.1:0")
def screen(store: Store, show: Show, address: str) -> None:
    """Serves pages for a browser on this machine, with what `status`, `policy show`, `experiment show`, `route show`,
    `effects`, `session show`, `decision show` and `report` print, and links between users, sessions, arms and
    decisions. It writes nothing to the store. Ctrl-C ends it.

    Two other processes make the pages. A page that takes long is cached for forty times as long as it took; its time
    stands below."""
    try:
        from rlrec.cli.doors.page_server import PageServer, ScreenApplication, page_options
        from rlrec.cli.doors.protocol import Limits, make_server
        from rlrec.cli.doors.web import LOOPBACK, Access
    except ImportError as error:
        raise InputError(f"screen needs {error.name}", hint="pip install 'rlrec[serve]'") from None
    store.close()  # other processes read it
    with open_listener(address, allow_remote=False, hint=REMOTE_SCREEN_HINT) as (listener, name):
        pages = PageServer(page_options(store))
        front = ScreenApplication(pages, Access(hosts=None if address.startswith("unix:") else LOOPBACK))
        show_address = partial(show, {"url": name if address.startswith("unix:") else f"http://{name}/"})
        try:
            number = asyncio.run(
                run_until_signal(make_server(front.application, Limits(), notice), listener, show_address)
            )
        finally:
            pages.close()
    if number != signal.SIGTERM:
        raise signals.Interrupted(number)
