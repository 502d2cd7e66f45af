"""This module reads the log in passes, partition by partition, in this process or in the processes of an engine.

The work on a partition depends only on the partition and on the parameters of the pass. It is set up anew for each
partition. What a process remembers of other partitions therefore cannot change a bit of the result."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import field, replace
from datetime import tzinfo
from itertools import islice, repeat
from typing import Any, NamedTuple, Protocol, TypeVar

from rlrec import times
from rlrec.app.evaluation.passes.fold import LogPartial, RowCounts, RowUnit, fold_batch
from rlrec.app.evaluation.passes.log_reader import LogReader, Reading
from rlrec.app.evaluation.passes.request import Evaluation
from rlrec.app.evaluation.rows import groups
from rlrec.app.inputs import lookup
from rlrec.compute import Engine, pack, unpack
from rlrec.errors import InputError
from rlrec.ope.checks.reasons import REASONS
from rlrec.records import Record, add_each
from rlrec.store import Store, Unit
from rlrec.store.log.reader import Batch

ENGINES = ("local", "dask")
WITHOUT_PAGES_HINT = "estimate per impression (ips, snips, dr); --log policy=NAME leaves out the log of another policy"
MIXED = "mixed-cpus"  # the reason where workers have other processors than this machine

R_co = TypeVar("R_co", covariant=True)


class Partition(NamedTuple):
    """This record is a partition of the log. number: the number of the partition; rows: its batches, which can be read
    again, or None to read them from the exported files in `folder`."""

    number: int
    rows: Iterable[Batch] | None
    folder: Any = None


class Pass(Protocol[R_co]):
    """A Pass is a function that does the work on a partition of the log. A Pass can be sent to another process by
    pickling. The open transaction is then left out, and replaced there by one of that process. reading: which part of
    the partition is read."""

    @property
    def evaluation(self) -> Evaluation: ...
    @property
    def reading(self) -> Reading: ...

    def __call__(self, reader: LogReader, /) -> R_co: ...


Parts = Iterator[Iterable[Batch]]


def results(reader: LogReader, work: Pass[R_co], engine: Engine | None, parts: Parts | None = None) -> Iterator[R_co]:
    """Do the work of a pass on each partition, and yield the results in order.

    work: the pass; engine: the engine that does the work, or None to work in this process; parts: partitions that
    were read for several passes, or None to read the partitions here."""
    packed_pass, number = pack(work, handle=reader.unit), reader.evaluation.partitions
    folder, progress = reader.unit.folder, reader.unit.progress
    partitions: Iterator[Partition]
    engine = None if number == 1 else engine  # others would take longer to start
    if folder and engine is not None:  # each worker reads the files of its partitions
        partitions = (Partition(index, None, log) for index, log in enumerate(folder.split(number)))
    else:
        partition_batches = islice(parts or reader.partitions(work.reading), number)
        logs = folder.split(number) if folder else repeat(None)
        partitions = (
            Partition(index, rows if engine is None else list(rows), log)
            for index, (rows, log) in enumerate(zip(partition_batches, logs, strict=False))
        )
    if engine is None:
        for partition in partitions:
            yield result(packed_pass, reader.unit, partition, reader)
            if number > 1:
                progress("partitions", partition.number + 1, (partition.number + 1) / number)
        return
    finished_parts: dict[int, Any] = {}
    next_number = 0
    for index, answer in engine.map(packed_pass, partitions):
        finished_parts[index] = answer
        while next_number in finished_parts:
            yield finished_parts.pop(next_number)
            next_number += 1


def result(packed_pass: bytes, unit: Unit, partition: Partition, reader: LogReader | None = None) -> Any:
    """Return the result of a pass on one partition.

    packed_pass: the pickled pass; reader: a reader whose cache of contexts and whose function `progress` are used,
    or None."""
    work: Pass[Any] = unpack(packed_pass, handle=unit)
    options: dict[str, Any] = {} if reader is None else {"contexts": reader.contexts, "progress": reader.progress}
    options["number"] = partition.number
    with unit.reading(partition.folder):
        return work(LogReader(unit, work.evaluation, rows=partition.rows, **options))


class StoreRunner(Record):
    """A StoreRunner runs passes in another process, with its own connection to the store. It reads from the store only
    data that never change. Data that may change are sent with the partition.

    url: the address of the store, including the password; now: the time of the clock; zone: the time zone in which
    days begin."""

    url: str = field(repr=False)
    now: int
    zone: tzinfo | None

    def __call__(self, task: bytes, partition: Partition, /) -> Any:
        times.zone = self.zone
        files = nullcontext() if partition.folder is None else closing(partition.folder)
        with closing(Store(self.url)) as store, files, store.read() as unit:
            unit.now = self.now
            return result(task, unit, partition)


class Workers(Record):
    """This record says which processes work on the partitions. jobs: the number of processes; engine: "local" or
    "dask"; scheduler: the address of a running cluster of dask, or None."""

    jobs: int = 1
    engine: str = "local"
    scheduler: str | None = None

    @contextmanager
    def open_engine(self, store: Store, now: int, *, has_reasons: bool = False) -> Iterator[Engine | None]:
        """Open the engine and yield it, or yield None to work in this process. Raise InputError for an unknown engine.

        has_reasons: whether the caller reports different processors of the workers as a reason for doubt. If not, a
        notice reports them."""
        if self.engine not in ENGINES:
            raise lookup.unknown("engine", self.engine, ENGINES, hint=f"one of {', '.join(ENGINES)}")
        if self.scheduler is not None and self.engine != "dask":
            raise InputError("--scheduler is given, and --engine is local", hint="add --engine dask")
        url = store.url
        if url.drivername == "sqlite":
            url = url.set(database=os.path.abspath(url.database or ""))
        runner = StoreRunner(url=url.render_as_string(hide_password=False), now=now, zone=times.zone)
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
        if engine.is_mixed and not has_reasons:
            store.notice(f"{MIXED}: {REASONS[MIXED].text}")


IN_PROCESS = Workers()


# -- the sums of a log for every unit of rows: a pass in which models are fitted, and one that evaluates targets --
#
# A pass reads each partition once, for all units.

AnyUnit = RowUnit[Any, Any]


class JointPass(Record):
    """A JointPass reads a partition of the log once for several kinds of rows (units). is_fit: whether the pass
    collects sums to which models of rewards are fitted, by the id of the reward. If not, it evaluates targets."""

    evaluation: Evaluation
    units: Sequence[AnyUnit]
    is_fit: bool

    @property
    def reading(self) -> Reading:
        """Return what must be read for all kinds of rows (units) together."""
        return Reading.union(unit.fit_reading if self.is_fit else unit.judge_reading for unit in self.units)

    def __call__(self, reader: LogReader, /) -> list[Any]:
        work = self._fit if self.is_fit else self._judge
        return [work(unit, reader.clone() if number else reader) for number, unit in enumerate(self.units)]

    def _fit(self, unit: AnyUnit, reader: LogReader) -> Mapping[int, Any]:
        total: Mapping[int, Any] = {}
        for batch in reader.read(unit.fit_reading):
            rows_of = {key: unit.usable_rows(batch, reward)[0] for key, reward in self.evaluation.rewards.items()}
            total = add_each(total, {key: unit.model_sums(batch, rows) for key, rows in rows_of.items() if len(rows)})
        return total

    def _judge(self, unit: AnyUnit, reader: LogReader) -> LogPartial:
        total = LogPartial()
        for batch in reader.read(unit.judge_reading):
            total = self.add(total, fold_batch(unit, batch))
            if total.refusals:
                break
        return total.close() + LogPartial(visits=unit.visit_carry_over(reader))

    def add(self, sums: Any, addend: Any) -> Any:
        """Return the total of two sums of one kind of rows. Raise InputError if the total has more than 1,000
        groups."""
        if self.is_fit:
            return add_each(sums, addend)
        total: LogPartial = sums + addend
        if len({group for by_group in total.groups.values() for group in by_group}) > groups.MAX_GROUPS:
            raise groups.too_many_groups(self.evaluation.request.by)
        return total


def sum_log(
    units: Sequence[AnyUnit], reader: LogReader, engine: Engine | None = None, *, require_pages: bool = True
) -> dict[AnyUnit, LogPartial]:  # fmt: skip
    """Return the sums of the log for each kind of rows (unit). Raise EmptyLog if a target has no usable rows.

    engine: the engine that works on the partitions of the log, or None to work in this process; require_pages:
    whether to raise InputError if the slates of the log cannot be used as rows. If not, the result lacks this kind
    of rows."""
    parts, readings = None, [unit.judge_reading for unit in units]
    # the log is read once and serves both passes
    if fitted_readings := [unit.fit_reading for unit in units if unit.needs_fit]:
        parts = reader.partitions(Reading.union([*readings, *fitted_readings]), times=2)
    fitted_units = with_models(units, reader, engine, parts)
    judge_pass = JointPass(evaluation=reader.evaluation, units=fitted_units, is_fit=False)
    partials = dict(zip(units, _sum_partitions(judge_pass, LogPartial(), reader, engine, parts), strict=True))
    for unit, partial in list(partials.items()):
        if partial.refusals:
            if require_pages:
                raise InputError(partial.refusals[0], hint=WITHOUT_PAGES_HINT)
            del partials[unit]
            continue
        for number, shared_rows in enumerate(reader.evaluation.shared_rows):
            if not (counts := partial.counts.get(number, RowCounts())).n_used:
                raise unit.empty_log(shared_rows, counts)
    return partials


def with_models(
    units: Sequence[AnyUnit], reader: LogReader, engine: Engine | None = None, parts: Parts | None = None
) -> list[AnyUnit]:  # fmt: skip
    """Return the kinds of rows (units) with the models that their estimators need. Models are fitted in a pass over the
    log.

    engine: the engine that works on the partitions, or None; parts: partitions that were read already, or None."""
    rewards, fitted_units = reader.evaluation.rewards, [unit for unit in units if unit.needs_fit]
    fit_pass = JointPass(evaluation=reader.evaluation, units=fitted_units, is_fit=True)
    models = {
        unit: {key: unit.fit_model(reward_sums, rewards[key]) for key, reward_sums in sums.items()}
        for unit, sums in zip(fitted_units, _sum_partitions(fit_pass, {}, reader, engine, parts), strict=True)
    }
    return [replace(unit, models=models.get(unit, unit.models)) for unit in units]


def _sum_partitions(
    joint_pass: JointPass, initial: Any, reader: LogReader, engine: Engine | None, parts: Parts | None
) -> list[Any]:
    """Do the work of a pass on each partition, and return the total for each kind of rows (unit).

    initial: the sums of an empty log; engine: the engine that works on the partitions, or None; parts: partitions
    that were read already, or None."""
    sums = [initial] * len(joint_pass.units)
    for partition_sums in results(reader, joint_pass, engine, parts) if joint_pass.units else ():
        sums = [joint_pass.add(total, addend) for total, addend in zip(sums, partition_sums, strict=True)]
    return sums
