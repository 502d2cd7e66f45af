"""How much is stored, and how much came lately: from indexes, or from the newest rows alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlrec.store.database.unit import StoredRows, Unit, parse

HOUR_US = 3_600_000_000
HOLDOUT, BEST_POLICY = "experiment show", "best policy"  # runs whose stored result `status` reads
SLACK_US = 60_000_000  # decisions of different policies may be stored out of order by as much


class Sizes(NamedTuple):
    """Numbers of rows; arms: of those that are not retired; users: of those that are not merged into others."""

    arms: int
    users: int
    sessions: int
    events: int


def sizes(unit: Unit) -> Sizes:
    users = "users WHERE id NOT IN (SELECT user_id FROM merged_user)"
    tables = ("arm WHERE retired_at IS NULL", users, "session", "event")
    return Sizes(*(int(unit.ask_value(f"SELECT count(*) FROM {table}")) for table in tables))


class PolicyLog(NamedTuple):
    """The decisions of a policy, imported ones too; newest: the id of the last one."""

    policy_id: int
    decisions: int
    newest: int


def policy_logs(unit: Unit) -> dict[int, PolicyLog]:
    """The log of each policy that has one, by its id."""
    rows = unit.records(PolicyLog, "SELECT policy_id, count(*), max(id) FROM decision GROUP BY policy_id")
    return {row.policy_id: row for row in rows}


def decision_times(unit: Unit, decision_ids: Sequence[int]) -> dict[int, int]:
    """The time of each of these decisions."""
    return StoredRows("decision", unit.ask("SELECT id, at FROM decision WHERE id IN (?*)", decision_ids))


def first_id_since(unit: Unit, at: int) -> int | None:
    """An id that no decision has fallen below that was served since a time; None where none was served."""
    condition = "imported = 0 AND at >= ? ORDER BY at, id LIMIT 1"
    first: int | None = unit.ask_value(f"SELECT id FROM decision WHERE {condition}", at - SLACK_US)
    return first


def count_served_since(unit: Unit, policy_id: int, at: int) -> int:
    """How many decisions a policy served since a time. Its ids are in order of time, so that only the first is read."""
    if (first := first_id_since(unit, at)) is None:
        return 0
    condition = "policy_id = ? AND id >= ? AND imported = 0 AND at >= ? ORDER BY id LIMIT 1"
    begin = unit.ask_value(f"SELECT id FROM decision WHERE {condition}", policy_id, first, at)
    query = "SELECT count(*) FROM decision WHERE policy_id = ? AND id >= ?"
    return 0 if begin is None else int(unit.ask_value(query, policy_id, begin))


def route_counts_since(unit: Unit, at: int) -> dict[int, int]:
    """How many decisions were asked for by each route since a time."""
    if (first := first_id_since(unit, at)) is None:
        return {}
    query = "SELECT route_id, count(*) FROM route_decision WHERE decision_id >= ? GROUP BY route_id"
    return dict(unit.ask(query, first))


def events_by_hour(unit: Unit, *, hours: int, window_us: int) -> list[int]:
    """How many events happened in each of the last hours, the present one last. Those of decisions that are older by
    more than the window are not counted, so that only the newest rows are read."""
    since = unit.now - hours * HOUR_US
    counts = [0] * hours
    if (first := first_id_since(unit, since - window_us)) is not None:
        hour = f"(? - at) / {HOUR_US}"
        query = f"SELECT {hour}, count(*) FROM event WHERE decision_id >= ? AND at > ? GROUP BY 1"
        for ago, count in unit.ask(query, unit.now, first, since):
            counts[-1 - max(0, int(ago))] += count
    return counts


def live_times(unit: Unit) -> dict[int, int]:
    """When the live version of each policy became live, by the policy's id; without those that were never changed."""
    rows = unit.ask("SELECT policy_id, max(at), coalesce(max(rolled_back_at), 0) FROM promotion GROUP BY policy_id")
    return {policy_id: max(promoted, rolled_back) for policy_id, promoted, rolled_back in rows}


class Run(NamedTuple):
    """A command that was recorded, with its options and its result."""

    at: int
    options: dict[str, Any]
    result: dict[str, Any]


def last_run(unit: Unit, command: str, options: Mapping[str, Any] | None = None) -> Run | None:
    """The newest run of a command, with these options where they are given; None where there is none."""
    typed = None if options is None else json.dumps(dict(options), sort_keys=True)
    condition = "command = ?" if typed is None else "command = ? AND options = ?"
    query = f"SELECT at, options, result FROM run WHERE {condition} ORDER BY id DESC LIMIT 1"
    row = unit.ask_row(query, *filter(None, (command, typed)))
    owner = f"last run of {command}"
    return None if row is None else Run(row[0], parse(row[1], owner), parse(row[2] or "{}", owner))
