"""This module reads the defaults of options from files, and holds the command `rlrec config show`, which names the
source of each value."""

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
from rlrec.cli.program.shared import CommandGroup, current_settings, notice, takes_output, walk_commands
from rlrec.cli.text.values import mask_secrets, passwords
from rlrec.errors import InputError, suggest
from rlrec.times import format_time

FORMAT_KEY = "format"  # an option of commands that may also be set outside their tables
SETTING_COLUMNS = ("option", "value", "source")


class FileValue(NamedTuple):
    """A FileValue is the value of an option that a file states, in the form in which the option takes it, with the path
    of the file."""

    value: Any
    path: str


class Config:
    """A Config holds the defaults of options that files state."""

    def __init__(self, program: click.Group, paths: Sequence[str]) -> None:
        """Read the defaults in the files. Raises InputError if a file has a key that is no option.

        program: the group of all commands; paths: the paths of existing files, of which the first that has a key
        counts."""
        # by command names and the Python name of the option; only the latter for options of the program
        self.values: dict[tuple[str, ...], FileValue] = {}
        for path in reversed(paths):
            self._take_values(click.Context(program), _read_table(path), (), path)

    def _take_values(self, context: click.Context, table: Mapping[str, Any], names: tuple[str, ...], path: str) -> None:
        """Store the values in the table of a command, and those in the tables of its subcommands.

        names: the names by which the command is called; path: the path of the file."""
        command = context.command
        options = {name.lstrip("-"): option for option in _settable_options(command) for name in option.opts}
        commands = command.list_commands(context) if isinstance(command, click.Group) else []
        for key, value in table.items():
            name = ".".join((*names, key))
            if isinstance(command, click.Group) and key in commands and isinstance(value, dict):
                if subcommand := command.get_command(context, key):
                    self._take_values(click.Context(subcommand), value, (*names, key), path)
            elif key in options:
                if isinstance(value, list) and not options[key].multiple:
                    raise InputError(f"{path}: {name} takes one value, and is given a list")
                self.values[*names, str(options[key].name)] = FileValue(_typed_form(value), path)
            elif name == FORMAT_KEY:
                self.values[FORMAT_KEY,] = FileValue(_typed_form(value), path)
            else:
                hint = suggest(key, list({*options, *commands})) or "see `rlrec --help`"
                raise InputError(f"{path}: unknown key {name}", hint=hint)

    def defaults(self, command: click.Command, *names: str) -> dict[str, Any]:
        """Return the defaults of a command's options in the form of click's default map, by the Python names of the
        options. A subcommand has a map of its own. If a file states a format for all commands, it is the default of
        every option --format.

        names: the names by which the command is called."""
        defaults: dict[str, Any] = {}
        for option in _settable_options(command):
            general_format = self.values.get((FORMAT_KEY,)) if f"--{FORMAT_KEY}" in option.opts else None
            if file_value := self.values.get((*names, str(option.name)), general_format):
                value = file_value.value
                defaults[str(option.name)] = [value] if option.multiple and not isinstance(value, list) else value
        for name, subcommand in getattr(command, "commands", {}).items():
            defaults[name] = self.defaults(subcommand, *names, name)
        return defaults


def option_name(option: click.Option) -> str:
    """Return the long name of an option, without dashes."""
    return max(option.opts, key=len).lstrip("-")


def _read_table(path: str) -> dict[str, Any]:
    try:
        # O_NONBLOCK: a pipe would wait
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            file_status = os.fstat(file.fileno())
            if not stat.S_ISREG(file_status.st_mode):
                raise InputError(f"{path}: not a plain file")
            _check_owner(path, file_status.st_uid)
            table = tomllib.load(file)
            repr(table)  # recurses as deeply as later steps will
            return table
    except RecursionError:
        raise InputError(f"{path}: tables or lists are nested too deep") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _check_owner(path: str, owner: int) -> None:
    """Raise InputError unless a file's owner is this user, root, or the user who became root by sudo."""
    user = os.geteuid()
    if str(owner) not in ("0", str(user), os.environ.get("SUDO_UID") if user == 0 else None):
        message = f"{path}: it belongs to user {owner}, and could send your password to a server of theirs"
        raise InputError(
            message, hint=f"read it; if you trust it, run `chown {user} {path}` as root, else use another folder"
        )


