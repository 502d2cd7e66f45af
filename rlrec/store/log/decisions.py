"""Queries here read and write decisions, their slots, the requests that they answer, and their times."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from rlrec.records import Decision, Slot
from rlrec.store.database import database_errors
from rlrec.store.database.unit import NEXT_ID, Row, StoredRows, Unit
from rlrec.store.log import settings

DECISION_COLUMNS = Decision._fields[:-1]
SLOT_COLUMNS = ("decision_id", *Slot._fields)
CENSOR = "!censor"  # the kind of an event that censors its slot, or ends that
LAST_ID = 2**40 - 1  # the packed slots of a visit have 40 bits for a decision


NEWEST = "SELECT max(at) FROM decision WHERE imported = 0"  # an index has the times of decisions that were not imported
_NEXT = (
    # above all ids that are or were used
    "SELECT {}(coalesce(max(id), 0), coalesce((SELECT removed_to FROM settings), 0)) + 1 FROM decision"
)
# Columns that are read beside the revision of a store of SQLite: while a unit reads or writes, they do not change.
STATE_IDS = "decision", "session", "users"  # tables whose next ids are among these columns
N_STATE = 1 + len(STATE_IDS)  # columns before the settings
_NEXT_IDS = _NEXT.format("max"), *map(NEXT_ID.format, STATE_IDS[1:])
STATE = f", ({NEWEST}), {', '.join(f'({text})' for text in _NEXT_IDS)}, {settings.COLUMNS}"
STATE_SOURCE = " LEFT JOIN settings ON true"


def newest(unit: Unit, *, imported: bool = False) -> int | None:
    """Return the time of the newest decision that was not imported (or, with `imported`, that was imported). Return
    None if there is no such decision."""
    at: int | None = unit.ask_value(NEWEST.replace("= 0", "= 1") if imported else NEWEST)
    return at


def reserve(unit: Unit, count: int) -> Sequence[int]:
    """Reserve `count` decision ids, ascending, that no one else will use."""
    if not unit.postgres and "decision" not in unit.next_ids:
        unit.next_ids["decision"] = peek(unit)
    ids = unit.reserve("decision", count)
    if ids and ids[-1] > LAST_ID:
        raise database_errors.ids_exhausted("decisions")
    return ids


def peek(unit: Unit) -> int:
    """Return the id that the next decision gets if no other transaction stores a decision first. The id is above all
    ids that are or were used."""
    return int(unit.ask_value(_NEXT.format("greatest" if unit.postgres else "max")))


def find(unit: Unit, ids: Collection[int]) -> dict[int, Decision]:
    """Return decisions by id, with their slots in order of position. Unknown ids are left out."""
    decision_rows = unit.ask(f"SELECT {', '.join(DECISION_COLUMNS)} FROM decision WHERE id IN (?*)", ids)
    query = f"SELECT {', '.join(SLOT_COLUMNS)} FROM slot WHERE decision_id IN (?*) ORDER BY decision_id, position"
    slots: dict[int, list[Slot]] = {}
    for decision_id, *slot_values, censored, rounded in unit.ask(query, ids):
        slots.setdefault(decision_id, []).append(Slot._make((*slot_values, bool(censored), bool(rounded))))
    decisions = (Decision._make((*row, tuple(slots.get(row[0], ())))) for row in decision_rows)
    return StoredRows("decision", [(decision.id, decision) for decision in decisions])


def propensities(unit: Unit, ids: Collection[int]) -> dict[int, list[Row]]:
    """Return for each decision the position, propensity (given the slots above) and marginal of all its slots, in order
    of position."""
    query = "SELECT decision_id, position, propensity, marginal FROM slot WHERE decision_id IN (?*)"
    return unit.ask_groups(f"{query} ORDER BY decision_id, position", ids)


def policies_of(unit: Unit, ids: Collection[int | None], request_keys: Collection[str | None]) -> set[int]:
    """Return the ids of the policies that made these decisions, or the decisions that answered these request ids."""
    text = "SELECT DISTINCT policy_id FROM decision WHERE id IN (?*) OR request_key IN (?*)"
    return {row[0] for row in unit.ask(text, ids, request_keys)}


class Showing(NamedTuple):
    """This record is a decision that a user saw. position: the position of the arm that was searched for, or of the
    only slot; None for a longer page."""

    decision_id: int
    position: int | None


def find_showings(
    unit: Unit, user: str, *, arm: str | None, since: int, until: int, limit: int, ids: Collection[int] | None = None
) -> list[Showing]:
    """Return the decisions that a user (by key) saw between two times, newest first. arm: only decisions that showed
    this arm; ids: only these decisions."""
    position, slots = "CASE WHEN d.size = 1 THEN 1 END", ""
    if arm is not None:
        position = "p.position"
        slots = " JOIN arm a ON a.key = ? JOIN slot p ON p.decision_id = d.id AND p.arm_id = a.id"
    text = (
        f"SELECT d.id, {position} FROM users u LEFT JOIN merged_user m ON m.user_id = u.id"
        " JOIN session s ON s.user_id = coalesce(m.person_id, u.id)"
        " JOIN visit v ON v.session_id = s.id AND v.last_at >= ? AND v.started_at <= ?"
        f" JOIN decision d ON d.session_id = s.id AND d.visit = v.number AND d.at >= ? AND d.at <= ?{slots}"
        f" WHERE u.key = ?{'' if ids is None else ' AND d.id IN (?*)'} ORDER BY d.at DESC, d.id DESC LIMIT ?"
    )
    values = [since, until, since, until, *([] if arm is None else [arm]), user, *([] if ids is None else [ids]), limit]
    return unit.records(Showing, text, *values)


def visit_ids(unit: Unit, session_id: int, visit: int) -> list[int]:
    """Return the ids of the decisions of one visit, in order of step."""
    query = "SELECT id FROM decision WHERE session_id = ? AND visit = ? ORDER BY step"
    return [row[0] for row in unit.ask(query, session_id, visit)]


def moments(unit: Unit, session_ids: Collection[int], *, but_of_run: int | None) -> set[tuple[int, int, int]]:
    """Return the policy, session and time of the decisions of these sessions. Decisions that the import `but_of_run`
    stored are left out."""
    query = "SELECT policy_id, session_id, at, run_id FROM decision WHERE session_id IN (?*)"
    return {
        (policy_id, session_id, at)
        for policy_id, session_id, at, run_id in unit.ask(query, session_ids)
        if run_id != but_of_run
    }


def slots_of_open_visits(unit: Unit, session_ids: Collection[int]) -> list[Row]:
    """Return the session, decision, step, position and arm of every slot in the open visits of these sessions, in
    order. Visits that have a stored history are left out."""
    tables = (
        "visit v JOIN decision d ON d.session_id = v.session_id AND d.visit = v.number"
        " JOIN slot s ON s.decision_id = d.id"
    )
    return unit.ask(
        f"SELECT v.session_id, d.id, d.step, s.position, s.arm_id FROM {tables} WHERE v.session_id IN (?*)"
        " AND v.ended_at IS NULL AND v.history IS NULL ORDER BY v.session_id, d.step, s.position",
        session_ids,
    )


def requests(unit: Unit, keys: Collection[str]) -> dict[str, tuple[bytes | None, int]]:
    """Return the stored requests that have one of these request ids. Each has the digest of the request (None where the
    decision was imported) and the decision's id."""
    if not keys:
        return {}
    rows = unit.ask("SELECT request_key, request_digest, id FROM decision WHERE request_key IN (?*)", keys)
    return {key: (digest, decision_id) for key, digest, decision_id in rows}


