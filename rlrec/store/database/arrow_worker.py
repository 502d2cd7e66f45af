"""This program runs as a process that answers queries through ADBC. It passes on each column as it gets the column,
with numbers in their memory layout.

A separate process is needed because an ADBC driver contains a second SQLite library. Two such libraries in one
process break each other's locks on a file (when one closes the file, all locks of the process are released), and
later changes are lost. A separate process also works while the process that sent the query computes.

The program is run as a file, so that nothing else of rlrec is loaded. It first reads {"driver": a module, "uri": the
database, "options": of statements}. Then it reads messages: {"ask": SQL} for a query with an answer, {"tell": SQL} for
a statement without an answer. It answers a query with batches, and at the end of each message sends None or the text of
an error. A batch is a list of columns; a column is its format in Arrow's notation and its bytes. All messages are
pickled."""

from __future__ import annotations

import pickle
import signal
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import adbc_driver_manager as adbc
from nanoarrow import c_array_stream

NUMBERS = ("l", "g", "i", "s")  # int64, double, int32, int16
TEXTS = ("u", "z")  # text, bytes


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    opening = pickle.load(sys.stdin.buffer)
    try:
        connection = adbc.AdbcConnection(import_module(opening["driver"]).connect(opening["uri"]))
    except (ImportError, adbc.Error) as error:
        _answer(str(error))
        return
    _answer(None)
    with suppress(EOFError):
        while True:
            _serve(connection, pickle.load(sys.stdin.buffer), opening["options"])


def _serve(connection: adbc.AdbcConnection, query: dict[str, str], options: dict[str, str]) -> None:
    statement = adbc.AdbcStatement(connection)
    try:
        statement.set_options(**options)
        statement.set_sql_query(query.get("ask") or query["tell"])
        if "tell" in query:
            statement.execute_update()
        else:
            handle, _ = statement.execute_query()
            stream = c_array_stream(handle)
            formats = [column.format for column in stream.get_schema().children]
            for batch in stream:
                columns = zip(formats, batch.view().children, strict=True)
                pickle.dump([(kind, *_buffers(column, kind)) for kind, column in columns], sys.stdout.buffer, 5)
        _answer(None)
    except (adbc.Error, RuntimeError, ValueError) as error:  # RuntimeError comes from nanoarrow
        _answer(str(error))
    finally:
        statement.close()


def _buffers(column: Any, kind: str) -> list[bytearray]:
    """Return the bytes of a column as buffers. A column of numbers has one buffer, with the numbers. A column of texts
    or bytes has two: the end of each value (after a first 0), and the bytes of all values. kind: the format of the
    column in Arrow's notation."""
    if column.offset or column.null_count:
        raise ValueError("a column holds nulls, or begins in the middle")
    if kind not in NUMBERS + TEXTS:
        raise ValueError(f"a column has the Arrow type {kind!r}")
    if not len(column):
        return [bytearray()] * (1 + (kind in TEXTS))
    return [bytearray(buffer) for buffer in list(column.buffers)[1:]]


def _answer(error: str | None) -> None:
    pickle.dump(error, sys.stdout.buffer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
