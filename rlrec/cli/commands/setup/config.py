"""rlrec config: defaults of options from files, and where each value comes from."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from rlrec.cli.output.output import Show
from rlrec.cli.program.shared import CommandGroup, printed, settings
from rlrec.cli.text.values import mask_secrets, passwords
from rlrec.errors import InputError, suggest
from rlrec.times import format_time

FORMAT = "format"  # an option of commands that may stand outside of their tables
COLUMNS = ("option", "value", "source")


class FileValue(NamedTuple):
    """A value of a file, as an option takes it."""

    value: Any
    path: str


Table = dict[str, Any]  # of FileValue, and of tables


class Config:
    """The defaults that files give to options. Raises InputError for a key that is no option."""

    def __init__(self, program: click.Group, paths: Sequence[str]) -> None:
        """paths: those that exist, the nearest first."""
        self.values: Table = {}
        for path in reversed(paths):
            try:
                _merge(self.values, _read(path), path)
            except RecursionError:
                raise InputError(f"{path}: tables or lists are nested too deep") from None
        context = click.Context(program)
        commands = program.list_commands(context)
        tables = {key for key, value in self.values.items() if key in commands and isinstance(value, dict)}
        outside = {key: value for key, value in self.values.items() if key not in {*tables, FORMAT}}
        self.program_defaults = _defaults(program, outside, (), more_names=commands)
        for name in tables:
            if command := program.get_command(context, name):
                self.command_defaults(command, name)  # every table is checked, whatever command runs

    def command_defaults(self, command: click.Command, name: str) -> Table:
        """The default map of a command, by the Python names of its options."""
        table = self.values.get(name)  # `db` is an option, too
        return _defaults(command, table if isinstance(table, dict) else {}, (name,), form=self.values.get(FORMAT))

    def value_of(self, names: Sequence[str]) -> FileValue | Table | None:
        """The value of an option, by its command and name; None where no file has one."""
        value: Any = self.values
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def option_name(option: click.Option) -> str:
    """The long name of an option, without dashes."""
    return max(option.opts, key=len).lstrip("-")


def _read(path: str) -> Table:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a pipe waits
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: not a plain file")
            _check_owner(path, status.st_uid)
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _check_owner(path: str, owner: int) -> None:
    """Raises InputError for a file of somebody who is neither this user, nor root, nor who became root by sudo."""
    user = os.geteuid()
    if str(owner) not in ("0", str(user), os.environ.get("SUDO_UID") if user == 0 else None):
        message = f"{path}: it belongs to user {owner}, and could send your password to a server of theirs"
        raise InputError(
            message, hint=f"read it; if you trust it, run `chown {user} {path}` as root, else use another folder"
        )


def _merge(target: Table, table: Mapping[str, Any], path: str) -> None:
    for key, value in table.items():
        if not isinstance(value, dict):
            target[key] = FileValue(value, path)
        else:
            former = target.get(key)
            subcommands = target[key] = former if isinstance(former, dict) else {}
            _merge(subcommands, value, path)


def _defaults(
    command: click.Command, table: Table, names: tuple[str, ...], *, form: Any = None, more_names: Sequence[str] = ()
) -> Table:
    """The default map of a command from its table. form: the format outside of all tables; others: names that would be
    right, too."""
    options = {name.lstrip("-"): option for option in _options(command) for name in option.opts}
    subcommands: Mapping[str, click.Command] = getattr(command, "commands", {})
    defaults: Table = {} if form is None or FORMAT not in options else {str(options[FORMAT].name): _typed(form)}
    for key, value in table.items():
        if key in options:
            defaults[str(options[key].name)] = _default(options[key], value, ".".join((*names, key)))
        elif key not in subcommands or not isinstance(value, dict):
            hint = suggest(key, list({*options, *subcommands, *more_names}))
            raise InputError(
                f"{_path(value)}: unknown key {'.'.join((*names, key))}", hint=hint or "see `rlrec --help`"
            )
    for key, subcommand in subcommands.items():
        defaults[key] = _defaults(subcommand, table.get(key, {}), (*names, key), form=form)
    return defaults


def _options(command: click.Command) -> list[click.Option]:
    """The options that may have a default; consent is never one."""
    options = (param for param in command.params if isinstance(param, click.Option) and param.expose_value)
    return [option for option in options if option.name != "yes"]


def _default(option: click.Option, value: Any, name: str) -> Any:
    """The default of an option. Raises InputError for a list where it takes one value."""
    default = _typed(value)
    if isinstance(default, list) and not option.multiple:
        raise InputError(f"{_path(value)}: {name} takes one value, and is given a list")
    return [default] if option.multiple and not isinstance(default, list) else default


def _path(value: Any) -> str:
    while isinstance(value, dict) and value:
        value = next(iter(value.values()))
    return value.path if isinstance(value, FileValue) else "rlrec.toml"


def _typed(value: Any) -> Any:
    """A value as it would be typed; a table as JSON, a list as an option that is repeated."""
    if isinstance(value, dict):
        return json.dumps(_plain(value), default=str)
    plain_value = value.value
    if isinstance(plain_value, list):
        return [str(item) for item in plain_value]
    return plain_value if isinstance(plain_value, bool) else str(plain_value)


def _plain(value: Any) -> Any:
    return {key: _plain(subcommands) for key, subcommands in value.items()} if isinstance(value, dict) else value.value


# -- the command --


@click.group(cls=CommandGroup)
def config() -> None:
    """rlrec.toml lies in the current folder, or in rlrec/ of $XDG_CONFIG_HOME [default: ~/.config]; the nearer one wins
    key by key. Options of the program stand at its top, those of a command in its table:

    \b
      db = "shop.db"
      format = "json"
      [recommend]
      policy = "home"
      [policy.create]
      reward = "visits"

    The command line beats the environment, the environment the files."""


@config.command("show")
@printed("rlrec config show")
def show_(show: Show) -> None:
    """Show options of the program, and those of commands that have a value, with its source.

    The source is the option on the command line, a variable of the environment, a file, or default."""
    show([dict(zip(COLUMNS, row, strict=True)) for row in _rows()], columns=COLUMNS)


def _rows() -> Iterator[tuple[str, Any, str]]:
    context, program_settings = click.get_current_context(), settings()
    root = context.find_root()
    program = root.command
    assert isinstance(program, click.Group)
    for option in _options(program):
        name, key = str(option.name), option_name(option)
        value = getattr(program_settings, name)
        if isinstance(value, str):
            value = mask_secrets(value, passwords(value))
        elif name == "now" and value is not None:
            value = format_time(value)
        is_typed_behind = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        source = ParameterSource.COMMANDLINE if is_typed_behind else root.get_parameter_source(name)
        yield key, value, _source(option, source, (key,), f"RLREC_{name.upper()}")
    yield _option_row((FORMAT,), ["RLREC_FORMAT"]) or (FORMAT, "table", "default")
    for name in program.list_commands(root):
        command = program.get_command(root, name)
        assert command is not None
        yield from _command_rows(command, (name,))


def _source(option: click.Option, source: ParameterSource | None, names: tuple[str, ...], variable: str) -> str:
    if source is ParameterSource.COMMANDLINE:
        return max(option.opts, key=len)
    if source is ParameterSource.ENVIRONMENT:
        return variable
    config = settings().config
    value = None if config is None else config.value_of(names)
    return value.path if isinstance(value, FileValue) else "default"


def _command_rows(command: click.Command, names: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
    """The options of a command, and of those in its group, that the environment or a file sets."""
    for option in _options(command):
        variables = [variable for variable in option.envvar or () if variable != "RLREC_FORMAT"]
        rows = (_option_row((*names, name.lstrip("-")), variables) for name in option.opts)
        if row := next(filter(None, rows), None):
            yield ".".join((*names, option_name(option))), *row[1:]
    for name, subcommands in getattr(command, "commands", {}).items():
        yield from _command_rows(subcommands, (*names, name))


def _option_row(names: tuple[str, ...], variables: Sequence[str]) -> tuple[str, Any, str] | None:
    for variable in variables:
        if text := os.environ.get(variable):
            return ".".join(names), mask_secrets(text, passwords(text)), variable
    config = settings().config
    value = None if config is None else config.value_of(names)
    return None if value is None else (".".join(names), _typed(value), _path(value))
