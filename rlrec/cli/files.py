"""Files that appear when they are complete, and not before."""

from __future__ import annotations

import glob
import gzip
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager as ContextManager
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from rlrec import drafts
from rlrec.cli import output
from rlrec.cli.inputs import check_target
from rlrec.errors import InputError, RlrecError

if TYPE_CHECKING:
    from rlrec.report.figures import Figure


def _plot_target(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "-":
        raise click.UsageError("--plot takes the name of a file: stdout has the answer", ctx)
    if value is not None:
        check_target(value, "--plot")
    return value


plot_option = click.option(
    "--plot", type=click.Path(dir_okay=False), metavar="FILE.svg", callback=_plot_target,
    help="Write the answer as a figure, too.",
)  # fmt: skip


@contextmanager
def complete_file(path: str) -> Iterator[BinaryIO]:
    """A file that gets its name once it is complete and on the disk; what is no plain file is written to as it is.

    Until then it lies beside its place under a name that nobody else has. Those that were left there by processes that
    were killed are removed."""
    target = os.path.realpath(path)  # where a link leads, so that the link stays one
    plain = os.path.isfile(target) or not os.path.exists(target)
    folder = os.path.dirname(target)
    draft = os.path.join(folder, f".rlrec-{os.urandom(8).hex()}") if plain else path
    if plain:
        drafts.remove_abandoned(f"{glob.escape(folder)}/.rlrec-{'[0-9a-f]' * 16}")
    file = _opened(draft, path, plain=plain)
    try:
        with file:
            packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) if path.endswith(".gz") else None
            with cast(ContextManager[BinaryIO], packed or nullcontext(file)) as stream:
                yield stream
            if plain:
                file.flush()
                os.fsync(file.fileno())
                os.replace(draft, target)
    finally:
        if plain:
            with suppress(FileNotFoundError):
                os.unlink(draft)


def _opened(draft: str, path: str, *, plain: bool) -> BinaryIO:
    try:
        return drafts.create(draft) if plain else open(path, "wb")
    except OSError as error:
        folder = os.path.dirname(path)
        hint = f"make its folder first: {folder}" if folder and not os.path.exists(folder) else "choose another path"
        raise RlrecError(f"cannot write {path}: {(error.strerror or str(error)).lower()}", hint=hint) from None


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


def save_plot(path: str, figure: Figure | None) -> None:
    """Write a figure as a file of its own. Raises InputError where the answer has none."""
    from rlrec.report import svg

    if figure is None:
        raise InputError("the answer has nothing to plot yet")
    write_text(path, svg.document(figure.drawing, title=figure.title, description=figure.description))
