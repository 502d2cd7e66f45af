"""This module parses JSON with the standard library, and refuses what a database cannot store. It is slow, but its
error messages are precise."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from rlrec.cli.text.text import MAX_INTEGER, storage_fault, truncate
from rlrec.errors import InputError

LIMIT = 10_000_000
DEPTH = 64


def decode_json(raw: bytes) -> Any:
    """Return the value of a JSON text. Raises InputError for text that is not JSON, or that a database cannot store."""
    if len(raw) > LIMIT:
        raise InputError(f"longer than {LIMIT // 1_000_000} MB")
    if fault := problem(parse_tree(raw)):
        raise InputError(fault[1], field=fault[0] or None)
    return json.loads(raw)


def parse_tree(raw: bytes, *, line: int | None = None) -> Any:
    """Return the value of a JSON text. In the value, a RefusedToken stands for each token that cannot be stored, and an
    Object for each JSON object. Raises InputError for text that is not JSON.

    line: the number of the line, for errors."""
    try:
        text = raw.decode()
        return json.loads(
            text, parse_int=_parse_integer, parse_float=_parse_float, object_pairs_hook=_object_of_pairs,
            parse_constant=lambda word: RefusedToken(word, "is not a number in JSON"),
        )  # fmt: skip
    except UnicodeDecodeError as bad:
        raise utf8_error(raw, bad, line=line) from None
    except json.JSONDecodeError as bad:
        raise _malformed_error(text, bad, line) from None
    except RecursionError:
        raise InputError(f"nested more than {DEPTH} deep", line=line) from None


class RefusedToken(NamedTuple):
    """A RefusedToken is a token that JSON or a database does not accept, with the reason."""

    text: str
    reason: str


class Object(dict[str, Any]):
    """An Object is a JSON object that remembers if a key is given twice.

    `repeated_key` is the first such key, or None."""

    repeated_key: str | None = None


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> Object:
    result = Object(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        result.repeated_key = next(key for key, times in counts.items() if times > 1)
    return result


def _parse_integer(text: str) -> int | RefusedToken:
    if len(text) <= 20 and -MAX_INTEGER - 1 <= int(text) <= MAX_INTEGER:
        return int(text)
    return RefusedToken(text, "does not fit into 64 bits")


def _parse_float(text: str) -> float | RefusedToken:
    value = float(text)
    return value if abs(value) <= sys.float_info.max else RefusedToken(text, "is beyond the range of a double")


def problem(value: Any, path: str = "", depth: int = 0) -> tuple[str, str] | None:
    """Return the first problem for which a JSON value is refused, as a pair of its path and its description. The result
    is None if there is no problem.

    value: a value from `parse_tree`; path: the path of the value in the text; depth: how deep the value is nested."""
    if isinstance(value, RefusedToken):
        return path, f"{truncate(value.text, 40)} {value.reason}"
    if isinstance(value, str) and (reason := storage_fault(value)):
        return path, f"'{truncate(value, 40)}' {reason}"
    if depth > DEPTH and isinstance(value, dict | list):
        return path[:40], f"nested more than {DEPTH} deep"
    if isinstance(value, Object) and value.repeated_key is not None:
        return join_path(path, value.repeated_key), "is given twice"
    children: Iterator[tuple[str, Any]] = iter(())
    if isinstance(value, dict):
        if pair := next(((key, reason) for key in value if (reason := storage_fault(key))), None):
            return path, f"the key '{truncate(pair[0], 40)}' {pair[1]}"
        children = ((join_path(path, key), child) for key, child in value.items())
    elif isinstance(value, list):
        children = ((f"{path}[{index}]", child) for index, child in enumerate(value))
    return next((fault for inner_path, child in children if (fault := problem(child, inner_path, depth + 1))), None)


def join_path(path: str, key: str) -> str:
    """Return the path of a key of the object at `path`, for example `context.price`."""
    return f"{path}.{truncate(key, 80)}" if path else truncate(key, 80)


def utf8_error(raw: bytes, error: UnicodeDecodeError, *, line: int | None = None) -> InputError:
    """Return the error for bytes that are not UTF-8.

    error: the error of Python, which has the place in the bytes; line: the number of the line."""
    message = f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
    return InputError(message, hint=_encoding_hint(raw), line=line)


def _encoding_hint(raw: bytes) -> str:
    if raw.startswith(b"\x1f\x8b"):
        return "it is gzip: zcat FILE | rlrec ... -"
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16: iconv -f UTF-16 -t UTF-8"
    return "write it as UTF-8, for example: iconv -f LATIN1 -t UTF-8"


def _malformed_error(text: str, error: json.JSONDecodeError, line: int | None) -> InputError:
    complaint = (error.msg[0].lower() + error.msg[1:]).removesuffix(" at")
    if not text.strip():
        return InputError("expected a JSON value, got nothing", line=line)
    excerpt = truncate(text[max(0, error.pos - 15) : error.pos + 25], 40)
    hint = "each line is a JSON object: `rlrec help formats` shows some" if line and error.pos == 0 else None
    if text.strip() in ("[", "{"):
        hint = "one object a line: jq -c . makes one line of each object, jq -c '.[]' of a JSON array"
    return InputError(f"not JSON: {complaint} at column {error.colno}, near '{excerpt}'", hint=hint, line=line)
