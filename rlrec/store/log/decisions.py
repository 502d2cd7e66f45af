"""Queries here read and write decisions, with their slots, their times and the request ids that they answer."""

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


def newest_time(unit: Unit, *, is_imported: bool = False) -> int | None:
    """Return the time of the newest decision that was not imported or, with `is_imported`, of the newest imported
    decision. Return None if there is no such decision."""
    at: int | None = unit.ask_value(NEWEST.replace("= 0", "= 1") if is_imported else NEWEST)
    return at


def reserve(unit: Unit, count: int) -> Sequence[int]:
    """Reserve `count` decision ids, which no other transaction will use, and return them in ascending order."""
    if not unit.postgres and "decision" not in unit.next_ids:
        unit.next_ids["decision"] = peek(unit)
    ids = unit.reserve("decision", count)
    if ids and ids[-1] > LAST_ID:
        raise database_errors.ids_exhausted("decisions")
    return ids


def peek(unit: Unit) -> int:
    """Return the id that the next decision gets if no other transaction stores a decision first. This id is above all
    ids of decisions that are or were in the store."""
    return int(unit.ask_value(_NEXT.format("greatest" if unit.postgres else "max")))


def find(unit: Unit, ids: Collection[int]) -> dict[int, Decision]:
    """Return the decisions that have these ids, by id, each with its slots in order of position. Ids that are not
    stored are left out."""
    decision_rows = unit.ask(f"SELECT {', '.join(DECISION_COLUMNS)} FROM decision WHERE id IN (?*)", ids)
    query = f"SELECT {', '.join(SLOT_COLUMNS)} FROM slot WHERE decision_id IN (?*) ORDER BY decision_id, position"
    slots: dict[int, list[Slot]] = {}
    for decision_id, *slot_values, is_censored, is_rounded in unit.ask(query, ids):
        slots.setdefault(decision_id, []).append(Slot._make((*slot_values, bool(is_censored), bool(is_rounded))))
    decisions = (Decision._make((*row, tuple(slots.get(row[0], ())))) for row in decision_rows)
    return StoredRows("decision", [(decision.id, decision) for decision in decisions])


def propensities(unit: Unit, ids: Collection[int]) -> dict[int, list[Row]]:
    """Return a list of rows for each decision, by decision id. A list has one row for each slot, in order of position;
    the row holds the position, the propensity given the slots above, and the marginal probability."""
    query = "SELECT decision_id, position, propensity, marginal FROM slot WHERE decision_id IN (?*)"
    return unit.ask_groups(f"{query} ORDER BY decision_id, position", ids)


def policies_of(unit: Unit, ids: Collection[int | None], request_keys: Collection[str | None]) -> set[int]:
    """Return the ids of the policies that made the decisions with these ids and the decisions that answered requests
    with these request ids."""
    text = "SELECT DISTINCT policy_id FROM decision WHERE id IN (?*) OR request_key IN (?*)"
    return {row[0] for row in unit.ask(text, ids, request_keys)}


class Showing(NamedTuple):
    """This record is a decision that a user saw. position: the position of the arm that was searched for. If no arm was
    searched for, the position is 1 for a slate with one slot, and None for a longer slate."""

    decision_id: int
    position: int | None


def find_showings(
    unit: Unit, user: str, *, arm: str | None, since: int, until: int, limit: int, ids: Collection[int] | None = None
) -> list[Showing]:
    """Return the decisions that a user saw between two times, newest first.

    user: the key of the user; arm: the key of an arm, to find only decisions that showed this arm; limit: the
    largest number of decisions to return; ids: if given, only decisions with these ids are returned."""
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
    """Return a set of triples with the policy, session and time of each decision of these sessions. Decisions that the
    import run `but_of_run` stored are left out."""
    query = "SELECT policy_id, session_id, at, run_id FROM decision WHERE session_id IN (?*)"
    return {
        (policy_id, session_id, at)
        for policy_id, session_id, at, run_id in unit.ask(query, session_ids)
        if run_id != but_of_run
    }


def slots_of_open_visits(unit: Unit, session_ids: Collection[int]) -> list[Row]:
    """Return a row for each slot in the open visits of these sessions: the session, decision, step, position and arm.
    Rows are in order of session, step and position. Visits that have a stored history are left out."""
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
    """Return, for each of these request ids that is stored, a pair: the digest of the request (None if the decision was
    imported) and the id of the decision that answered the request."""
    if not keys:
        return {}
    rows = unit.ask("SELECT request_key, request_digest, id FROM decision WHERE request_key IN (?*)", keys)
    return {key: (digest, decision_id) for key, digest, decision_id in rows}


