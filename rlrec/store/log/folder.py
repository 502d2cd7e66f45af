"""This module reads the log from a folder of Parquet files, in place of the log in the store. DuckDB presents the files
as tables with the names of the store's tables, so the same queries work on the files and on the store."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from tempfile import gettempdir
from typing import Any

import numpy as np
import sqlalchemy as sa

from rlrec.arrays import Ids
from rlrec.errors import InputError, RlrecError
from rlrec.log_fields import ABSENT
from rlrec.store.database import tables as t
from rlrec.store.database.bulk import Columns, Types
from rlrec.store.database.unit import Row, quote_columns
from rlrec.store.log.log_tables import CHILDREN, column_names

BUCKETS = 64  # groups of persons; a partition has one or several of them
MEMORY = "200MB"  # of DuckDB; what does not fit lies in temporary files
# for merging files, which reads all columns: thousands of rows at a time, each with its eligible arms
MERGING_MEMORY = "2GB"
_HINT = "export the log to another folder"
_GONE = f"repeat the command if an export has merged files meanwhile; else {_HINT}"


def _child_query(table: sa.Table) -> str:
    """Return a query for the rows of a table that refers to decisions, such as slots or events. In the files, these
    rows are a list in the row of their decision."""
    names = ", ".join(f'r."{name}"' for name in column_names(table) if name != "decision_id")
    return f"SELECT decision_id, {names} FROM (SELECT decision_id, unnest({table.name}) AS r FROM decisions)"


_VISIT, _DECISION = quote_columns(column_names(t.visit)), quote_columns(column_names(t.decision)[1:])
# The visits, each as the last export that has it wrote it.
_NEWEST = (
    f'SELECT {_VISIT}, session, user_id, split, created_at, session_digest, "user", user_digest FROM visits SEMI JOIN'
    " (SELECT session_id, number, max(part) AS part FROM visits GROUP BY ALL) AS n USING (session_id, number, part)"
)
# The tables of a log; each is read from the tables before it.
_VIEWS = {
    "visit": f"SELECT {_VISIT} FROM newest",
    "session": "SELECT DISTINCT session_id AS id, session AS key, user_id, split, created_at, session_digest AS digest"
    " FROM newest",
    "users": 'SELECT DISTINCT user_id AS id, "user" AS key, user_digest AS digest FROM newest WHERE user_id > 0',
    "decision": f"SELECT decision_id AS id, {_DECISION} FROM"
    ' (SELECT * REPLACE (epoch_us("at") AS "at") FROM decisions)',
    "event": f"SELECT {quote_columns(column_names(t.event))} FROM events",
    **{table.name: _child_query(table) for table in CHILDREN},
    # the newest event that censors a slot may be later than the slot's row in the files
    "slot": f"SELECT s.* REPLACE (coalesce(c.censored, s.censored) AS censored) FROM ({_child_query(t.slot)}) AS s"
    " LEFT JOIN (SELECT decision_id, position, arg_max(value, number) <> 0 AS censored FROM events"
    " WHERE kind = '!censor' AND position > 0 GROUP BY ALL) AS c USING (decision_id, position)",
    "context": "SELECT id, any_value(body) AS body FROM (SELECT context_id AS id, context AS body FROM decisions"
    " UNION ALL SELECT decision_features[1].context_id, arm_features FROM decisions WHERE len(decision_features) > 0)"
    " GROUP BY id",
    "eligible_set": "SELECT eligible_id AS id, any_value(len(eligible_arms)) AS size,"
    " to_json(any_value(eligible_arms)) AS arms FROM decisions GROUP BY eligible_id",
}
ARROW_ROWS = 2_048  # rows per batch
# The names in a folder by days state what files by size have in columns: the bucket and, for visits, the export.
_BY_DAY = "filename = true, hive_partitioning = true, hive_types = {'bucket': BIGINT, 'day': VARCHAR}"
_EXPORT = "CAST(regexp_extract(filename, 'part-([0-9]+)', 1) AS BIGINT) AS part"
_TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR", bytes: "BLOB"}


class FolderLog:
    """A FolderLog reads the log from the files of a folder. It covers the whole log, or one partition: the part of the
    log that belongs to certain persons. The object holds only the names of the files, so it can be sent to another
    process. The partitions of a process share one connection.

    files: the paths of the files of each dataset; number: the number of partitions, or None for the whole log;
    index: the number of this partition; moves: the sessions whose user became known or was merged after some of
    their decisions were exported, each with a truth value that says whether the session belongs to this partition."""

    def __init__(
        self, folder: str, files: Mapping[str, Sequence[str]], number: int | None = None, index: int = 0,
        moves: Mapping[int, bool] | None = None, database: _Database | None = None,
    ) -> None:  # fmt: skip
        self._arguments = folder, files, number, index, moves
        self.folder, self.files, self.number, self.index, self.moves = folder, files, number, index, moves or {}
        self._database = database or _Database(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return FolderLog, self._arguments

    def split(self, number: int) -> Iterator[FolderLog]:
        """Yield the `number` partitions of the log. The number must be a power of two. All decisions of a person are in
        one partition."""
        session_ids, earlier_buckets, home_buckets = self._changes
        for index in range(number):
            is_here, was_here = home_buckets % number == index, earlier_buckets % number == index
            is_moved = is_here != was_here
            moved_sessions = dict(zip(session_ids[is_moved].tolist(), is_here[is_moved].tolist(), strict=True))
            buckets = {*range(index, BUCKETS, number), *earlier_buckets[is_here].tolist()}
            files = {
                name: [path for path in paths if _may_have_buckets(path, buckets)] for name, paths in self.files.items()
            }
            yield FolderLog(self.folder, files, number, index, moved_sessions, self._database)

    @cached_property
    def _changes(self) -> tuple[Ids, ...]:
        """Find the sessions whose user became known, or was merged, after some decisions of the session were exported.
        Such a session may have rows in several buckets, which are groups of persons. Return three columns: the id of
        the session, a bucket with older rows of the session, and the bucket to which its person now belongs."""
        homes = "SELECT session_id, arg_max(bucket, part) AS home FROM visits GROUP BY session_id"
        text = f"SELECT DISTINCT session_id, bucket AS earlier, home FROM visits JOIN ({homes}) USING (session_id)"
        text += " WHERE bucket <> home ORDER BY session_id, bucket"
        return tuple(self.columns(text, dict.fromkeys(("session_id", "earlier", "home"), np.int64)).values())

    # -- queries --

    def ask(self, text: str, *values: Any) -> list[Row]:
        """Return all rows of a query. The arguments are the same as those of `Unit.ask`."""
        parameters = [value if isinstance(value, str | bytes | int | float | None) else list(value) for value in values]
        with self._database.tables(self) as connection:
            rows: list[Row] = connection.execute(text.replace("(?*)", "(SELECT unnest(?))"), parameters).fetchall()
        return rows

    def columns(self, text: str, types: Types) -> Columns:
        """Return all rows of a query as columns: one array for each column, by name. types: the name and type of each
        column."""
        with self._database.tables(self) as connection:
            arrays = list(connection.execute(text).fetchnumpy().values())
        for index, array in enumerate(arrays):
            if len(array) and isinstance(array[0], bytearray):
                arrays[index] = np.array([bytes(value) for value in array.tolist()], object)
        return {name: array.astype(types[name], copy=False) for name, array in zip(types, arrays, strict=True)}

    def numbers(self, dataset: str, *names: str) -> list[Ids]:
        """Return one array for each of the named integer columns of a dataset, with all its rows. Missing values are
        ABSENT."""
        columns = ", ".join(f"coalesce({name}, {ABSENT}) AS {name}" for name in names)
        return list(self.columns(f"SELECT {columns} FROM {dataset}", dict.fromkeys(names, np.int64)).values())

    def export_sizes(self) -> list[tuple[int, int]]:
        """Return the number of the first file and the number of decisions of each export that has decisions."""
        paths, exports = sorted(self.files["decisions"], key=file_number), list[tuple[int, int]]()
        text = f"SELECT file_name, num_rows FROM parquet_file_metadata({self._database.list_of(paths)})"
        row_counts = {file_number(name): count for name, count in self.ask(text)} if paths else {}
        for index, path in enumerate(paths):
            export_number, previous_path = file_number(path), paths[index - 1]
            is_next = export_number == file_number(previous_path) + 1
            if not exports or not is_next or _bucket_share(path)[1] != _bucket_share(previous_path)[1]:
                exports.append((export_number, 0))
            exports[-1] = exports[-1][0], exports[-1][1] + row_counts[export_number]
        return exports

    def since(self, number: int) -> FolderLog:
        """Return the part of the log that is in files whose number is at least `number`."""
        files = {name: [path for path in paths if file_number(path) >= number] for name, paths in self.files.items()}
        return FolderLog(self.folder, files, database=_Database(self.folder, memory=MERGING_MEMORY))

    def batches(self, dataset: str, names: Sequence[str], *, share: int, shares: int) -> Iterator[Any]:
        """Yield the named columns of a dataset as batches of Arrow. The rows of the dataset are divided into `shares`
        shares by bucket; only the rows of the share with the number `share` are read."""
        text = f"SELECT {quote_columns(names)} FROM {dataset} WHERE bucket % {shares} = {share}"
        if self.files[dataset]:
            with self._database.tables(self) as connection:
                rows = connection.sql(text)
                reader = "to_arrow_reader" if hasattr(rows, "to_arrow_reader") else "fetch_arrow_reader"  # before 2.0
                yield from getattr(rows, reader)(ARROW_ROWS)

    def close(self) -> None:
        """Close DuckDB's connection and free its memory. A later query opens the connection again."""
        self._database.close()


