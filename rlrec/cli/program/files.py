"""This module opens the files that commands read and write. An input has one JSON object per line, and is read in
groups of lines; bad lines are refused. An output file appears only when it is complete, and may not be one of the
inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from errno import EDQUOT, EFBIG, ENOSPC
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import click

from rlrec.cli.output import output
from rlrec.cli.program.shared import OUTPUT, Command, current_settings, input_option, option_group
from rlrec.cli.text.text import truncate
from rlrec.cli.text.values import FILE
from rlrec.errors import InputError, LinesRefused, RlrecError, quantity

if TYPE_CHECKING:
    from rlrec.report.figures import Figure

T = TypeVar("T")


# -- reading lines --


class Refusals:
    """A Refusals object counts the refused lines of an input. Without a path, the first refused line ends the command.
    With a path, each refused line is written to this file as a JSON object with line, error, field, text, file and
    code."""

    def __init__(self, path: str | None, *, appends: bool = False) -> None:
        self.count = self.n_lines = 0  # refused lines; refused and stored lines
        self.file = None if path is None else _open_rejects(path, "ab" if appends else "wb")

    @property
    def quarantine(self) -> bool:
        return self.file is not None

    def reading(self, source: str) -> None:
        """Set the name of the file that is read, for errors about its lines."""
        current_settings().source = "<stdin>" if source == "-" else source

    def refuse(self, error: InputError, text: bytes) -> None:
        """Write a refused line to the file of refused lines, with escapes for bytes that are not UTF-8. If there is no
        such file, raise `error`.

        error: what is wrong with the line; text: the line."""
        if self.file is None:
            error.hint = error.hint or "nothing was stored; --on-error quarantine keeps the good lines"
            raise error
        import json

        row = {
            "line": error.line, "error": error.message, "field": error.field,
            "text": text.decode(errors="backslashreplace"), "file": current_settings().source or "", "code": error.code,
        }  # fmt: skip
        self.file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self.count += 1


def _open_rejects(path: str, mode: str) -> BinaryIO:
    if path == "-":
        raise InputError("--rejects takes the name of a file", hint="/dev/stderr is one")
    try:
        return cast(BinaryIO, open(path, mode, buffering=0 if mode == "ab" else -1))
    except OSError as error:
        raise InputError(f"cannot write {truncate(path)}: {error.strerror}") from None


def refusal_error(count: int, *, n_lines: int, hint: str | None = None) -> LinesRefused:
    """Return the error at the end of an input in which lines were refused.

    `count` counts the refused lines, and `n_lines` counts the refused and the stored lines."""
    outcome = (
        f"{'nothing' if count == n_lines else 'the rest'} {'would be' if current_settings().dry_run else 'is'} stored"
    )
    return LinesRefused(f"{quantity(count, 'line')} refused, {outcome}", hint=hint)


class Lines:
    """A Lines object is an input with one JSON object per line. It is read in groups of lines, and bad lines are
    refused."""

    def __init__(self, source: str, refusals: Refusals) -> None:
        self.name = source
        self.source: str | BinaryIO = source
        self.refusals = refusals
        self.texts: dict[int, bytes] = {}

    def copy_unless_file(self) -> None:
        """Copy an input that is no plain file, so that it can be read a second time. Raises InputError if stdin is a
        terminal or closed."""
        from rlrec.cli.text.lines import rereadable

        self.refusals.reading(self.name)
        if isinstance(self.source, str):
            self.source = rereadable(self.source)

    def first_byte(self) -> bytes:
        """Return the first byte of the input that is not a blank. The input must be one that can be read again."""
        from rlrec.cli.text.lines import groups

        for group in groups(self.source, size=1, eager=False):
            return group[0][1].lstrip()[:1]
        return b""

    def raw(self) -> Iterator[list[tuple[int, bytes]]]:
        """Yield groups of lines, each line as a pair of its number and its bytes."""
        from rlrec.cli.text.lines import groups

        self.refusals.reading(self.name)
        for group in groups(self.source, eager=False):
            self.texts = dict(group)
            self.refusals.n_lines += len(group)
            yield group

    def groups(self, kind: type[T]) -> Iterator[list[tuple[int, T]]]:
        """Yield groups of lines, each line as a pair of its number and its decoded value. Lines that cannot be decoded
        are refused.

        kind: the Struct that a line holds."""
        from rlrec.cli.text.lines import decode_group

        for group in self.raw():
            values = decode_group(group, kind)
            for (_, text), value in zip(group, values, strict=True):
                if isinstance(value, InputError):
                    self.refusals.refuse(value, text)
            pairs = zip(group, values, strict=True)
            yield [(number, value) for (number, _), value in pairs if not isinstance(value, InputError)]

    def refuse(self, error: InputError) -> None:
        """Refuse a line that could be decoded, but for example names something that does not exist.

        error: the error, with the number of a line of the present group."""
        self.refusals.refuse(error, self.texts.get(error.line or 0, b""))


def refusal_options(command: Command) -> Command:
    """Add the options --on-error and --rejects to a command, and pass `refusals` to the command. If a line was refused,
    the command ends with exit code 5."""

    @click.option(
        "--on-error", type=click.Choice(["fail", "quarantine"]), default="fail", show_default=True,
        help="fail: a bad line stops all, nothing is stored. quarantine: bad lines go to --rejects.",
    )  # fmt: skip
    @click.option("--rejects", type=click.Path(dir_okay=False), metavar="FILE", help="Where bad lines go.")
    @wraps(command)
    def run(*args: Any, on_error: str, rejects: str | None, **kwargs: Any) -> Any:
        if (on_error == "quarantine") != (rejects is not None):
            raise click.UsageError("--on-error quarantine and --rejects FILE go together")
        if rejects is None:
            return command(*args, refusals=Refusals(None), **kwargs)
        words = [word for value in kwargs.values() for word in (value if isinstance(value, tuple) else [value])]
        check_target(rejects, "--rejects", inputs=[word for word in words if isinstance(word, str)])
        # a command that continues keeps what it refused before
        refusals = Refusals(rejects, appends=bool(kwargs.get("follow")))
        with refusals.file or nullcontext():
            result = command(*args, refusals=refusals, **kwargs)
        if refusals.count:
            raise refusal_error(refusals.count, n_lines=refusals.n_lines, hint=f"the reasons are in {rejects}")
        return result

    return run


def _with_lines(command: Command, declare: Callable[[Command], Command]) -> Command:
    """Add --on-error, --rejects and the parameter for an input to a command, and pass `lines` to the command. If the
    user names no input, `lines` is None.

    declare: a decorator that adds the parameter `source`, which names the input."""

    @wraps(command)
    def run(*args: Any, source: str | None, refusals: Refusals, **kwargs: Any) -> Any:
        return command(*args, lines=Lines(source, refusals) if source else None, **kwargs)

    return declare(refusal_options(run))


lines_input = partial(_with_lines, declare=input_option)
lines_argument = partial(_with_lines, declare=click.argument("source", type=FILE, metavar="FILE|-"))


# -- writing files --


def check_target(path: str, name: str, *, inputs: Iterable[str] = ()) -> None:
    """Raise UsageError if an output file is the store or one of the inputs. Links are followed.

    path: the path of the output file; name: the option that names it."""
    from rlrec.app.opening import store_files

    if any(_same_file(path, file) for file in store_files(current_settings().db)):
        raise click.UsageError(f"{name} {path} is the store itself")
    if any(_same_file(path, "/dev/stdin" if source == "-" else source) for source in inputs):
        raise click.UsageError(f"{name} {path} is the input itself")


def _same_file(path: str, other_path: str) -> bool:
    if os.path.isfile(path) and os.path.exists(other_path):
        return os.path.samefile(path, other_path)
    return os.path.realpath(path) == os.path.realpath(other_path) and not os.path.exists(path)


def _plot_target(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value == "-":
        raise click.UsageError("--plot needs the name of a file: stdout has the answer", ctx)
    if value is not None:
        check_target(value, "--plot")
        check_figure(value)
    return value


def check_figure(path: str) -> None:
    """Raise InputError if the name of a figure's file has the ending of another format than SVG. No viewer would open
    the file."""
    if path.lower().endswith((".png", ".jpg", ".jpeg", ".pdf", ".gif", ".webp")):
        raise InputError(f"{path} is not SVG", hint="name it FILE.svg; a browser opens it")


plot_option = option_group(
    OUTPUT,
    click.option(
        "--plot", type=click.Path(dir_okay=False), metavar="FILE.svg", callback=_plot_target,
        help="Write the answer as a figure, too.",
    ),
)  # fmt: skip


@contextmanager
def complete_file(path: str) -> Iterator[BinaryIO]:
    """Yield a file to write, which appears under its name once it is complete and on disk. If the path names a device
    or the like, the data is written to it directly. If the path ends in .gz, the data is compressed."""
    from rlrec import drafts

    target = os.path.realpath(path)  # the target of a link, so that the link stays
    is_plain = os.path.isfile(target) or not os.path.exists(target)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(drafts.complete(target) if is_plain else open(path, "wb"))  # noqa: SIM115
        except OSError as error:
            folder = os.path.dirname(path)
            lacks_folder = folder and not os.path.exists(folder)
            hint = f"make its folder first: {folder}" if lacks_folder else "choose another path"
            raise RlrecError(f"cannot write {path}: {(error.strerror or str(error)).lower()}", hint=hint) from None
        if path.endswith(".gz"):
            from gzip import GzipFile

            gzip_file = GzipFile(filename="", fileobj=file, mode="wb", mtime=0)
            file = cast(BinaryIO, stack.enter_context(gzip_file))
        yield file


@contextmanager
def open_target(path: str) -> Iterator[Callable[[bytes], object]]:
    """Yield a function that writes to a file, or to stdout for the path `-`."""
    if path == "-":
        yield output.write
        output.flush()
    else:
        try:
            with complete_file(path) as file:
                yield file.write
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT, EFBIG) or error.filename:
                raise
            text = f"cannot write {path}: {os.strerror(error.errno).lower()}"
            raise RlrecError(text, hint="choose another path, or make room") from None


def write_text(path: str, text: str) -> int:
    """Write text to a file, or to stdout for the path `-`, and return the number of bytes written."""
    data = text.encode("utf-8", "backslashreplace")
    with open_target(path) as write:
        write(data)
    return len(data)


def save_plot(path: str | None, draw: Callable[[], Figure | None]) -> None:
    """Write the figure of an answer to a file, if a path is given. Raises InputError if the answer has no figure.

    draw: a function that makes the figure. It is also kept, so that a program which called the command can draw the
    figure later."""
    if (show := current_settings().show) is not None:
        show.draw = draw
    if path is None:
        return
    from rlrec.report import svg

    if (figure := draw()) is None:
        raise InputError("the answer has nothing to plot yet")
    write_text(path, svg.document(figure.drawing, title=figure.heading, description=figure.description))