def newest_requests(unit: Unit, policy_id: int | None, *, limit: int) -> list[Row]:
    """Return a row for each of the newest decisions, newest first: the eligible set, the context and the length of the
    slate. policy_id: only decisions that were drawn from this policy count; None: all decisions of the log count."""
    where_clause = "" if policy_id is None else f"WHERE policy_id = {policy_id} AND imported = 0"
    query = f"SELECT eligible_id, context_id, size FROM decision {where_clause} ORDER BY id DESC LIMIT ?"
    return unit.ask(query, limit)


def find_overdue(unit: Unit, policy_id: int, *, first: int, drawn_before: int, slots: int) -> list[int]:
    """Return the ids of decisions that were drawn from a policy before the time `drawn_before`, oldest first, beginning
    with the id `first`. The result ends before the decisions have more than `slots` slots in total, but it has at least
    one decision if there is any.

    Within a policy, ids are in order of time. So if the first decision is too young, no other decision is read."""
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
    """Return the id of the n-th newest decision of a policy, or 0 where the policy has fewer than n decisions. Within a
    policy, ids are in order of time, so the query reads only few other decisions.

    drawn_before: if given, only decisions that the policy drew before this time count."""
    drawn_test = "" if drawn_before is None else f"AND imported = 0 AND at < {drawn_before} "
    query = f"SELECT id FROM decision WHERE policy_id = ? {drawn_test}ORDER BY id DESC LIMIT 1 OFFSET ?"
    return int(unit.ask_value(query, policy_id, n - 1) or 0)


def id_extent(unit: Unit, policy_id: int) -> tuple[int, int]:
    """Return the id of the first decision and the id of the newest decision of a policy. Return 1 and 0 where the
    policy has no decisions."""
    first_id = unit.ask_value("SELECT id FROM decision WHERE policy_id = ? ORDER BY id LIMIT 1", policy_id)
    return int(first_id or 1), newest_id(unit, policy_id)


def sessions_of(unit: Unit, ids: Collection[int]) -> list[int]:
    """Return, ascending, the ids of the sessions to which these decisions belong."""
    return sorted(row[0] for row in unit.ask("SELECT DISTINCT session_id FROM decision WHERE id IN (?*)", ids))


def count_slots_after(unit: Unit, policy_id: int, last_id: int) -> int:
    """Return the total number of slots of the decisions that were drawn from a policy and have an id above
    `last_id`."""
    tables = "slot JOIN decision ON decision.id = slot.decision_id"
    query = f"SELECT count(*) FROM {tables} WHERE policy_id = ? AND decision.id > ? AND imported = 0"
    return int(unit.ask_value(query, policy_id, last_id))


def slot_counts(
    unit: Unit, *, policy_id: int, version_id: int | None = None, first: int = 1, since: int | None = None,
    entered_to: int | None = None, is_censored: bool | None = None,
) -> dict[int, int]:  # fmt: skip
    """Return the number of slots that each arm got in the decisions of a policy, by arm id. Only decisions with an id
    of at least `first` count; with `version_id`, only decisions of this version count.

    since: if given, only slots whose rewards may be incomplete count. They belong to decisions that were served
    since this time, or that have an id above `entered_to`. entered_to: the id of the last decision that entered the
    belief (None: decisions enter the belief at once). is_censored: True to count only censored slots, False to count
    only the other slots."""
    tests = [f"policy_id = {policy_id}", *([] if version_id is None else [f"version_id = {version_id}"])]
    tests += [f"decision.id >= {first}"] * (first > 1)
    tests += [] if is_censored is None else [f"censored = {int(is_censored)}"]
    if since is not None:
        not_entered = "" if entered_to is None else f" OR decision.id > {entered_to}"
        tests += ["imported = 0", f"(decision.at >= {since}{not_entered})"]
    if is_censored:  # each of these has an event, and events are fewer than slots
        tests.append(f"(decision_id, position) IN (SELECT decision_id, position FROM event WHERE kind = '{CENSOR}')")
    cross_join = "slot CROSS JOIN decision" if is_censored else "decision CROSS JOIN slot"
    tables = f"{cross_join} WHERE decision.id = slot.decision_id AND {' AND '.join(tests)}"
    return dict(unit.ask(f"SELECT arm_id, count(*) FROM {tables} GROUP BY arm_id"))


