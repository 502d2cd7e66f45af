"""This module reads input with one JSON object per line. It splits the input into groups of lines, decodes each line
strictly, and says in each error what is wrong and where.

The library msgspec decodes the lines. It accepts some things that it should not: integers of any length, duplicate
keys, NUL in text. Cheap tests on a whole group find these. Only if a group fails a test is each line read again,
slowly, to name the field that is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import select
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from rlrec.cli.text.strict import DEPTH, LIMIT, Object, join_path, parse_tree, problem
from rlrec.cli.text.text import truncate
from rlrec.cli.text.values import KEY_LENGTH, key_problem
from rlrec.errors import InputError, suggest

if TYPE_CHECKING:
    import click

T = TypeVar("T")

BLOCK_BYTES = 65_536
BOM = b"\xef\xbb\xbf"
FLUSH = re.compile(rb'\s*\{\s*"op"\s*:\s*"flush"\s*\}\s*')
LONG = re.compile(rb"[:,\[\s-][0-9]{19}")  # an integer that may not fit into 64 bits
ESCAPED = re.compile(rb"\\u00(?:00|22|3[aA])")  # NUL, a quote or a colon
ALL_ZERO = bytes.maketrans(b"123456789", b"000000000")
NO_BRACKET = bytes(set(range(256)) - set(b"[]{}\n"))
WORDS = {
    "object": "an object", "array": "a list", "str": "text", "int": "a whole number", "float": "a number",
    "bool": "true or false", "null": "null",
}  # fmt: skip


# -- lines and groups --


def groups(
    source: str | BinaryIO, *, size: int = 1000, eager: bool = True, flush: bool = False, n_bytes: int = sys.maxsize
) -> Iterator[list[tuple[int, bytes]]]:
    """Yield groups of lines, each group as a list of (line number, line). A group has at most `size` lines, none of
    which is blank.

    source: a path, `-` for stdin, or a file to read from its start; eager: whether a group also ends when no further
    complete line is waiting, so that a producer that waits for an answer gets it; flush: whether a line `{"op":
    "flush"}` ends a group, and is dropped; n_bytes: the number of bytes of lines after which a group ends."""
    cutter, group = _Cutter(), list[tuple[int, bytes]]()
    with _open_input(source) as stream:
        while True:
            block = _read(stream)
            for lines, ends in _split_at_flushes(cutter.lines(block), flush):
                group += lines
                while len(group) >= size:
                    yield group[:size]
                    del group[:size]
                if group and (ends or sum(len(line) for _, line in group) >= n_bytes):
                    yield group
                    group = []
            if group and (not block or (eager and not _poll_input(stream))):
                yield group
                group = []
            if not block:
                return


def _split_at_flushes(lines: list[tuple[int, bytes]], flush: bool) -> Iterator[tuple[list[tuple[int, bytes]], bool]]:
    """Yield the lines in parts, split at lines `{"op": "flush"}`. Each part is paired with whether such a line
    followed.

    flush: whether to split; otherwise all lines are one part."""
    if flush:
        ends = [index for index, (_, line) in enumerate(lines) if b"flush" in line and FLUSH.fullmatch(line)]
        for start, end in zip([0, *(index + 1 for index in ends)], ends, strict=False):
            yield lines[start:end], True
        lines = lines[ends[-1] + 1 :] if ends else lines
    yield lines, False


def rereadable(source: str) -> str | BinaryIO:
    """Return an input that can be read more than once. For a plain file the result is its path. Any other input (stdin,
    a FIFO) is copied to a file without a name, which disappears when the process ends.

    source: the path of the input, or `-` for stdin."""
    if source != "-" and stat.S_ISREG(os.stat(source).st_mode):
        return source
    import tempfile

    import click

    copy = cast(BinaryIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (it lives as long as the command)
    click.get_current_context().call_on_close(copy.close)
    with _open_input(source) as stream:
        while block := _read(stream):
            copy.write(block)
    return copy


def stream(source: str) -> AbstractContextManager[BinaryIO] | None:
    """Open an input that arrives bit by bit: stdin or a FIFO. The result is None for a plain file.

    source: the path of the input, or `-` for stdin."""
    return None if source != "-" and stat.S_ISREG(os.stat(source).st_mode) else _open_input(source)


class _Cutter:
    """A _Cutter splits blocks of bytes into numbered lines. A line is cut off if it would take more memory than LIMIT
    plus one block."""

    def __init__(self) -> None:
        self.number = 0
        self.tail = bytearray()

    def lines(self, block: bytes) -> list[tuple[int, bytes]]:
        """Return the lines that are complete once this block is read, each with its number. Blank lines are left out.
        An empty block stands for the end of the input."""
        head, end, remainder = block.rpartition(b"\n") if block else (b"", b"\n", b"")
        complete_lines = self._number_lines(bytes(self.tail) + head) if end else []
        if end:
            self.tail.clear()
        self.tail += remainder[: max(0, LIMIT + 1 - len(self.tail))]
        return complete_lines

    def _number_lines(self, text: bytes) -> list[tuple[int, bytes]]:
        lines = text.split(b"\n")
        lines[0] = lines[0][: LIMIT + 1]  # the others lie within one block
        if self.number == 0:
            lines[0] = lines[0].removeprefix(BOM)
        pairs = enumerate(lines, self.number + 1)
        self.number += len(lines)
        if min(lines) >= b"!" and b"\r" not in text:  # no line is blank or begins with a blank
            return list(pairs)
        return [(number, line.rstrip(b"\r")) for number, line in pairs if line and not line.isspace()]


@contextmanager
def _open_input(source: str | BinaryIO) -> Iterator[BinaryIO]:
    if not isinstance(source, str):
        source.seek(0)
        yield source
    elif source != "-":
        with open(source, "rb", buffering=0) as file:
            yield cast(BinaryIO, file)
    elif (stdin := sys.stdin) is None:
        raise InputError("no input: stdin is closed")
    elif stdin.isatty():
        raise InputError("no input: stdin is a terminal", hint="pipe one JSON object a line in, or name a file")
    elif stdin is (real_stdin := sys.__stdin__) and real_stdin:
        # bypassing its buffer: a poll does not see what is in there
        with open(real_stdin.fileno(), "rb", buffering=0, closefd=False) as file:
            yield cast(BinaryIO, file)
    else:
        yield stdin.buffer


def _poll_input(stream: BinaryIO, timeout: int | None = 0) -> bool:
    """Tell whether a read would return at once, with data or because the input has ended.

    timeout: how many milliseconds to wait for that, or None to wait without a limit."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), select.POLLIN)
    except (AttributeError, io.UnsupportedOperation):
        return True
    return bool(poll.poll(timeout))