def newest_requests(unit: Unit, policy_id: int | None, *, limit: int) -> list[Row]:
    """Return the eligible set, context and size of the newest decisions that were drawn from a policy, or, for None, of
    the newest of the whole log."""
    where_clause = "" if policy_id is None else f"WHERE policy_id = {policy_id} AND imported = 0"
    query = f"SELECT eligible_id, context_id, size FROM decision {where_clause} ORDER BY id DESC LIMIT ?"
    return unit.ask(query, limit)


def find_overdue(unit: Unit, policy_id: int, *, first: int, drawn_before: int, slots: int) -> list[int]:
    """Return the ids of the decisions drawn from a policy before a time, from id `first` on, oldest first. Return as
    many as have at most `slots` slots together, but at least one.

    Within a policy ids are in order of time. Where the first decision is too young, no other is read."""
    query = "SELECT id, at, size FROM decision WHERE policy_id = ? AND id >= ? AND imported = 0 ORDER BY id LIMIT ?"
    oldest_row = unit.ask_row(query, policy_id, first, 1)
    ids: list[int] = []
    if oldest_row is None or oldest_row[1] >= drawn_before:
        return ids
    slots_left = slots
    for decision_id, at, size in unit.ask(query, policy_id, first, slots):
        if at >= drawn_before or (ids and size > slots_left):
            break
        ids.append(decision_id)
        slots_left -= size
    return ids


