"""This package is the command-line program. This module has the group of all commands, and the options that can be
given before the name of a command."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from mmap import mmap
from typing import Any, NoReturn, cast

import click

from rlrec import __version__, times
from rlrec.cli.commands import COMMANDS, load_command
from rlrec.cli.output.output import discard_unwritten, flush
from rlrec.cli.program import signals
from rlrec.cli.program.shared import CommandGroup, Settings, notice, walk_commands
from rlrec.cli.text.text import terminal_columns
from rlrec.cli.text.values import CLOCK, DURATION, ZONE
from rlrec.errors import OUT_OF_MEMORY, InputError

CONFIG_FILE = "rlrec.toml"
HELP_OPTIONS = {"-h", "--help"}
COMPLETION_VARIABLE = "_RLREC_COMPLETE"  # set by a shell that asks for completions of a word
NUMPY_BYTES = 90 << 20  # address space for its libraries and the buffer of OpenBLAS
GC_THRESHOLD = 200_000  # objects; imports create half of them, and no garbage
EPILOG = """\b
Examples:
  rlrec recommend --policy home --session s1; rlrec feedback 17 click
Exit codes (`rlrec help exit-codes`; options may be RLREC_<COMMAND>_<OPTION>):
  0 done, 1 failed, 2 wrong input, 3 a check said no, 4 busy: try again,
  5 lines refused, 6 known key or name, 129, 130, 141, 143 ended by a signal
"""


class Program(CommandGroup):
    """The Program is the group of all commands. The module of a command is imported when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = load_command(cmd_name)
        _name_variables(command, cmd_name)
        if (config := ctx.ensure_object(Settings).config) is not None:
            ctx.default_map = {**(ctx.default_map or {}), cmd_name: config.defaults(command, cmd_name)}
        if COMPLETION_VARIABLE in os.environ:
            from rlrec.cli.program.completion import attach_completion

            _add_globals(command, self.params)
            attach_completion(command, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, words = super().resolve_command(ctx, args)
        settings = ctx.ensure_object(Settings)
        if name == "help":
            settings.broken_config = None
        elif settings.broken_config is not None and HELP_OPTIONS.isdisjoint(words):
            raise settings.broken_config
        typed_options = {word.partition("=")[0] for word in words if word[:1] == "-"}
        if command is not None:
            params = (param for _, leaf in walk_commands(command) for param in leaf.params)
            if not typed_options <= {option for param in params for option in (*param.opts, *param.secondary_opts)}:
                _add_globals(command, self.params)
        return name, command, words

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        settings = extra.setdefault("obj", Settings())
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        if paths := [*filter(os.path.exists, (CONFIG_FILE, os.path.join(home, "rlrec", CONFIG_FILE)))]:
            from rlrec.cli.commands.setup.config import Config

            try:
                settings.config = Config(self, paths)
                extra["default_map"] = settings.config.defaults(self)
            except InputError as error:
                settings.broken_config = error  # raised when a command runs, so that help works without the file
        extra.setdefault("terminal_width", max(min(terminal_columns(), 80) - 2, 50))  # as in click
        return super().make_context(info_name, args, parent, **extra)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()] or [("(none)", "")])

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        if not standalone_mode:
            return super().main(args, "rlrec", complete_var, standalone_mode=False, **extra)
        if (complete_var or COMPLETION_VARIABLE) in os.environ:
            with suppress(Exception):  # on a broken rlrec.toml, say: a traceback would appear in the line being typed
                super().main(args, "rlrec", complete_var, **extra)
            sys.exit(1)
        sys.exit(self.run(list(sys.argv[1:] if args is None else args), **extra))

    def run(self, args: list[str], **extra: Any) -> int:
        """Run one command line, and return its exit code.

        args: the words of the command line after the name of the program."""
        settings, code = Settings(), 0
        times.zoneless.clear()
        times.zone = None
        try:
            try:
                with self.make_context("rlrec", [*args], obj=settings, **extra) as ctx:
                    self.invoke(ctx)
                    for text in times.zoneless:
                        notice(f"a time without a zone is read as UTC, such as {text}: write {text}Z, or an offset")
            except click.exceptions.Exit as end:
                code = end.exit_code
            flush()
        except (Exception, KeyboardInterrupt) as error:
            return _report_failure(error, settings, args)
        return code


def _report_failure(error: BaseException, settings: Settings, args: list[str]) -> int:
    """Report the error of a failed command on stderr, and return the exit code. This works even if there is not enough
    memory to load the module that describes errors.

    args: the words of the command line."""
    try:
        from rlrec.cli.program.failures import report_failure

        return report_failure(error, settings, args)
    except (MemoryError, ImportError, SystemError):
        form = '{"error": "%s", "hint": "%s", "code": 1}\n' if "--json" in args else "Error: %s. %s\n"
        with suppress(OSError):
            os.write(2, (form % OUT_OF_MEMORY).encode())
        return 1


