"""This process runs queries through ADBC and passes on columns as it gets them, numbers in their memory layout.

The process is a separate one because an ADBC driver contains a second SQLite library. Two of them in one process
break each other's locks on a file (closing it releases all locks of the process), and later changes are lost. Also,
it works while the process that sent the query computes.

Its program is run as a file, so that nothing else of rlrec is loaded. It first reads {"driver": a module, "uri",
"options": of statements}, then {"ask": SQL} or {"tell": SQL} for each query. It answers with batches, lists of columns
(the format in Arrow's notation, then the bytes), and at the end with None or the text of an error; all messages are
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
    """Return the bytes of a column. A column of numbers gives their values. A column of texts or bytes gives the end of
    each (after a first 0), and all their bytes."""
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
