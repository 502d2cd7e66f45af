"""Files that appear when they are complete, and not before."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as ContextManager
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from rlrec import drafts
from rlrec.cli.output import output
from rlrec.cli.program.inputs import check_target
from rlrec.cli.program.shared import OUTPUT, option_group
from rlrec.errors import InputError, RlrecError

if TYPE_CHECKING:
    from rlrec.report.figures import Figure


def _plot_target(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "-":
        raise click.UsageError("--plot takes the name of a file: stdout has the answer", ctx)
    if value is not None:
        check_target(value, "--plot")
    return value


plot_option = option_group(
    OUTPUT,
    click.option(
        "--plot", type=click.Path(dir_okay=False), metavar="FILE.svg", callback=_plot_target,
        help="Write the answer as a figure, too.",
    ),
)  # fmt: skip


@contextmanager
def complete_file(path: str) -> Iterator[BinaryIO]:
    """A file that gets its name once it is complete and on the disk; what is no plain file is written to as it is."""
    target = os.path.realpath(path)  # where a link leads, so that the link stays one
    plain = os.path.isfile(target) or not os.path.exists(target)
    with ExitStack() as opened:
        try:
            file = opened.enter_context(drafts.complete(target) if plain else open(path, "wb"))  # noqa: SIM115
        except OSError as error:
            folder = os.path.dirname(path)
            lacks_folder = folder and not os.path.exists(folder)
            hint = f"make its folder first: {folder}" if lacks_folder else "choose another path"
            raise RlrecError(f"cannot write {path}: {(error.strerror or str(error)).lower()}", hint=hint) from None
        packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if path.endswith(".gz") else None
        with cast(ContextManager[BinaryIO], packed or nullcontext(file)) as stream:
            yield stream


def write_text(path: str, text: str) -> int:
    """The number of bytes that were written to a file, or to stdout under the name `-`."""
    data = text.encode("utf-8", "backslashreplace")
    if path == "-":
        output.write(data)
        output.flush()
    else:
        with complete_file(path) as file:
            file.write(data)
    return len(data)


def save_plot(path: str | None, draw: Callable[[], Figure | None]) -> None:
    """Write the figure of an answer as a file of its own, where one is wanted. Raises InputError where it has none."""
    if path is None:
        return
    from rlrec.report import svg

    if (figure := draw()) is None:
        raise InputError("the answer has nothing to plot yet")
    write_text(path, svg.document(figure.drawing, title=figure.heading, description=figure.description))