def _settable_options(command: click.Command) -> list[click.Option]:
    """Return the options of a command that may have a default from a file. These are all options except `--yes`."""
    options = (param for param in command.params if isinstance(param, click.Option) and param.expose_value)
    return [option for option in options if option.name != "yes"]


def _typed_form(value: Any) -> Any:
    """Return a value of a file as a user would type it. A table becomes JSON, and a list becomes the values of a
    repeated option."""
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    if isinstance(value, list):
        return [str(item) for item in value]
    return value if isinstance(value, bool) else str(value)


# -- the command --


@click.group(cls=CommandGroup)
def config() -> None:
    """rlrec.toml lies in the current folder, or in rlrec/ of $XDG_CONFIG_HOME [default: ~/.config]; each key in the
    current folder overrides the other. Options of the program stand at the top, those of a command in its table:

    \b
      db = "shop.db"
      format = "json"
      [recommend]
      policy = "home"
      [policy.create]
      reward = "visits"

    The command line overrides the environment, the environment overrides the files."""


@config.command("show")
@takes_output("rlrec config show")
def show_(show: Show) -> None:
    """Show the options of the program, and those of commands that have a value, with their sources.

    The source is the command line, an environment variable, a file, or default."""
    show([dict(zip(SETTING_COLUMNS, row, strict=True)) for row in _setting_rows()], columns=SETTING_COLUMNS)
    variables = {
        f"RLREC_{option.name}".upper() for option in _settable_options(click.get_current_context().find_root().command)
    }
    variables |= {"RLREC_FORMAT"}.union(*(option.envvar or () for _, option in _command_options()))
    for name in sorted(name for name in os.environ if name.startswith("RLREC_") and name not in variables):
        hint = suggest(name, [*variables], cutoff=0.8)
        notice(f"{name} sets no option: {hint or '`rlrec help environment` says what does'}")


def _setting_rows() -> Iterator[tuple[str, Any, str]]:
    context, program_settings = click.get_current_context(), current_settings()
    root = context.find_root()
    program = root.command
    assert isinstance(program, click.Group)
    for option in _settable_options(program):
        name, value = str(option.name), getattr(program_settings, str(option.name))
        if isinstance(value, str):
            value = mask_secrets(value, passwords(value))
        elif name in ("now", "tz") and value is not None:
            value = format_time(value) if name == "now" else str(value)
        sources = [context_level.get_parameter_source(name) for context_level in (context, root)]
        _, source = _find_value((name,), [f"RLREC_{name.upper()}"]) or (None, "default")
        is_typed = ParameterSource.COMMANDLINE in sources
        yield option_name(option), value, max(option.opts, key=len) if is_typed else source
    yield FORMAT_KEY, *(_find_value((FORMAT_KEY,), ["RLREC_FORMAT"]) or ("table", "default"))
    for names, option in _command_options():
        variables = [variable for variable in option.envvar or () if variable != "RLREC_FORMAT"]
        if row := _find_value((*names, str(option.name)), variables):
            yield ".".join((*names, option_name(option))), *row


def _command_options() -> Iterator[tuple[tuple[str, ...], click.Option]]:
    """Yield each option of each command, as a pair of the command's names and the option."""
    root = click.get_current_context().find_root()
    program = root.command
    assert isinstance(program, click.Group)
    for name in program.list_commands(root):
        command = program.get_command(root, name)
        assert command is not None
        yield from (
            (names, option) for names, leaf in walk_commands(command, name) for option in _settable_options(leaf)
        )


def _find_value(names: tuple[str, ...], variables: Sequence[str]) -> tuple[Any, str] | None:
    """Return the value of an option and its source, from the environment or else from a file. The result is None if
    neither has a value.

    names: the names of the command, and the name of the option; variables: the environment variables of the option."""
    for variable in variables:
        if text := os.environ.get(variable):
            return mask_secrets(text, passwords(text)), variable
    config = current_settings().config
    return None if config is None else config.values.get(names)
