"""This module reads rows as arrays. It uses the driver's cursor or, for a long log, Arrow and a second process
(`arrow_worker`).

The values of a query, which are all numbers, are written into its text. Queries must not return nulls: SQLite's
driver gives a column of Arrow one type, which it derives from the first rows."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from io import BufferedReader, BufferedWriter
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from rlrec.errors import RlrecError
from rlrec.store.database.unit import Unit

Columns = dict[str, npt.NDArray[Any]]
Types = Mapping[str, type]  # by name, in the order of the query; `object` is text or bytes

MIN_DECISIONS = 20_000  # decisions from which on a second process is worth it
SNAPSHOT_ATTEMPTS = 20
_FORMATS = {"l": np.int64, "g": np.float64, "i": np.int32, "s": np.int16}
_BYTES = "z"
_PIPE = 1 << 20  # bytes that may wait in the pipe, where the system allows that


def stream(unit: Unit, text: str, types: Types) -> Iterator[Columns]:
    """Yield all rows of a query in order, in portions, through the driver's cursor. A portion is a dictionary with an
    array for each column. types: the numpy type of each column, by name."""
    for rows in unit.portions(text):
        columns = zip(types.items(), zip(*rows, strict=True), strict=True)
        yield {name: np.array(values, kind) for (name, kind), values in columns}


class PendingQuery:
    """A PendingQuery is a query whose answer may not have arrived yet."""

    def __init__(self, unit: Unit, text: str, types: Types) -> None:
        self._unit, self._text, self._types = unit, text, types
        self.pieces: list[list[npt.NDArray[Any]]] | None = None  # batches of columns, once they have arrived
        if unit.arrow_worker is not None:
            unit.arrow_worker.send(text, self)

    def columns(self) -> Columns:
        """Return the answer as columns: one array for each column, by name. Wait for the answer if necessary."""
        if self._unit.in_folder(self._text):
            return self._unit.folder.columns(self._text, self._types)
        worker = self._unit.arrow_worker
        if worker is None:
            rows = self._unit.ask(self._text)
            values = zip(*rows, strict=True) if rows else ((),) * len(self._types)
            typed_columns = zip(self._types.items(), values, strict=True)
            return {name: np.array(column, kind) for (name, kind), column in typed_columns}
        while self.pieces is None:
            worker.receive()
        columns = list(zip(*self.pieces, strict=True)) or [(np.empty(0),) for _ in self._types]
        return {
            name: (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)).astype(kind, copy=False)
            for (name, kind), arrays in zip(self._types.items(), columns, strict=True)
        }


# -- a second process on the same snapshot --


@contextmanager
def alongside(unit: Unit, policy_ids: Collection[int] | None = None) -> Iterator[None]:
    """In this context, read a long log through Arrow in a second process, from the same snapshot as the unit.

    Enter the context before anything is read, since on SQLite the unit takes a new snapshot when it enters the
    context for the first time. If the driver is missing, or if writers never pause for long enough, the log is read
    through the unit's own cursor.

    policy_ids: if given, the length of the log of these policies decides whether the second process is used."""
    worker = _start_worker(unit) if not unit.alongside and unit.folder is None and is_long(unit, policy_ids) else None
    unit.alongside = True
    if worker is None:
        yield
        return
    with closing(worker):
        with suppress(RlrecError):
            if (_share_postgres_snapshot if unit.postgres else _share_sqlite_snapshot)(unit, worker):
                unit.arrow_worker = worker
        try:
            yield
        finally:
            unit.arrow_worker = None


def is_long(unit: Unit, policy_ids: Collection[int] | None = None) -> bool:
    """Tell whether the log is so long that reading it in a second process is faster. In a rehearsal the result is
    False, since another process does not see rows that are not committed. policy_ids: if given, only the length of the
    log of these policies counts."""
    if unit.connection.in_nested_transaction():  # a rehearsal: no other connection sees its rows
        return False
    if policy_ids is not None:
        id_list = ", ".join(map(str, policy_ids))
        served_rows = f"SELECT 1 FROM decision WHERE policy_id IN ({id_list}) LIMIT {MIN_DECISIONS}"
        return unit.ask_value(f"SELECT count(*) FROM ({served_rows}) AS served") == MIN_DECISIONS
    # one query for both would scan all decisions
    first_id, last_id = (unit.ask_value(f"SELECT {end}(id) FROM decision") for end in ("min", "max"))
    return first_id is not None and last_id - first_id >= MIN_DECISIONS


def _start_worker(unit: Unit) -> ArrowWorker | None:
    opening = _open_postgres(unit) if unit.postgres else _open_sqlite(unit)
    if not sys.executable or find_spec(opening["driver"]) is None:
        return None
    worker = None
    try:
        worker = ArrowWorker(opening)
        worker.answer()
    except (OSError, RlrecError):
        if worker is not None:
            worker.close()
        return None
    return worker


def _open_sqlite(unit: Unit) -> dict[str, Any]:
    path = next(row[2] for row in unit.ask("PRAGMA database_list") if row[1] == "main")
    options = {"adbc.sqlite.query.batch_rows": "65536"}
    option = "&immutable=1" if "unchanged" in unit.connection.info else ""
    return {"driver": "adbc_driver_sqlite", "uri": f"file:{quote(path)}?mode=ro{option}", "options": options}


def _open_postgres(unit: Unit) -> dict[str, Any]:
    url = unit.connection.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    address, question_mark, query = url.partition("?")
    return {
        "driver": "adbc_driver_postgresql",
        # It goes only through the pipe. libpq does not read + as a blank.
        "uri": address + question_mark + query.replace("+", "%20"),
        "options": {"adbc.postgresql.batch_size_hint_bytes": str(8 << 20)},
    }


def _share_postgres_snapshot(unit: Unit, worker: ArrowWorker) -> bool:
    worker.tell("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    worker.tell(f"SET TRANSACTION SNAPSHOT '{unit.ask_value('SELECT pg_export_snapshot()')}'")
    return True


def _share_sqlite_snapshot(unit: Unit, worker: ArrowWorker) -> bool:
    """Let the unit and the worker begin a transaction on the same state of the database, and tell whether this
    succeeded. The worker reads the database's version before and after the unit takes its snapshot. The attempt is
    repeated if another process has committed in between.

    The version is `data_version`, a number that changes when another connection, in any process, has committed."""
    worker.tell("PRAGMA cache_size = -32000")
    for _ in range(SNAPSHOT_ATTEMPTS):
        version = worker.version()
        unit.tell("ROLLBACK")
        unit.tell("BEGIN")
        unit.ask_value("SELECT id FROM settings")
        worker.tell("BEGIN")
        if worker.version() == version:
            unit.tell("PRAGMA cache_size = -8000")  # it reads little from now on
            return True
        worker.tell("ROLLBACK")
    return False


class ArrowWorker:
    """An ArrowWorker is a second process that answers queries, in the order in which the queries are sent."""

    def __init__(self, opening: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("arrow_worker.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pipesize=_PIPE,
        )  # fmt: skip
        self._questions = cast("BufferedWriter", self._process.stdin)
        self._answers = cast("BufferedReader", self._process.stdout)
        self._pending_queries: deque[PendingQuery] = deque()
        self._write(opening)

    def close(self) -> None:
        self._process.kill()  # the process only reads
        with suppress(OSError):
            self._questions.close()
        self._answers.close()
        self._process.wait()

    def send(self, text: str, query: PendingQuery) -> None:
        """Send a query without waiting for the answer. The answer is stored in `query` when it is received."""
        self._write({"ask": text})
        self._pending_queries.append(query)

    def receive(self) -> None:
        """Receive the answer to the oldest query without an answer, and store it in the PendingQuery."""
        query = self._pending_queries.popleft()
        query.pieces = self.answer()

    def tell(self, text: str) -> None:
        self._write({"tell": text})
        self.answer()

    def version(self) -> int:
        """Return the `data_version` of the worker's connection to SQLite."""
        self._write({"ask": "PRAGMA data_version"})
        return int(self.answer()[0][0][0])

    def answer(self) -> list[list[npt.NDArray[Any]]]:
        """Read an answer, and return a list of columns for each of its batches. Raise RlrecError for an error in the
        worker."""
        pieces: list[list[npt.NDArray[Any]]] = []
        while isinstance(batch := self._read(), list):
            pieces.append([_decode_column(*column) for column in batch])
        if batch is not None:
            raise RlrecError(f"the store failed: {' '.join(batch.split())[:300]}")
        return pieces

    def _write(self, message: Mapping[str, Any]) -> None:
        try:
            pickle.dump(message, self._questions)
            self._questions.flush()
        except BrokenPipeError:
            raise RlrecError("the process that reads the store has ended") from None

    def _read(self) -> Any:
        try:
            return pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError):
            raise RlrecError("the process that reads the store has ended") from None


def _decode_column(kind: str, *buffers: bytearray) -> npt.NDArray[Any]:
    """Return a column as an array, from the buffers that `arrow_worker` sent. kind: the format of the column in Arrow's
    notation."""
    if kind in _FORMATS:
        return np.frombuffer(buffers[0], _FORMATS[kind])
    ends, text = np.frombuffer(buffers[0], np.int32).tolist(), bytes(buffers[1])
    if kind == _BYTES:
        return np.array([text[start:end] for start, end in pairwise(ends)], object)
    string = text.decode()
    if len(string) == len(text):
        return np.array([string[start:end] for start, end in pairwise(ends)], object)
    return np.array([text[start:end].decode() for start, end in pairwise(ends)], object)
