"""The log of a folder of Parquet in place of that of the store: partition by partition, and of each file the columns
alone that a pass wants. Memory holds a few numbers for each decision of a partition, and the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property, reduce
from typing import Any

import numpy as np

from rlrec.app.imports.parquet_columns import FileReader
from rlrec.app.imports.parquet_files import Manifest, filled, load_pyarrow
from rlrec.app.imports.parquet_partition import FolderPartition, SelectionCounts, buckets_of
from rlrec.app.log import partitions
from rlrec.arrays import Ids, look_up
from rlrec.errors import InputError
from rlrec.store import Unit
from rlrec.store.database.unit import LogFolder
from rlrec.store.log.reader import ABSENT
from rlrec.store.log.selected import LogExtent, Selection


class FolderLog(LogFolder):
    """The log of a folder: what a command asks of all of it is asked of each bucket, and added up."""

    def __init__(self, unit: Unit, folder: str) -> None:
        """Raises InputError where the folder holds no log, CheckFailed for the log of another store."""
        load_pyarrow()
        manifest = Manifest.read(folder)
        if manifest is None:
            raise InputError(f"{folder} holds no log", hint=f"`rlrec export-log {folder} --layout parquet` writes one")
        manifest.check(unit, folder)
        self.folder, self.files = folder, manifest.files
        self._buckets = {name: buckets_of(paths) for name, paths in self.files.items()}
        self._counts: dict[str, SelectionCounts] = {}

    def split(self, number: int) -> Iterator[FolderPartition]:
        """So many partitions of whole persons, a power of two."""
        session, earlier_bucket, home = self._moved
        left, arrived = earlier_bucket % number, home % number
        for index in range(number):
            is_here = (left != arrived) & ((left == index) | (arrived == index))
            moved = dict(zip(session[is_here].tolist(), arrived[is_here].tolist(), strict=True))
            old_buckets, files = np.unique(earlier_bucket[is_here & (arrived == index)]), {}
            for name, bucket in self._buckets.items():
                chosen_files = np.flatnonzero((bucket % number == index) | np.isin(bucket, old_buckets))
                files[name] = [self.files[name][file] for file in chosen_files.tolist()]
            yield FolderPartition(self.folder, files, number, index, moved, partitions.BATCH, self._children)

    @cached_property
    def _moved(self) -> tuple[Ids, Ids, Ids]:
        """The sessions whose user came after some of their decisions were exported: their ids, which ascend, the bucket
        of these, and that of the user."""
        reader, names, named = FileReader(self.folder), ["session_id", "user_id"], False
        visits = list(zip(self.files["visits"], self._buckets["visits"].tolist(), strict=True))
        pieces = [np.empty((2, 0), np.int64)]
        for path, bucket in visits:
            columns = reader.numbers(path, names)
            anonymous = columns["user_id"] == ABSENT
            named |= not anonymous.all()
            sessions = np.unique(columns["session_id"][anonymous])
            pieces.append(np.stack([sessions, np.full(len(sessions), bucket)]))
        session, first = np.unique(np.concatenate([ids for ids, _ in pieces]), return_index=True)
        earlier_bucket = np.concatenate([buckets for _, buckets in pieces])[first]
        home = np.full(len(session), ABSENT)
        for path, bucket in visits if named and len(session) else ():
            columns = reader.numbers(path, names)
            index, came_later = look_up(session, columns["session_id"][columns["user_id"] != ABSENT])
            home[index[came_later]] = bucket
        moved = home != ABSENT
        return session[moved], earlier_bucket[moved], home[moved]

    def _sum(self, count_bucket: Callable[[FolderPartition], Any]) -> Iterator[Any]:
        return map(count_bucket, self.split(partitions.BUCKETS))

    # -- what is asked of the log --

    def extent(self, selection: Selection) -> LogExtent:
        return self._selected(selection).extent

    def newest_id(self, selection: Selection, n: int) -> int | None:
        ids = np.empty(0, np.int64)
        for bucket_ids in self._sum(lambda bucket: bucket.decision_ids(selection)):
            ids = np.concatenate([ids, bucket_ids])
            ids = ids if len(ids) <= n else np.partition(ids, len(ids) - n)[-n:]
        return int(ids.min()) if len(ids) == n else None

    def version_counts(self, selection: Selection) -> dict[int, int]:
        return dict(self._selected(selection).versions)

    def _selected(self, selection: Selection) -> SelectionCounts:
        key = repr(selection)
        if key not in self._counts:
            self._counts[key] = reduce(SelectionCounts.__add__, self._sum(lambda bucket: bucket.counts(selection)))
        return self._counts[key]

    def any_user(self) -> bool:
        return any(self._sum(lambda bucket: bool((bucket.sessions["user_id"] != ABSENT).any())))

    def any_returned(self) -> bool:
        return any(self._sum(FolderPartition.any_returned))

    def any_row(self, name: str) -> bool:
        return name in self._children

    @cached_property
    def _children(self) -> frozenset[str]:
        """The columns of lists that some decision has a row in."""
        return frozenset[str]().union(*(filled(self.folder, path) for path in self.files["decisions"]))

    def oldest_running(self, **times: int) -> int | None:
        bucket_times = (at for at in self._sum(lambda bucket: bucket.oldest_running(**times)) if at is not None)
        return min(bucket_times, default=None)

    def largest(self, kinds: Collection[str], *, slots_only: bool) -> dict[str, float]:
        largest: dict[str, float] = {}
        for bucket in self.split(partitions.BUCKETS):
            for kind, value in bucket.largest(kinds, slots_only=slots_only).items():
                largest[kind] = max(value, largest.get(kind, 0.0))
        return largest