def _read(stream: BinaryIO) -> bytes:
    """Return the bytes that are available, and wait until there is at least one byte. The result is empty at the end of
    the input."""
    while (block := stream.read(BLOCK_BYTES)) is None:  # from a non-blocking descriptor
        _poll_input(stream, None)
    return block


# -- decoding --


@lru_cache
def _decoder(kind: Any) -> Any:
    import msgspec

    return msgspec.json.Decoder(kind)


def decode(raw: bytes, kind: type[T], *, line: int | None = None) -> T:
    """Return the value of a line. Raises InputError, which names the line and the field.

    raw: the line; kind: the msgspec Struct that the value must be; line: the number of the line, for errors."""
    if (values := _decode_block([raw], kind)) is not None:
        value: T = values[0]
        return value
    import msgspec

    if len(raw) > LIMIT:
        raise InputError(f"longer than {LIMIT // 1_000_000} MB", line=line)
    tree = parse_tree(raw, line=line)
    if isinstance(tree, list):
        hint = "one object a line: jq -c '.[]' makes lines of a JSON array"
        raise InputError(f"expected an object, got the list {truncate(raw.decode(), 40)}", hint=hint, line=line)
    if fault := problem(tree):
        raise InputError(fault[1], field=fault[0] or None, line=line)
    try:
        value = _decoder(cast(Any, kind)).decode(raw)
    except msgspec.MsgspecError as error:
        raise _invalid(tree, str(error), kind, line) from None
    return value


def decode_candidates(tree: list[Any]) -> list[Any]:
    """Return the candidate arms of a request, each with what the request states about it. Raises InputError if one is
    wrong.

    tree: the decoded JSON array of the candidates."""
    import msgspec

    kind: Any = candidate_type()
    try:
        return msgspec.convert(tree, list[kind])
    except msgspec.ValidationError as error:
        fault = _invalid(tree, str(error), kind, None)
        raise InputError(f"{fault.field}: {fault.message}", hint=fault.hint, field="candidates") from None


def decode_group(group: Sequence[tuple[int, bytes]], kind: type[T]) -> list[T | InputError]:
    """Return, for each line of a group, its value or the error in it. If all lines are good, decoding takes a
    microsecond per line.

    group: pairs of line number and line; kind: the msgspec Struct that a value must be."""
    values = _decode_block([raw for _, raw in group], kind)
    return [_try_line(raw, kind, number) for number, raw in group] if values is None else values


