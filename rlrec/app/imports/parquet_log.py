"""A private store with the log of a folder of Parquet."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from rlrec.app.imports.parquet_files import Manifest, load_pyarrow, schemas, table
from rlrec.errors import InputError
from rlrec.store import Store, log_tables
from rlrec.store import tables as t
from rlrec.store.contents import digest


@contextmanager
def opened(store: Store, folder: str) -> Iterator[Store]:
    """A private store with the log of a folder, and with the policies and definitions of this store."""
    pa, manifest = load_pyarrow(), Manifest.read(folder)
    if manifest is None:
        raise InputError(f"{folder} holds no log", hint=f"`rlrec export-log {folder} --layout parquet` writes one")
    with tempfile.TemporaryDirectory(prefix="rlrec-log-") as directory:
        path = os.path.join(directory, "log.db")
        with store.read() as unit:
            manifest.check(unit, folder)
            with closing(log_tables.PrivateStore(unit, path)) as private:
                _load(pa, folder, manifest, private, unit.progress)
                private.finish()
            now = unit.now
        with closing(Store(path, now=now, notice=store.notice)) as log_store:
            log_store.progress = store.progress
            yield log_store


def _load(pa: Any, folder: str, manifest: Manifest, private: log_tables.PrivateStore, progress: Any) -> None:
    """Put the rows of all files into a private store."""
    columns_of = schemas(pa)
    decision = log_tables.names(t.decision)
    for number, path in enumerate(manifest.files["decisions"]):
        rows = table(pa, folder, path, columns_of["decisions"].names)
        columns = {name: rows.column(name) for name in columns_of["decisions"].names}
        columns["at"] = columns["at"].cast(pa.int64())
        values = {name: columns[name].to_pylist() for name in ("decision_id", *decision[1:], "context", "arm_features")}
        ids = values["decision_id"]
        private.add("decision", decision, zip(ids, *(values[name] for name in decision[1:]), strict=True))
        _add_contexts(private, values["context_id"], values["context"])
        _add_sets(private, values["eligible_id"], columns["eligible_arms"].to_pylist())
        for child in log_tables.CHILDREN:
            names = [name for name in log_tables.names(child) if name != "decision_id"]
            rows = _nested(columns[child.name], ids, names)
            private.add(child.name, ["decision_id", *names], rows)
            if child is t.decision_features:
                context_of = {row[0]: row[1] for row in rows}
                texts = dict(zip(ids, values["arm_features"], strict=True))
                _add_contexts(private, context_of.values(), [texts[key] for key in context_of])
        progress("decisions", (number + 1), (number + 1) / len(manifest.files["decisions"]))
    for path in manifest.files["events"]:
        names = columns_of["events"].names
        private.add("event", names, zip(*table(pa, folder, path, names).to_pydict().values(), strict=True))
    for path in manifest.files["visits"]:
        _add_visits(private, table(pa, folder, path, columns_of["visits"].names).to_pydict())


def _add_contexts(private: log_tables.PrivateStore, ids: Iterable[int], texts: Iterable[str]) -> None:
    bodies = dict(zip(ids, texts, strict=True))
    rows = ((key, digest(text), text) for key, text in bodies.items())
    private.add("context", ("id", "digest", "body"), rows)


def _add_sets(private: log_tables.PrivateStore, ids: Iterable[int], sets: Iterable[list[int]]) -> None:
    texts = {
        key: (len(members), json.dumps(members, separators=(",", ":"))) for key, members in zip(ids, sets, strict=True)
    }
    rows = ((key, digest(text), size, text) for key, (size, text) in texts.items())
    private.add("eligible_set", ("id", "digest", "size", "arms"), rows)


def _nested(column: Any, ids: Sequence[int], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of a table that lie in a column of lists, with the ids of their decisions."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if hasattr(lists, "chunks") else lists
    owners = np.array(ids, np.int64)[lists.value_parent_indices().to_numpy()].tolist()
    flat = lists.flatten()
    return list(zip(owners, *(flat.field(name).to_pylist() for name in names), strict=True))


def _add_visits(private: log_tables.PrivateStore, columns: Mapping[str, list[Any]]) -> None:
    """Put visits, their sessions and users in place of earlier rows of these."""
    names = log_tables.names(t.visit)
    private.replace("visit", names, zip(*(columns[name] for name in names), strict=True))
    sessions = {
        row[0]: row
        for row in zip(
            *(columns[name] for name in ("session_id", "session", "user_id", "split", "created_at", "session_digest")),
            strict=True,
        )
    }
    private.replace("session", ("id", "key", "user_id", "split", "created_at", "digest"), sessions.values())
    users = {
        row[0]: row
        for row in zip(*(columns[name] for name in ("user_id", "user", "user_digest")), strict=True)
        if row[0] is not None
    }
    private.replace("users", ("id", "key", "digest"), users.values())
