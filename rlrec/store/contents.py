"""Contexts and eligible sets, stored once under the digest of what they hold."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

from rlrec.store.unit import Unit

PORTION = 10_000  # digests asked for at once, each a value of its own


def digest(text: str) -> bytes:
    """16 bytes that name a text: equal for equal texts, and in practice never for others."""
    return blake2b(text.encode(), digest_size=16).digest()


def key_digest(key: str) -> int:
    """A signed 64-bit number that names a key of a user or a session, the same in every store."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


def contexts(unit: Unit, bodies: Collection[str]) -> dict[str, int]:
    """The id of each context, stored if it is new."""
    named = {digest(body): body for body in sorted(set(bodies))}
    found = _intern(unit, "context", named, ("digest", "body"), [(key, body) for key, body in sorted(named.items())])
    return {named[key]: found[key] for key in named}


def eligible_sets(unit: Unit, sets: Collection[Sequence[int]]) -> dict[tuple[int, ...], int]:
    """The id of each set of arm ids (ascending), stored if it is new."""
    texts = {tuple(arms): json.dumps(list(arms), separators=(",", ":")) for arms in sets}
    named = {digest(text): (arms, text) for arms, text in texts.items()}
    rows = [(key, len(arms), text) for key, (arms, text) in sorted(named.items())]
    found = _intern(unit, "eligible_set", named, ("digest", "size", "arms"), rows)
    return {arms: found[key] for key, (arms, _) in named.items()}


def find(
    unit: Unit, bodies: Collection[str], sets: Collection[tuple[int, ...]]
) -> tuple[dict[str, int], dict[tuple[int, ...], int]]:
    """The ids of these contexts and eligible sets, as far as they are stored."""
    named = {digest(body): body for body in bodies}
    texts = {digest(json.dumps(list(arms), separators=(",", ":"))): arms for arms in sets}
    stored, found = _ids(unit, "context", named), _ids(unit, "eligible_set", texts)
    return {named[key]: number for key, number in stored.items()}, {texts[key]: found[key] for key in found}


def _intern(
    unit: Unit,
    table: str,
    named: Mapping[bytes, object],
    columns: Sequence[str],
    rows: Sequence[tuple[object, ...]],
) -> dict[bytes, int]:
    known = _ids(unit, table, named)
    new = [row for row in rows if row[0] not in known]
    if new:
        unit.insert(table, columns, new, known="(digest) DO NOTHING")
        known = _ids(unit, table, named)
    return known


def _ids(unit: Unit, table: str, named: Mapping[bytes, object]) -> dict[bytes, int]:
    wanted, found = list(named), dict[bytes, int]()
    for start in range(0, len(wanted), PORTION):
        portion = wanted[start : start + PORTION]
        rows = unit.ask(f"SELECT digest, id FROM {table} WHERE digest IN (?*)", portion)
        found.update((bytes(key), number) for key, number in rows)
    return found


def context_bodies(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    return dict(unit.ask("SELECT id, body FROM context WHERE id IN (?*)", ids))


def eligible_arms(unit: Unit, ids: Collection[int]) -> dict[int, tuple[int, ...]]:
    """The arm ids of each eligible set, ascending."""
    rows = unit.ask("SELECT id, arms FROM eligible_set WHERE id IN (?*)", ids)
    return {key: tuple(json.loads(arms)) for key, arms in rows}


def set_sizes(unit: Unit, ids: Collection[int]) -> dict[int, int]:
    """How many arms each eligible set has."""
    return dict(unit.ask("SELECT id, size FROM eligible_set WHERE id IN (?*)", ids))
