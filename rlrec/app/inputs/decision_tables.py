"""This module reads a table with a number for each decision and arm, such as a probability. The table is a file (CSV,
Parquet, one JSON object per line) or a frame of Arrow, pandas or Polars.

The numbers are sorted into a file, one part of the decisions at a time. Decisions can then be looked up in any
order, and the order of the table does not matter."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from io import TextIOWrapper
from itertools import chain, islice, repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
import numpy as np

from rlrec.arrays import Array, Flags, Ids, look_up, piece_rows, run_starts
from rlrec.errors import InputError
from rlrec.policy.beliefs.reward import LIMIT
from rlrec.records import Record
from rlrec.store import Unit
from rlrec.store.database.bulk import PendingQuery
from rlrec.store.log.selected import id_ends
from rlrec.store.policies import arms as catalogue
from rlrec.times import format_time

KEYS = ("decision_id", "request_id")  # columns that identify a decision
PROBABILITY, SCORE, REWARD, MARGINAL = "probability", "score", "reward", "marginal"
POSITION = "position"  # the column with the position at which an arm has a marginal
TOLERANCE = 1e-5  # of a sum of probabilities
PORTION, SHARES = 50_000, 64  # rows that are read at a time; shares of the decisions, which are sorted one by one
_ROW = np.dtype([*((name, np.int64) for name in ("decision", "arm", "position", "row")), ("value", np.float64)])

Source = Any  # a path, or a frame
Cells = Mapping[str, Sequence[Any]]  # columns by name


class DecisionTable(Record, kw_only=False):
    """This record describes a file with a number for each decision and arm.

    source: the name of the table in messages; column: what the numbers are, such as `probability`; path: the path of
    the file; since: the time of the table's first decision, None if the decision before it in the log has the same
    time or does not exist; temperature: the temperature of the softmax that makes probabilities of scores, 0 to
    always take the best arm."""

    source: str
    column: str
    path: str
    since: str | None
    temperature: float = 1.0

    @property
    def origin_text(self) -> str:
        """Return words that say where the table's probabilities come from, and how they are derived."""
        manner = f"at temperature {self.temperature:g}" if self.temperature else "of the best arm"
        manner = f"at each {POSITION}" if self.column == MARGINAL else manner
        return f"{self.source}, {self.column} {manner}"

    def values(self, decision: Ids, arms: Ids, *, keys: Mapping[int, str], shares: Any = 1.0, k: int = 1) -> Array:
        """Return the values of d decisions at k positions for m arms, as an array (d, k, m). Raises InputError if a
        value is missing, if probabilities do not add up to 1, or if a table that is not of rewards has arms that are
        not eligible.

        decision (d,): the ids of the decisions; arms (m,): the ids of the arms, ascending; keys: the key of each
        arm, by id; shares (d, 1, m): the probability of each arm. If it is 0, the reward of an arm may be missing,
        and is then 0."""
        rows = np.memmap(self.path, _ROW, "r")
        start, end = (np.searchsorted(rows["decision"], decision, side) for side in ("left", "right"))
        stored_rows, decision_index = (
            rows[piece_rows(start, end - start)],
            np.repeat(np.arange(len(decision)), end - start),
        )
        arm_index, is_eligible = look_up(arms, stored_rows["arm"])
        _refuse_row(self.source, stored_rows, ~is_eligible & (self.column != REWARD), "its arm is not eligible there")
        _refuse_row(self.source, stored_rows, stored_rows["position"] > k, f"its page ends at position {k}")
        values = np.full((len(decision), k, len(arms)), np.nan)
        values[decision_index[is_eligible], stored_rows["position"][is_eligible] - 1, arm_index[is_eligible]] = (
            stored_rows["value"][is_eligible]
        )
        for row, position, arm in np.argwhere(np.isnan(values) & (shares > 0))[:1].tolist():
            suffix = f", position {position + 1}" if self.column == MARGINAL else ""
            missing_row = f"decision {decision[row]}{suffix} and arm {keys[int(arms[arm])]!r}"
            hint = f"it needs a {self.column} of every eligible arm of each decision that --log selects"
            if self.since is not None and decision[row] < rows["decision"][0]:
                hint += f"; `--log since={self.since}` begins with its first decision, {rows['decision'][0]}"
            raise InputError(f"{self.source} has no row of {missing_row}", hint=hint)
        if self.column in (PROBABILITY, MARGINAL):
            first_rows, sums, by_arm = rows[start % len(rows)], values.sum(axis=2), values.sum(axis=1).max(axis=1)
            furthest_sums = np.take_along_axis(sums, np.abs(sums - 1).argmax(axis=1)[:, None], axis=1)[:, 0]
            is_wrong, is_repeated = np.abs(furthest_sums - 1) > TOLERANCE, by_arm > 1 + TOLERANCE
            _refuse_row(
                self.source,
                first_rows,
                is_wrong,
                f"its probabilities add up to {furthest_sums[is_wrong.argmax()]:.7g}, not to 1",
            )
            _refuse_row(
                self.source, first_rows, is_repeated, f"an arm is {by_arm[is_repeated.argmax()]:.7g} times on its page"
            )
        return np.nan_to_num(values)


