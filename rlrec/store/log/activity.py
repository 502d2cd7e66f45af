"""Queries here count the rows of the store, and the decisions and events of the last hours. To be fast, they read only
indexes or the newest rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlrec.store.database.unit import StoredRows, Unit, parse

HOUR_US = 3_600_000_000
HOLDOUT, BEST_POLICY = "experiment show", "best policy"  # runs whose stored result `status` reads
SLACK_US = 60_000_000  # decisions of different policies may be stored out of order by as much


class Sizes(NamedTuple):
    """This record has the number of stored rows of each kind. arms: the number of arms that are not retired; users: the
    number of users that are not merged into another user."""

    arms: int
    users: int
    sessions: int
    events: int


def sizes(unit: Unit) -> Sizes:
    users = "users WHERE id NOT IN (SELECT user_id FROM merged_user)"
    tables = ("arm WHERE retired_at IS NULL", users, "session", "event")
    return Sizes(*(int(unit.ask_value(f"SELECT count(*) FROM {table}")) for table in tables))


class PolicyLog(NamedTuple):
    """This record has the number of decisions of a policy, including imported decisions. newest: the id of the policy's
    last decision."""

    policy_id: int
    decisions: int
    newest: int


def policy_logs(unit: Unit) -> dict[int, PolicyLog]:
    """Return the PolicyLog of each policy that has decisions, by policy id."""
    rows = unit.records(PolicyLog, "SELECT policy_id, count(*), max(id) FROM decision GROUP BY policy_id")
    return {row.policy_id: row for row in rows}


def decision_times(unit: Unit, decision_ids: Sequence[int]) -> dict[int, int]:
    """Return the time of each decision, by decision id."""
    return StoredRows("decision", unit.ask("SELECT id, at FROM decision WHERE id IN (?*)", decision_ids))


def first_id_since(unit: Unit, at: int) -> int | None:
    """Return the id of the first decision that was served since the time `at` or in the minute before. All decisions
    since `at` have this id or a larger one. Return None if there is no such decision."""
    condition = "imported = 0 AND at >= ? ORDER BY at, id LIMIT 1"
    first_id: int | None = unit.ask_value(f"SELECT id FROM decision WHERE {condition}", at - SLACK_US)
    return first_id


def count_served_since(unit: Unit, policy_id: int, at: int) -> int:
    """Return how many decisions a policy served since a time. The ids of a policy's decisions are in order of time, so
    the query reads only the first decision and counts the rest by id."""
    if (lowest_id := first_id_since(unit, at)) is None:
        return 0
    condition = "policy_id = ? AND id >= ? AND imported = 0 AND at >= ? ORDER BY id LIMIT 1"
    first_id = unit.ask_value(f"SELECT id FROM decision WHERE {condition}", policy_id, lowest_id, at)
    query = "SELECT count(*) FROM decision WHERE policy_id = ? AND id >= ?"
    return 0 if first_id is None else int(unit.ask_value(query, policy_id, first_id))


def route_counts_since(unit: Unit, at: int) -> dict[int, int]:
    """Return how many decisions were requested through each route since the time `at`, by route id. Some decisions of
    the minute before that time may be included."""
    if (first_id := first_id_since(unit, at)) is None:
        return {}
    query = "SELECT route_id, count(*) FROM route_decision WHERE decision_id >= ? GROUP BY route_id"
    return dict(unit.ask(query, first_id))


def events_by_hour(unit: Unit, *, hours: int, window_us: int) -> list[int]:
    """Return how many events happened in each of the last hours, the present hour last. To read only the newest rows,
    the query leaves out events of decisions that were served more than `window_us` before the first of these hours."""
    since = unit.now - hours * HOUR_US
    counts = [0] * hours
    if (first_id := first_id_since(unit, since - window_us)) is not None:
        hour = f"(? - at) / {HOUR_US}"
        query = f"SELECT {hour}, count(*) FROM event WHERE decision_id >= ? AND at > ? GROUP BY 1"
        for hours_ago, count in unit.ask(query, unit.now, first_id, since):
            counts[-1 - max(0, int(hours_ago))] += count
    return counts


def live_times(unit: Unit) -> dict[int, int]:
    """Return the time at which the live version of each policy became live, by policy id. Policies whose live version
    never changed are left out."""
    rows = unit.ask("SELECT policy_id, max(at), coalesce(max(rolled_back_at), 0) FROM promotion GROUP BY policy_id")
    return {policy_id: max(promoted_at, rolled_back_at) for policy_id, promoted_at, rolled_back_at in rows}


class Run(NamedTuple):
    """This record is a run of a command that the store recorded, with its options and its result."""

    at: int
    options: dict[str, Any]
    result: dict[str, Any]


def last_run(unit: Unit, command: str, options: Mapping[str, Any] | None = None) -> Run | None:
    """Return the newest run of a command, or None if there is no run.

    options: if given, only a run with exactly these options counts."""
    options_text = None if options is None else json.dumps(dict(options), sort_keys=True)
    condition = "command = ?" if options_text is None else "command = ? AND options = ?"
    query = f"SELECT at, options, result FROM run WHERE {condition} ORDER BY id DESC LIMIT 1"
    row = unit.ask_row(query, *filter(None, (command, options_text)))
    column = f"last run of {command}"
    return None if row is None else Run(row[0], parse(row[1], column), parse(row[2] or "{}", column))
