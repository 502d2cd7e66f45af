"""This module processes partitions on a Dask cluster. The cluster either runs already, at an address, or is started on
this machine. A cluster that was started on this machine ends with the work."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from time import monotonic, sleep
from typing import Any, NamedTuple

from rlrec.compute import ENVIRONMENT, Runner, deadly_partition_error, pack, unpack
from rlrec.errors import InputError, RlrecError

TIMEOUT_S = 5
PARTITIONS_AHEAD = 2  # partitions per worker that are submitted ahead
RECOUNT_S = 1  # between two counts of the workers of a cluster at an address
RESTART_S = 10  # within which a worker that ended is started again
# Frequent duties of a local cluster, which would cost more than its work on partitions.
_QUIET_SETTINGS = {
    "distributed.nanny.pre-spawn-environ": ENVIRONMENT, "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s", "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s", "distributed.scheduler.work-stealing-interval": "1s",
    "distributed.scheduler.active-memory-manager.start": False,
}  # fmt: skip


class SchedulerAbsent(RlrecError):
    """A SchedulerAbsent error says that no scheduler answers at the address of a cluster."""

    code = 4


class Cluster:
    """A Cluster is an engine that uses Dask workers. If a worker is lost, Dask repeats the work on its partition."""

    def __init__(self, jobs: int, runner: Runner, *, scheduler: str | None) -> None:
        """Connect to the scheduler at an address or, if `scheduler` is None, start a cluster with `jobs` workers on
        this machine. Raise InputError if Dask is missing or the address is invalid, SchedulerAbsent if no scheduler
        answers, and RlrecError if a local worker ends while it starts."""
        try:
            import dask
            import distributed
        except ImportError:
            raise InputError("--engine dask needs Dask", hint="pip install 'rlrec[cluster]'") from None
        self.is_mixed, self._runner, self._fingerprint = False, runner, fingerprint()
        self._cluster: Any = None
        self._workers, self._recount_at = jobs, 0.0
        with dask.config.set(_QUIET_SETTINGS):
            if scheduler is None:
                self._cluster = _start(jobs)
        try:
            connect: Any = distributed.Client
            self.client = connect(self._cluster or scheduler, timeout=TIMEOUT_S, set_as_default=False)
        except ValueError as error:
            raise InputError(f"{scheduler!r} is no address", hint="such as tcp://127.0.0.1:8786") from error
        except OSError as error:
            hint = "start one: dask scheduler --host 127.0.0.1"
            raise SchedulerAbsent(f"no scheduler answers at {scheduler}", hint=hint) from error

    def map(self, task: bytes, partitions: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the number and the result of each partition, as `Engine.map` says. The task is a future of Dask, which
        is sent only once, and which Dask can compute again."""
        import distributed

        task_future = self._submit(bytes, task, pure=False)
        numbered_partitions = enumerate(partitions)
        as_completed: Any = distributed.as_completed
        running_tasks = as_completed(loop=self.client.loop)
        running_count = 0
        while True:
            if self._cluster is None and monotonic() > self._recount_at:
                self._workers = max(1, len(self.client.scheduler_info()["workers"]))
                self._recount_at = monotonic() + RECOUNT_S
            while running_count < PARTITIONS_AHEAD * self._workers and (
                numbered_partition := next(numbered_partitions, None)
            ):
                number, partition = numbered_partition
                key = f"rlrec-partition-{number}-{task_future.key}"
                running_tasks.add(self._submit(_run_task, self._runner, task_future, partition, key=key))
                running_count += 1
            if not running_count:
                return
            future = next(running_tasks)
            running_count -= 1
            number = int(future.key.split("-")[2])
            try:
                # Fetched only now: with `with_results` Dask waits forever for an answer that is lost with its worker,
                # if the partition then kills further workers.
                answer: _WorkerResult = future.result()
            except distributed.KilledWorker as error:
                raise deadly_partition_error(number) from error
            except (Exception, distributed.CancelledError) as error:
                cause = " ".join(str(error).split())[:300]
                raise RlrecError(f"a worker failed: {type(error).__name__}: {cause}") from error
            self.is_mixed |= is_mixed(answer.fingerprint, self._fingerprint)
            future.release()
            result = unpack(answer.message)
            if isinstance(result, RlrecError):
                raise result
            yield number, result

    def _submit(self, *words: Any, **options: Any) -> Any:
        """Return the future of a function call on a worker. Dask's warning about large arguments is switched off, since
        partitions with rows are sent on purpose."""
        import dask

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
            return self.client.submit(*words, **options)

    def close(self) -> None:
        """Disconnect, and end a cluster that was started on this machine. A cluster at an address keeps running."""
        with suppress(OSError, TimeoutError, AssertionError):
            self.client.close()
            if self._cluster is not None:
                # Dask cannot end a worker while it restarts it after its death
                deadline, nannies = monotonic() + RESTART_S, self._cluster.workers.values()
                while any(nanny.process and not nanny.pid for nanny in nannies) and monotonic() < deadline:
                    sleep(0.02)
                self._cluster.close()


def _start(jobs: int) -> Any:
    import distributed

    start_cluster: Any = distributed.LocalCluster
    try:
        return start_cluster(
            n_workers=jobs, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        )
    except Exception as error:
        cause = " ".join(str(error).split())[:300].rstrip(".")
        hint = "a worker may have too little memory: start fewer with --jobs, or try again"
        raise RlrecError(f"a Dask worker has ended while it started: {cause}", hint=hint) from error


class Fingerprint(NamedTuple):
    """A Fingerprint holds the versions of packages and the features of the processor on which results depend."""

    versions: tuple[str, ...]
    processor: tuple[str, ...]


@cache
def fingerprint() -> Fingerprint:
    """Return the fingerprint of this process."""
    from importlib.metadata import version

    features: dict[str, bool] = import_module("numpy._core._multiarray_umath").__cpu_features__
    versions = tuple(f"{name} {version(name)}" for name in ("rlrec", "numpy"))
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    return Fingerprint((*versions, python), tuple(sorted(name for name, is_present in features.items() if is_present)))


def is_mixed(worker: Fingerprint, process: Fingerprint) -> bool:
    """Tell whether a worker and this process have different processors. Raise RlrecError if they have different
    versions of packages."""
    for worker_version, process_version in zip(worker.versions, process.versions, strict=True):
        if worker_version != process_version:
            raise RlrecError(
                f"a worker has {worker_version}, and this process {process_version}",
                hint="give all of them one environment",
            )
    return worker.processor != process.processor


class _WorkerResult(NamedTuple):
    """This record has the fingerprint of a worker, and the result or the error of its work. message: the packed result
    or error."""

    fingerprint: Fingerprint
    message: bytes


def _run_task(runner: Runner, task: bytes, partition: Any) -> _WorkerResult:
    try:
        return _WorkerResult(fingerprint(), pack(runner(task, partition)))
    except RlrecError as error:
        return _WorkerResult(fingerprint(), pack(error))
