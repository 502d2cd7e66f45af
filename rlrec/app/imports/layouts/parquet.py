"""This module reads a table in Parquet, with a map of its columns as for `csv`. The rows of the table are first written
as CSV into an unnamed file. Messages call row n line n + 1, as if the file began with a header."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, cast

from rlrec.app.imports.layouts.base import Source
from rlrec.app.imports.layouts.csv_map import ColumnMap, CsvMap, check_columns
from rlrec.errors import InputError

ROWS = 50_000  # rows written at once


class Parquet(CsvMap):
    """This layout reads those columns of a Parquet table that `options.map` names."""

    def __init__(self, source: Source, *, policy: str | None, now: int, options: Mapping[str, Any]) -> None:
        if options.get("map") is None:
            raise InputError("the layout parquet needs a map of its columns", hint="--map FILE")
        self._rows_as_csv = _as_csv(source, ColumnMap.read(options["map"]).names)
        super().__init__(
            Source(file=self._rows_as_csv, name=source.name, decode=source.decode),
            policy=policy, now=now, options=options,
        )  # fmt: skip

    def close(self) -> None:
        super().close()
        self._rows_as_csv.close()


def _as_csv(source: Source, wanted_names: list[str]) -> BinaryIO:
    """Return an unnamed CSV file with the wanted columns of a Parquet file. Raises InputError if the source is no
    Parquet file, or lacks a wanted column."""
    try:
        import pyarrow as pa
        from pyarrow import csv, parquet
    except ImportError:
        raise InputError("the layout parquet needs pyarrow", hint="pip install 'rlrec[parquet]'") from None
    with ExitStack() as stack:
        copy = stack.enter_context(tempfile.TemporaryFile())
        try:
            file = parquet.ParquetFile(source.file)
            names = file.schema_arrow.names
            check_columns(source.name, names, wanted_names)
            copy.write((",".join(json.dumps(name).replace('\\"', '""') for name in wanted_names) + "\n").encode())
            for batch in file.iter_batches(batch_size=ROWS, columns=wanted_names):
                columns = [_printable(batch.column(batch.schema.get_field_index(name))) for name in wanted_names]
                csv.write_csv(
                    pa.record_batch(columns, names=wanted_names), copy, csv.WriteOptions(include_header=False)
                )
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"{source.name} is an incomplete Parquet file: {reason}", hint="fetch it again") from None
        copy.flush()
        stack.pop_all()  # the layout closes it
        return cast(BinaryIO, copy)


def _printable(column: Any) -> Any:
    """Return a column in a form that CSV can hold: times are in UTC, and lists are JSON."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", "UTC" if kind.tz else None)).cast(pa.string())
    if pa.types.is_nested(kind):
        texts = (None if value is None else json.dumps(value, ensure_ascii=False) for value in column.to_pylist())
        return pa.array(list(texts), pa.string())
    return column
