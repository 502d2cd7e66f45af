"""The catalogue: add, import, list, retire and restore arms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlrec.app.inputs import canonical
from rlrec.errors import InputError, suggest
from rlrec.store import Store, Unit, arms
from rlrec.times import written


@dataclass(frozen=True, kw_only=True)
class Line:
    """An arm and its features."""

    arm: str
    features: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Changed:
    added: int
    updated: int
    unchanged: int


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How many arms a retirement or a restoration changed."""

    arms: list[str]
    changed: int


def put(store: Store, groups: Callable[[], Iterable[Sequence[Line]]], *, one_transaction: bool = True) -> Changed:
    """Add arms, or give known ones other features: all in one transaction, or a transaction a group."""
    if one_transaction:
        return store.write(lambda unit: _added(_put(unit, group) for group in groups()), repeatable=True)
    return _added(store.write(partial(_put, group=group), repeatable=True) for group in groups())


def _put(unit: Unit, group: Sequence[Line]) -> Changed:
    features = {line.arm: canonical.text(dict(line.features)) for line in group}
    added, updated = arms.put(unit, features)
    return Changed(added=added, updated=updated, unchanged=len(group) - added - updated)


def _added(parts: Iterable[Changed]) -> Changed:
    added = updated = unchanged = 0
    for part in parts:
        added, updated, unchanged = added + part.added, updated + part.updated, unchanged + part.unchanged
    return Changed(added=added, updated=updated, unchanged=unchanged)


def retire(store: Store, keys: Sequence[str], *, retired: bool) -> Moved:
    """Take arms out of eligibility, or back into it. Raises InputError for one the catalogue lacks."""

    def work(unit: Unit) -> Moved:
        known = arms.ids(unit, keys)
        for key in keys:
            if key not in known:
                near = suggest(key, [arm.key for arm in arms.every(unit)])
                raise InputError(f"unknown arm {key!r}", hint=near or "`rlrec arm list` shows them")
        return Moved(arms=list(keys), changed=arms.retire(unit, keys, retired=retired))

    return store.write(work, repeatable=True)


def listing(store: Store) -> list[dict[str, Any]]:
    """Every arm, retired ones too, in the order they came."""
    with store.read() as unit:
        return [
            {
                "arm": arm.key,
                "status": "active" if arm.retired_at is None else "retired",
                "features": json.loads(arm.features),
                "added_at": written(arm.added_at),
                "retired_at": None if arm.retired_at is None else written(arm.retired_at),
            }
            for arm in arms.every(unit)
        ]
