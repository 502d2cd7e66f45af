"""Shared by commands: decorators that hand over the store, the output and the input lines; groups that help."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.output.output import FORMATS, Show
from rlrec.cli.text.text import Screen, clipped, printable
from rlrec.cli.text.values import FILE, NUMBER, Integer, hide, mask_secrets, passwords, recoded
from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    from rlrec.app.opening import Store as Store
else:
    Store = Any  # the commands import it from here; its module is loaded when a store is opened

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
JSONL = "jsonl"  # another name of ndjson
HOW_TO_RUN, OUTPUT = "How", "Output"  # headings of options that many commands have
NOTHING_STORED = "dry run: nothing was stored"


class Settings:
    """The options before the command, and what an error may need to know of the command that runs."""

    db: str = "rlrec.db"
    read_db: str | None = None
    primary: str | None = None  # --db, while a command reads from --read-db
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
    store: Any = None  # of the command, once it is open
    show: Show | None = None
    context: click.Context | None = None
    clear_progress: Callable[[], None] = staticmethod(lambda: None)  # takes a line of progress away
    notify: Callable[[str], None] | None = None  # takes lines for a person, where a program called the command
    config: Any = None  # a Config, where there is an rlrec.toml
    broken_config: InputError | None = None


def settings() -> Settings:
    """The settings of the command that runs."""
    return click.get_current_context().find_object(Settings) or Settings()


def safe(text: str, db: str) -> str:
    """`text` for stderr: on one line, without passwords, nor its middle where it is long."""
    return printable(mask_secrets(clipped(hide(recoded(text), passwords(db)))))


def notice(text: str) -> None:
    """Write a line to stderr, wrapped on a terminal, unless --quiet; a stderr that takes nothing does not stop the
    command."""
    options = settings()
    if options.quiet:
        return
    options.clear_progress()
    if options.notify is not None:
        options.notify(text)
        return
    screen, text = Screen.detect(sys.stderr), safe(text, options.db)
    if screen.width is not None:
        from rlrec.cli.output.tables import wrapped

        text = wrapped([text], screen).rstrip("\n")
    with suppress(OSError):
        click.echo(text, err=True)


def conclude(show: Show, *sentences: str) -> None:
    """Say the result in plain words, a line each: below a table on a terminal, else on stderr; never with --quiet, and
    never beside json or csv."""
    if show.format != "table" or settings().quiet:
        return
    if show.screen.width is not None:
        show.add_lines(*sentences)
    else:
        for sentence in sentences:
            notice(sentence)


def question_of_terminal() -> Callable[[str], bool] | None:
    """A function that asks a question on the terminal, and answers whether it was a yes; None without a terminal."""
    has_terminal = settings().notify is None and sys.stdin is not None and sys.stdin.isatty()
    return (lambda question: click.confirm(safe(question, settings().db), err=True)) if has_terminal else None


def suggest_next(show: Show, command: str, effect: str) -> None:
    """Name the command that comes next and what it does, on stderr; not with --quiet, nor beside json or csv."""
    if show.format != "table":
        return
    from shlex import quote

    options = settings()
    typed = options.db != Settings.db and "RLREC_DB" not in os.environ
    notice(f"next: `rlrec {f'--db {quote(options.db)} ' if typed else ''}{command}` {effect}")


# -- groups --


class UnknownCommand(click.UsageError):
    """A word that is not a command, with near ones as a hint."""

    def __init__(self, message: str, *, hint: str | None, ctx: click.Context) -> None:
        super().__init__(message, ctx)
        self.hint = hint


class HelpWanted(click.UsageError):
    """A group without a command: its help goes to stderr."""


def option_group(heading: str, *options: Decorator) -> Decorator:
    """Adds options to a command, which its help lists under this heading."""

    def add(command: Command) -> Command:
        n_others = len(vars(command).get("__click_params__", ()))
        for option in reversed(options):
            command = option(command)
        for param in vars(command)["__click_params__"][n_others:]:
            param.heading = heading
        return command

    return add


class GroupedCommand(click.Command):
    """A command whose help has a section for each group of its options; -h stands with the output."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                heading = getattr(param, "heading", OUTPUT if param.is_eager else "Options")
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class CommandGroup(click.Group):
    """A group of commands that suggests near names; use it as `@click.group(cls=CommandGroup)`."""

    command_class = GroupedCommand

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands with their whole first sentences, which click would cut."""
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
            longer = [name for name in names if name.startswith(args[0])]
            hint = suggest(args[0], longer or names, cutoff=0 if longer else 0.7)
            if any(f"--{args[0]}" in param.opts for param in self.get_params(ctx)):
                hint = f"did you mean {ctx.command_path} --{args[0]}?"
            raise UnknownCommand(f"no such command '{args[0]}'", hint=hint, ctx=ctx) from None


def walk(command: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """A command and those of its group, behind the names by which each is called."""
    yield names, command
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from walk(subcommand, *names, name)


input_option = click.option(  # for streams that answer each line: gives the command `source`, a path, `-` or None
    "--input", "source", type=FILE, metavar="FILE|-", help="Read one JSON object a line; - is stdin."
)


# -- the store and the output --


def stored(*lines: str) -> Decorator:
    """Gives a command `store`, open while it runs, and what `printed` gives. lines: examples that end its help."""
    return lambda command: printed(*lines)(_with_store(command))


def _with_store(command: Command, *, reads: bool = False, writes: bool = False) -> Command:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        from rlrec.app.opening import open_store

        options, is_rehearsed = settings(), writes and kwargs.pop("dry_run")
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
                    kwargs["lines"].copy_unless_file()  # other writers do not wait for whoever writes the lines
                with rehearsal(store) if is_rehearsed else nullcontext():
                    return command(*args, store=store, **kwargs)
            finally:
                options.clear_progress()

    return dry_run_option(run) if writes else run


def reading(*lines: str) -> Decorator:
    """Gives a command that only reads what `stored` gives, with the store of --read-db where there is one."""
    return lambda command: printed(*lines)(_with_store(command, reads=True))


def writing(*lines: str) -> Decorator:
    """Gives a command what `stored` gives, and --dry-run, which takes back all that it stores."""
    return lambda command: printed(*lines)(_with_store(command, writes=True))


def drawing(command: Command) -> Command:
    """Refuses a clock far ahead for a command that logs decisions; write it below `stored`."""

    @wraps(command)
    def run(*args: Any, store: Store, **kwargs: Any) -> Any:
        if settings().now is not None and not (settings().allow_future or kwargs.get("dry_run")):
            from rlrec.app.audit.integrity.clock import refuse_far_ahead

            refuse_far_ahead(store)
        return command(*args, store=store, **kwargs)

    return run


level_option = click.option("--level", type=NUMBER, default=0.95, show_default=True, help="Confidence of intervals.")
level_group = option_group(HOW_TO_RUN, level_option)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be stored, and store nothing.")


@contextmanager
def rehearsal(store: Store) -> Iterator[None]:
    """A transaction that is taken back at its end, and says so on stderr."""
    settings().dry_run = True
    with store.rehearsal():
        yield
    notice(NOTHING_STORED)


def printed(*lines: str) -> Decorator:
    """Adds --format and --json; gives the command `show`. lines: examples that end its help."""
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
        if settings().notify is not None:
            return command(*args, show=settings().show, **kwargs)
        typed = click.get_current_context().get_parameter_source("form") is click.core.ParameterSource.COMMANDLINE
        if as_json and form != "json" and typed:
            raise click.UsageError(f"--json and --format {form} contradict each other")
        form = "json" if as_json else "ndjson" if form == JSONL else form
        if broken := settings().broken_config:
            raise broken
        settings().format = form
        settings().show = show = Show(form, plain=settings().no_color, typed=typed)
        return command(*args, show=show, **kwargs)

    return run


# -- options that several commands have --


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
    """Gives a command `workers`, as its options name them; write it above what gives it the store."""

    @wraps(command)
    def run(*args: Any, jobs: int, engine: str, scheduler: str | None, **kwargs: Any) -> Any:
        from rlrec.app.evaluation.passes.passes import Workers

        return command(*args, workers=Workers(jobs=jobs, engine=engine, scheduler=scheduler), **kwargs)

    return option_group(HOW_TO_RUN, *_WORKERS)(run)


def by_name(pairs: Iterable[tuple[str, str]], label: str) -> dict[str, str]:
    """Options K=V as a mapping. Raises InputError for a name that comes twice."""
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise InputError(f"{label} {name!r} is given twice")
        values[name] = value
    return values