def newest_id(unit: Unit, policy_id: int, n: int = 1, *, drawn_before: int | None = None) -> int:
    """Return the id of a policy's n-th newest decision, or 0 where it has fewer. With `drawn_before`, only decisions
    that the policy drew before this time count. Within a policy ids are in order of time, so the query reads only few
    newer decisions."""
    drawn_test = "" if drawn_before is None else f"AND imported = 0 AND at < {drawn_before} "
    query = f"SELECT id FROM decision WHERE policy_id = ? {drawn_test}ORDER BY id DESC LIMIT 1 OFFSET ?"
    return int(unit.ask_value(query, policy_id, n - 1) or 0)


def id_extent(unit: Unit, policy_id: int) -> tuple[int, int]:
    """Return the ids of a policy's first and newest decision, or 1 and 0 where it has none."""
    first_id = unit.ask_value("SELECT id FROM decision WHERE policy_id = ? ORDER BY id LIMIT 1", policy_id)
    return int(first_id or 1), newest_id(unit, policy_id)


def sessions_of(unit: Unit, ids: Collection[int]) -> list[int]:
    """Return the ids of the sessions of these decisions, ascending."""
    return sorted(row[0] for row in unit.ask("SELECT DISTINCT session_id FROM decision WHERE id IN (?*)", ids))


def count_slots_after(unit: Unit, policy_id: int, last_id: int) -> int:
    """Return the number of slots of the decisions drawn from a policy whose ids are above `last`."""
    tables = "slot JOIN decision ON decision.id = slot.decision_id"
    query = f"SELECT count(*) FROM {tables} WHERE policy_id = ? AND decision.id > ? AND imported = 0"
    return int(unit.ask_value(query, policy_id, last_id))


def slot_counts(
    unit: Unit, *, policy_id: int, version_id: int | None = None, first: int = 1, since: int | None = None,
    entered_to: int | None = None, censored: bool | None = None,
) -> dict[int, int]:  # fmt: skip
    """Return the number of slots that each arm got from a policy, or from one version of it, from decision id `first`
    on.

    since: count only slots whose rewards are not complete. These belong to decisions since this time, or with an id
    above entered_to, the last decision that entered the belief (None: decisions enter at once). censored: count only
    censored slots (True), or only the others (False)."""
    tests = [f"policy_id = {policy_id}", *([] if version_id is None else [f"version_id = {version_id}"])]
    tests += [f"decision.id >= {first}"] * (first > 1)
    tests += [] if censored is None else [f"censored = {int(censored)}"]
    if since is not None:
        not_entered = "" if entered_to is None else f" OR decision.id > {entered_to}"
        tests += ["imported = 0", f"(decision.at >= {since}{not_entered})"]
    if censored:  # each of these has an event, and events are fewer than slots
        tests.append(f"(decision_id, position) IN (SELECT decision_id, position FROM event WHERE kind = '{CENSOR}')")
    cross_join = "slot CROSS JOIN decision" if censored else "decision CROSS JOIN slot"
    tables = f"{cross_join} WHERE decision.id = slot.decision_id AND {' AND '.join(tests)}"
    return dict(unit.ask(f"SELECT arm_id, count(*) FROM {tables} GROUP BY arm_id"))


