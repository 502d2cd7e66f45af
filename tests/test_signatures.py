"""`rlrec/signatures.pyi` has the methods of `rlrec.api` as the commands declare them: PAGES=write writes it."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

import click
import pytest

from rlrec import api
from rlrec.cli.commands import COMMANDS, load_command
from rlrec.cli.doors import calls

STUB = Path(api.__file__).with_name("signatures.pyi")
HEAD = '''"""The commands as methods of `rlrec.api.Recommender`, for type checkers and editors.

`PAGES=write .venv/bin/pytest tests/test_signatures.py` writes this file from what the commands declare.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from os import PathLike
from typing import Any, Literal

from rlrec.api import Log, Records, Result
'''
SEVERAL = {"list", "kinds", "versions", "diff", "delays", "roles", "evaluate"}  # commands that answer with records
STORE: Any = api.Recommender("nowhere.db")
METHODS = [calls.python_name(name) for name in COMMANDS if name not in api.LEFT_OUT]


def leaves() -> Iterator[tuple[str, click.Command, Any]]:
    """Every command that the API has, with its path and its method."""
    for name, method in zip((name for name in COMMANDS if name not in api.LEFT_OUT), METHODS, strict=True):
        command, owner = load_command(name), getattr(STORE, method)
        if isinstance(command, click.Group):
            for inner, leaf in command.commands.items():
                yield f"{name} {inner}", leaf, getattr(owner, calls.python_name(inner))
        else:
            yield name, command, owner


LEAVES = [*leaves()]


def written(method: Any, name: str) -> str:
    """A method of the stub."""
    signature = inspect.signature(method)
    signature = signature.replace(return_annotation=inspect.Signature.empty)
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()]
    answer = "Records" if method.__name__.rpartition(".")[2] in SEVERAL else "Result"
    answer = "Log" if method.__name__ == "_read_log" else answer
    text = str(signature.replace(parameters=parameters)).replace("(self, /", "(self")
    text = re.sub(r"Optional\[(Literal\[[^]]*\])\]", r"\1 | None", text)  # of Python before 3.14
    text = re.sub(r"\b(collections\.abc|typing|datetime|os)\.(?=[A-Za-z])", "", text)
    doc = "\n".join(line.rstrip() for line in indent(method.__doc__, "    ").strip().splitlines())
    return f'def {name}{text} -> {answer}:\n    """{doc}"""\n'


def stub() -> str:
    """The stub as the commands declare it."""
    namespaces, commands = [], []
    for name in METHODS:
        value = getattr(STORE, name)
        if not isinstance(value, api.Namespace):
            commands.append(written(value, name))
            continue
        kind = f"{name.title().replace('_', '')}Commands"
        methods = [written(getattr(value, inner), inner) for inner in value._methods]
        methods += [written(value.show, "__call__")] if "show" in value._methods else []
        namespaces.append(f"class {kind}:\n" + indent("\n".join(methods), "    "))
        commands.append(f"{name}: {kind}\n")
    return "\n\n".join([HEAD, *namespaces, "class Commands:\n" + indent("\n".join(commands), "    ")])


def test_the_stub_has_every_command_as_it_is_declared() -> None:
    if os.environ.get("PAGES") == "write":
        STUB.write_text(stub(), encoding="utf-8")
    is_written = STUB.read_text(encoding="utf-8") == stub()
    assert is_written, "`PAGES=write .venv/bin/pytest tests/test_signatures.py` writes rlrec/signatures.pyi"


def test_every_command_is_a_method_or_left_out_with_a_reason() -> None:
    assert set(api.LEFT_OUT) < set(COMMANDS)
    assert {name for path, *_ in LEAVES for name in path.split()[:1]} == COMMANDS.keys() - api.LEFT_OUT.keys()
    assert {*METHODS} <= {*dir(STORE)}
    for name, why in api.LEFT_OUT.items():
        with pytest.raises(AttributeError, match=re.escape(why)):
            getattr(STORE, name)


@pytest.mark.parametrize(("path", "command", "method"), LEAVES, ids=[path for path, *_ in LEAVES])
def test_a_method_has_the_parameters_of_its_command(path: str, command: click.Command, method: Any) -> None:
    shown = [param for param in command.params if param.expose_value and param.name not in calls.OUTPUT_PARAMETERS]
    named = {name for param in shown for name in (*map(calls.python_name, param.opts), param.name)}
    signature = inspect.signature(method)
    assert {*signature.parameters} - {*api.LINE_ONLY} <= named
    if path in api.POSITIONAL:  # their streams stay with the command
        return
    assert len(signature.parameters) == len(shown)
    for param in shown:
        (name,) = {*signature.parameters} & {*map(calls.python_name, param.opts), str(param.name)}
        declared = signature.parameters[name]
        assert (declared.kind is declared.KEYWORD_ONLY) == isinstance(param, click.Option)
        assert (declared.default is declared.empty) == (param.required or param.nargs == -1)
        if isinstance(param, click.Option):
            assert f"{name}: {param.help}" in method.__doc__


@pytest.mark.parametrize(("path", "command", "method"), LEAVES, ids=[path for path, *_ in LEAVES])
def test_a_method_has_the_help_of_its_command(path: str, command: click.Command, method: Any) -> None:
    assert method.__doc__.startswith((command.help or "").split("\n\n")[0])
    assert "\b" not in method.__doc__
    assert method.__name__ == ".".join(map(calls.python_name, path.split()))
