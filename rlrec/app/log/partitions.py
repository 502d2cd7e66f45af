"""This module reads the log in partitions. A partition has all rows of its persons. The partitions and the order of
their rows depend only on the selected decisions. Sums over partitions, added in order, are therefore equal to the last
bit, wherever the log is stored and whatever process adds them.

If only the log of one surface (a policy or an experiment) is read, its visits also get the `return` events of
decisions that other surfaces made."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import IO, Any, TypeVar

import numpy as np

from rlrec.arrays import Ids, look_up, run_starts, take
from rlrec.records import Record
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader, selected, settings
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.policies import people

BUCKETS = 64  # of persons; a partition has one or several
BATCH = reader.BATCH  # decisions of a partition, at most while there are buckets, and of a batch, about
SPREAD = BATCH * 3 // 2  # decisions that are read before they are distributed to partitions
MAX_WAITING_BYTES = 8_000_000  # bytes of rows that wait in memory for their partition; the others wait in files
RETURN_COLUMNS = ("visit", "at", "position")  # columns that `move_returns` needs
# the fields of a selection that leave out decisions of other surfaces
SURFACES = ("policy_ids", "version_ids", "variant_ids", "route_ids", "context_ids")
T = TypeVar("T")
PERSON_COLUMNS = ("user_id", "user_digest", "session_digest")  # the columns that determine the bucket


def count_partitions(decisions: int) -> int:
    """Return the number of partitions, a power of two, into which a log is divided. decisions: the number of decisions
    in the log."""
    number = 1
    while number < BUCKETS and decisions > number * BATCH:
        number *= 2
    return number


def buckets(slots: Columns) -> Ids:
    """Return the bucket of each of n rows, (n,), a number from 0 to BUCKETS - 1 that decides the partition of the row.
    It is computed from the key of the row's user, or of its session if the session has no user."""
    digest = np.where(slots["user_id"] != ABSENT, slots["user_digest"], slots["session_digest"])
    return (digest >> 1) % BUCKETS


def read(
    unit: Unit, selection: selected.Selection, number: int, *, columns: Collection[str],
    pick_contexts: Callable[[Ids], Ids] | None = None, visits: bool = False, keys: bool = False, times: int = 1,
) -> Iterator[Iterable[Batch]]:  # fmt: skip
    """Yield the partitions of the selected log, each as an iterable of batches with whole sessions in order of id. A
    partition can be iterated repeatedly, but only until the next partition is asked for. number: the number of
    partitions; columns: the columns of slots to read; pick_contexts: a function that chooses the contexts to read,
    which is ignored if there are several partitions; visits, keys: whether the visits and keys of sessions are read;
    times: how often all partitions are yielded."""
    few_test = selected.few_test(unit, selection)
    bounds = selected.session_bounds(unit, selection) if unit.folder is None and few_test is None else None
    moves_returns = has_returns_elsewhere(unit, selection)
    columns = {*columns, *RETURN_COLUMNS} if moves_returns else columns

    def batches(**options: Any) -> Iterator[Batch]:
        for batch in reader.batches(unit, selection, **options):
            yield move_returns(unit, batch) if moves_returns else batch

    options: dict[str, Any] = {
        "pick_contexts": pick_contexts, "visits": visits, "keys": keys, "bounds": bounds, "few_test": few_test,
    }  # fmt: skip
    # a single partition, which a worker reads for itself
    if unit.folder is not None and unit.folder.number is not None:
        yield cut_batches(batches(columns=columns, **options))
        return
    if number == 1:
        stored_batches = list(cut_batches(batches(columns=columns, **options)))
        for _ in range(times):
            yield stored_batches
        return
    options |= {"columns": {*columns, *PERSON_COLUMNS}, "pick_contexts": None}
    rows = partial(batches, size=SPREAD, **options)
    logs = iter(()) if unit.folder is None else unit.folder.split(number)
    with ExitStack() as stack:
        cache_key = (*selection.conditions(), number, frozenset(options["columns"]), visits, keys)
        owner, spooled_files = unit.partitions or (stack, dict[Any, list[IO[bytes]]]())
        files = spooled_files.get(cache_key)
        if files is None:
            files = spooled_files[cache_key] = [owner.enter_context(_open_spool(number)) for _ in range(number)]
            pieces = rows() if unit.folder is None else ()
            _distribute(pieces, files, lambda batch: batch.split(buckets(batch.slots) % number))
        for round_number in range(times):
            for file in files:
                if (log := next(logs, None)) is not None:  # a partition of a folder, read when its turn comes
                    with unit.reading(log):
                        for batch in rows():
                            pickle.dump(batch, file, pickle.HIGHEST_PROTOCOL)
                with closing(file) if round_number == times - 1 and unit.partitions is None else nullcontext():
                    yield _SpooledRows(file)


@contextmanager
def share_partitions(unit: Unit) -> Iterator[None]:
    """Keep the partitions that are read within a `with` block. A later read of the same rows in the block uses them."""
    with ExitStack() as stack:
        unit.partitions = stack, dict[Any, list[IO[bytes]]]()
        try:
            yield
        finally:
            unit.partitions = None