def key_type() -> Any:
    """Return the type of a field that holds a key, for a msgspec Struct. A key that is too short or too long is refused
    with the message of `parse_key`. NUL and broken Unicode are refused in any text of a line, so a decoded key needs no
    further check."""
    from typing import Annotated

    from msgspec import Meta

    return Annotated[str, Meta(min_length=1, max_length=KEY_LENGTH)]


@cache
def candidate_type() -> Any:
    """Return the msgspec Struct of a candidate arm of a request."""
    from msgspec import defstruct

    rows: list[Any] = [("arm", key_type()), ("features", dict[str, Any], {})]
    rows += [("score", float | None, None), ("scores", dict[str, float], {})]
    return defstruct("Candidate", rows, forbid_unknown_fields=True)


def line_type(
    name: str, command: click.Command, fields: Sequence[str], *, required_fields: Sequence[str] = (), **more_types: Any
) -> Any:
    """Return the msgspec Struct of a line whose fields are parameters of a command. Each field has the type of the
    command's parameter.

    name: the name of the Struct; fields: the names of the fields; required_fields: the fields that a line must have;
    more_types: the types of fields that are no parameters, or differ from the type of their parameter, by name."""
    from typing import get_origin

    from msgspec import defstruct

    key: Any = key_type()
    kinds = {"decision id": int, "integer range": int, "key": key, "keys": list[key], "json|@file": dict[str, Any]}
    options = {param.name: param for param in command.params}
    rows: list[Any] = []
    for field in fields:
        kind = more_types[field] if field in more_types else kinds.get(options[field].type.name, str)
        default = {} if get_origin(kind) is dict else None if field in more_types else options[field].default
        if field in required_fields:
            rows.append((field, kind))
        else:
            rows.append((field, kind, default) if isinstance(default, int | dict) else (field, kind | None, None))
    words = {field: options[field].opts[0].lstrip("-") for field in fields if field not in more_types}
    short_names = {field: word for field, word in words.items() if len(word) == 1}
    return defstruct(name, rows, rename=short_names, forbid_unknown_fields=True, omit_defaults=True)


def _try_line(raw: bytes, kind: type[T], number: int) -> T | InputError:
    try:
        return decode(raw, kind, line=number)
    except InputError as error:
        return error


def _decode_block(raws: list[bytes], kind: Any) -> list[Any] | None:
    """Return the decoded values of all lines. The result is None if any line is bad or unusual; each line must then be
    decoded by itself."""
    import msgspec

    block = b"\n".join(raws)
    if not _is_usual(block, len(raws)):
        return None
    try:
        values = _decoder(kind).decode_lines(block)
        n_brackets = max(map(len, block.translate(None, NO_BRACKET).split(b"\n")))  # per line
        if n_brackets > 2 * DEPTH and _is_deep(_decoder(Any).decode_lines(block)):
            return None
        # Encoded again, every key occurs once: an equal count proves that there were no duplicates. A quoted colon in a
        # text counts on both sides. The typed values lack defaults that lines state; then the untyped values are
        # counted.
        n_keys = block.count(b'":')
        is_distinct = msgspec.json.encode(values).count(b'":') == n_keys
        if not is_distinct:
            is_distinct = msgspec.json.encode(_decoder(Any).decode_lines(block)).count(b'":') == n_keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return values if is_distinct and len(values) == len(raws) else None


def _is_deep(value: Any, depth: int = -1) -> bool:
    """Tell whether a value, or any value within it, is nested too deeply.

    depth: the depth of the value itself. The default is for a list of values that have the depth 0."""
    if depth > DEPTH:
        return True
    children = value.values() if isinstance(value, dict) else value
    return any(_is_deep(child, depth + 1) for child in children if isinstance(child, dict | list))


def _is_usual(block: bytes, n_lines: int) -> bool:
    """Tell whether lines of JSON are complete objects, without anything that msgspec accepts though it is wrong, or
    writes in another form.

    block: the lines, joined by newlines; n_lines: their number."""
    return (
        len(block) <= LIMIT
        and block.startswith(b"{")
        and block.endswith(b"}")
        and block.count(b"}\n{") == n_lines - 1  # occurs in no object, so that there is one value per line
        and not any(sign in block for sign in (b'" :', b'"  ', b"\t", b"\r"))  # possibly a blank before a colon
        and not (b"\\u" in block and ESCAPED.search(block))
        and not (b"0" * 19 in block.translate(ALL_ZERO) and LONG.search(block))
    )


# -- error messages --


