"""This module converts words from a shell into values (times, durations, numbers, keys, names, JSON), and masks
passwords in text.

Each `parse_*` raises InputError. The click types at the end raise the same error with the name of the option."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from rlrec.cli.text.text import MAX_INTEGER, truncate, unstorable
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
    """Return the reason why `text` cannot be the key of an arm, session, user or request, or None if it can."""
    if reason := unstorable(text):
        return f"'{truncate(text)}' {reason}"
    if not 1 <= len(text) <= KEY_LENGTH:
        return f"a key has 1 to {KEY_LENGTH} characters, '{truncate(text, 20)}' has {len(text)}"
    return None


def decode_word(text: str) -> str:
    """Return a word of the command line as UTF-8, even if Python decoded it by another locale."""
    try:
        return text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        return text


def hide_secrets(text: str, secrets: Sequence[str]) -> str:
    """Return `text` with `***` in place of each of `secrets`."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def mask_secrets(text: str, secrets: Sequence[str] = ()) -> str:
    """Return `text` with `***` in place of every password in a URL or a connection string, and of each of `secrets`."""
    text = hide_secrets(text, secrets)
    return re.sub(PASSWORD_PATTERN, r"\1***", re.sub(USERINFO_PATTERN, r"\1***@", text))


def passwords(url: str) -> list[str]:
    """Return the passwords in a database URL, as written and decoded, so that a caller can keep them out of output."""
    from urllib.parse import unquote

    userinfo = re.match(r"[^:/]+://[^:@/]*:(.*)@", url, re.DOTALL)
    secrets = [userinfo[1]] if userinfo else []
    secrets += [match[2].strip("'") for match in re.finditer(PASSWORD_PATTERN, url)]
    return [form for word in secrets for form in {word, unquote(word)} if len(form) > 2]


# -- values --


def parse_duration(text: str) -> int:
    """Return the microseconds of a duration such as 90s, 30m, 7d, 1h30m or 250ms. Larger units come first."""
    micros = duration(text)
    if micros is None:
        raise InputError(f"'{truncate(text)}' is not a duration", hint="write 90s, 30m, 1h30m or 7d")
    if micros > MAX_INTEGER // 1024:
        raise InputError(f"'{truncate(text)}' is too long a duration")
    return micros


def parse_clock(text: str) -> int:
    """Parse a time into microseconds since 1970. The form +31m means 31 minutes after the clock of this machine."""
    if not text.startswith("+"):
        return parse_time(text)
    import time

    return time.time_ns() // 1_000 + parse_duration(text[1:])


def parse_number(text: str) -> float:
    """Parse a finite double."""
    if re.fullmatch(NUMBER_FORM, text, re.ASCII) is None:
        raise InputError(f"'{truncate(text)}' is not a number")
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"'{truncate(text)}' is beyond the range of a double")
    return value


def parse_percent(text: str) -> float:
    """Return the number that 1% or 0.01 stands for."""
    try:
        return parse_number(f"{text[:-1]}e-2" if text.endswith("%") else text)
    except InputError:
        raise InputError(f"'{truncate(text)}' is not a share", hint="write 1% or 0.01") from None


def parse_integer(text: str, *, least_bits: int = 64) -> int:
    """Parse an integer of at most 64 bits, or of `least_bits` if that is more."""
    bits = max(least_bits, 64)
    if re.fullmatch(r"[+-]?[0-9]+", text) is None:
        raise InputError(f"'{truncate(text)}' is not a whole number")
    if len(text.lstrip("+-0")) > 20 or not -(2 ** (bits - 1)) <= int(text) < 2 ** (bits - 1):
        raise InputError(f"'{truncate(text)}' does not fit into {bits} bits")
    return int(text)


def parse_name(text: str) -> str:
    """Check the name of a policy, reward, experiment or variant, and return it."""
    if re.fullmatch(NAME_FORM, text) is None:
        hint = "up to 64 letters, digits, '_', '.' and '-', the first a letter or a digit"
        raise InputError(f"'{truncate(text)}' is not a name", hint=hint)
    return text


def parse_key(text: str) -> str:
    """Check the key of an arm, session, user or request, and return it unchanged. A key has 1 to 200 characters."""
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
    """Parse strict JSON text, or the file whose name follows an `@`."""
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
    """Parse a JSON object, or the file with one whose name follows an `@`."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, got '{truncate(text)}'", hint="write '{\"hour\": 9}'")
    return value


def parse_candidates(text: str) -> list[Any]:
    """Parse a JSON array, or the file with one whose name follows an `@`."""
    value = parse_json(text)
    if not isinstance(value, list):
        raise InputError(f"expected a JSON array, got '{truncate(text)}'", hint='write [{"arm": "a", "score": 1.7}]')
    return value


def parse_file(path: str) -> dict[str, Any]:
    """Read the JSON object in a file."""
    value = parse_json(f"@{path}")
    if not isinstance(value, dict):
        raise InputError(f"{truncate(path)} holds no JSON object")
    return value


def parse_pair(text: str) -> tuple[str, str]:
    """Split `K=V` into its key and its value. The value may contain further `=`."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise InputError(f"'{truncate(text)}' has no '='", hint="write NAME=VALUE")
    return key.strip(), value.strip()


def parse_named_table(text: str) -> tuple[str, str]:
    """Split NAME=FILE into the name and the path. The name of an existing FILE without NAME is its file name without
    the suffix."""
    name, equals, path = text.partition("=")
    if equals and re.fullmatch(NAME_FORM, name) and not os.path.exists(text):
        return name, path
    return text.rpartition("/")[2].partition(".")[0], text


class RefusedValue(click.BadParameter):
    """A Refused error says that an option does not accept a value, and carries a hint."""

    def __init__(self, message: str, *, hint: str | None, **context: Any) -> None:
        super().__init__(message, **context)
        self.hint = hint


class ParsedType(AnyType):
    """This click type parses a value with one of the functions above."""

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
    """This click type takes the id of a decision. If the command has a user, which is parsed first, it also takes the
    name of an event."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        has_user = ctx is not None and isinstance(ctx.params.get("user"), str)
        return value if has_user and not str(value).isdecimal() else super().convert(value, param, ctx)


class RegisteredName(AnyChoice):
    """This click type takes the names in a registry (module:attribute), which is loaded when the names are needed."""

    def __init__(self, registry: str) -> None:
        self.module, _, self.attribute = registry.partition(":")
        self.case_sensitive = True

    @property
    def choices(self) -> Sequence[str]:  # type: ignore[override]  # read only
        return list(getattr(import_module(self.module), self.attribute))


class Integer(click.IntRange):
    """This click type takes a whole number in a range, of at most 64 bits if the range has no upper end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            parse = partial(parse_integer, least_bits=(self.max or 0).bit_length() + 1)
            value = ParsedType(self.name, parse).convert(value.strip(), param, ctx)
        return super().convert(value, param, ctx)


def parse_decision(text: str) -> int:
    """Parse the id of a decision, written as it was printed, without a sign or a leading zero."""
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
FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)
TABLE = ParsedType("table", str)
NAMED_TABLE = ParsedType("table", parse_named_table)
