"""This module has what several commands share: decorators that pass the store, the output and workers to a command,
options, and classes of command groups."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import FORMATS, Show
from rlrec.cli.text.text import Screen, cut_middle, escape_unprintable
from rlrec.cli.text.values import FILE, KEYS, NUMBER, Integer, decode_word, hide_secrets, mask_secrets, passwords
from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.app.opening import Store as Store
else:
    Store = Any  # commands import the name from here; its module is loaded when a store is opened

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
JSONL = "jsonl"  # another name of ndjson
HOW_TO_RUN, OUTPUT = "How", "Output"  # headings of options that many commands share
NOTHING_STORED = "dry run: nothing was stored"


class Settings:
    """A Settings object holds the options given before the name of the command, and facts about the running command
    that are needed to report an error."""

    db: str = "rlrec.db"
    read_db: str | None = None
    primary: str | None = None  # --db, while the command reads from --read-db
    now: int | None = None
    tz: Any = None
    allow_future: bool = False
    lock_timeout: int | None = None
    statement_timeout: int | None = None
    reconnect: int | None = None
    debug: bool = False
    quiet: bool = False
    no_color: bool = False
    format: str | None = None
    source: str | None = None
    dry_run: bool = False
    store: Any = None  # of the command, once opened
    show: Show | None = None
    context: click.Context | None = None
    clear_progress: Callable[[], None] = staticmethod(lambda: None)  # removes the progress line
    notify: Callable[[str], None] | None = None  # takes notices, if a program called the command
    config: Any = None  # a Config, if there is an rlrec.toml
    broken_config: InputError | None = None


def current_settings() -> Settings:
    """Return the settings of the running command."""
    return click.get_current_context().find_object(Settings) or Settings()


def safe_text(text: str, db: str) -> str:
    """Return `text` in a form that is safe for stderr: on one line, without passwords, and without its middle if it is
    long.

    db: the URL of the store, which may have a password."""
    return escape_unprintable(mask_secrets(cut_middle(hide_secrets(decode_word(text), passwords(db)))))


def notice(text: str) -> None:
    """Write a text to stderr as one line, wrapped on a terminal, unless --quiet is given. If stderr cannot be written
    to, the command goes on. If a program called the command, the program gets the text instead."""
    options = current_settings()
    if options.quiet:
        return
    options.clear_progress()
    if options.notify is not None:
        options.notify(text)
        return
    screen, text = Screen.detect(sys.stderr), safe_text(text, options.db)
    if screen.width is not None:
        from rlrec.cli.output.tables import wrap_lines

        text = wrap_lines([text], screen).rstrip("\n")
    with suppress(OSError):
        click.echo(text, err=True)


def print_sentences(show: Show, *sentences: str) -> None:
    """Print sentences about the result of a command, one per line. On a terminal they stand below the table, elsewhere
    they go to stderr. Nothing is printed with --quiet, nor in another format than a table."""
    if show.format != "table" or current_settings().quiet:
        return
    if show.screen.width is not None:
        show.add_lines(*sentences)
    else:
        for sentence in sentences:
            notice(sentence)


def question_of_terminal() -> Callable[[str], bool] | None:
    """Return a function that asks a question on the terminal, and tells whether the answer was yes. The result is None
    if there is no terminal."""
    has_terminal = current_settings().notify is None and sys.stdin is not None and sys.stdin.isatty()
    return (
        (lambda question: click.confirm(safe_text(question, current_settings().db), err=True)) if has_terminal else None
    )


def suggest_next(show: Show, command: str, effect: str) -> None:
    """Print on stderr which command to run next, and its effect. Nothing is printed with --quiet, nor in another format
    than a table."""
    if show.format != "table":
        return
    from shlex import quote

    options = current_settings()
    needs_db = options.db != Settings.db and "RLREC_DB" not in os.environ
    notice(f"next: `rlrec {f'--db {quote(options.db)} ' if needs_db else ''}{command}` {effect}")


# -- groups --


class Misuse(click.UsageError):
    """A Misuse error says that a command does not accept the words of its command line. It has a hint."""

    def __init__(self, message: str, *, hint: str | None, ctx: click.Context) -> None:
        super().__init__(message, ctx)
        self.hint = hint


class HelpWanted(click.UsageError):
    """A HelpWanted error says that a group of commands was called without a command. The help of the group is then
    printed on stderr."""


def option_group(heading: str, *options: Decorator) -> Decorator:
    """Return a decorator that adds options to a command. The help of the command lists them under a heading."""

    def add(command: Command) -> Command:
        n_others = len(vars(command).get("__click_params__", ()))
        for option in reversed(options):
            command = option(command)
        for param in vars(command)["__click_params__"][n_others:]:
            param.heading = heading
        return command

    return add


class GroupedCommand(click.Command):
    """A GroupedCommand is a command whose help has a section for each group of options. The option -h is in the section
    about output."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of the command line. Raises Misuse if an option that takes one value is given twice, where
        click would silently use the last value. But an option given before the command may be given again after it,
        since a shell alias may contain the first one."""
        params = [] if ctx.resilient_parsing else self.make_parser(ctx).parse_args(args=[*args])[2]
        for option, n in Counter(params).items():
            if n > 1 and isinstance(option, click.Option) and not (option.is_flag or option.multiple):
                name = max(option.opts, key=len)
                hint = f"write {name} a,b" if option.type is KEYS else "give it once"
                raise Misuse(f"{name} is given more than once", hint=hint, ctx=ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                heading = getattr(param, "heading", "Options" if param.expose_value else OUTPUT)
                sections.setdefault(heading, []).append(record)
        for heading, records in sorted(sections.items(), key=lambda section: section[0] == OUTPUT):
            with formatter.section(heading):
                formatter.write_dl(records)


class CommandGroup(click.Group):
    """A CommandGroup is a group of commands, which suggests similar names for an unknown command. Use the class as
    `@click.group(cls=CommandGroup)`."""

    command_class = GroupedCommand

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the help, each with the whole first sentence of its own help. click would cut the
        sentence."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=1_000)) for name, command in commands.items() if command]
            )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            raise HelpWanted(ctx.get_help(), ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            if args[0][:1] == "-" or self.get_command(ctx, args[0]) is not None:
                raise
            names = self.list_commands(ctx)
            longer_names = [name for name in names if name.startswith(args[0])]
            hint = suggest(args[0], longer_names or names, cutoff=0 if longer_names else 0.7)
            if any(f"--{args[0]}" in param.opts for param in self.get_params(ctx)):
                hint = f"did you mean {ctx.command_path} --{args[0]}?"
            raise Misuse(f"no such command '{args[0]}'", hint=hint, ctx=ctx) from None


def walk_commands(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command and all its subcommands, each as a pair of names and command.

    names: the names by which the command is called."""
    yield names, command
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from walk_commands(subcommand, *names, name)