class _Database:
    """A _Database runs DuckDB over the files of a folder. At any time, its tables show one log: the whole log or one
    partition."""

    def __init__(self, folder: str, *, memory: str = MEMORY) -> None:
        self.folder, self.memory = folder, memory
        self._connection: Any = None
        self._partition: tuple[int | None, int] | None = None  # the partition whose rows the tables have

    @contextmanager
    def tables(self, log: FolderLog) -> Iterator[Any]:
        """Yield the connection to DuckDB, whose tables show the given log. Raise RlrecError for a file that cannot be
        read."""
        try:
            import duckdb
        except ImportError:
            raise InputError("a log in Parquet needs DuckDB", hint="pip install 'rlrec[parquet]'") from None
        try:
            if self._partition != (log.number, log.index):
                self._show(log)
            yield self._connection
        except duckdb.Error as error:
            raise self._named_error(log, error) from error
        except OSError as error:
            raise RlrecError(f"cannot read {self.folder}: {error}", hint=_HINT) from error

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._partition = None

    @cached_property
    def _location(self) -> tuple[str, Any]:
        """Return the folder in the form that DuckDB reads, and the fsspec file system of the folder (None for a local
        folder)."""
        if "://" not in self.folder:
            return self.folder, None
        with remote_folder(self.folder) as (files, root):
            is_local = "file" in files.protocol
            return (root, None) if is_local else (files.unstrip_protocol(root), files)

    def _connect(self) -> Any:
        """Open a new connection to DuckDB, without tables."""
        import duckdb

        config: dict[str, Any] = {"threads": 1, "memory_limit": self.memory, "temp_directory": gettempdir()}
        connection = duckdb.connect(config=config)
        if self._location[1] is not None:
            connection.register_filesystem(self._location[1])
        connection.execute("SET integer_division = true")  # as in the databases of stores
        return connection

    def _show(self, log: FolderLog) -> None:
        """Create the tables on the connection that show the given log."""
        is_first, self._partition = self._connection is None, None
        self._connection = connection = self._connection or self._connect()
        is_partition = log.number is not None
        connection.execute(f"SET parquet_metadata_cache = {is_partition}")  # for all files it would be large
        connection.execute("CREATE OR REPLACE TEMP TABLE moved (session_id BIGINT, is_here BOOLEAN)")
        if log.moves:
            text = "INSERT INTO moved SELECT unnest(?), unnest(?)"
            connection.execute(text, [list(log.moves), list(log.moves.values())])
        for name in log.files:
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {self._source(log, name)}")
        if is_partition:  # its visits are few, and are asked for often
            connection.execute(f"CREATE OR REPLACE TEMP TABLE newest_rows AS {_NEWEST}")
        newest_source = "FROM newest_rows" if is_partition else _NEWEST
        connection.execute(f"CREATE OR REPLACE TEMP VIEW newest AS {newest_source}")
        for name, text in _VIEWS.items() if is_first else ():
            connection.execute(f"CREATE TEMP VIEW {name} AS {text}")
        self._partition = log.number, log.index

    def _source(self, log: FolderLog, dataset: str) -> str:
        """Return a query for all rows of a dataset that belong to the given log."""
        by_day = [path for path in log.files[dataset] if "/bucket=" in path]
        by_size = [path for path in log.files[dataset] if "/bucket=" not in path]
        if not log.files[dataset]:
            nulls = (f'NULL::{kind} AS "{name}"' for name, kind in _dataset_columns(dataset).items())
            return f"SELECT {', '.join(nulls)} WHERE false"
        sources = [f"SELECT *, {_EXPORT} FROM read_parquet({self.list_of(by_day)}, {_BY_DAY})"] if by_day else []
        if by_size:
            sources.append(f"FROM read_parquet({self.list_of(by_size)}, hive_partitioning = false)")
        rows = " UNION ALL BY NAME ".join(sources)
        if log.number is None:
            return rows
        if not log.moves:
            buckets = ", ".join(map(str, range(log.index, BUCKETS, log.number)))
            return f"SELECT * FROM ({rows}) WHERE bucket IN ({buckets})"
        if dataset == "events":
            return rows
        is_here = f"coalesce(m.is_here, r.bucket % {log.number} = {log.index})"
        return f"SELECT r.* FROM ({rows}) AS r LEFT JOIN moved AS m USING (session_id) WHERE {is_here}"

    def list_of(self, paths: Sequence[str]) -> str:
        """Return the paths of files as a list in SQL. Raise RlrecError if a path is a folder, since DuckDB would read
        all files in the folder."""
        full_paths = [os.path.join(self._location[0], path) for path in paths]
        for path in full_paths if self._location[1] is None else ():
            if os.path.isdir(path):
                raise RlrecError(f"cannot read {path}: it is a folder", hint=_HINT)
        return f"[{', '.join(map(_sql_literal, full_paths))}]"

    def _named_error(self, log: FolderLog, error: Exception) -> RlrecError:
        """Return an error that names the file that cannot be read. To find this file, the method reads all files one
        after the other until one of them fails."""
        import duckdb

        column = re.search(r'[Cc]olumn "(\w+)"', str(error))
        with self._connect() as connection:
            for dataset, path in ((dataset, path) for dataset, paths in log.files.items() for path in paths):
                name, file = os.path.join(self.folder, path), os.path.join(self._location[0], path)
                try:
                    names = connection.execute("SELECT name FROM parquet_schema(?)", [file]).fetchall()
                    rows = connection.execute("SELECT * FROM read_parquet([?])", [file])
                    while rows.fetchmany(1000):
                        pass
                except duckdb.Error as reason:
                    is_gone = "No files found" in str(reason)
                    return RlrecError(f"cannot read {name}: {_error_text(reason)}", hint=_GONE if is_gone else _HINT)
                if column is not None and column[1] in _dataset_columns(dataset) and (column[1],) not in names:
                    return RlrecError(f"{name} has no column {column[1]}", hint=_HINT)
        return RlrecError(f"cannot read {self.folder}: {_error_text(error)}", hint=_HINT)


