"""Queries here store and read contexts and eligible sets. Each context and each set is stored only once, and is found
by its digest."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any

from rlrec.store.database import loading
from rlrec.store.database.unit import StoredRows, Unit, parse, to_text

# to copy a hash object takes a third of the time of creating one
_HASH, _KEY_HASH = blake2b(digest_size=16), blake2b(digest_size=8)
MAX_ARMS = 1_000_000  # arms of different eligible sets that are in memory at a time: 100 MB, about, with a distribution


def digest(text: str) -> bytes:
    """Return a digest of 16 bytes that stands for a text. Equal texts have equal digests, and different texts in
    practice never do."""
    hasher = _HASH.copy()
    hasher.update(text.encode())
    return hasher.digest()


def key_digest(key: str) -> int:
    """Return a signed 64-bit digest of the key of a user or a session, which is the same in every store."""
    return int.from_bytes(_key_hash(key), "little", signed=True)


def _key_hash(key: str) -> bytes:
    hasher = _KEY_HASH.copy()
    hasher.update(key.encode())
    return hasher.digest()


def key_digests(keys: Sequence[str]) -> list[int]:
    """Return the `key_digest` of each key."""
    import numpy as np

    return np.frombuffer(b"".join(map(_key_hash, keys)), "<i8").tolist()


def by_digest(texts: Collection[str]) -> dict[bytes, str]:
    """Return the given texts by their digests, in order of digest."""
    return dict(sorted(zip(map(digest, texts), texts, strict=True)))


def contexts(unit: Unit, bodies: Mapping[bytes, str]) -> dict[str, int]:
    """Return the id of each context, by its text, and store the contexts that are new. bodies: the text of each context
    by its digest, in order of digest."""
    ids = loading.ids(unit, "context", "digest", bodies)
    new_bodies = {digest: body for digest, body in bodies.items() if digest not in ids} if ids else bodies
    ids |= loading.add_new(unit, "context", {"digest": list(new_bodies), "body": list(new_bodies.values())})
    return {body: ids[digest] for digest, body in bodies.items()}


@dataclass(frozen=True)
class NarrowedSet:
    """A NarrowedSet represents a set of arms by a larger set (`superset`) and the arms of the larger set that are
    missing (`lacking`). Both have ascending arm ids. In a large catalogue, this saves space if each person has a
    different set."""

    superset: tuple[int, ...]
    lacking: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.superset) - len(self.lacking)

    def __hash__(self) -> int:  # of the superset it would take longer than all else
        return hash((len(self), self.lacking))

    @cached_property
    def digest(self) -> bytes:
        """Compute the digest under which the set is stored: the digest of the JSON list of the set's arms. The method
        makes this JSON by cutting the lacking arms out of the JSON of the superset."""
        pieces, start = list[str](), 0
        text = f",{_digest_and_text(self.superset)[1][1:-1]},"
        for arm in self.lacking:
            end = text.index(f",{arm},", start)
            pieces.append(text[start:end])
            start = end + len(f",{arm}")
        return digest(f"[{''.join([*pieces, text[start:]])[1:-1]}]")


@lru_cache(maxsize=10)
def _digest_and_text(arms: tuple[int, ...]) -> tuple[bytes, str]:
    """Return the digest of an eligible set, and the JSON list of its arms. The last few results are kept in memory,
    since the same supersets are used again and again."""
    text = to_text(list(arms))
    return digest(text), text


Eligible = tuple[int, ...] | NarrowedSet


def eligible_sets(unit: Unit, sets: Collection[Eligible]) -> dict[Eligible, int]:
    """Return the id of each set of arms, and store the sets that are new. A set is a tuple of ascending arm ids or a
    NarrowedSet; a NarrowedSet is stored as the id of its superset and the arms that are missing."""
    supersets = {id(arms.superset): arms.superset for arms in sets if isinstance(arms, NarrowedSet)}
    superset_ids = eligible_sets(unit, supersets.values()) if supersets else {}  # first: they may be among the sets
    named_sets = _describe_sets(sets)
    ids = loading.ids(unit, "eligible_set", "digest", {key for key, _, _ in named_sets})
    new_sets = {key: (body, arms) for key, body, arms in named_sets if key not in ids}
    if new_digests := sorted(new_sets):
        bodies, arm_sets = zip(*map(new_sets.__getitem__, new_digests), strict=True)
        references = [superset_ids[arms.superset] if isinstance(arms, NarrowedSet) else None for arms in arm_sets]
        rows: dict[str, Sequence[Any]] = {"digest": new_digests, "size": list(map(len, arm_sets)), "arms": bodies}
        ids |= loading.add_new(unit, "eligible_set", rows | {"superset_id": references})
    return {arms: ids[key] for key, _, arms in named_sets}


def _describe_sets(sets: Iterable[Eligible]) -> list[tuple[bytes, str, Eligible]]:
    """Return a row for each set, with its digest, the text that is stored for the set, and the set."""
    return [
        (arms.digest, to_text(list(arms.lacking)), arms) if isinstance(arms, NarrowedSet)
        else (*_digest_and_text(arms), arms)
        for arms in sets
    ]  # fmt: skip


def find(unit: Unit, bodies: Collection[str], sets: Collection[Eligible]) -> tuple[dict[str, int], dict[Eligible, int]]:
    """Return two dictionaries: the id of each stored context, by text, and the id of each stored eligible set, by set.
    Contexts and sets that are not stored are left out."""
    contexts, named_sets = by_digest(bodies), _describe_sets(sets)
    context_ids = loading.ids(unit, "context", "digest", contexts)
    set_ids = loading.ids(unit, "eligible_set", "digest", {key for key, _, _ in named_sets})
    id_by_context = {contexts[key]: number for key, number in context_ids.items()}
    return id_by_context, {arms: set_ids[key] for key, _, arms in named_sets if key in set_ids}


def any_context(unit: Unit, name: str) -> bool:
    """Tell whether any stored context has a field of this name, at the top level of the context or inside another
    field."""
    return unit.ask_row("SELECT id FROM context WHERE body LIKE ? LIMIT 1", f'%"{name}":%') is not None


def contexts_with(unit: Unit, name: str) -> list[int]:
    """Return, ascending, the ids of the contexts that have a field of this name, at the top level of the context or
    inside another field."""
    return [row[0] for row in unit.ask("SELECT id FROM context WHERE body LIKE ? ORDER BY id", f'%"{name}":%')]


def context_bodies(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    return StoredRows("context", unit.ask("SELECT id, body FROM context WHERE id IN (?*)", ids))


def eligible_arms(unit: Unit, ids: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Return the ids of the arms in each eligible set, ascending, by the id of the set."""
    rows = unit.ask("SELECT id, arms, superset_id FROM eligible_set WHERE id IN (?*)", ids)
    sets = StoredRows(
        "eligible_set", ((key, tuple(parse(arms, f"arms of eligible_set {key}", list))) for key, arms, _ in rows)
    )
    if superset_ids := {row[2] for row in rows} - {None}:
        supersets = eligible_arms(unit, superset_ids)
        for key, _, superset_id in rows:
            if superset_id is not None:
                sets[key] = _remove_arms(supersets[superset_id], sets[key])
    return sets


def _remove_arms(superset: tuple[int, ...], lacking: tuple[int, ...]) -> tuple[int, ...]:
    """Return the arms of a superset without the lacking arms. Both arguments and the result have ascending ids, so the
    function copies whole pieces between the lacking arms."""
    pieces, start = list[tuple[int, ...]](), 0
    for arm in lacking:
        end = bisect_left(superset, arm, start)
        pieces.append(superset[start:end])
        start = end + (superset[end : end + 1] == (arm,))
    return (*chain.from_iterable(pieces), *superset[start:])


def set_sizes(unit: Unit, ids: Collection[int]) -> dict[int, int]:
    """Return the number of arms in each eligible set, by the id of the set."""
    return StoredRows("eligible_set", unit.ask("SELECT id, size FROM eligible_set WHERE id IN (?*)", ids))
