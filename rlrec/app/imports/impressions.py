"""Impressions into the tables, in columns: decisions of one slot that are all there is of their session."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import chain, compress
from operator import le
from typing import Any

import numpy as np

from rlrec.app.imports import lines
from rlrec.app.imports.layouts.base import Happened, Impressions, Line, Refused, Shown, Taken
from rlrec.app.imports.writer import Intake
from rlrec.app.log.splits import splits
from rlrec.errors import InputError
from rlrec.store import contents, loading
from rlrec.store.contents import key_digest
from rlrec.store.loading import Same

WIDE = 50_000  # rows stored at once: keys that come in no order, like digests, are cheaper the more of them are sorted
COLUMNS = Impressions._fields[:9]


def gathered(groups: Iterable[Taken], *, salt: str) -> Generator[Taken, None, None]:
    """Groups of impressions made WIDE, but where bad lines follow, and with their splits; lines as they come."""
    waiting: list[Impressions] = []
    for good, bad in groups:
        if isinstance(good, list):
            yield good, bad
            continue
        waiting.append(good._replace(split=splits(salt, good.session)))
        if bad or sum(len(rows.digest) for rows in waiting) >= WIDE:
            rows = _joined(waiting)
            end = len(rows.digest) if bad else WIDE
            yield _part(rows, slice(end)), bad
            waiting = [_part(rows, slice(end, None))]
    if waiting:
        yield _joined(waiting), []


def _joined(groups: Sequence[Impressions]) -> Impressions:
    columns: dict[str, Any] = {
        name: list(chain.from_iterable(getattr(rows, name) for rows in groups)) for name in COLUMNS
    }
    return groups[0]._replace(**columns)


def _part(rows: Impressions, part: slice) -> Impressions:
    columns: dict[str, Any] = {name: getattr(rows, name)[part] for name in COLUMNS}
    return rows._replace(**columns)


def take(intake: Intake, rows: Impressions) -> list[Refused]:
    """Store what is new: the lines that were refused, of which there are none."""
    if not rows.digest:
        return []
    assert intake.policy is not None
    owner = intake.owners[intake.policy]
    if isinstance(owner, InputError):
        raise owner
    new = _new(rows, intake.known_lines(owner.policy.id, rows.digest))
    intake.duplicates += len(rows.digest) - len(new.digest)
    known = intake.known_sessions(f"{intake.policy}/", new.session)
    if not known.isdisjoint(new.session):
        return lines.take(intake, _lines(new))
    if new.digest:
        _store(intake, new, policy_id=owner.policy.id, version_id=owner.id)
        intake.accepted += len(new.digest)
    return []


def _new(rows: Impressions, known: set[bytes]) -> Impressions:
    if known.isdisjoint(rows.digest):
        return rows
    new = [digest not in known for digest in rows.digest]
    columns: dict[str, Any] = {name: list(compress(getattr(rows, name), new)) for name in COLUMNS}
    return rows._replace(**columns)


def _lines(rows: Impressions) -> list[Line]:
    """The same one by one, for those whose sessions have a past."""
    return [
        Line(
            0, b"", digest, None, session, None, None, None, at, context, "{}", rows.eligible, rows.size, None, None,
            None, None, (Shown(position, arm, None, marginal),),
            (Happened(position, "click", 1.0),) if clicked else (),
        )
        for digest, session, at, context, arm, position, marginal, clicked in zip(*rows[:8], strict=True)
    ]  # fmt: skip


def _store(intake: Intake, rows: Impressions, *, policy_id: int, version_id: int) -> None:
    """Inserts go into each unique table in the order of its key."""
    intake.note()
    unit, at, seq = intake.unit, rows.at, intake.seq(policy_id)
    arms = intake.arms(rows.eligible)
    eligible = tuple(sorted(arms.values()))
    contexts, eligible_id = intake.contexts(rows.context), contents.eligible_sets(unit, [eligible])[eligible]
    sessions = _sessions(intake, rows)
    ids = unit.reserve("decision", len(at))
    intake.decide({
        "id": ids, "policy_id": Same(policy_id), "version_id": Same(version_id), "seq": Same(seq),
        "session_id": sessions, "visit": Same(1), "step": Same(0), "context_id": contexts, "state": Same("{}"),
        "eligible_id": Same(eligible_id), "size": Same(rows.size), "at": at,
    })  # fmt: skip
    loading.write(unit, "slot", {
        "decision_id": ids, "position": rows.position, "arm_id": list(map(arms.__getitem__, rows.arm)),
        "marginal": rows.marginal, "censored": Same(0), "rounded": Same(0),
    })  # fmt: skip
    order = _order(rows.digest)
    identities = {"digest": _picked(rows.digest, order), "decision_id": _picked(ids, order)}
    loading.write(unit, "import_line", {"policy_id": Same(policy_id), **identities})
    _clicks(intake, rows, ids, seq=seq)


def _sessions(intake: Intake, rows: Impressions) -> Sequence[int]:
    """Store sessions and their visits: the id of each."""
    unit, keys = intake.unit, rows.session
    ids = unit.reserve("session", len(keys))
    in_order = all(map(le, keys, keys[1:]))
    order = range(len(keys)) if in_order else sorted(range(len(keys)), key=keys.__getitem__)
    ordered = _picked(keys, order)
    session = {
        "id": ids, "key": ordered, "split": _picked(rows.split, order), "digest": list(map(key_digest, ordered)),
    }  # fmt: skip
    at = _picked(rows.at, order)
    loading.write(unit, "session", session | {"created_at": Same(unit.now)})
    loading.write(unit, "visit", {
        "session_id": ids, "number": Same(1), "started_at": at, "last_at": at, "steps": Same(1), "recent": Same("[]"),
        "ended_at": at,
    })  # fmt: skip
    return ids if in_order else [number for _, number in sorted(zip(order, ids, strict=True))]


def _clicks(intake: Intake, rows: Impressions, ids: Sequence[int], *, seq: int) -> None:
    clicked = [list(compress(column, rows.clicked)) for column in (ids, rows.position, rows.at)]
    if clicked[0]:
        loading.write(intake.unit, "event", {
            "decision_id": clicked[0], "number": Same(1), "position": clicked[1], "kind": Same("click"),
            "value": Same(1.0), "at": clicked[2], "received_at": Same(intake.unit.now), "seq": Same(seq),
        })  # fmt: skip


def _order(digests: Sequence[bytes]) -> list[int]:
    """The places of digests, in ascending order of these."""
    halves = np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)
    found: list[int] = np.lexsort((halves[:, 1], halves[:, 0])).tolist()
    return found


def _picked(column: Sequence[Any], order: Sequence[int]) -> Sequence[Any]:
    return column if isinstance(order, range) else list(map(column.__getitem__, order))
