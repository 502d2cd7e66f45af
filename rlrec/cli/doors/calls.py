"""Functions here make a Python function of a command. The Python function has the parameters that click declares for
the command, and checks its arguments as click does."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from keyword import iskeyword
from numbers import Integral, Real
from typing import Any, Literal

import click

from rlrec.cli.doors.frames import AnswerKeeper, Records, Result
from rlrec.cli.output.plain import dumps, dumps_fields
from rlrec.cli.program.shared import Settings
from rlrec.cli.text.text import truncate
from rlrec.cli.text.values import KEYS, parse_object
from rlrec.errors import InputError, RlrecError, suggest

OUTPUT_PARAMETERS = {"form", "as_json", "watch_us"}  # parameters about the output of an answer
PATH, OBJECT = str | os.PathLike[str], Mapping[str, Any]
PYTHON_TYPES: dict[str, Any] = {  # name of a click type: the Python values that it takes, if not text
    "boolean": bool, "integer": int, "integer range": int, "decision id": int, "number": float,
    "time": str | datetime, "duration": str | timedelta, "json|@file": OBJECT, "file": OBJECT | PATH,
    "keys": Sequence[str], "a,b": Sequence[str], "a%,b%,...": Sequence[float | str], "name=value": OBJECT,
    "share": float | str, "number|none": float | str, "lo,hi": tuple[float, float] | str, "table": PATH | object,
}  # fmt: skip
UNSET = click.Argument(["unset"]).default  # used by click 8.3 in place of None


def python_name(name: str) -> str:
    """Return the Python name of a command or a parameter whose name on the command line is `name`."""
    word = name.lstrip("-").replace("-", "_")
    return f"{word}_" if iskeyword(word) else word


def parameters(command: click.Command) -> dict[str, click.Parameter]:
    """Return the parameters of a command, by Python name. The Python name of an option is its name on the command line,
    in the plural if the option can be repeated."""
    params = (param for param in command.params if param.expose_value and param.name not in OUTPUT_PARAMETERS)
    return {
        python_name(param.opts[0] if isinstance(param, click.Option) and not param.multiple else str(param.name)): param
        for param in params
    }


def value_type(param: click.Parameter) -> Any:
    """Return the Python type of one value of a parameter."""
    if type(param.type) is click.Choice:
        return Literal[tuple(param.type.choices)]
    if isinstance(param.type, click.Path):
        return PATH
    return PYTHON_TYPES.get(param.type.name, str)


def signature(command: click.Command) -> inspect.Signature:
    """Return the Python signature of a command. Its positional parameters are the arguments of the command, and its
    keyword parameters are the options."""
    params = [_declare_parameter(name, param) for name, param in parameters(command).items()]
    return inspect.Signature(sorted(params, key=lambda param: param.kind))


def _declare_parameter(name: str, param: click.Parameter) -> inspect.Parameter:
    annotation, default = value_type(param), _default_value(param)
    if param.nargs == -1:
        return inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL, annotation=annotation)
    if param.multiple and annotation is not OBJECT:
        annotation = Sequence[annotation] | annotation  # type: ignore[valid-type]
    if param.required:
        default = inspect.Parameter.empty
    elif default is None:
        annotation |= None
    form = (
        inspect.Parameter.KEYWORD_ONLY if isinstance(param, click.Option) else inspect.Parameter.POSITIONAL_OR_KEYWORD
    )
    return inspect.Parameter(name, form, default=default, annotation=annotation)


def _default_value(param: click.Parameter) -> Any:
    """Return the default of a parameter as a value of its Python type. The result is None if the parameter has no
    default, or if only its click type can read the default."""
    default = param.get_default(click.Context(click.Command("")))
    if value_type(param) in (int, float) and isinstance(default, str):
        return value_type(param)(default)
    if default is UNSET or value_type(param) is OBJECT:
        return None
    return () if param.multiple else default


def documentation(command: click.Command, signature: inspect.Signature) -> str:
    """Return the docstring of a command's Python function: the help of the command and of each parameter. The help of
    `arms` also covers the objects that `--candidates` takes.

    signature: the signature of the Python function; parameters of the command that the function lacks are left out."""
    text = inspect.cleandoc(command.help or "").partition("\n\n\b\nExample")[0].replace("\b\n", "")
    labels = {name: name for name in signature.parameters} | {"candidates": "arms, as objects"}
    helps = [(labels.get(name), getattr(param, "help", None)) for name, param in parameters(command).items()]
    descriptions = "\n".join(f"{label}: {text}" for label, text in helps if label and text)
    return "\n\n".join(filter(None, [text, descriptions, command.epilog]))


def bind_signature(name: str, text: str, signature: inspect.Signature, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks its arguments against a signature, and passes the arguments to `run` by name.

    `name` and `text` are the name and the docstring of the function."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for word in kwargs.keys() - signature.parameters.keys():
            hint = suggest(word, [*signature.parameters]) or ""
            raise TypeError(f"{name}() got an unexpected keyword argument {word!r}. {hint}".rstrip(". "))
        try:
            return run(**signature.bind(*args, **kwargs).arguments)
        except InputError as error:
            if error.field:
                label = "argument:" if error.line is None else f"line {error.line}, field"
                error.add_note(f"{label} {error.field}")  # a command names it before the message
            raise

    call.__name__ = call.__qualname__ = name
    call.__doc__ = text
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def answer(command: click.Command, settings: Settings, values: Mapping[str, Any]) -> Result | Records | None:
    """Run a command, and return its answer. Raises InputError with the name of a wrong parameter. If an error is raised
    after the command has shown an answer, the attribute `result` of the error has this answer.

    `values` are the values of the parameters, by Python name."""
    settings.show = keeper = AnswerKeeper()
    names = {param.name: name for name, param in parameters(command).items()}
    try:
        with click.Context(command, info_name=command.name, obj=settings) as context:
            for param in command.params:
                if param.expose_value:
                    context.params[str(param.name)] = _process_value(context, param, names.get(param.name), values)
            assert command.callback is not None
            command.callback(**context.params)
    except click.UsageError as error:
        bad_param = getattr(error, "param", None)
        message, hint = error.message or "is missing", getattr(error, "hint", None)
        raise InputError(message, hint=hint, field=None if bad_param is None else names.get(bad_param.name)) from None
    except RlrecError as error:
        error.result = keeper.answer
        raise
    return keeper.answer


def _process_value(context: click.Context, param: click.Parameter, name: str | None, values: Mapping[str, Any]) -> Any:
    """Return the value of a parameter in the form that the function of the command takes.

    `name` is the Python name of the parameter, or None if callers cannot set the parameter. A parameter without an
    entry in `values` has its default."""
    source, value = click.core.ParameterSource.DEFAULT, param.get_default(context)
    if name is not None and values.get(name) is not None:
        source, value = click.core.ParameterSource.COMMANDLINE, _typed_value(param, name, values[name])
    context.set_parameter_source(str(param.name), source)
    result = param.process_value(context, value)
    return None if result is UNSET else result


def _typed_value(param: click.Parameter, name: str, value: Any) -> Any:
    """Return the value of a parameter, or a list of its values, in the form in which a user would type them. A data
    frame stays unchanged; if the parameter takes several tables, each data frame is paired with a name."""
    if param.type.name == "table":
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        items = value.items() if isinstance(value, Mapping) else [value if isinstance(value, str) else ("frame", value)]
        return [*items] if param.multiple else value
    if not param.multiple and param.nargs != -1:
        return _typed_word(param, name, value)
    if isinstance(value, Mapping):
        return [f"{key}={_word_text(item)}" for key, item in value.items()]
    if param.nargs == -1 and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]  # a list in place of its items
    return [_typed_word(param, name, item) for item in ([value] if isinstance(value, str) else value)]


def _typed_word(param: click.Parameter, name: str, value: Any) -> Any:
    """Return one value of a parameter as a user would type it. There are two exceptions: a flag stays true or false,
    and a mapping becomes the object parsed from its JSON. Raises InputError for a value of the wrong type.

    `name` is the Python name of the parameter, for the error."""
    kind = value_type(param)
    is_text = kind is str or kind is PATH
    if isinstance(value, bool) != (kind is bool) or (is_text and not isinstance(value, str | os.PathLike)):
        is_frame = kind is PATH and hasattr(value, "columns")
        hint = "write the frame to a file, as by to_parquet(FILE)" if is_frame else None
        value_text = type(value).__name__ if is_frame else truncate(repr(value))
        raise InputError(f"expected {inspect.formatannotation(kind)}, got {value_text}", hint=hint, field=name)
    try:
        if isinstance(value, Mapping) and kind in (OBJECT, OBJECT | PATH):
            return parse_object(dumps_fields(value))
        if param.type is KEYS and not isinstance(value, str):  # keys in a list may contain commas
            return dumps([*value])
        return value if kind is bool else _word_text(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(str(error), field=name) from None
    except InputError as error:
        error.field = f"{name}.{error.field}" if error.field else name
        raise


def _word_text(value: Any) -> str:
    """Return a value as a word of the command line."""
    match value:
        case str():
            return value
        case os.PathLike():
            return str(os.fspath(value))
        case date():
            return value.isoformat()
        case timedelta():
            return f"{value / timedelta(seconds=1):.6f}s"
        case bool() | Mapping():
            return dumps(value)
        case Integral():
            return str(int(value))
        case Real():
            return repr(float(value))
    return ",".join(map(_word_text, value))
