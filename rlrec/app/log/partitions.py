"""The log in partitions of whole persons. They, and the order of rows in each, follow from the selected decisions, so
that sums over partitions, in their order, have the same bits wherever the log is stored and whoever adds them up."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np

from rlrec.arrays import Ids, run_starts
from rlrec.store import Unit
from rlrec.store.database.bulk import Columns
from rlrec.store.log import reader, selected
from rlrec.store.log.reader import ABSENT, Batch
from rlrec.store.log.selected import Selection

BUCKETS = 64  # that persons are in; a partition has one of them or several
BATCH = reader.BATCH  # decisions of a partition at most, as long as there are buckets, and of a batch, about
MAX_WAITING_BYTES = 8_000_000  # bytes of rows that wait for their partition in memory; the others wait in files
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
    bounds = selected.session_bounds(unit, selection) if unit.folder is None else None
    options: dict[str, Any] = {"pick_contexts": pick_contexts, "visits": visits, "keys": keys, "bounds": bounds}
    if unit.folder is not None and unit.folder.number is not None:  # a partition, which is read where it is worked on
        yield cut_batches(reader.batches(unit, selection, columns=columns, **options))
        return
    if number == 1:
        batches = list(cut_batches(reader.batches(unit, selection, columns=columns, **options)))
        for _ in range(times):
            yield batches
        return
    options |= {"columns": {*columns, *PERSONS}, "pick_contexts": None}
    rows = partial(reader.batches, unit, selection, **options)
    logs = iter(()) if unit.folder is None else unit.folder.split(number)
    with ExitStack() as stack:
        files = [stack.enter_context(_spool(number)) for _ in range(number)]
        _spread(rows() if unit.folder is None else (), files, lambda slots: buckets(slots) % number)
        for time in range(times):
            for file in files:
                if (log := next(logs, None)) is not None:  # a partition of a folder, which is read in its turn
                    with unit.reading(log):
                        for batch in rows():
                            pickle.dump(batch, file, pickle.HIGHEST_PROTOCOL)
                with closing(file) if time == times - 1 else nullcontext():
                    yield _SpooledRows(file)


def spool(batches: Iterable[Batch], number: int, number_rows: Callable[[Columns], Ids]) -> Iterator[list[Batch]]:
    """The rows of each of so many parts, one after another, as pieces of batches. number_rows: gives that of each
    row, the same in a whole session."""
    with ExitStack() as stack:
        files = [stack.enter_context(_spool(number)) for _ in range(number)]
        _spread(batches, files, number_rows)
        for file in files:
            yield list(_SpooledRows(file).pieces())


def _spread(batches: Iterable[Batch], files: Sequence[IO[bytes]], number_rows: Callable[[Columns], Ids]) -> None:
    for batch in batches:
        for index, piece in batch.split(number_rows(batch.slots)):
            pickle.dump(piece, files[index], pickle.HIGHEST_PROTOCOL)


def _spool(number: int) -> IO[bytes]:
    return SpooledTemporaryFile(max_size=max(1, MAX_WAITING_BYTES // number))


@dataclass(frozen=True)
class _SpooledRows:
    """The batches of a partition, from its file each time."""

    file: IO[bytes]

    def __iter__(self) -> Iterator[Batch]:
        return cut_batches(self.pieces())

    def pieces(self) -> Iterator[Batch]:
        """The rows as they were written."""
        self.file.seek(0)
        while True:
            try:
                yield pickle.load(self.file)
            except EOFError:
                return


def cut_batches(pieces: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows in batches that end with the session in which the count of decisions reaches BATCH."""
    waiting_batches: list[Batch] = []
    count = 0
    for piece in pieces:
        left: Batch | None = piece
        while left is not None:
            decisions, sessions = run_starts(left.slots["decision_id"]), run_starts(left.slots["session_id"])
            ends = np.r_[sessions[1:], len(left)]
            index = int(np.searchsorted(np.searchsorted(decisions, ends), BATCH - count))
            if index >= len(ends) - 1:
                waiting_batches.append(left)
                count += len(decisions)
                left = None
            else:
                end = int(ends[index])
                waiting_batches.append(left.select_rows(np.arange(end)))
                left = left.select_rows(np.arange(end, len(left)))
                count = BATCH
            if count >= BATCH:
                batch, waiting_batches, count = Batch.concatenate(waiting_batches), [], 0
                yield batch
    if waiting_batches:
        yield Batch.concatenate(waiting_batches)
