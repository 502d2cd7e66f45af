"""This module prints errors as one line on stderr, and chooses exit codes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import sys

import click

from rlrec.cli.output import output
from rlrec.cli.program import app
from rlrec.cli.program.shared import HelpWanted, Settings, safe_text
from rlrec.cli.text.values import mask_secrets, passwords
from rlrec.errors import OUT_OF_MEMORY, InputError, RlrecError

FIELD_ARGUMENTS = {"policy": "reference"}  # field: the argument that it comes from
FIELD_OPTIONS = {"arms": ("arms", "candidates")}  # field: the options that it may come from, if they are given
NO_MEMORY_PATTERN = (
    "failed to map segment|[Cc]annot allocate memory|can't start new thread"  # of the system and of Python
)
INTERRUPTED_CODE = 130
NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)  # for the file that stdout writes to
PIPE_CLOSED_CODE = 141  # the exit code that a shell shows for a program ended by SIGPIPE


def report_failure(error: BaseException, settings: Settings, args: list[str]) -> int:
    """Print an error on stderr, and return the exit code.

    args: the words of the command line."""
    try:
        if not isinstance(error, OSError):
            output.flush()
    except OSError as unwritten:
        error = unwritten
    code = PIPE_CLOSED_CODE
    if not isinstance(error, BrokenPipeError):
        message, hint, code = _describe_error(error, settings)
        with contextlib.suppress(OSError):
            _print_error(error, message, hint, code, settings, args)
    output.discard_unwritten(sys.stdout)
    return code


def _print_error(
    error: BaseException, message: str, hint: str | None, code: int, settings: Settings, args: list[str]
) -> None:
    db = settings.db if settings.db != Settings.db else os.environ.get("RLREC_DB", settings.db)
    if settings.debug or ("--debug" in args and isinstance(error, click.ClickException)):
        from traceback import format_exception

        lines = "".join(format_exception(error)).splitlines()
        click.echo("\n".join(safe_text(line, db) for line in lines), err=True)
    if isinstance(error, HelpWanted):
        click.echo(error.message, err=True)
    elif _wants_json(error, settings, args):
        report = {"error": safe_text(message, db), "hint": safe_text(hint, db) if hint else None, "code": code}
        click.echo(json.dumps(report, ensure_ascii=False).encode("utf-8", "backslashreplace"), err=True)
    else:
        line = f"Error: {message.rstrip('.')}. {hint or ''}".rstrip()
        click.echo(safe_text(line, db).encode("utf-8", "backslashreplace"), err=True)


def _describe_error(error: BaseException, settings: Settings) -> tuple[str, str | None, int]:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", None, getattr(error, "code", INTERRUPTED_CODE)
    if isinstance(error, RlrecError):
        message = _error_location(error, settings) + error.message
        if isinstance(error, InputError) and message == error.message:
            variable = _variable_of_message(message, settings.context)
            message += f" (from {variable})" if variable else ""
        return message, _runnable_hint(error.hint, settings), error.code
    if isinstance(error, click.ClickException):
        return *_usage_message(error), error.exit_code
    if isinstance(error, MemoryError | SystemError) or re.search(NO_MEMORY_PATTERN, str(error)):
        return OUT_OF_MEMORY[0], _stored_hint(settings) or OUT_OF_MEMORY[1], 1
    if isinstance(error, OSError) and error.strerror:
        subject = f"{error.filename}: " if error.filename else ""
        action = "cannot write the output: " if not subject and error.errno in NO_ROOM_ERRORS else ""
        return f"{action}{subject}{error.strerror}", None if subject else _stored_hint(settings), 1
    hint = None if settings.debug else "`rlrec doctor` says whether the store is damaged, --debug shows the traceback"
    return f"unexpected {type(error).__name__}: {error}".rstrip(": "), hint, 1


def _stored_hint(settings: Settings) -> str | None:
    """Return a hint that says what the command has stored, for a command whose answer is lost. The result is None if it
    has stored nothing."""
    if settings.store is None or not settings.store.has_stored:
        return None
    from rlrec.cli.output import plain

    answer = settings.show.answer if settings.show else None
    values = plain.record_mapping(answer).items() if plain.is_record(answer) else ()
    names = [f"{name} {value}" for name, value in values if isinstance(value, str | int)]
    result = f" ({', '.join(names[:2])})" if names else ""
    return f"what the command did is stored{result}; a repeat without a key may store it twice"


def _runnable_hint(hint: str | None, settings: Settings) -> str | None:
    """Return the hint, in which the command `rlrec init` also names the store, so that it can be run as it stands. The
    name has no password, and no connection options, which may hold a password."""
    if hint is None or settings.db == Settings.db:
        return hint
    plain_url = re.sub(r"(?<=[?&])options=[^&]*&?", "", settings.db).rstrip("?&")
    db = shlex.quote(mask_secrets(plain_url, passwords(settings.db)))
    return hint.replace("`rlrec init`", f"`rlrec --db {db} init`")


def _error_location(error: RlrecError, settings: Settings) -> str:
    """Return the file, line and field of an input error, as far as they are known. The text is empty for other
    errors."""
    if not isinstance(error, InputError):
        return ""
    if error.line is None:
        typed_source = _field_source(settings.context, error.field) if settings.context and error.field else error.field
        return f"{typed_source}: " if typed_source else ""
    line = [f"{settings.source or ''} line {error.line}".strip()]
    field = [f"field {error.field}"] if error.field else []
    return f"{', '.join(line + field)}: "


def _field_source(context: click.Context, field: str) -> str | None:
    """Return the name of the parameter that gave a field of a request, or None if no parameter did. An option is
    followed by the environment variable that set it, in brackets. An argument has the name that the usage shows."""
    name = re.split(r"[.\[]", field)[0]
    if name in FIELD_OPTIONS:
        name = next((option for option in FIELD_OPTIONS[name] if context.params.get(option) is not None), "")
    for param in context.command.params:
        if isinstance(param, click.Option) and name in {word.lstrip("-").replace("-", "_") for word in param.opts}:
            variable = _value_source(param, context)
            return param.opts[0] + (f" (from {variable})" if variable else "")
        if isinstance(param, click.Argument) and param.name in (name, FIELD_ARGUMENTS.get(name)):
            return next(iter(re.findall(r"\w+", param.metavar or "")), name.upper())
    return None


def _usage_message(error: click.ClickException) -> tuple[str, str | None]:
    ctx = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split())
    if isinstance(error, click.BadParameter) and error.param and ctx is not None:
        source_name = _value_source(error.param, ctx)
        if source_name and source_name not in message:
            message = f"{message.rstrip('.')} (from {source_name})"
    hint = getattr(error, "hint", None)
    if isinstance(error, click.NoSuchOption):
        message, hint = f"no such option {error.option_name}", _option_hint(error, ctx)
    if hint is None and ctx is not None:
        hint, match = f"see {ctx.command_path} --help", re.search(r"unexpected extra arguments? \((.*)\)", message)
        if match and "weights" in ctx.params:
            hint = f"write one word, with commas: '{', '.join([ctx.params['weights'], *match[1].split()])}'"
        elif match and any("--policy" in param.opts for param in ctx.command.params):
            hint = f"did you mean --policy {match[1]}?"
    return message, hint


def _value_source(param: click.Parameter, ctx: click.Context) -> str | None:
    """Return the name of the environment variable or of the file that gave a parameter its value. The result is None if
    the value is from the command line or is the default."""
    source = ctx.get_parameter_source(param.name or "")
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return "rlrec.toml"
    if source is not click.core.ParameterSource.ENVIRONMENT:
        return None
    if param.envvar:
        variables = [param.envvar] if isinstance(param.envvar, str) else param.envvar
        return next((variable for variable in variables if os.environ.get(variable)), None)
    return f"{ctx.auto_envvar_prefix}_{param.name}".upper() if ctx.auto_envvar_prefix else None


def _variable_of_message(message: str, context: click.Context | None) -> str | None:
    """Return the environment variable whose value occurs in an error message, if the message names no option. The
    result is None if there is no such variable."""
    variables = (_value_source(param, context) for param in context.command.params) if context else ()
    return next((variable for variable in variables if variable and os.environ.get(variable, "\0") in message), None)


def _option_hint(error: click.NoSuchOption, ctx: click.Context | None) -> str | None:
    word = error.option_name
    if ctx is not None and ctx.parent is None and word in ("--json", "--format"):
        return "it goes after the command"
    name = word.removeprefix("--")
    if ctx is not None and any(name in kind["parameters"] for kind in app.policy.list_kinds()):
        takes_parameters = any("--param" in param.opts for param in ctx.command.params)
        create = "" if takes_parameters else "policy create NAME --kind KIND "
        return f"{name} is a parameter of a policy: {create}--param {name}=VALUE"
    names = error.possibilities
    return f"did you mean {' or '.join(names)}?" if names else None


def _wants_json(error: BaseException, settings: Settings, args: list[str]) -> bool:
    """Tell whether the user wants JSON, even if the command line could not be parsed.

    args: the words of the command line."""
    if settings.format is not None:
        return settings.format == "json"
    words = args[: args.index("--")] if "--" in args else args
    if "--json" in words or "--format=json" in words:
        return True
    if "--format" in words:
        return words[words.index("--format") + 1 :][:1] == ["json"]
    ctx = getattr(error, "ctx", None)
    prefix = ctx.auto_envvar_prefix if ctx is not None else None
    return next(filter(None, map(os.environ.get, (f"{prefix}_FORMAT", "RLREC_FORMAT"))), None) == "json"