def spool(pieces: Iterable[T], number: int, split: Callable[[T], Iterable[tuple[int, T]]]) -> Iterator[list[T]]:
    """Divide rows into parts through temporary files, and yield the parts one after another, each as a list of pieces.
    pieces: the rows, in pieces of any size; number: the number of parts; split: a function that divides a piece, and
    returns pairs of the number of a part and the rows that belong to the part."""
    with ExitStack() as stack:
        files = [stack.enter_context(_open_spool(number)) for _ in range(number)]
        _distribute(pieces, files, split)
        for file in files:
            yield list(_load_pieces(file))


def split_rows(columns: Columns, parts: Ids) -> Iterator[tuple[int, Columns]]:
    """Yield the number and the rows of each part that has rows. parts (n,): the number of the part to which each of n
    rows belongs."""
    order = np.argsort(parts, kind="stable")
    for rows in np.split(order, run_starts(parts[order])[1:]) if len(order) else ():
        yield int(parts[rows[0]]), take(columns, rows)


def _distribute(pieces: Iterable[T], files: Sequence[IO[bytes]], split: Callable[[T], Iterable[tuple[int, T]]]) -> None:
    for piece in pieces:
        for index, rows in split(piece):
            pickle.dump(rows, files[index], pickle.HIGHEST_PROTOCOL)


def _load_pieces(file: IO[bytes]) -> Iterator[Any]:
    """Yield the pieces that were written to a file, in order."""
    file.seek(0)
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return


def _open_spool(number: int) -> IO[bytes]:
    return SpooledTemporaryFile(max_size=max(1, MAX_WAITING_BYTES // number))


class _SpooledRows(Record, kw_only=False):
    """This iterable yields the batches of a partition. Each iteration reads the batches again from a file."""

    file: IO[bytes]

    def __iter__(self) -> Iterator[Batch]:
        return cut_batches(_load_pieces(self.file))


def cut_batches(pieces: Iterable[Batch]) -> Iterator[Batch]:
    """Yield rows in batches of about BATCH decisions. A batch ends with the session in which it reaches this number."""
    waiting_batches: list[Batch] = []
    n_decisions = 0
    for piece in pieces:
        remaining_rows: Batch | None = piece
        while remaining_rows is not None:
            decisions = run_starts(remaining_rows.slots["decision_id"])
            if n_decisions + len(decisions) < BATCH:
                waiting_batches.append(remaining_rows)
                n_decisions += len(decisions)
                break
            ends = np.append(run_starts(remaining_rows.slots["session_id"])[1:], len(remaining_rows))
            end = int(ends[np.searchsorted(np.searchsorted(decisions, ends), BATCH - n_decisions)])
            waiting_batches.append(remaining_rows.select_rows(np.arange(end)))
            remaining_rows = (
                remaining_rows.select_rows(np.arange(end, len(remaining_rows))) if end < len(remaining_rows) else None
            )
            batch, waiting_batches, n_decisions = Batch.concatenate(waiting_batches), [], 0
            yield batch
    if waiting_batches:
        yield Batch.concatenate(waiting_batches)


# -- returns to visits in which several surfaces made decisions --


def has_returns_elsewhere(unit: Unit, selection: selected.Selection) -> bool:
    """Tell whether a visit with selected decisions may have `return` events of decisions that are not selected."""
    is_narrow = any(getattr(selection, name) is not None for name in SURFACES)
    return is_narrow and bool(settings.get(unit).weighs_returns)


def move_returns(unit: Unit, batch: Batch) -> Batch:
    """Return a batch with more `return` events. After its decisions in the batch, a visit may have decisions of other
    surfaces (policies or experiments) that got a `return`. This event is credited to the last decision of the visit in
    the batch, since the person came back after this decision, too."""
    slots, sessions_read = batch.slots, np.unique(batch.slots["session_id"])
    events = reader.ask_returns(unit, [people.session_test("d.session_id", sessions_read)]).columns()
    width = int(max(slots["visit"].max(), events["visit"].max(initial=0))) + 1
    visit, visit_of_return = (rows["session_id"] * width + rows["visit"] for rows in (slots, events))
    order = np.lexsort((slots["position"], slots["decision_id"], visit))
    last_rows = order[np.append(run_starts(visit[order])[1:], len(order)) - 1]
    index, is_later = look_up(visit[last_rows], visit_of_return)
    is_later &= events["decision_id"] > slots["decision_id"][last_rows[index]]
    credited_rows, events = last_rows[index[is_later]], take(events, np.flatnonzero(is_later))
    added_columns = {
        "decision_id": slots["decision_id"][credited_rows], "age_us": events["at"] - slots["at"][credited_rows],
        "position": np.where(slots["position"][credited_rows] > 1, 0, 1), "kind": events["kind"],
        "value": events["value"],
    }  # fmt: skip
    return replace(
        batch, events={name: np.append(column, added_columns[name]) for name, column in batch.events.items()}
    )