input_option = click.option(  # for streams with an answer to each line: passes `source`, a path, `-` or None
    "--input", "source", type=FILE, metavar="FILE|-", help="Read one JSON object a line; - is stdin."
)


# -- the store and the output --


def takes_store(*lines: str) -> Decorator:
    """Return a decorator that passes `store` to a command. The store is open while the command runs. The decorator also
    adds the options --format and --json, and passes `show`.

    `lines` are examples at the end of the command's help."""
    return lambda command: takes_output(*lines)(_with_store(command))


def _with_store(command: Command, *, reads: bool = False, writes: bool = False) -> Command:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from rlrec.app.opening import open_store

        options, is_rehearsed = current_settings(), writes and kwargs.pop("dry_run")
        if reads and options.read_db:
            options.db, options.primary = options.read_db, options.db
        options.context = click.get_current_context()
        waits = options.lock_timeout, options.statement_timeout, options.reconnect
        now, future, primary = options.now, options.allow_future, options.primary
        with open_store(options.db, now=now, allow_future=future, notice=notice, waits=waits, primary=primary) as store:
            options.store = store
            if not options.quiet and sys.stderr is not None and sys.stderr.isatty():
                from rlrec.cli.output.progress import ProgressLine

                store.progress = line = ProgressLine(sys.stderr)
                kwargs["show"].clear_progress = options.clear_progress = line.clear
            try:
                if is_rehearsed and kwargs.get("lines") is not None:
                    kwargs["lines"].copy_unless_file()  # other writers need not wait for the writer of the lines
                with rehearsal(store) if is_rehearsed else nullcontext():
                    return command(*args, store=store, **kwargs)
            finally:
                options.clear_progress()

    return dry_run_option(run) if writes else run


def takes_read_store(*lines: str) -> Decorator:
    """Return a decorator like `takes_store`, for a command that only reads. If the option --read-db is given, the
    command gets the store that this option names.

    `lines` are examples at the end of the command's help."""
    return lambda command: takes_output(*lines)(_with_store(command, reads=True))


