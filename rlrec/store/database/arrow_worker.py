"""A process of its own that runs queries through ADBC and hands on the columns it gets: numbers as they lie in memory.

Of its own, because an ADBC driver brings another SQLite along. Two of them in one process undo each other's locks on a
file (closing it releases all that the process holds), and what is written afterwards is lost. It also works while the
process that sent the query computes.

It is run as a file, so that nothing else of rlrec is loaded. First it reads {"driver": a module, "uri", "options": of
statements}, then a line {"ask": SQL} or {"tell": SQL} a query. It answers each with frames (a line {"columns":
[[format, bytes, ...], ...]}, formats as Arrow names them, then these bytes), and a last line {"done"} or {"error"}."""

from __future__ import annotations

import json
import signal
import sys
from importlib import import_module
from typing import Any

import adbc_driver_manager as adbc
from nanoarrow import c_array_stream

NUMBERS = ("l", "g", "i", "s")  # int64, double, int32, int16
TEXTS = ("u", "z")  # text, bytes


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it ends it
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
    except (adbc.Error, RuntimeError, ValueError) as error:  # RuntimeError is of nanoarrow
        _answer({"error": str(error)})
    finally:
        statement.close()


def _write_batches(handle: adbc.ArrowArrayStreamHandle) -> None:
    stream = c_array_stream(handle)
    formats = [column.format for column in stream.get_schema().children]
    for batch in stream:
        buffers = [_buffers(*column) for column in zip(batch.view().children, formats, strict=True)]
        _answer({"columns": [[kind, *map(len, pieces)] for kind, pieces in zip(formats, buffers, strict=True)]})
        for pieces in buffers:
            for piece in pieces:
                sys.stdout.buffer.write(piece)


def _buffers(column: Any, kind: str) -> list[memoryview]:
    """The bytes of a column: its numbers; of one of texts or bytes where each ends (the first number is 0), and all of
    them."""
    if column.offset or column.null_count:
        raise ValueError("a column holds nulls, or begins in the middle")
    if kind not in NUMBERS + TEXTS:
        raise ValueError(f"a column has the Arrow type {kind!r}")
    if not len(column):
        return [memoryview(b"")] * (1 + (kind in TEXTS))
    return [memoryview(buffer).cast("B") for buffer in list(column.buffers)[1:]]


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    if "columns" not in answer:
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
