"""A log in Parquet of any length, and what it costs to read it: CPU, and the largest process.

    python -m tests.benchmarks.folders DIR --decisions 20000000

writes DIR/store.db (arms, policies, no decision) and DIR/log, in the documented columns, and measures `evaluate` with
six estimators and `train-pg` on it, in one process and by workers. Users come four times, for visits of two
decisions."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlrec.app.imports.parquet_files import DATASETS, Manifest, mark, schemas
from rlrec.app.log import partitions
from rlrec.app.log.splits import owner_splits
from rlrec.arrays import Ids
from rlrec.policy.gradients.history import History
from rlrec.store import Store
from rlrec.store.log import settings
from rlrec.store.log.contents import key_digests
from rlrec.store.policies import arms

ARMS, HOURS, DAYS, VISITS = 20, 5, 8, 4
START = 1_767_225_600_000_000  # 2026-01-01
DAY_US = 86_400_000_000
ESTIMATORS = "ips,snips,clipped-ips:10,dm,dr,wdr"
GROUP = 200_000  # sessions that are written at a time


@dataclass(frozen=True)
class Names:
    """Ids of the store, of the policy that logged, its version and the arms; its catalogue, and the salt of splits."""

    policy: int
    version: int
    arms: Ids
    revision: int
    salt: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["evaluate", "train-pg"])
    parser.add_argument("--workers", nargs="*", default=["1"], help="e.g. 1 2 dask1 dask2")
    options = parser.parse_args()
    if not (options.folder / "log" / "manifest.json").exists():
        write(options.folder, options.decisions)
    log = f"parquet:{options.folder / 'log'}"
    commands = {
        "evaluate": ("evaluate", "uniform", "other", "--estimator", ESTIMATORS),
        "train-pg": ("train-pg", "pg", "--seed", "1", "--epochs", "3", "--promote", "if-better", "--dry-run"),
    }
    for name, words in commands.items():
        for workers in options.workers if options.only in (None, name) else ():
            jobs, engine = workers.removeprefix("dask"), "dask" if workers.startswith("dask") else "local"
            more = ("--log", log, "--jobs", jobs, "--engine", engine)
            print(
                json.dumps({"command": name, "workers": workers, **measured(options.folder, *words, *more)}), flush=True
            )


def measured(folder: Path, *words: str) -> dict[str, Any]:
    """Seconds of CPU and of the clock, the exit code, and the peaks of memory of all processes in MB, largest first."""
    before, began, peaks = os.times(), time.perf_counter(), dict[int, float]()
    command = _rlrec(folder, "2026-03-01", *words, "--json")
    with open(folder / "answer.json", "w") as answer, open(folder / "errors.txt", "w") as errors:
        process = subprocess.Popen(command, stdout=answer, stderr=errors)
        while process.poll() is None:
            for pid in family(process.pid):
                peaks[pid] = peak_mb(pid) or peaks.get(pid, 0.0)
            time.sleep(0.2)
    cpu = sum(getattr(os.times(), name) - getattr(before, name) for name in ("children_user", "children_system"))
    memory = [round(peak) for peak in sorted(peaks.values(), reverse=True)]
    return {"code": process.returncode, "cpu_s": round(cpu, 2), "wall_s": round(time.perf_counter() - began, 1),
            "mb": memory}  # fmt: skip


def _rlrec(folder: Path, now: str, *words: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "rlrec", "-q", "--now", now, "--db", str(folder / "store.db"), *words]


def family(pid: int) -> Iterator[int]:
    """A process, and those that it has started."""
    yield pid
    try:
        children = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return
    for child in " ".join(children).split():
        yield from family(int(child))


def peak_mb(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def write(folder: Path, decisions: int) -> None:
    """The store, and its log."""
    folder.mkdir(parents=True, exist_ok=True)
    for words in (
        ("init",), ("policy", "create", "log", "--kind", "uniform"),
        ("policy", "create", "pg", "--kind", "gradient"),
        ("policy", "create", "other", "--kind", "lin-thompson", "--param", "floor=0.1", "--param", "samples=50"),
    ):  # fmt: skip
        subprocess.run(_rlrec(folder, "2025-12-01", *words), check=True, stdout=subprocess.DEVNULL)
    with closing(Store(str(folder / "store.db"))) as store:
        store.write(lambda unit: arms.put(unit, {f"a{number:02d}": "{}" for number in range(ARMS)}))
        with store.read() as unit:
            ids = np.array([arm.id for arm in arms.all_arms(unit)], np.int64)
            policy, version = unit.ask("SELECT policy_id, id FROM version WHERE policy_id = (SELECT id FROM policy"
                                       " WHERE name = 'log')")[0]  # fmt: skip
            stored = settings.get(unit)
            names = Names(policy, version, ids, stored.catalogue_revision, stored.split_salt)
            files: dict[str, list[str]] = {name: [] for name in DATASETS}
            sessions = decisions // 2
            for first in range(0, sessions, GROUP):
                of_group = np.arange(first, min(first + GROUP, sessions))
                for dataset, bucket, table in tables(of_group, sessions, names):
                    day = time.strftime(
                        "%Y-%m-%d", time.gmtime((START + of_group[0] * DAYS * DAY_US // sessions) / 1e6)
                    )
                    path = f"{dataset}/day={day}/bucket={bucket:02d}/part-{first // GROUP + 1:06d}.parquet"
                    (folder / "log" / path).parent.mkdir(parents=True, exist_ok=True)
                    pq.write_table(table, folder / "log" / path)
                    files[dataset].append(path)
            Manifest(store=mark(unit), forgotten=0, files=files, decisions=2 * sessions).write(str(folder / "log"))


def tables(sessions: Ids, total: int, names: Names) -> Iterator[tuple[str, int, pa.Table]]:
    """The rows of some sessions by dataset and bucket."""
    users = sessions % max(1, total // VISITS)
    session_keys, user_keys = (
        [f"{kind}{number}" for number in ids.tolist()] for kind, ids in (("s", sessions), ("u", users))
    )
    user_digest = np.array(key_digests(user_keys), np.int64)
    bucket = (user_digest >> 1) % partitions.BUCKETS
    draw = np.random.default_rng(int(sessions[0]))
    n = 2 * len(sessions)
    arm, hour = draw.integers(ARMS, size=n), draw.integers(HOURS, size=n)
    clicked = draw.random(n) < 0.02 + 0.08 * (arm % HOURS == hour)
    began = START + sessions * (DAYS * DAY_US // total)
    at = np.repeat(began, 2) + np.tile([0, 60_000_000], len(sessions))
    keys = {"key": np.array(session_keys, object), "user": np.array(user_keys, object)}
    columns: dict[str, Any] = {
        "session_id": sessions + 1, "session": keys["key"], "user": keys["user"], "user_id": users + 1,
        "user_digest": user_digest, "session_digest": np.array(key_digests(session_keys), np.int64),
        "split": owner_splits(names.salt, keys), "created_at": began, "number": 1, "started_at": began,
        "last_at": began + 60_000_000, "steps": 2, "recent": "[]",
    }  # fmt: skip
    decisions: dict[str, Any] = {
        **{name: np.repeat(columns[name], 2) for name in ("session_id", "session", "user")},
        "decision_id": 2 * np.repeat(sessions, 2) + np.tile([1, 2], len(sessions)), "at": at, "visit": 1,
        "step": np.tile([0, 1], len(sessions)), "policy_id": names.policy, "version_id": names.version, "belief_seq": 0,
        "context_id": hour + 1, "context": np.array([f'{{"hour":{value}}}' for value in range(HOURS)], object)[hour],
        "state": "{}", "eligible_id": 1, "catalogue_revision": names.revision, "size": 1, "seed": 1, "seq": 0,
        "log_propensity": -np.log(ARMS), "imported": 0, "policy": "log", "version": 1,
        "eligible": [f"a{number:02d}" for number in range(ARMS)], "eligible_arms": names.arms.tolist(),
        "history": histories(arm, clicked, names.arms),
        "slot": {
            "position": 1, "arm_id": names.arms[arm], "propensity": 1 / ARMS, "marginal": 1 / ARMS,
            "min_propensity": 1 / ARMS, "censored": 0, "rounded": 0,
            "arm": np.array([f"a{number:02d}" for number in range(ARMS)], object)[arm],
        },
    }  # fmt: skip
    heard = at[clicked] + 30_000_000
    events = {
        "decision_id": decisions["decision_id"][clicked], "number": 1, "position": 1, "kind": "click", "value": 1.0,
        "at": heard, "received_at": heard, "seq": 0,
    }  # fmt: skip
    where = {"visits": bucket, "decisions": np.repeat(bucket, 2), "events": np.repeat(bucket, 2)[clicked]}
    for dataset, rows in (("decisions", decisions), ("events", events), ("visits", columns)):
        for number in np.unique(where[dataset]).tolist():
            chosen = np.flatnonzero(where[dataset] == number)
            schema = schemas(pa)[dataset]
            arrays = [column(field, rows.get(field.name), chosen) for field in schema]
            yield dataset, number, pa.Table.from_arrays(arrays, schema=schema)


def histories(arm: Ids, clicked: Any, ids: Ids) -> Any:
    """The history of each decision: none at the first, the slot before at the second."""
    ones, count = np.ones(2 * ARMS, np.int64), np.repeat([0.0, 1.0], ARMS)
    packed = History(ones, 60.0 * ones, ones, count, np.arange(2 * ARMS + 1), np.tile(ids, 2), ones, count).packed()
    result = np.array([b""] * len(arm), object)
    result[1::2] = np.array(packed, object)[arm[0::2] + ARMS * clicked[0::2]]
    return result


def column(field: Any, values: Any, rows: Ids) -> pa.Array:
    """These rows of a column; one value stands for all of them, and without one they are null, or empty."""
    if isinstance(values, dict):  # of the rows that lie in a list
        fields = [column(each, values.get(each.name), rows) for each in field.type.value_type]
        nested = pa.StructArray.from_arrays(fields, fields=list(field.type.value_type))
        return pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1), pa.int32()), nested)
    if values is None and pa.types.is_list(field.type):
        return pa.array([[]] * len(rows), field.type)
    if values is None:
        return pa.nulls(len(rows), field.type)
    if isinstance(values, np.ndarray):
        return pa.array(values[rows], field.type)
    return pa.array([values] * len(rows), field.type)


if __name__ == "__main__":
    main()