def takes_write_store(*lines: str) -> Decorator:
    """Return a decorator like `takes_store`, which also adds the option --dry-run. This option rolls back all that the
    command stores.

    `lines` are examples at the end of the command's help."""
    return lambda command: takes_output(*lines)(_with_store(command, writes=True))


def refuses_future_clock(command: Command) -> Command:
    """Make a command refuse a --now that lies far ahead, unless --allow-future or --dry-run is given. This is for
    commands that log decisions. Write this decorator below `takes_store`."""

    @wraps(command)
    def run(*args: Any, store: Store, **kwargs: Any) -> Any:
        if current_settings().now is not None and not (current_settings().allow_future or kwargs.get("dry_run")):
            from rlrec.app.audit.integrity.clock import refuse_far_ahead

            refuse_far_ahead(store)
        return command(*args, store=store, **kwargs)

    return run


level_option = click.option("--level", type=NUMBER, default=0.95, show_default=True, help="Confidence of intervals.")
level_group = option_group(HOW_TO_RUN, level_option)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be stored, and store nothing.")


@contextmanager
def rehearsal(store: Store) -> Iterator[None]:
    """Open a transaction that is rolled back at its end. A line on stderr then says that nothing was stored."""
    current_settings().dry_run = True
    with store.rehearsal():
        yield
    notice(NOTHING_STORED)


def takes_output(*lines: str) -> Decorator:
    """Return a decorator that adds the options --format and --json to a command, and passes `show` to the command.

    `lines` are examples at the end of the command's help."""
    return lambda command: _with_show(command, lines)


def _with_show(command: Command, examples: Sequence[str]) -> Command:
    word, text = "Examples" if len(examples) > 1 else "Example", "".join(f"\n  {line}" for line in examples)
    command.__doc__ = f"{cleandoc(command.__doc__ or '')}\n\n\b\n{word}:{text}"

    @option_group(
        OUTPUT,
        click.option(
            "--format", "form", type=click.Choice([*FORMATS, JSONL]), default="table", show_default=True,
            metavar="FORMAT", help="table, json, ndjson (or jsonl) or csv.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Short for --format json."),
    )  # fmt: skip
    @wraps(command)
    def run(*args: Any, form: str, as_json: bool, **kwargs: Any) -> Any:
        if current_settings().notify is not None:
            return command(*args, show=current_settings().show, **kwargs)
        is_explicit = click.get_current_context().get_parameter_source("form") is click.core.ParameterSource.COMMANDLINE
        if as_json and form != "json" and is_explicit:
            raise click.UsageError(f"--json and --format {form} contradict each other")
        form = "json" if as_json else "ndjson" if form == JSONL else form
        if config_error := current_settings().broken_config:
            raise config_error
        current_settings().format = form
        current_settings().show = show = Show(form, plain=current_settings().no_color, is_explicit=is_explicit)
        return command(*args, show=show, **kwargs)

    return run


# -- options of several commands --


_WORKERS = (
    click.option(
        "--jobs", type=Integer(1), default=1, show_default=True, metavar="N",
        help="Processes that share a log of more than 50,000 decisions.",
    ),
    click.option(
        "--engine", type=click.Choice(["local", "dask"]), default="local", show_default=True, metavar="ENGINE",
        help="local processes, or a cluster: dask.",
    ),
    click.option("--scheduler", metavar="ADDRESS", help="A running Dask cluster, e.g. tcp://127.0.0.1:8786."),
)  # fmt: skip


def workers_options(command: Command) -> Command:
    """Add the options about workers (processes that share the work) to a command, and pass `workers` to the command.
    Write this decorator above the decorator for the store."""

    @wraps(command)
    def run(*args: Any, jobs: int, engine: str, scheduler: str | None, **kwargs: Any) -> Any:
        from rlrec.app.evaluation.passes.passes import Workers

        return command(*args, workers=Workers(jobs=jobs, engine=engine, scheduler=scheduler), **kwargs)

    return option_group(HOW_TO_RUN, *_WORKERS)(run)


def mapping_by_name(pairs: Iterable[tuple[str, str]], label: str) -> dict[str, str]:
    """Return the values of a repeated option K=V as a mapping. Raises InputError if a name occurs twice.

    label: the word for such a name in the error."""
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise InputError(f"{label} {name!r} is given twice")
        values[name] = value
    return values