def _invalid(tree: Any, error: str, kind: Any, line: int | None) -> InputError:
    """Return the error for a line that is JSON, but does not fit a msgspec Struct.

    tree: the decoded line; error: the message of msgspec; kind: the Struct; line: the number of the line."""
    complaint, _, at = error.partition(" - at ")
    tokens = re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", at)
    field, value = "", tree
    for name, index in tokens:
        key, value = _step(value, name, index, complaint)
        field = f"{field}{key}" if key.startswith("[") else join_path(field, key)
    if unknown_field := re.fullmatch(r"Object contains unknown field `(.*)`", complaint, re.DOTALL):
        tag: Any = tree.get(cast(str, _tag_field(kind))) if isinstance(tree, dict) else None
        struct = _structs(kind).get(tag, kind)  # the Struct that the line's tag names
        hint = _unknown_field_hint(unknown_field[1], struct)
        return InputError("unknown field", hint=hint, field=join_path(field, unknown_field[1]), line=line)
    if missing_field := re.fullmatch(r"Object missing required field `(.*)`", complaint):
        hint = f"it is {' or '.join(_structs(kind))}" if missing_field[1] == _tag_field(kind) else _example(kind)
        return InputError("is missing", hint=hint, field=join_path(field, missing_field[1]), line=line)
    if complaint.startswith("Invalid value"):
        tags = [*_structs(kind)]
        hint = suggest(str(value), tags)
        return InputError(f"'{truncate(str(value))}' is not {' or '.join(tags)}", hint=hint, field=field, line=line)
    if complaint.startswith("Expected `str` of length") and (fault := key_problem(value)):
        return InputError(fault, field=field.partition("[")[0], line=line)
    complaint = re.sub(r", got `\w+`$", "", complaint)
    complaint = re.sub(r"`([^`]+)`", lambda m: " or ".join(WORDS.get(w, w) for w in m[1].split(" | ")), complaint)
    value_text = truncate(json.dumps(value, ensure_ascii=False, default=str), 40)
    return InputError(f"{complaint[0].lower()}{complaint[1:]}, got {value_text}", field=field or None, line=line)


def _step(value: Any, name: str, index: str, complaint: str) -> tuple[str, Any]:
    """Take one step of the path in an error of msgspec, from a value to a value within it. Return the name and the
    value of the inner one. The step `[...]` stands for any key; the first member that the message fits is then taken.

    name: the name of a field, or "" if the step is an index; index: an index, or `...`; complaint: the message."""
    if name:
        return name, value.get(name) if isinstance(value, dict) else None
    if index.isdigit():
        is_inside = isinstance(value, list) and int(index) < len(value)
        return f"[{index}]", value[int(index)] if is_inside else None
    match = re.search(r"got `(\w+)`$", complaint)
    kinds = {bool: "bool", int: "int", float: "float", str: "str", list: "array", Object: "object"}
    for key, child in value.items() if isinstance(value, dict) else ():
        if match is None or kinds.get(type(child), "null") == match[1]:
            return truncate(key, 80), child
    return "[...]", value


def _structs(kind: Any) -> dict[str, Any]:
    """Return the msgspec Structs that a line may have, by the value of `op` in a line.

    kind: the union of the Structs."""
    from typing import get_args

    return {struct.__struct_config__.tag: struct for struct in get_args(kind) if hasattr(struct, "__struct_config__")}


def _tag_field(kind: Any) -> str | None:
    return next((struct.__struct_config__.tag_field for struct in _structs(kind).values()), None)


def _unknown_field_hint(name: str, kind: Any) -> str | None:
    """Return a hint for a field that is not known where it stands. The hint says where the field belongs, or which
    known name is similar, or which names are known.

    kind: the msgspec Struct in which the field stands."""
    names = _fields(kind)
    if name in names and hasattr(kind, "__struct_fields__"):
        holder = next((field for field, hint in _hints(kind).items() if name in _fields(hint)), None)
        example = _example(kind)
        return f"it stands in {f'`{holder}`' if holder else 'the line itself'}" + (f", {example}" if example else "")
    return suggest(name, names) or (f"known: {', '.join(names)}" if names else None)


def _example(kind: Any) -> str | None:
    """Return a hint with an example of a line, or None if the Struct has no EXAMPLE."""
    example = getattr(kind, "EXAMPLE", None)
    return None if example is None else f"for example {example}"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the type of each field of a Struct, by name. The types are cached, since every line of a file may have the
    same error."""
    from typing import get_type_hints

    return get_type_hints(kind)


@cache
def _fields(kind: Any) -> list[str]:
    """Return the names of all fields of a msgspec Struct, of the Structs within it, or of the Structs of a union."""
    from typing import get_args

    if isinstance(kind, type) and hasattr(kind, "__struct_encode_fields__"):
        inner_names = [name for hint in _hints(kind).values() for name in _fields(hint)]
        return list(dict.fromkeys([*kind.__struct_encode_fields__, *inner_names]))
    return [name for inner_kind in get_args(kind) for name in _fields(inner_kind)]