def slots_of_arm(unit: Unit, arm_id: int, *, n_newest: int, limit: int) -> list[tuple[int, int, str, str, int]]:
    """Return a row for each slot that shows an arm in the `n_newest` newest decisions, newest first. The row has
    the decision id, the time, the key of the session, the name of the policy and the position. limit: the largest
    number of rows to return."""
    first_id = unit.ask_value("SELECT id FROM decision ORDER BY id DESC LIMIT 1 OFFSET ?", n_newest - 1) or 0
    joins = (
        "JOIN slot s ON s.decision_id = d.id JOIN session v ON v.id = d.session_id JOIN policy p ON p.id = d.policy_id"
    )
    tests = "WHERE d.id >= ? AND s.arm_id = ? ORDER BY d.id DESC, s.position LIMIT ?"
    query = f"SELECT d.id, d.at, v.key, p.name, s.position FROM decision d {joins} {tests}"
    return [tuple(row) for row in unit.ask(query, first_id, arm_id, limit)]


def any_imported(unit: Unit, policy_id: int) -> bool:
    """Tell whether any decisions were imported into a policy."""
    return unit.ask_row("SELECT 1 FROM import_line WHERE policy_id = ? LIMIT 1", policy_id) is not None


def censor(unit: Unit, slots: Iterable[tuple[int, int]], *, is_censored: bool) -> None:
    """Mark each slot, given as (decision_id, position), as censored or, with `is_censored` False, as not censored."""
    if rows := list(slots):
        unit.tell_each(f"UPDATE slot SET censored = {int(is_censored)} WHERE decision_id = ? AND position = ?", rows)


# -- decisions whose times are later than the database's clock, and how they are put back --


class DecisionsAhead(NamedTuple):
    """This record describes the decisions whose time is later than `clock` although they were not imported.

    decisions: the number of these decisions; first, newest_time: the times of the first and of the newest of these
    decisions; last_before: the newest time of all other decisions that were not imported, or None if there are no
    such decisions."""

    clock: int
    decisions: int
    first: int
    newest_time: int
    last_before: int | None

    @property
    def distance_us(self) -> int:
        """Return how far the newest decision is ahead of the clock, in microseconds."""
        return self.newest_time - self.clock


def find_ahead(unit: Unit) -> DecisionsAhead:
    """Find the decisions whose time is later than the database's clock. If there are no such decisions, `first` and
    `newest_time` in the result are the clock's time."""
    clock = unit.clock()
    source = "FROM decision WHERE imported = 0 AND at"
    n_decisions, first_at, newest_at = unit.ask(f"SELECT count(*), min(at), max(at) {source} > ?", clock)[0]
    last_at_before = unit.ask_value(f"SELECT max(at) {source} <= ?", clock)
    return DecisionsAhead(clock, n_decisions, first_at or clock, newest_at or clock, last_at_before)


def put_back(unit: Unit, decisions_ahead: DecisionsAhead) -> int:
    """Move all decisions that are ahead of the clock, and their events, back in time by the same distance. The newest
    decision then has the clock's time. Return the number of times that were changed in other tables.

    The time from a decision to each of its events stays the same, and with it the rewards. Times in other tables,
    such as the times of visits, are moved by the same distance if they are ahead of the clock, but not to before the
    new time of the first moved decision."""
    from rlrec.store.database.tables import time_columns  # a single decision does without this import

    distance, clock = decisions_ahead.distance_us, decisions_ahead.clock
    ahead_ids = "SELECT id FROM decision WHERE imported = 0 AND at > ?"
    update_events = f"UPDATE event SET at = at - ?, received_at = received_at - ? WHERE decision_id IN ({ahead_ids})"
    unit.tell(update_events, distance, distance, clock)
    unit.tell("UPDATE decision SET at = at - ? WHERE imported = 0 AND at > ?", distance, clock)
    min_name, max_name = ("least", "greatest") if unit.postgres else ("min", "max")
    columns = [column for column in time_columns() if column.table.name not in ("decision", "event")]
    shifted_time = f"{min_name}({max_name}({{0}}, ?) - ?, ?) WHERE {{0}} > ?"
    updates = (
        f'UPDATE "{column.table.name}" SET {column.name} = {shifted_time.format(column.name)}' for column in columns
    )
    return sum(unit.tell(update, decisions_ahead.first, distance, clock, clock) for update in updates)
