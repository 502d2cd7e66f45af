"""Queries here store definitions of rewards, policies, and the versions and heads of policies. Definitions and policies
never change. The head of a policy changes: it has the live version and the counters of the policy."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from rlrec.records import Head, Reward, StoredPolicy, Transform, Version
from rlrec.store.database import engine
from rlrec.store.database.unit import Row, StoredRows, Unit, parse, to_text
from rlrec.store.log import decisions

# The columns of each record, in the order of its fields.
_REWARD = (
    "reward.id, reward.name, reward.weights, reward.window_us, reward.default_value, reward.clip_low, reward.clip_high,"
    " reward.learn, reward.late"
)
_POLICY = "policy.id, policy.name, policy.kind, policy.params, policy.base_id"
_VERSION = (
    "version.id, version.number, version.status, version.parent_id, version.seq, version.ordinal, version.entered_to,"
    " version.learned_from, version.parameters, version.created_at, version.has_omissions"
)
_VERSIONS = "policy JOIN version ON version.policy_id = policy.id JOIN reward ON reward.id = version.reward_id"
_VERSION_ROW = f"{_POLICY}, {_VERSION}, {_REWARD}"
_IN_ORDER = "ORDER BY version.policy_id, version.number"
_HEAD = "policy_head.policy_id, policy_head.seq, policy_head.ordinal, policy_head.live_id"
_HEADS_AND_LEARNING = (
    f"SELECT {_HEAD}, {_VERSION_ROW} FROM policy_head LEFT JOIN version ON version.policy_id = policy_head.policy_id"
    " AND version.status = 'learning' LEFT JOIN policy ON policy.id = version.policy_id"
    f" LEFT JOIN reward ON reward.id = version.reward_id WHERE policy_head.policy_id IN (?*) {_IN_ORDER}"
)
_NOW_AND_LEARNING = (
    f"SELECT {_VERSION_ROW}, clock.now FROM ({{now}}) clock (now) LEFT JOIN ({_VERSIONS})"
    f" ON version.policy_id IN (?*) AND version.status = 'learning' {_IN_ORDER}"
)


def _read_reward(row: Row) -> Reward:
    reward_id, name, terms_text, *values = row
    # weights and transforms by kind: {"click": 1.0, "dwell_s": {"weight": 0.3, "log1p": true, "cap": 600.0}}
    weights, transforms = parse(terms_text, f"weights of reward {reward_id}"), {}
    for kind, term in weights.items():
        if isinstance(term, dict):
            weights[kind] = term.pop("weight")
            transforms[kind] = Transform(**term)
    return Reward._make((reward_id, name, weights, *values, transforms))


def _terms_text(definition: Reward) -> str:
    """Return the weights and transforms of a reward as the JSON text that is stored. `_read_reward` reads this text."""
    terms: dict[str, Any] = dict(definition.weights)
    for kind, transform in definition.transforms.items():
        terms[kind] = {"weight": terms[kind], **transform._asdict()}
    return to_text(terms)


def _read_policy(row: Row) -> StoredPolicy:
    policy_id, name, kind, params, base_id = row
    return StoredPolicy(policy_id, name, kind, parse(params, f"params of policy {policy_id}"), base_id)


@lru_cache(maxsize=128)
def _read_version(row: Row) -> Version:
    """Return the version, with its policy and reward, that a row holds. Results are kept in memory, since the same rows
    are read again and again."""
    version_id, number, status, parent_id, seq, ordinal, entered_to, *values = row[5:16]
    learned_from, parameters, created_at, has_omissions = values
    return Version(
        id=version_id, policy=_read_policy(row[:5]), number=number, status=status, reward=_read_reward(row[16:]),
        parent_id=parent_id, seq=seq, ordinal=ordinal, entered_to=entered_to,
        learned_from=parse(learned_from, f"learned_from of version {version_id}"),
        parameters=parse(parameters or "{}", f"parameters of version {version_id}"), created_at=created_at,
        has_omissions=bool(has_omissions),
    )  # fmt: skip


def rewards(unit: Unit) -> list[Reward]:
    return [_read_reward(row) for row in unit.ask(f"SELECT {_REWARD} FROM reward ORDER BY id")]


def add_reward(unit: Unit, definition: Reward) -> int:
    """Store the definition of a reward and return its new id. The field `id` of the definition is ignored."""
    return unit.add(
        "reward", name=definition.name, weights=_terms_text(definition), window_us=definition.window_us,
        default_value=definition.default, clip_low=definition.clip_low, clip_high=definition.clip_high,
        learn=definition.learn, late=definition.late, created_at=unit.now,
    )  # fmt: skip


def all_policies(unit: Unit) -> list[StoredPolicy]:
    return [_read_policy(row) for row in unit.ask(f"SELECT {_POLICY} FROM policy ORDER BY policy.id")]


def serving_ids(unit: Unit) -> set[int]:
    """Return the ids of the policies that have served at least one decision."""
    has_decision = "EXISTS (SELECT 1 FROM decision d WHERE d.policy_id = policy.id AND d.imported = 0)"
    return {row[0] for row in unit.ask(f"SELECT id FROM policy WHERE {has_decision}")}


def by_name(unit: Unit, name: str) -> StoredPolicy | None:
    row = unit.ask_row(f"SELECT {_POLICY} FROM policy WHERE policy.name = ?", name)
    return None if row is None else _read_policy(row)


def definition(unit: Unit, policy_id: int) -> str:
    """Return the options of the command `policy create` that created a policy, as canonical JSON. A repeated command
    has the same options if it gives the same text."""
    return str(unit.ask_value("SELECT definition FROM policy WHERE id = ?", policy_id))


def versions(unit: Unit, policy_ids: Collection[int]) -> list[Version]:
    """Return all versions of these policies, in order of policy and number."""
    return _read_versions(unit, f"version.policy_id IN (?*) {_IN_ORDER}", policy_ids)


def version_numbers(unit: Unit) -> dict[int, list[int]]:
    """Return a list with the numbers of all versions of each policy, by policy id."""
    return unit.ask_groups("SELECT policy_id, number FROM version ORDER BY policy_id, number")


def settling(unit: Unit) -> list[Version]:
    """Return all learning versions whose beliefs get a slot only when the reward window of the slot is over, in order
    of policy and number."""
    return _read_versions(unit, f"version.status = 'learning' AND version.entered_to IS NOT NULL {_IN_ORDER}")


def by_id(unit: Unit, version_ids: Collection[int]) -> dict[int, Version]:
    return StoredRows(
        "version", ((version.id, version) for version in _read_versions(unit, "version.id IN (?*)", version_ids))
    )


def _read_versions(unit: Unit, test: str, *ids: Collection[int]) -> list[Version]:
    return [_read_version(row) for row in unit.ask(f"SELECT {_VERSION_ROW} FROM {_VERSIONS} WHERE {test}", *ids)]


class LivePolicy(NamedTuple):
    version: Version
    head: Head


def live(unit: Unit, names: Collection[str]) -> dict[str, LivePolicy]:
    """Return the live version and the head of each policy, by policy name. Names without a policy are left out."""
    tables = f"{_VERSIONS} JOIN policy_head ON policy_head.policy_id = policy.id"
    test = f"policy.name IN (?*) AND (policy_head.live_id = version.id OR version.status = 'learning') {_IN_ORDER}"
    live_policies, heads = dict[str, LivePolicy](), dict[int, tuple[Head, list[Version]]]()
    for row in unit.ask(f"SELECT {_VERSION_ROW}, {_HEAD} FROM {tables} WHERE {test}", names):
        version, head = _read_version(row[:-4]), Head._make(row[-4:])
        if head.live_id == version.id:
            live_policies[version.policy.name] = LivePolicy(version, head)
        heads.setdefault(head.policy_id, (head, []))
        if version.status == "learning":
            heads[head.policy_id][1].append(version)
    if unit.heads is not None:  # a ledger will ask for these heads
        unit.heads |= heads
    return live_policies


def lock(unit: Unit, policy_ids: Collection[int]) -> dict[int, Head]:
    """Lock the heads of these policies, in order of policy id, until the transaction ends. Return the heads by policy
    id."""
    return _lock_heads(unit, policy_ids)[0]


def lock_learning(unit: Unit, policy_ids: Collection[int]) -> tuple[dict[int, Head], list[Version]]:
    """Lock the heads of these policies as `lock` does. Return the heads by policy id, and the learning versions of
    these policies in order of policy and number.

    On PostgreSQL a transaction begins before it waits for the lock, so the time of the unit is set again afterwards,
    from the clock and the newest decision. On SQLite a transaction begins after this wait."""
    if unit.heads and unit.heads.keys() >= set(policy_ids):
        pairs = [unit.heads.pop(policy_id) for policy_id in sorted(policy_ids)]
        learning_versions = [version for _, versions in pairs for version in versions]
        return {head.policy_id: head for head, _ in pairs}, learning_versions
    if not unit.postgres:
        rows = unit.ask(_HEADS_AND_LEARNING, policy_ids)
        heads = StoredRows("policy_head", ((row[0], Head._make(row[:4])) for row in rows))
        return heads, [_read_version(row[4:]) for row in rows if row[4] is not None]
    time_query = f"SELECT greatest(({decisions.NEWEST}), ({engine.CLOCK}))" if unit.on_clock else decisions.NEWEST
    heads, rows = _lock_heads(unit, policy_ids, (_NOW_AND_LEARNING.format(now=time_query), policy_ids))
    unit.now = max(unit.now, rows[0][-1] or 0)
    return heads, [_read_version(row[:-1]) for row in rows if row[0] is not None]


def _lock_heads(unit: Unit, policy_ids: Collection[int], *queries: tuple[Any, ...]) -> Any:
    """Lock the heads of these policies in order of policy id, then run further queries. Return a sequence: the heads by
    policy id, and then the rows of each query."""
    lock_clause = " FOR NO KEY UPDATE" if unit.postgres else ""
    heads_query = f"SELECT {_HEAD} FROM policy_head WHERE policy_id IN (?*) ORDER BY policy_id{lock_clause}"
    rows, *other_rows = unit.ask_all((heads_query, policy_ids), *queries)
    return StoredRows("policy_head", ((row[0], Head._make(row)) for row in rows)), *other_rows


def raise_seq(unit: Unit, head: Head) -> int:
    """Raise the number of the policy's last change by 1, and return the new number. head: the head of the policy, as
    `lock` returned it."""
    unit.note("UPDATE policy_head SET seq = ? WHERE policy_id = ?", head.seq + 1, head.policy_id)
    return head.seq + 1


def ordinal(unit: Unit, policy_id: int) -> int:
    """Return the number of decisions that were drawn from a policy. The number is only counted for policies that
    forget."""
    return int(unit.ask_value("SELECT ordinal FROM policy_head WHERE policy_id = ?", policy_id) or 0)


def belief_at(unit: Unit, policy_id: int, at: int) -> tuple[int, int]:
    """Return two numbers about the beliefs from which a policy drew its decisions before a time: the largest number of
    a change that such a belief included, and the largest ordinal. Both are 0 if there are no such decisions."""
    source = "decision d WHERE d.policy_id = ? AND d.at < ? AND d.imported = 0"
    seq, ordinal = unit.ask(f"SELECT max(d.belief_seq), max(d.belief_ordinal) FROM {source}", policy_id, at)[0]
    return int(seq or 0), int(ordinal or 0)


def pruned_to(unit: Unit, policy_id: int) -> int:
    """Return the id of the newest decision that was pruned from the log of a policy, or 0 if none was pruned."""
    return int(unit.ask_value("SELECT pruned_to FROM policy_head WHERE policy_id = ?", policy_id) or 0)


def note_pruned(unit: Unit, newest_ids: Mapping[int, int]) -> None:
    """Store the id of the newest pruned decision of each policy. If a larger id is stored already, it stays.
    newest_ids: the decision id by policy id."""
    larger_pruned_to = "CASE WHEN coalesce(pruned_to, 0) > ? THEN pruned_to ELSE ? END"
    rows = [(decision_id, decision_id, policy_id) for policy_id, decision_id in sorted(newest_ids.items())]
    unit.tell_each(f"UPDATE policy_head SET pruned_to = {larger_pruned_to} WHERE policy_id = ?", rows)


def raise_ordinal(unit: Unit, policy_id: int, *, by: int) -> None:
    """Add `by` to the number of decisions of a policy. The caller must hold the lock of the policy's head."""
    unit.note("UPDATE policy_head SET ordinal = ordinal + ? WHERE policy_id = ?", by, policy_id)


