"""Passes over the log, partition by partition: in this process, or wherever an engine works on them.

What is done with a partition depends on it and on the parameters of the pass alone: both are taken anew for each, so
that nothing a process remembers of others can change a bit of the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

from rlrec.app.evaluation.log_reader import LogReader, Reading
from rlrec.app.evaluation.request import Evaluation
from rlrec.compute import Engine, packing
from rlrec.store import Unit
from rlrec.store.reader import Batch

R_co = TypeVar("R_co", covariant=True)


class Pass(Protocol[R_co]):
    """The work on a partition of the log. It can be packed, with the unit as its handle."""

    @property
    def evaluation(self) -> Evaluation: ...

    def __call__(self, reader: LogReader, /) -> R_co: ...


def results(reader: LogReader, reading: Reading, work: Pass[R_co], engine: Engine | None) -> Iterator[R_co]:
    """The results of all partitions in their order. engine: None to work on them here."""
    packed = packing.pack(work, handle=reader.unit)
    rows = reader.partitions(reading.columns, visits=reading.visits)
    if engine is None:
        for batches in rows:
            yield result(packed, reader.unit, batches, reader)
        return
    early: dict[int, Any] = {}
    following = 0
    for index, answer in engine.map(packed, map(list, rows)):
        early[index] = answer
        while following in early:
            yield early.pop(following)
            following += 1


def result(packed: bytes, unit: Unit, batches: Iterable[Batch], reader: LogReader | None = None) -> Any:
    """The result of one partition. reader: whose contexts and progress are used."""
    work: Pass[Any] = packing.unpack(packed, handle=unit)
    if reader is None:
        return work(LogReader(unit, work.evaluation, rows=batches))
    return work(LogReader(unit, work.evaluation, rows=batches, contexts=reader.contexts, progress=reader.progress))
