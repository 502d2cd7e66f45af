"""Passes over the log, partition by partition: in this process, or wherever an engine works on them.

What is done with a partition depends on it and on the parameters of the pass alone: both are taken anew for each, so
that nothing a process remembers of others can change a bit of the result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import Evaluation
from rlrec.app.inputs import lookup
from rlrec.compute import Engine, packing
from rlrec.errors import InputError
from rlrec.ope.checks import verdicts
from rlrec.store import Store, Unit
from rlrec.store.database.folders import LogFolder
from rlrec.store.log.reader import Batch

ENGINES = ("local", "dask")
MIXED = "mixed-cpus"  # the reason where workers have other processors than this machine

R_co = TypeVar("R_co", covariant=True)


class Partition(NamedTuple):
    """A partition of the log: its number, and its batches, which can be read again, or the folder that has them."""

    number: int
    rows: Iterable[Batch] | LogFolder


class Pass(Protocol[R_co]):
    """The work on a partition of the log. It can be packed, with the unit as its handle. reading: of the partition."""

    @property
    def evaluation(self) -> Evaluation: ...
    @property
    def reading(self) -> Reading: ...

    def __call__(self, reader: LogReader, /) -> R_co: ...


def results(reader: LogReader, work: Pass[R_co], engine: Engine | None) -> Iterator[R_co]:
    """The results of all partitions in their order. engine: None to work on them here."""
    packed, number = packing.pack(work, handle=reader.unit), reader.evaluation.partitions
    folder, progress = reader.unit.folder, reader.unit.progress
    parts: Iterable[Iterable[Batch] | LogFolder] = folder.split(number) if folder else reader.partitions(work.reading)
    if engine is None:
        for done, rows in enumerate(parts, 1):
            yield result(packed, reader.unit, Partition(done - 1, rows), reader)
            if folder:
                progress("partitions", done, done / number)
        return
    remote = (rows if isinstance(rows, LogFolder) else list(rows) for rows in parts)
    early: dict[int, Any] = {}
    following = 0
    for index, answer in engine.map(packed, map(Partition, count(), remote)):
        early[index] = answer
        while following in early:
            yield early.pop(following)
            following += 1


def result(packed: bytes, unit: Unit, partition: Partition, reader: LogReader | None = None) -> Any:
    """The result of one partition. reader: whose contexts and progress are used."""
    work: Pass[Any] = packing.unpack(packed, handle=unit)
    options: dict[str, Any] = {} if reader is None else {"contexts": reader.contexts, "progress": reader.progress}
    options["number"] = partition.number
    if not isinstance(partition.rows, LogFolder):
        return work(LogReader(unit, work.evaluation, rows=partition.rows, **options))
    log, unit.folder = unit.folder, partition.rows
    try:
        return work(LogReader(unit, work.evaluation, **options))
    finally:
        unit.folder = log


@dataclass(frozen=True, kw_only=True)
class StoreRunner:
    """Works on partitions in another process, with a connection of its own. What it asks the store for never changes;
    what changes comes with the partition.

    url: with its password; now: the clock."""

    url: str = field(repr=False)
    now: int

    def __call__(self, task: bytes, partition: Partition, /) -> Any:
        with closing(Store(self.url)) as store, store.read() as unit:
            unit.now = self.now
            return result(task, unit, partition)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who works on partitions. jobs: processes; engine: local or dask; scheduler: of a cluster that runs."""

    jobs: int = 1
    engine: str = "local"
    scheduler: str | None = None

    @contextmanager
    def opened(self, store: Store, now: int, *, has_reasons: bool = False) -> Iterator[Engine | None]:
        """The engine; None to work in this process. has_reasons: of what comes out of it; else a notice says that
        processors were mixed. Raises InputError for an unknown one."""
        if self.engine not in ENGINES:
            raise lookup.unknown("engine", self.engine, ENGINES, hint=f"one of {', '.join(ENGINES)}")
        if self.scheduler is not None and self.engine != "dask":
            raise InputError("--scheduler is given, and --engine is local", hint="add --engine dask")
        url = store.url
        if url.drivername == "sqlite":
            url = url.set(database=os.path.abspath(url.database or ""))
        runner = StoreRunner(url=url.render_as_string(hide_password=False), now=now)
        if self.engine == "dask":
            from rlrec.compute.cluster import Cluster

            engine: Engine = Cluster(self.jobs, runner, scheduler=self.scheduler)
        elif self.jobs == 1:
            yield None
            return
        else:
            from rlrec.compute.local import Processes

            engine = Processes(self.jobs, runner)
        with closing(engine):
            yield engine
        if engine.mixed and not has_reasons:
            store.notice(f"{MIXED}: {verdicts.REASONS[MIXED]}")


IN_PROCESS = Workers()