class _RoomForNumpy:
    """A _RoomForNumpy is an import hook that raises OSError if numpy is imported with so little memory that OpenBLAS
    would end the process. The hook is active until numpy is imported."""

    @staticmethod
    def find_spec(name: str, path: object, target: object = None) -> None:
        if name == "numpy":
            mmap(-1, NUMPY_BYTES).close()
            sys.meta_path = [finder for finder in sys.meta_path if finder is not _RoomForNumpy]


def _add_globals(command: click.Command, options: Sequence[click.Parameter]) -> None:
    """Let a command accept, after its name, the options of the whole program. An option is left out if the command has
    an option of the same name.

    options: the options of the whole program."""
    from copy import copy

    exposed_options = [option for option in options if isinstance(option, click.Option) and option.expose_value]
    for _, leaf in walk_commands(command):
        taken_names = {name for param in leaf.params for name in (*param.opts, param.name)}
        for option in exposed_options:
            if taken_names.isdisjoint((*option.opts, option.name)):
                clone = copy(option)
                clone.default, clone.envvar, clone.allow_from_autoenv, clone.expose_value = None, None, False, False
                clone.is_eager, clone.hidden, clone.callback = True, True, _override_setting
                leaf.params.append(clone)


def _override_setting(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE:
        cast(Any, program.callback)(**{str(param.name): value})


def _name_variables(command: click.Command, name: str) -> None:
    """Give each option of a command an environment variable, named as the option is written on the command line. (click
    would use the Python name.) The option --format also has a variable that applies to all commands."""
    for path, leaf in walk_commands(command, "RLREC", name):
        for param in leaf.params:
            if isinstance(param, click.Option) and param.envvar is None and param.allow_from_autoenv:
                options = sorted((option.lstrip("-") for option in param.opts), key=len, reverse=True)
                variables = ["_".join((*path, option)).replace("-", "_").upper() for option in options]
                param.envvar = [*variables, *(["RLREC_FORMAT"] if "format" in options else [])]
                param.allow_from_autoenv = False


@click.group(
    cls=Program, name="rlrec", epilog=EPILOG,
    context_settings={"help_option_names": sorted(HELP_OPTIONS), "auto_envvar_prefix": "RLREC"},
)  # fmt: skip
@click.option("--db", default="rlrec.db", show_default=True, metavar="URL", help="The store (RLREC_DB).")
@click.option("--read-db", metavar="URL", help="A replica, for commands that only read.")
@click.option("--now", type=CLOCK, metavar="TIME", help="The clock: RFC 3339 (UTC), or +31m from now.")
@click.option("--tz", type=ZONE, metavar="ZONE", help="Zone of days, and dates in filters [default: UTC].")
@click.option("--allow-future", is_flag=True, help="Allow storing at a --now far ahead.")
@click.option("--lock-timeout", type=DURATION, metavar="TIME", help="Wait for locks [default: 30s].")
@click.option("--statement-timeout", type=DURATION, metavar="TIME", help="Limit of one statement (PostgreSQL).")
@click.option("--reconnect", type=DURATION, metavar="TIME", help="Keep trying a lost server [default: 10s].")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
@click.option("--no-color", is_flag=True, help="Verdicts without colour, like NO_COLOR.")
@click.version_option(__version__, prog_name="rlrec", allow_from_autoenv=False)
@click.pass_obj
def program(settings: Settings, /, **options: Any) -> None:
    """Exploration for recommenders: draw, log with propensities, learn, evaluate."""
    if options.get("db") == "":
        raise click.UsageError("--db is empty")
    times.zone = options.get("tz") or times.zone
    vars(settings).update(options)


def main() -> NoReturn:
    """Run the program as the console script, which handles signals. A program that calls the commands should handle
    signals itself.

    The garbage collector is frozen at the end and seldom runs before, since it finds nothing in a short run. All
    files are closed by then, and taking the modules apart would cost a third of the time of loading them. Matrices
    are multiplied in one thread, unless the environment says otherwise. More threads take 30 ms to start, and on a
    busy machine they spin while they wait for each other (`evaluate` took three times as long)."""
    for number in signals.END_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored by choice of the parent (nohup, background jobs)
            signal.signal(number, signals.unwind_command)
    sys.unraisablehook = signals.end_in_finalizer
    sys.meta_path.insert(0, _RoomForNumpy)
    gc.set_threshold(GC_THRESHOLD)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        sys.exit(program.main())
    finally:
        for number in signals.END_SIGNALS:
            if signal.getsignal(number) is signals.unwind_command:  # `timeout` sends its signal twice
                signal.signal(number, signals.end_at_once)
        discard_unwritten(sys.stderr)
        gc.freeze()