def add_policy(
    unit: Unit, *, name: str, kind: str, params: Mapping[str, Any], definition: str, base_id: int | None = None
) -> int:
    return unit.add(
        "policy", name=name, kind=kind, params=to_text(dict(params)), definition=definition, base_id=base_id,
        created_at=unit.now,
    )  # fmt: skip


def add_version(
    unit: Unit, *, policy_id: int, number: int, status: str, reward_id: int, seq: int, ordinal: int = 0,
    parent_id: int | None = None, entered_to: int | None = None, learned_from: Mapping[str, Any],
    parameters: Mapping[str, Any] | None = None, report: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    return unit.add(
        "version", policy_id=policy_id, number=number, status=status, reward_id=reward_id, parent_id=parent_id, seq=seq,
        ordinal=ordinal, entered_to=entered_to, learned_from=to_text(dict(learned_from)), created_at=unit.now,
        parameters=to_text(dict(parameters)) if parameters else None,
        report=None if report is None else to_text(dict(report)),
    )  # fmt: skip


def create(
    unit: Unit, *, name: str, kind: str, params: Mapping[str, Any], definition: str, **version: Any
) -> tuple[int, int]:
    """Store a new policy and its version 1, which is live. Return the id of the policy and the id of the version.
    version: the further fields of the version."""
    policy_id = add_policy(unit, name=name, kind=kind, params=params, definition=definition)
    version_id = add_version(unit, policy_id=policy_id, number=1, seq=0, **version)
    add_head(unit, policy_id, live_id=version_id)
    return policy_id, version_id


def reports(unit: Unit, policy_id: int, *, since: int) -> list[dict[str, Any]]:
    """Return the reports of training of those versions of a policy that were created since a time, in order of
    number."""
    source = "policy_id = ? AND created_at >= ? AND report IS NOT NULL ORDER BY number"
    return [json.loads(row[0]) for row in unit.ask(f"SELECT report FROM version WHERE {source}", policy_id, since)]


def report(unit: Unit, version_id: int) -> dict[str, Any] | None:
    """Return the report of the training of a version, or None where the version has no report."""
    text = unit.ask_value("SELECT report FROM version WHERE id = ?", version_id)
    return None if text is None else dict(json.loads(text))


def add_head(unit: Unit, policy_id: int, *, live_id: int, ordinal: int = 0) -> None:
    unit.insert("policy_head", ("policy_id", "seq", "ordinal", "live_id"), [(policy_id, 0, ordinal, live_id)])


def promote(unit: Unit, policy_id: int, *, version_id: int, previous_id: int) -> None:
    unit.add("promotion", policy_id=policy_id, version_id=version_id, previous_id=previous_id, at=unit.now)
    _set_live(unit, policy_id, version_id)


class Promotion(NamedTuple):
    """This record is a promotion of a version of a policy. previous_id: the version that was live before;
    rolled_back_at: the time at which the promotion was rolled back, or None if it was not."""

    id: int
    previous_id: int
    version_id: int
    at: int
    rolled_back_at: int | None


def promotions(unit: Unit, policy_id: int) -> list[Promotion]:
    """Return all promotions of versions of a policy, oldest first."""
    return unit.select(Promotion, "promotion WHERE policy_id = ? ORDER BY id", policy_id)


def last_promotion(unit: Unit, policy_id: int) -> Promotion | None:
    """Return the newest promotion of a policy that was not rolled back, or None if there is no such promotion."""
    source = "promotion WHERE policy_id = ? AND rolled_back_at IS NULL ORDER BY id DESC LIMIT 1"
    return next(iter(unit.select(Promotion, source, policy_id)), None)


def roll_back(unit: Unit, policy_id: int, *, promotion_id: int, live_id: int) -> None:
    unit.tell("UPDATE promotion SET rolled_back_at = ? WHERE id = ?", unit.now, promotion_id)
    _set_live(unit, policy_id, live_id)


def _set_live(unit: Unit, policy_id: int, version_id: int) -> None:
    unit.tell("UPDATE policy_head SET live_id = ? WHERE policy_id = ?", version_id, policy_id)


def retire(unit: Unit, version_id: int, *, ordinal: int) -> None:
    """End the learning of a version. Its sums no longer fade. ordinal: the policy's number of decisions at this
    moment."""
    unit.tell("UPDATE version SET status = 'retired', ordinal = ? WHERE id = ?", ordinal, version_id)


def enter(unit: Unit, version_id: int, *, entered_to: int | None) -> None:
    """Store the last decision of its policy that has entered the belief of a version. entered_to: the id of this
    decision, or None if each decision enters the belief at once from now on."""
    unit.tell("UPDATE version SET entered_to = ? WHERE id = ?", entered_to, version_id)
