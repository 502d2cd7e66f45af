"""Reward definitions, policies, their versions and heads. Definitions and policies never change; heads do."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from rlrec.records import Head, Policy, Reward, Version
from rlrec.store import tables as t
from rlrec.store.unit import Row, Unit

_base = t.policy.alias("base")
_REWARD = tuple(t.reward.c[name] for name in (
    "id", "name", "weights", "window_us", "default_value", "clip_low", "clip_high", "learn", "late",
))  # fmt: skip
_POLICY = (
    t.policy.c.id, t.policy.c.name, t.policy.c.kind, t.policy.c.params, t.policy.c.base_id, _base.c.name.label("base")
)  # fmt: skip
_VERSION = tuple(t.version.c[name] for name in (
    "id", "number", "status", "parent_id", "seq", "entered_to", "learned_from", "created_at",
))  # fmt: skip
_POLICIES = t.policy.outerjoin(_base, _base.c.id == t.policy.c.base_id)
_VERSIONS = _POLICIES.join(t.version, t.version.c.policy_id == t.policy.c.id).join(
    t.reward, t.reward.c.id == t.version.c.reward_id
)


def _reward(row: Row) -> Reward:
    key, name, weights, window_us, default, low, high, learn, late = row
    return Reward(
        id=key, name=name, weights=json.loads(weights), window_us=window_us, default=default,
        clip_low=low, clip_high=high, learn=learn, late=late,
    )  # fmt: skip


def _policy(row: Row) -> Policy:
    key, name, kind, params, base_id, base = row
    return Policy(id=key, name=name, kind=kind, params=json.loads(params), base_id=base_id, base=base)


def _version(row: Row) -> Version:
    split = len(_POLICY) + len(_VERSION)
    key, number, status, parent_id, seq, entered_to, learned_from, created_at = row[len(_POLICY) : split]
    return Version(
        id=key, policy=_policy(row[: len(_POLICY)]), number=number, status=status, reward=_reward(row[split:]),
        parent_id=parent_id, seq=seq, entered_to=entered_to, learned_from=json.loads(learned_from),
        created_at=created_at,
    )  # fmt: skip


def _versions() -> sa.Select[Any]:
    return sa.select(*_POLICY, *_VERSION, *_REWARD).select_from(_VERSIONS)


def rewards(unit: Unit) -> list[Reward]:
    return [_reward(row) for row in unit.rows(sa.select(*_REWARD).order_by(t.reward.c.id))]


def add_reward(unit: Unit, definition: Reward) -> int:
    """A definition into the store: its id (the one it carries is not read)."""
    return unit.add(
        t.reward,
        name=definition.name,
        weights=json.dumps(dict(definition.weights), sort_keys=True, separators=(",", ":")),
        window_us=definition.window_us,
        default_value=definition.default,
        clip_low=definition.clip_low,
        clip_high=definition.clip_high,
        learn=definition.learn,
        late=definition.late,
        created_at=unit.now,
    )


def all_policies(unit: Unit) -> list[Policy]:
    return [_policy(row) for row in unit.rows(sa.select(*_POLICY).select_from(_POLICIES).order_by(t.policy.c.id))]


def named(unit: Unit, name: str) -> Policy | None:
    row = unit.row(sa.select(*_POLICY).select_from(_POLICIES).where(t.policy.c.name == name))
    return None if row is None else _policy(row)


def definition(unit: Unit, policy_id: int) -> str:
    """What `policy create` was asked for, canonical: the same again is no conflict."""
    return str(unit.value(sa.select(t.policy.c.definition).where(t.policy.c.id == policy_id)))


def versions(unit: Unit, policy_ids: Collection[int]) -> list[Version]:
    """All versions of these policies, by policy and number."""
    statement = _versions().order_by(t.version.c.policy_id, t.version.c.number)
    return [_version(row) for row in unit.many(statement, t.version.c.policy_id, policy_ids)]


def by_id(unit: Unit, version_ids: Collection[int]) -> dict[int, Version]:
    return {row[6]: _version(row) for row in unit.many(_versions(), t.version.c.id, version_ids)}


def live(unit: Unit, names: Collection[str]) -> dict[str, tuple[Version, Head]]:
    """The live version and the head of each policy that exists, by name."""
    heads = t.policy_head
    statement = sa.select(
        *_POLICY, *_VERSION, *_REWARD, heads.c.policy_id, heads.c.seq, heads.c.ordinal, heads.c.live_id
    )
    joined = _VERSIONS.join(heads, heads.c.live_id == t.version.c.id)
    found = unit.many(statement.select_from(joined), t.policy.c.name, names)
    return {row[1]: (_version(row[:-4]), _head(row[-4:])) for row in found}


def _head(row: Row) -> Head:
    return Head(policy_id=row[0], seq=row[1], ordinal=row[2], live_id=row[3])


def lock(unit: Unit, policy_ids: Collection[int]) -> dict[int, Head]:
    """The heads of these policies, locked in order of id until the transaction ends."""
    heads = t.policy_head.c
    statement = sa.select(heads.policy_id, heads.seq, heads.ordinal, heads.live_id).where(
        heads.policy_id.in_(policy_ids)
    )
    if unit.postgres:
        statement = statement.with_for_update(key_share=True)
    return {row[0]: _head(row) for row in unit.rows(statement.order_by(heads.policy_id))}


def raise_seq(unit: Unit, policy_id: int) -> int:
    """The policy's next change: its number. The caller holds the head's lock."""
    heads = t.policy_head
    statement = sa.update(heads).where(heads.c.policy_id == policy_id).values(seq=heads.c.seq + 1)
    return int(unit.value(statement.returning(heads.c.seq)))


def add_policy(
    unit: Unit,
    *,
    name: str,
    kind: str,
    params: Mapping[str, Any],
    definition: str,
    base_id: int | None = None,
) -> int:
    return unit.add(
        t.policy,
        name=name,
        kind=kind,
        params=json.dumps(dict(params), sort_keys=True, separators=(",", ":")),
        definition=definition,
        base_id=base_id,
        created_at=unit.now,
    )


def add_version(
    unit: Unit,
    *,
    policy_id: int,
    number: int,
    status: str,
    reward_id: int,
    seq: int,
    parent_id: int | None = None,
    entered_to: int | None = None,
    learned_from: Mapping[str, Any],
) -> int:
    return unit.add(
        t.version,
        policy_id=policy_id,
        number=number,
        status=status,
        reward_id=reward_id,
        parent_id=parent_id,
        seq=seq,
        ordinal=0,
        entered_to=entered_to,
        learned_from=json.dumps(dict(learned_from), sort_keys=True, separators=(",", ":")),
        created_at=unit.now,
    )


def add_head(unit: Unit, policy_id: int, *, live_id: int) -> None:
    unit.run(sa.insert(t.policy_head).values(policy_id=policy_id, seq=0, ordinal=0, live_id=live_id))


def promote(unit: Unit, policy_id: int, *, version_id: int, previous_id: int) -> None:
    unit.add(t.promotion, policy_id=policy_id, version_id=version_id, previous_id=previous_id, at=unit.now)
    _set_live(unit, policy_id, version_id)


def last_promotion(unit: Unit, policy_id: int) -> tuple[int, int] | None:
    """(id, what was live before) of the newest promotion that was not rolled back."""
    promotion = t.promotion.c
    statement = (
        sa.select(promotion.id, promotion.previous_id)
        .where(promotion.policy_id == policy_id, promotion.rolled_back_at.is_(None))
        .order_by(promotion.id.desc())
        .limit(1)
    )
    row = unit.row(statement)
    return None if row is None else (row[0], row[1])


def roll_back(unit: Unit, policy_id: int, *, promotion_id: int, live_id: int) -> None:
    promotion = t.promotion
    unit.run(sa.update(promotion).where(promotion.c.id == promotion_id).values(rolled_back_at=unit.now))
    _set_live(unit, policy_id, live_id)


def _set_live(unit: Unit, policy_id: int, version_id: int) -> None:
    unit.run(sa.update(t.policy_head).where(t.policy_head.c.policy_id == policy_id).values(live_id=version_id))


def enter(unit: Unit, version_id: int, *, entered_to: int) -> None:
    """The belief of this version now holds every decision of its policy up to this one."""
    unit.run(sa.update(t.version).where(t.version.c.id == version_id).values(entered_to=entered_to))