@contextmanager
def remote_folder(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the fsspec file system of a URL, and the path of the URL in this file system. Inside the block, errors of
    the file system are raised as OSError."""
    try:
        import fsspec
    except ImportError:
        raise InputError(f"{url} needs fsspec", hint="pip install fsspec") from None
    try:
        files, root = fsspec.core.url_to_fs(url)
        yield files, root.rstrip("/")
    except (OSError, RlrecError):
        raise
    except (ImportError, ValueError) as error:  # an unknown protocol, or one whose package is not installed
        hint = "s3:// needs s3fs, gs:// gcsfs, abfs:// adlfs, https:// aiohttp: pip install PACKAGE"
        raise InputError(f"cannot open {url}: {' '.join(str(error).split())[:200]}", hint=hint) from None
    except Exception as error:  # each protocol raises errors of its own, for example for credentials
        raise OSError(f"{type(error).__name__}: {error}") from error


def _error_text(error: Exception) -> str:
    """Return the text of a DuckDB error, without the query that DuckDB quotes at the end."""
    return " ".join(str(error).partition("\n\nLINE")[0].split())[:200]


def _sql_literal(text: str) -> str:
    """Return a text as a literal in SQL."""
    return "'" + text.replace("'", "''") + "'"


def file_number(path: str) -> int:
    """Return the number of a file, which is part of its name."""
    return int(path.rpartition("part-")[2].partition(".")[0])


def _bucket_share(path: str) -> tuple[int, int]:
    """Return two numbers from the name of the folder that holds a file: the number of the share of buckets in this
    file, and how many shares the buckets are divided into."""
    share, _, shares = path.rpartition("=")[2].partition("/")[0].partition("-of-")
    return int(share), int(shares or BUCKETS)


def _may_have_buckets(path: str, buckets: Collection[int]) -> bool:
    """Tell whether a file may have rows of any of these buckets."""
    share, n_shares = _bucket_share(path)
    return any(bucket % n_shares == share for bucket in buckets)


def _dataset_columns(dataset: str) -> dict[str, str]:
    """Return the columns of a dataset that queries read: the type in DuckDB of each column, by name."""
    if dataset == "decisions":
        columns = {"decision_id": "BIGINT", **_column_types(t.decision), "at": "TIMESTAMPTZ", "context": "VARCHAR"}
        columns |= {"eligible_arms": "BIGINT[]", "arm_features": "VARCHAR"}
        for child in CHILDREN:
            fields = ", ".join(
                f'"{name}" {kind}' for name, kind in _column_types(child).items() if name != "decision_id"
            )
            columns[child.name] = f"STRUCT({fields})[]"
        del columns["id"]
    elif dataset == "events":
        columns = _column_types(t.event)
    else:
        columns = _column_types(t.session) | _column_types(t.visit) | {"session": "VARCHAR", "user": "VARCHAR"}
        columns |= {"session_digest": "BIGINT", "user_digest": "BIGINT", "part": "BIGINT"}
    return columns | {"bucket": "BIGINT"}


def _column_types(table: sa.Table) -> dict[str, str]:
    """Return the type in DuckDB of each column of a table, by name."""
    return {column.name: _TYPES[column.type.python_type] for column in table.columns}