def is_by_decision(source: Source) -> bool:
    """Tell whether a source is a table with a column that identifies decisions. A pipe is not looked at, since it can
    be read only once; the result is then False."""
    is_readable = not isinstance(source, str) or Path(source).is_file()
    return is_readable and not {*KEYS}.isdisjoint(next(_read_portions(source, str(source)), {}))


def write_csv(source: Source, name: str, folder: Path) -> str:
    """Write a frame with the columns value, arm and a number, in this order, into a new CSV file. Returns the path of
    the file. name: the name of the frame in messages."""
    path = folder / f"frame {name}"
    with path.open("w", newline="", encoding="utf-8") as file:
        for number, cells in enumerate(_read_portions(source, path.name)):
            names = sorted(cells, key=lambda column: (column != "value", column != "arm"))
            csv.writer(file).writerows([*([] if number else [names]), *zip(*map(cells.get, names), strict=True)])
    return str(path)


def index_numbers(unit: Unit, source: Source, name: str, columns: Sequence[str], path: Path) -> DecisionTable:
    """Sort the numbers of a table into a new file, and return its description. Raises InputError that names a wrong
    row. source: a path or a frame; name: the name of a frame in messages; columns: the possible names of the column
    with the numbers; path: the path of the new file."""
    name = source if isinstance(source, str) else f"frame {name}"
    first_id, last_id = id_ends(unit)
    portions = _read_portions(source, name)
    first_cells = next(portions, {})
    _, column = _named_columns(name, first_cells, columns)
    with ExitStack() as stack:
        shares = [stack.enter_context(TemporaryFile()) for _ in range(SHARES)]
        for rows in _read_rows(unit, chain([first_cells], portions), name, columns):
            share = np.clip((rows["decision"] - first_id) * SHARES // (last_id - first_id + 1), 0, SHARES - 1)
            for number in np.unique(share).tolist():
                shares[number].write(rows[share == number].tobytes())
        file = stack.enter_context(open(path, "wb"))
        for share_file in shares:
            share_file.seek(0)
            rows = np.frombuffer(share_file.read(), _ROW)
            file.write(_sort_and_check(unit, rows, name).tobytes() if len(rows) else b"")
    first_decision = int(np.memmap(path, _ROW, "r")["decision"][0])
    times = unit.ask("SELECT at FROM decision WHERE id <= ? ORDER BY id DESC LIMIT 2", first_decision)
    first_at = times[0][0]
    return DecisionTable(name, column, str(path), format_time(first_at) if first_at > times[-1][0] else None)


def _sort_and_check(unit: Unit, rows: Any, name: str) -> Any:
    """Return rows in order of decision, position and arm. Raises InputError if a decision is not in the log, or if an
    arm has two rows at the same position of a decision."""
    rows = rows[np.lexsort((rows["row"], rows["arm"], rows["position"], rows["decision"]))]
    decision = rows["decision"]
    range_test = f"id >= {decision[0]} AND id <= {decision[-1]}"
    query = PendingQuery(unit, f"SELECT id FROM decision WHERE {range_test} ORDER BY id", {"id": np.int64})
    _refuse_row(name, rows, ~look_up(query.columns()["id"], decision)[1], "the log has no such decision")
    is_repeated = np.ones(len(rows), np.bool_)
    is_repeated[run_starts(decision, rows["position"], rows["arm"])] = False
    _refuse_row(name, rows, is_repeated, "its arm has another row there")
    return rows


def _read_rows(unit: Unit, portions: Iterable[Cells], name: str, columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows of a table as arrays of the type `_ROW`. Raises InputError for a wrong cell. portions: the columns
    of a portion of rows at a time; columns: the possible names of the column with the numbers."""
    count, arms = 0, {arm.key: arm.id for arm in catalogue.all_arms(unit)}
    for cells in portions:
        key, column = _named_columns(name, cells, columns)
        rows = np.empty(len(cells["arm"]), _ROW)
        rows["row"] = np.arange(count + 1, count + 1 + len(rows))
        if key == "request_id":
            text = "SELECT request_key, id FROM decision WHERE request_key IN (?*)"
            rows["decision"] = _ids(dict(unit.ask(text, {*map(str, cells[key])})), map(str, cells[key]))
        else:
            rows["decision"] = _integers(cells[key])
        rows["position"] = _integers(cells[POSITION]) if column == MARGINAL else 1
        rows["arm"] = _ids(arms, map(str, cells["arm"]))
        rows["value"] = value = _numbers(cells[column])
        _refuse_row(name, rows, rows["decision"] == 0, f"is no {key} of the log", cells[key])
        _refuse_row(name, rows, rows["arm"] == 0, "is no arm of the catalogue", cells["arm"])
        _refuse_row(name, rows, rows["position"] == 0, f"is no {POSITION}", cells.get(POSITION, ()))
        is_wrong = ~(np.abs(value) <= LIMIT) | ((value < 0) & (column in (PROBABILITY, MARGINAL)))
        _refuse_row(name, rows, is_wrong, f"is no {column}", cells[column])
        yield rows
        count += len(rows)


def _refuse_row(name: str, rows: Any, is_wrong: Flags, problem: str, cells: Sequence[Any] = ()) -> None:
    """Raise InputError for the first wrong row, if any. is_wrong: whether each row is wrong; cells: the cell of each
    row to show in the error, if the error is in a cell."""
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        decision = f", decision {rows['decision'][row]}" if rows["decision"][row] else ""
        cell = f"{str(cells[row])[:40]!r} " if len(cells) else ""
        raise InputError(f"{name} row {rows['row'][row]}{decision}: {cell}{problem}")


def _named_columns(name: str, cells: Cells, columns: Sequence[str]) -> tuple[str, str]:
    """Return the names of the column that identifies decisions and of the column with the numbers. Raises InputError if
    a column is missing or is not known."""
    key, column = (next(filter(cells.__contains__, names), "") for names in (KEYS, columns))
    if {*cells} != {key, "arm", column, *([POSITION] if column == MARGINAL else [])}:
        text = " or ".join(columns).replace(MARGINAL, f"{POSITION} with {MARGINAL}")
        hint = f"its columns are {' or '.join(KEYS)}, arm, and {text}"
        message = f"has the columns {', '.join(map(str, cells))}" if cells else "has no row"
        raise InputError(f"{name} {message}", hint=hint)
    return key, column


def _ids(ids: Mapping[str, int], keys: Iterable[str]) -> Ids:
    """Return the id of each of n keys, (n,). The id is 0 for an unknown key. ids: the known ids by key."""
    return np.array(list(map(ids.get, keys, repeat(0))), np.int64)


def _integers(cells: Sequence[Any]) -> Array:
    """Return the number in each of n cells, (n,), or 0 if the cell has no positive whole number."""
    number = _numbers(cells)
    return np.where((number > 0) & (number < 2**53) & (number % 1 == 0), number, 0.0)


def _numbers(cells: Sequence[Any]) -> Array:
    """Return the number in each of n cells, (n,), or NaN if the cell has no number."""
    with suppress(TypeError, ValueError):
        return np.asarray(cells).astype(np.float64)
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        with suppress(TypeError, ValueError):
            values[row] = float(cell)
    return values


def _read_portions(source: Source, name: str) -> Iterator[Cells]:
    """Yield the columns of a source, a portion of rows at a time. Raises InputError if the source cannot be read."""
    try:
        if not isinstance(source, str):
            pyarrow = load_pyarrow()
            # a frame of pandas has `merge`, a series has not
            frame = (
                pyarrow.Table.from_pandas(source, preserve_index=False)
                if hasattr(source, "merge")
                else pyarrow.table(source)
            )
            yield from (batch.to_pydict() for batch in frame.to_batches(max_chunksize=PORTION))
            return
        with open(source, "rb") as file:
            first_bytes = file.peek(4)[:4]
            if first_bytes == b"PAR1":
                parquet = load_pyarrow().parquet.ParquetFile(source)
                yield from (batch.to_pydict() for batch in parquet.iter_batches(PORTION))
                return
            records: Iterator[Mapping[str, Any]] = map(msgspec.json.Decoder(dict[str, Any]).decode, file)
            if not first_bytes.startswith(b"{"):
                records = csv.DictReader(TextIOWrapper(file, "utf-8-sig", newline=""))
            while portion := list(islice(records, PORTION)):
                names = dict.fromkeys(chain.from_iterable(portion))
                yield {name: [record.get(name) for record in portion] for name in names}
    except (OSError, TypeError, ValueError, NotImplementedError, csv.Error, msgspec.MsgspecError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
        hint = None if isinstance(source, str) else "give a frame of pandas, Arrow or Polars (a lazy one: collect())"
        raise InputError(f"cannot read {name}: {reason}", hint=hint) from error


def load_pyarrow() -> Any:
    """Return the module pyarrow. Raises InputError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow", hint="pip install 'rlrec[parquet]'") from None
    return pyarrow
