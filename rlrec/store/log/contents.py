"""Contexts and eligible sets, stored once under the digest of what they hold."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

from rlrec.store.database import loading
from rlrec.store.database.unit import StoredRows, Unit, parse, to_text

_HASH, _KEY_HASH = blake2b(digest_size=16), blake2b(digest_size=8)  # a copy takes a third of the time of a new one


def digest(text: str) -> bytes:
    """16 bytes that name a text: equal for equal texts, and in practice never for others."""
    hashed = _HASH.copy()
    hashed.update(text.encode())
    return hashed.digest()


def key_digest(key: str) -> int:
    """A signed 64-bit number that names a key of a user or a session, the same in every store."""
    return int.from_bytes(_key_hash(key), "little", signed=True)


def _key_hash(key: str) -> bytes:
    hashed = _KEY_HASH.copy()
    hashed.update(key.encode())
    return hashed.digest()


def key_digests(keys: Sequence[str]) -> list[int]:
    """The `key_digest` of each key."""
    import numpy as np

    return np.frombuffer(b"".join(map(_key_hash, keys)), "<i8").tolist()


def by_digest(texts: Collection[str]) -> dict[bytes, str]:
    """Texts by their digests, in order of these."""
    return dict(sorted(zip(map(digest, texts), texts, strict=True)))


def contexts(unit: Unit, bodies: Mapping[bytes, str]) -> dict[str, int]:
    """The id of each context, stored if it is new. bodies: by their digests, in order of these."""
    ids = loading.ids(unit, "context", "digest", bodies)
    new_bodies = {digest: body for digest, body in bodies.items() if digest not in ids} if ids else bodies
    ids |= loading.add_new(unit, "context", {"digest": list(new_bodies), "body": list(new_bodies.values())})
    return {body: ids[digest] for digest, body in bodies.items()}


class ArmSet(tuple[int, ...]):
    """The ids of arms, ascending. lacking: those that it has less than `superset`, of which few lack."""

    superset: ArmSet
    lacking: tuple[int, ...] = ()

    def omit_arms(self, arms: Iterable[int]) -> ArmSet:
        """The set without some of its arms; itself without none."""
        lacking, left = tuple(sorted(arms)), list(self)
        for arm in reversed(lacking):
            del left[bisect_left(left, arm)]
        smaller = ArmSet(left) if lacking else self
        if lacking:
            smaller.superset, smaller.lacking = self, lacking
        return smaller

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    @property
    def text(self) -> str:
        """The JSON by whose digest it is stored: that of its superset, cut, where it has one."""
        if not self.lacking:
            return to_text(list(self))
        pieces, text, start = list[str](), self.superset._enclosed_text, 0
        for arm in self.lacking:
            end = text.index(f",{arm},", start)
            pieces.append(text[start:end])
            start = end + len(f",{arm}")
        return f"[{''.join([*pieces, text[start:]])[1:-1]}]"

    @cached_property
    def _enclosed_text(self) -> str:
        """Its arms, each between two commas."""
        return f",{self.text[1:-1]},"


def eligible_sets(unit: Unit, sets: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """The id of each set of arm ids (ascending), stored if it is new: of one with a superset what it lacks of that."""
    narrowed_sets = (arms for arms in sets if isinstance(arms, ArmSet) and arms.lacking)
    supersets: dict[tuple[int, ...], ArmSet] = {arms: arms.superset for arms in narrowed_sets}
    superset_ids = eligible_sets(unit, {*supersets.values()}) if supersets else {}  # first: they may be among the sets
    by_digest = {digest(text): (text, arms) for arms, text in _texts(sets)}
    ids = loading.ids(unit, "eligible_set", "digest", by_digest)
    if new_digests := sorted(by_digest.keys() - ids.keys()):
        sizes, bodies, references = list[int](), list[str](), list[int | None]()
        for text, arms in map(by_digest.__getitem__, new_digests):
            superset = supersets.get(arms)
            sizes.append(len(arms))
            bodies.append(to_text(list(arms.lacking)) if isinstance(arms, ArmSet) and arms.lacking else text)
            references.append(None if superset is None else superset_ids[superset])
        rows: dict[str, Sequence[Any]] = {"digest": new_digests, "size": sizes, "arms": bodies}
        ids |= loading.add_new(unit, "eligible_set", rows | {"superset_id": references})
    return {arms: ids[key] for key, (_, arms) in by_digest.items()}


def _texts(sets: Collection[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], str]]:
    return ((arms, arms.text if isinstance(arms, ArmSet) else to_text(list(arms))) for arms in sets)


def find(
    unit: Unit, bodies: Collection[str], sets: Collection[tuple[int, ...]]
) -> tuple[dict[str, int], dict[tuple[int, ...], int]]:
    """The ids of those of these contexts and eligible sets that are stored."""
    contexts = by_digest(bodies)
    texts = {digest(text): arms for arms, text in _texts(sets)}
    context_ids = loading.ids(unit, "context", "digest", contexts)
    set_ids = loading.ids(unit, "eligible_set", "digest", texts)
    ids_of_contexts = {contexts[key]: number for key, number in context_ids.items()}
    return ids_of_contexts, {texts[key]: number for key, number in set_ids.items()}


def any_context(unit: Unit, name: str) -> bool:
    """Whether any context has a field of this name, or an object in one has."""
    return unit.ask_row("SELECT id FROM context WHERE body LIKE ? LIMIT 1", f'%"{name}":%') is not None


def contexts_with(unit: Unit, name: str) -> list[int]:
    """The contexts with a field of this name, or an object that has one, ascending."""
    return [row[0] for row in unit.ask("SELECT id FROM context WHERE body LIKE ? ORDER BY id", f'%"{name}":%')]


def context_bodies(unit: Unit, ids: Collection[int]) -> dict[int, str]:
    return StoredRows("context", unit.ask("SELECT id, body FROM context WHERE id IN (?*)", ids))


def eligible_arms(unit: Unit, ids: Collection[int]) -> dict[int, tuple[int, ...]]:
    """The arm ids of each eligible set, ascending."""
    rows = unit.ask("SELECT id, arms, superset_id FROM eligible_set WHERE id IN (?*)", ids)
    sets = StoredRows(
        "eligible_set", ((key, tuple(parse(arms, f"arms of eligible_set {key}", list))) for key, arms, _ in rows)
    )
    if superset_ids := {row[2] for row in rows} - {None}:
        supersets = eligible_arms(unit, superset_ids)
        for key, _, superset_id in rows:
            if superset_id is not None:
                lacking = set(sets[key])
                sets[key] = tuple(arm for arm in supersets[superset_id] if arm not in lacking)
    return sets


def set_sizes(unit: Unit, ids: Collection[int]) -> dict[int, int]:
    """How many arms each eligible set has."""
    return StoredRows("eligible_set", unit.ask("SELECT id, size FROM eligible_set WHERE id IN (?*)", ids))
