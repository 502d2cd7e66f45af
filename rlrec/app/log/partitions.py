"""The log in partitions of whole persons. They, and the order of rows in each, follow from the selected decisions, so
that sums over partitions, in their order, have the same bits wherever the log is stored and whoever adds them up."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import IO, Any, TypeVar

import numpy as np

from rlrec.arrays import Ids, run_starts, take
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader, selected
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.log.selected import Selection

BUCKETS = 64  # that persons are in; a partition has one of them or several
BATCH = reader.BATCH  # decisions of a partition at most, as long as there are buckets, and of a batch, about
SPREAD = BATCH * 3 // 2  # decisions that are read before they are put to their partitions
MAX_WAITING_BYTES = 8_000_000  # bytes of rows that wait for their partition in memory; the others wait in files
T = TypeVar("T")
PERSONS = ("user_id", "user_digest", "session_digest")  # the columns that tell the bucket


def count_partitions(decisions: int) -> int:
    """The number of partitions of a log of so many decisions: a power of two."""
    number = 1
    while number < BUCKETS and decisions > number * BATCH:
        number *= 2
    return number


def buckets(slots: Columns) -> Ids:
    """The bucket of each row, (n,), by the key of its user, else of its session."""
    digest = np.where(slots["user_id"] != ABSENT, slots["user_digest"], slots["session_digest"])
    return (digest >> 1) % BUCKETS


def read(
    unit: Unit, selection: Selection, number: int, *, columns: Collection[str],
    pick_contexts: Callable[[Ids], Ids] | None = None, visits: bool = False, keys: bool = False, times: int = 1,
) -> Iterator[Iterable[Batch]]:  # fmt: skip
    """The batches of each partition of the selected log, whole sessions by their ids, and so many times all of them;
    each partition is read, as often as is wanted, before the next one. pick_contexts, visits, keys:
    as of `reader.batches`; contexts come along where there is one partition alone."""
    few_test = selected.few_test(unit, selection)
    bounds = selected.session_bounds(unit, selection) if unit.folder is None and few_test is None else None
    options: dict[str, Any] = {
        "pick_contexts": pick_contexts, "visits": visits, "keys": keys, "bounds": bounds, "few_test": few_test,
    }  # fmt: skip
    if unit.folder is not None and unit.folder.number is not None:  # a partition, which is read where it is worked on
        yield cut_batches(reader.batches(unit, selection, columns=columns, **options))
        return
    if number == 1:
        batches = list(cut_batches(reader.batches(unit, selection, columns=columns, **options)))
        for _ in range(times):
            yield batches
        return
    options |= {"columns": {*columns, *PERSONS}, "pick_contexts": None}
    rows = partial(reader.batches, unit, selection, size=SPREAD, **options)
    logs = iter(()) if unit.folder is None else unit.folder.split(number)
    with ExitStack() as stack:
        key = (*selection.conditions(), number, frozenset(options["columns"]), visits, keys)
        owner, stored = unit.partitions or (stack, dict[Any, list[IO[bytes]]]())
        files = stored.get(key)
        if files is None:
            files = stored[key] = [owner.enter_context(_spool(number)) for _ in range(number)]
            pieces = rows() if unit.folder is None else ()
            _spread(pieces, files, lambda batch: batch.split(buckets(batch.slots) % number))
        for time in range(times):
            for file in files:
                if (log := next(logs, None)) is not None:  # a partition of a folder, which is read in its turn
                    with unit.reading(log):
                        for batch in rows():
                            pickle.dump(batch, file, pickle.HIGHEST_PROTOCOL)
                with closing(file) if time == times - 1 and unit.partitions is None else nullcontext():
                    yield _SpooledRows(file)


@contextmanager
def shared(unit: Unit) -> Iterator[None]:
    """Inside it, partitions that were read are there for those who read the same rows next."""
    with ExitStack() as stack:
        unit.partitions = stack, dict[Any, list[IO[bytes]]]()
        try:
            yield
        finally:
            unit.partitions = None


def spool(pieces: Iterable[T], number: int, split: Callable[[T], Iterable[tuple[int, T]]]) -> Iterator[list[T]]:
    """The rows that each of so many parts has of some pieces, one part after another. split: gives the rows of a piece
    by the number of their part, the same in a whole session."""
    with ExitStack() as stack:
        files = [stack.enter_context(_spool(number)) for _ in range(number)]
        _spread(pieces, files, split)
        for file in files:
            yield list(_load(file))


def split_rows(columns: Columns, parts: Ids) -> Iterator[tuple[int, Columns]]:
    """The rows of each part that has some, by its number. parts (n,): of each row."""
    order = np.argsort(parts, kind="stable")
    for rows in np.split(order, run_starts(parts[order])[1:]) if len(order) else ():
        yield int(parts[rows[0]]), take(columns, rows)


def _spread(pieces: Iterable[T], files: Sequence[IO[bytes]], split: Callable[[T], Iterable[tuple[int, T]]]) -> None:
    for piece in pieces:
        for index, rows in split(piece):
            pickle.dump(rows, files[index], pickle.HIGHEST_PROTOCOL)


def _load(file: IO[bytes]) -> Iterator[Any]:
    """The pieces of a file, as they were written."""
    file.seek(0)
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return


def _spool(number: int) -> IO[bytes]:
    return SpooledTemporaryFile(max_size=max(1, MAX_WAITING_BYTES // number))


@dataclass(frozen=True)
class _SpooledRows:
    """The batches of a partition, from its file each time."""

    file: IO[bytes]

    def __iter__(self) -> Iterator[Batch]:
        return cut_batches(_load(self.file))


def cut_batches(pieces: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows in batches that end with the session in which the count of decisions reaches BATCH."""
    waiting_batches: list[Batch] = []
    count = 0
    for piece in pieces:
        left: Batch | None = piece
        while left is not None:
            decisions = run_starts(left.slots["decision_id"])
            if count + len(decisions) < BATCH:
                waiting_batches.append(left)
                count += len(decisions)
                break
            ends = np.append(run_starts(left.slots["session_id"])[1:], len(left))
            end = int(ends[np.searchsorted(np.searchsorted(decisions, ends), BATCH - count)])
            waiting_batches.append(left.select_rows(np.arange(end)))
            left = left.select_rows(np.arange(end, len(left))) if end < len(left) else None
            batch, waiting_batches, count = Batch.concatenate(waiting_batches), [], 0
            yield batch
    if waiting_batches:
        yield Batch.concatenate(waiting_batches)
