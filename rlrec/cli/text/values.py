"""This module converts words from a shell into values (times, durations, numbers, keys, names, JSON), and masks
passwords in text.

Each function `parse_*` raises InputError for a word that it refuses. The click types at the end of the module then
raise an error that also names the option."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.text.text import MAX_INTEGER, storage_fault, truncate
from rlrec.errors import InputError
from rlrec.times import duration, find_zone, parse_local
from rlrec.times import parse as parse_time

if TYPE_CHECKING:
    AnyType = click.ParamType[Any, Any]
    AnyChoice = click.Choice[str]
else:  # in click 8.1 the classes take no type parameters
    AnyType, AnyChoice = click.ParamType, click.Choice

KEY_LENGTH = 200
# Patterns are text here: `re` compiles and caches them when a command needs them.
NUMBER_FORM = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
NAME_FORM = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

USERINFO_PATTERN = r"(?<![A-Za-z0-9+.-])([A-Za-z0-9+.-]+://[^\s/?#:@]*:)\S*@"
PASSWORD_PATTERN = r"(?i)((?:^|(?<=[?&;\s\"'(]))(?:ssl)?pass(?:word|wd|phrase)?\s?=\s?)('(?:[^'\\]|\\.)*'|[^\s&;\"']*)"


def key_problem(text: str) -> str | None:
    """Return the reason why `text` cannot be the key of an arm, session, user or request. The result is None if the
    text can be a key."""
    if reason := storage_fault(text):
        return f"'{truncate(text)}' {reason}"
    if not 1 <= len(text) <= KEY_LENGTH:
        return f"a key has 1 to {KEY_LENGTH} characters, '{truncate(text, 20)}' has {len(text)}"
    return None


def decode_word(text: str) -> str:
    """Return a word of the command line, decoded as UTF-8 even if Python used another encoding."""
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        return text


def hide_secrets(text: str, secrets: Sequence[str]) -> str:
    """Return `text` with `***` in place of each text in `secrets`."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def mask_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """Return `text` with `***` in place of every password in a URL or a connection string, and of each text in
    `secrets`."""
    text = hide_secrets(text, secrets)
    return re.sub(PASSWORD_PATTERN, r"\1***", re.sub(USERINFO_PATTERN, r"\1***@", text))


def passwords(url: str) -> list[str]:
    """Return the passwords in a database URL, as written and as decoded, so that a caller can keep them out of
    output."""
    from urllib.parse import unquote

    userinfo = re.match(r"[^:/]+://[^:@/]*:(.*)@", url, re.DOTALL)
    secrets = [userinfo[1]] if userinfo else []
    secrets += [match[2].strip("'") for match in re.finditer(PASSWORD_PATTERN, url)]
    return [form for word in secrets for form in {word, unquote(word)} if len(form) > 2]


# -- values --


def parse_duration(text: str) -> int:
    """Return the microseconds of a duration such as 90s, 30m, 7d, 1h30m or 250ms. Larger units come first in the
    text."""
    micros = duration(text)
    if micros is None:
        raise InputError(f"'{truncate(text)}' is not a duration", hint="write 90s, 30m, 1h30m or 7d")
    if micros > MAX_INTEGER // 1024:
        raise InputError(f"'{truncate(text)}' is too long a duration")
    return micros


def parse_clock(text: str) -> int:
    """Return a time as microseconds since 1970. The text +31m means 31 minutes after the clock of this machine."""
    if not text.startswith("+"):
        return parse_time(text)
    import time

    return time.time_ns() // 1_000 + parse_duration(text[1:])


def parse_number(text: str) -> float:
    """Return the number in a text. It must be finite as a double."""
    if re.fullmatch(NUMBER_FORM, text, re.ASCII) is None:
        raise InputError(f"'{truncate(text)}' is not a number")
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"'{truncate(text)}' is beyond the range of a double")
    return value


def parse_percent(text: str) -> float:
    """Return the number that a text such as 1% or 0.01 stands for."""
    try:
        return parse_number(f"{text[:-1]}e-2" if text.endswith("%") else text)
    except InputError:
        raise InputError(f"'{truncate(text)}' is not a share", hint="write 1% or 0.01") from None


def parse_integer(text: str, *, least_bits: int = 64) -> int:
    """Return the whole number in a text. The number may have at most 64 bits, or `least_bits` bits if that is more."""
    bits = max(least_bits, 64)
    if re.fullmatch(r"[+-]?[0-9]+", text) is None:
        raise InputError(f"'{truncate(text)}' is not a whole number")
    if len(text.lstrip("+-0")) > 20 or not -(2 ** (bits - 1)) <= int(text) < 2 ** (bits - 1):
        raise InputError(f"'{truncate(text)}' does not fit into {bits} bits")
    return int(text)


def parse_name(text: str) -> str:
    """Return `text` unchanged if it can be the name of a policy, reward, experiment or variant."""
    if re.fullmatch(NAME_FORM, text) is None:
        hint = "up to 64 letters, digits, '_', '.' and '-', the first a letter or a digit"
        raise InputError(f"'{truncate(text)}' is not a name", hint=hint)
    return text


def parse_key(text: str) -> str:
    """Return `text` unchanged if it can be the key of an arm, session, user or request. A key has 1 to 200
    characters."""
    if reason := key_problem(text):
        raise InputError(reason)
    return text


def parse_keys(text: str) -> list[str]:
    """Return the keys in a comma-separated list, or in a JSON array if `text` starts with `[`."""
    if text.lstrip().startswith("["):
        words = parse_json(text)
        if not all(isinstance(word, str) for word in words):
            raise InputError("every key in the list must be text", hint='write ["a", "b"]')
        return [parse_key(word) for word in words]
    return [parse_key(word.strip(" ")) for word in text.split(",")]


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. The JSON is `text` itself or, if `text` is an `@` and a file's name, the
    contents of the file."""
    from rlrec.cli.text.strict import decode_json

    if not text.startswith("@"):
        return decode_json(text.encode("utf-8", "surrogatepass"))
    try:
        with open(text[1:], "rb") as file:
            return decode_json(file.read().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise InputError(f"cannot read '{truncate(text[1:])}': {error.strerror}") from None
    except InputError as error:
        prefix = f"{error.field}: " if error.field else ""
        raise InputError(f"{truncate(text[1:])}: {prefix}{error.message}", hint=error.hint) from None


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`, or in a file if `text` is an `@` and the file's name."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, got '{truncate(text)}'", hint="write '{\"hour\": 9}'")
    return value


def parse_candidates(text: str) -> list[Any]:
    """Return the JSON array in `text`, or in a file if `text` is an `@` and the file's name. The items of the array are
    not checked."""
    value = parse_json(text)
    if not isinstance(value, list):
        raise InputError(f"expected a JSON array, got '{truncate(text)}'", hint='write [{"arm": "a", "score": 1.7}]')
    return value


def parse_file(path: str) -> dict[str, Any]:
    """Return the JSON object in a file."""
    value = parse_json(f"@{path}")
    if not isinstance(value, dict):
        raise InputError(f"{truncate(path)} holds no JSON object")
    return value


def parse_pair(text: str, example: str = "NAME=VALUE") -> tuple[str, str]:
    """Return the key and the value of `K=V`. The value may contain further `=`.

    example: a pair for the hint, in which `{}` stands for what the user typed."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise InputError(f"'{truncate(text)}' has no '='", hint=f"write {example.format(truncate(text))}")
    return key.strip(), value.strip()


def parse_named_table(text: str) -> tuple[str, str]:
    """Return the name and the path of a table, from NAME=FILE or only FILE. For FILE alone, the name is the file's
    name up to its first dot. If a file exists whose path is the whole text, the text is that path, even if it
    contains `=`."""
    name, equals, path = text.partition("=")
    if equals and re.fullmatch(NAME_FORM, name) and not os.path.exists(text):
        return name, path
    return text.rpartition("/")[2].partition(".")[0], text


class RefusedValue(click.BadParameter):
    """A RefusedValue error says that an option does not accept a value. It has a hint."""

    def __init__(self, message: str, *, hint: str | None, **context: Any) -> None:
        super().__init__(message, **context)
        self.hint = hint


class ParsedType(AnyType):
    """A ParsedType is a click type that parses a value with a function of this module.

    `name` is the name of the type, and `parse` is the function."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(decode_word(value))
        except InputError as error:
            prefix = f"{error.field}: " if error.field else ""
            raise RefusedValue(prefix + error.message, hint=error.hint, param=param, ctx=ctx) from None


class DecisionOrEvent(ParsedType):
    """A DecisionOrEvent is a click type for the id of a decision. If the command names a user, it takes the name of an
    event as well. The user must be parsed before."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        has_user = ctx is not None and isinstance(ctx.params.get("user"), str)
        return value if has_user and not str(value).isdecimal() else super().convert(value, param, ctx)


class RegisteredName(AnyChoice):
    """A RegisteredName is a click type that takes the names in a registry (a mapping by name). The registry is loaded
    when the names are needed.

    `registry` is written module:attribute."""

    def __init__(self, registry: str) -> None:
        self.module, _, self.attribute = registry.partition(":")
        self.case_sensitive = True

    @property
    def choices(self) -> Sequence[str]:  # type: ignore[override]  # read only
        return list(getattr(import_module(self.module), self.attribute))


class Integer(click.IntRange):
    """An Integer is a click type that takes a whole number in a range. If the range has no upper end, the number has at
    most 64 bits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            parse = partial(parse_integer, least_bits=(self.max or 0).bit_length() + 1)
            value = ParsedType(self.name, parse).convert(value.strip(), param, ctx)
        return super().convert(value, param, ctx)


def parse_decision(text: str) -> int:
    """Return the id of a decision. The text must have the form in which rlrec prints ids, without a sign or a leading
    zero."""
    if re.fullmatch(r"[1-9][0-9]{0,18}", text) and int(text) <= MAX_INTEGER:
        return int(text)
    hint = "it is the number that recommend answered: rlrec feedback 17 click"
    raise InputError(f"'{truncate(text)}' is not a decision id", hint=hint)


DECISION = ParsedType("decision id", parse_decision)
FIRST_WORD = DecisionOrEvent("decision id", parse_decision)
TIME = ParsedType("time", parse_local)
ZONE = ParsedType("zone", find_zone)
CLOCK = ParsedType("time", parse_clock)
DURATION = ParsedType("duration", parse_duration)
NUMBER = ParsedType("number", parse_number)
PERCENT = ParsedType("share", parse_percent)
NAME = ParsedType("name", parse_name)
KEY = ParsedType("key", parse_key)
KEYS = ParsedType("keys", parse_keys)
LIST = ParsedType("a,b", str)
OBJECT = ParsedType("json|@file", parse_object)
CANDIDATES = ParsedType("candidates", parse_candidates)
JSON_FILE = ParsedType("file", parse_file)
PAIR = ParsedType("name=value", parse_pair)
PIN, MOST, LEAST = (
    ParsedType("name=value", partial(parse_pair, example=example)) for example in ("1={}", "{}=2", "{}=0.05")
)
FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)
TABLE = ParsedType("table", str)
NAMED_TABLE = ParsedType("table", parse_named_table)
