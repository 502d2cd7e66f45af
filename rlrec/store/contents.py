"""Contexts and eligible sets, stored once under the digest of what they hold."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

from rlrec.store.folders import of_log
from rlrec.store.unit import StoredRows, Unit, parse, slices

PORTION = 10_000  # digests asked for at once, each a value of its own


def digest(text: str) -> bytes:
    """16 bytes that name a text: equal for equal texts, and in practice never for others."""
    return blake2b(text.encode(), digest_size=16).digest()


def key_digest(key: str) -> int:
    """A signed 64-bit number that names a key of a user or a session, the same in every store."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


def key_digests(keys: Sequence[str]) -> list[int]:
    """`key_digest` of each."""
    import numpy as np

    digests = b"".join([blake2b(key.encode(), digest_size=8).digest() for key in keys])
    return np.frombuffer(digests, "<i8").tolist()


def contexts(unit: Unit, bodies: Collection[str]) -> dict[str, int]:
    """The id of each context, stored if it is new."""
    bodies_by_digest = {digest(body): body for body in sorted(set(bodies))}
    ids = _intern(unit, "context", bodies_by_digest, ("digest", "body"), sorted(bodies_by_digest.items()))
    return {bodies_by_digest[key]: ids[key] for key in bodies_by_digest}


def eligible_sets(unit: Unit, sets: Collection[Sequence[int]]) -> dict[tuple[int, ...], int]:
    """The id of each set of arm ids (ascending), stored if it is new."""
    texts = {tuple(arms): json.dumps(list(arms), separators=(",", ":")) for arms in sets}
    named = {digest(text): (arms, text) for arms, text in texts.items()}
    rows = [(key, len(arms), text) for key, (arms, text) in sorted(named.items())]
    ids = _intern(unit, "eligible_set", named, ("digest", "size", "arms"), rows)
    return {arms: ids[key] for key, (arms, _) in named.items()}


def find(
    unit: Unit, bodies: Collection[str], sets: Collection[tuple[int, ...]]
) -> tuple[dict[str, int], dict[tuple[int, ...], int]]:
    """The ids of those of these contexts and eligible sets that are stored."""
    named = {digest(body): body for body in bodies}
    texts = {digest(json.dumps(list(arms), separators=(",", ":"))): arms for arms in sets}
    context_ids, set_ids = _ids(unit, "context", named), _ids(unit, "eligible_set", texts)
    return {named[key]: number for key, number in context_ids.items()}, {texts[key]: set_ids[key] for key in set_ids}


def _intern(
    unit: Unit, table: str, named: Mapping[bytes, object], columns: Sequence[str], rows: Sequence[tuple[object, ...]]
) -> dict[bytes, int]:
    ids = _ids(unit, table, named)
    new = [row for row in rows if row[0] not in ids]
    if new:
        unit.insert(table, columns, new, on_conflict="(digest) DO NOTHING")
        ids = _ids(unit, table, named)
    return ids


def _ids(unit: Unit, table: str, named: Mapping[bytes, object]) -> dict[bytes, int]:
    wanted, ids = list(named), dict[bytes, int]()
    for portion in slices(wanted, PORTION):
        rows = unit.ask(f"SELECT digest, id FROM {table} WHERE digest IN (?*)", portion)
        ids.update((bytes(key), number) for key, number in rows)
    return ids


@of_log
def context_bodies(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    return StoredRows("context", unit.ask("SELECT id, body FROM context WHERE id IN (?*)", ids))


@of_log
def eligible_arms(unit: Unit, ids: Collection[int]) -> dict[int, tuple[int, ...]]:
    """The arm ids of each eligible set, ascending."""
    rows = unit.ask("SELECT id, arms FROM eligible_set WHERE id IN (?*)", ids)
    return StoredRows(
        "eligible_set", ((key, tuple(parse(arms, f"arms of eligible_set {key}", list))) for key, arms in rows)
    )


@of_log
def set_sizes(unit: Unit, ids: Collection[int]) -> dict[int, int]:
    """How many arms each eligible set has."""
    return dict(unit.ask("SELECT id, size FROM eligible_set WHERE id IN (?*)", ids))