def slots_of_arm(unit: Unit, arm_id: int, *, newest: int, limit: int) -> list[tuple[int, int, str, str, int]]:
    """Return the slots that an arm got in the `newest` newest decisions, newest first. Each row has the decision id,
    time, session, policy and position."""
    first_id = unit.ask_value("SELECT id FROM decision ORDER BY id DESC LIMIT 1 OFFSET ?", newest - 1) or 0
    joins = (
        "JOIN slot s ON s.decision_id = d.id JOIN session v ON v.id = d.session_id JOIN policy p ON p.id = d.policy_id"
    )
    tests = "WHERE d.id >= ? AND s.arm_id = ? ORDER BY d.id DESC, s.position LIMIT ?"
    query = f"SELECT d.id, d.at, v.key, p.name, s.position FROM decision d {joins} {tests}"
    return [tuple(row) for row in unit.ask(query, first_id, arm_id, limit)]


def any_imported(unit: Unit, policy_id: int) -> bool:
    """Tell whether decisions were imported into a policy."""
    return unit.ask_row("SELECT 1 FROM import_line WHERE policy_id = ? LIMIT 1", policy_id) is not None


def censor(unit: Unit, slots: Iterable[tuple[int, int]], *, censored: bool) -> None:
    """Mark slots (decision_id, position) as censored, or as not censored."""
    if rows := list(slots):
        unit.tell_each(f"UPDATE slot SET censored = {int(censored)} WHERE decision_id = ? AND position = ?", rows)


# -- decisions whose times are later than the database's clock, and how they are put back --


class DecisionsAhead(NamedTuple):
    """This record describes the decisions that were not imported and are later than `clock`.

    decisions: the number of these decisions; first, newest: the first and last of their times; last_before: the
    newest time of all other decisions, None if there are none."""

    clock: int
    decisions: int
    first: int
    newest: int
    last_before: int | None

    @property
    def distance_us(self) -> int:
        """Return how far the newest decision is ahead of the clock, in microseconds."""
        return self.newest - self.clock


def find_ahead(unit: Unit) -> DecisionsAhead:
    """Find the decisions that are later than the database's clock. Where there are none, both times in the answer are
    the clock's."""
    clock = unit.clock()
    source = "FROM decision WHERE imported = 0 AND at"
    n_decisions, first_at, newest_at = unit.ask(f"SELECT count(*), min(at), max(at) {source} > ?", clock)[0]
    last_at_before = unit.ask_value(f"SELECT max(at) {source} <= ?", clock)
    return DecisionsAhead(clock, n_decisions, first_at or clock, newest_at or clock, last_at_before)


def put_back(unit: Unit, decisions_ahead: DecisionsAhead) -> int:
    """Move decisions that are ahead of the clock back by one distance, with their events and visits, so that the newest
    has the time of now. Return how many times in other tables were moved.

    The distances between a decision and its events stay, so that rewards stay, too. Times in other tables that are
    ahead of the clock are moved as well, but not before the first of the decisions."""
    from rlrec.store.database.tables import time_columns  # a single decision does without this import

    distance, clock = decisions_ahead.distance_us, decisions_ahead.clock
    ahead_ids = "SELECT id FROM decision WHERE imported = 0 AND at > ?"
    update_events = f"UPDATE event SET at = at - ?, received_at = received_at - ? WHERE decision_id IN ({ahead_ids})"
    unit.tell(update_events, distance, distance, clock)
    unit.tell("UPDATE decision SET at = at - ? WHERE imported = 0 AND at > ?", distance, clock)
    least, greatest = ("least", "greatest") if unit.postgres else ("min", "max")
    columns = [column for column in time_columns() if column.table.name not in ("decision", "event")]
    shifted_time = f"{least}({greatest}({{0}}, ?) - ?, ?) WHERE {{0}} > ?"
    updates = (
        f'UPDATE "{column.table.name}" SET {column.name} = {shifted_time.format(column.name)}' for column in columns
    )
    return sum(unit.tell(update, decisions_ahead.first, distance, clock, clock) for update in updates)
