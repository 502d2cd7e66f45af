"""A process of its own that runs queries through ADBC and hands on the columns it gets: numbers as they lie in memory.

Of its own, because an ADBC driver brings another SQLite along. Two of them in one process undo each other's locks on a
file (closing it releases all that the process holds), and what is written afterwards is lost. It also works while the
process that asked computes.

It is run as a file, so that nothing else of rlrec is loaded. First it reads {"driver": a module, "uri", "options": of
statements}, then a line {"ask": SQL} or {"tell": SQL} a query. It answers each with frames (a line {"columns":
[[format, bytes, ...], ...]}, formats as Arrow names them, then these bytes), and a last line {"done"} or {"error"}.

Source of the structures: the Arrow C data and stream interfaces, https://arrow.apache.org/docs/format/.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char, c_char_p, c_int, c_int32, c_int64, c_void_p, cast
from importlib import import_module
from typing import Any

import adbc_driver_manager as adbc

WIDTHS = {"l": 8, "g": 8, "i": 4, "s": 2}  # bytes of a number: int64, double, int32, int16
TEXTS = ("u", "z")  # text, bytes


class Schema(Structure):
    pass


class Array(Structure):
    pass


class Stream(Structure):
    pass


Schema._fields_ = [
    ("format", c_char_p), ("name", c_char_p), ("metadata", c_void_p), ("flags", c_int64), ("n_children", c_int64),
    ("children", POINTER(POINTER(Schema))), ("dictionary", c_void_p), ("release", CFUNCTYPE(None, POINTER(Schema))),
    ("private_data", c_void_p),
]  # fmt: skip
Array._fields_ = [
    ("length", c_int64), ("null_count", c_int64), ("offset", c_int64), ("n_buffers", c_int64), ("n_children", c_int64),
    ("buffers", POINTER(c_void_p)), ("children", POINTER(POINTER(Array))), ("dictionary", c_void_p),
    ("release", CFUNCTYPE(None, POINTER(Array))), ("private_data", c_void_p),
]  # fmt: skip
Stream._fields_ = [
    ("get_schema", CFUNCTYPE(c_int, POINTER(Stream), POINTER(Schema))),
    ("get_next", CFUNCTYPE(c_int, POINTER(Stream), POINTER(Array))),
    ("get_last_error", CFUNCTYPE(c_char_p, POINTER(Stream))),
    ("release", CFUNCTYPE(None, POINTER(Stream))),
    ("private_data", c_void_p),
]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked decides when it is over
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    opening = json.loads(sys.stdin.buffer.readline())
    try:
        connection = adbc.AdbcConnection(import_module(opening["driver"]).connect(opening["uri"]))
        _answer({"done": True})
    except (ImportError, adbc.Error) as error:
        _answer({"error": str(error)})
        return
    for line in sys.stdin.buffer:
        _serve(connection, json.loads(line), opening["options"])


def _serve(connection: adbc.AdbcConnection, query: dict[str, str], options: dict[str, str]) -> None:
    statement = adbc.AdbcStatement(connection)
    try:
        statement.set_options(**options)
        statement.set_sql_query(query.get("ask") or query["tell"])
        if "tell" in query:
            statement.execute_update()
        else:
            handle, _ = statement.execute_query()
            _write_batches(handle)
        _answer({"done": True})
    except (adbc.Error, ValueError) as error:
        _answer({"error": str(error)})
    finally:
        statement.close()


def _write_batches(handle: adbc.ArrowArrayStreamHandle) -> None:
    """Write every batch of a result."""
    stream = cast(handle.address, POINTER(Stream))
    schema = Schema()
    _check(stream, stream.contents.get_schema(stream, byref(schema)))
    formats = [schema.children[i].contents.format.decode() for i in range(schema.n_children)]
    schema.release(byref(schema))
    for batch in _batches(stream):
        buffers = [_buffers(batch.children[i].contents, kind) for i, kind in enumerate(formats)]
        _answer({"columns": [[kind, *map(len, pieces)] for kind, pieces in zip(formats, buffers, strict=True)]})
        for pieces in buffers:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
    stream.contents.release(stream)


def _batches(stream: Any) -> Iterator[Array]:
    while True:
        batch = Array()
        _check(stream, stream.contents.get_next(stream, byref(batch)))
        if not batch.release:  # the end
            return
        yield batch
        batch.release(byref(batch))


def _buffers(column: Array, kind: str) -> list[memoryview]:
    """The bytes of a column: its numbers; of one of texts or bytes where each ends (the first place is 0), and all of
    them."""
    if column.offset or not _has_no_null(column):
        raise ValueError("a column holds nulls, or begins in the middle")
    if kind in WIDTHS:
        return [_bytes(column.buffers[1], column.length * WIDTHS[kind])]
    if kind not in TEXTS:
        raise ValueError(f"a column has the Arrow type {kind!r}")
    if not column.length:
        return [memoryview(b""), memoryview(b"")]
    ends = _bytes(column.buffers[1], (column.length + 1) * 4)
    return [ends, _bytes(column.buffers[2], c_int32.from_buffer_copy(ends[-4:]).value)]


def _has_no_null(column: Array) -> bool:
    """Whether no value is null: a bit each says so, where there are any."""
    if not column.null_count or not column.buffers[0]:
        return True
    full, more = divmod(column.length, 8)
    bits = bytes(_bytes(column.buffers[0], full + (more > 0)))
    return bits.count(0xFF, 0, full) == full and (not more or bits[full] | 0xFF << more & 0xFF == 0xFF)


def _bytes(address: int | None, length: int) -> memoryview:
    return memoryview((c_char * length).from_address(address)).cast("B") if address and length else memoryview(b"")


def _check(stream: Any, code: int) -> None:
    if code:
        message = stream.contents.get_last_error(stream)
        raise ValueError(message.decode(errors="replace") if message else f"error {code}")


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    if "columns" not in answer:
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
