"""Functions here remove decisions with all rows that refer to them, and erase the bytes that deleted rows leave in a
file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec import times
from rlrec.errors import RlrecError, StoreBusy
from rlrec.store.database import database_errors
from rlrec.store.database.unit import Unit, slices, to_text
from rlrec.store.log import reader, settings
from rlrec.store.log.selected import numbers
from rlrec.store.policies import policies

if TYPE_CHECKING:
    from rlrec.store import Store

FORGET, PRUNE = "db forget", "db prune"  # in the record of commands; without a result until the bytes are erased
MAX_VISITS = 1 << 31  # of a session
PORTION = 5_000  # decisions that are deleted, or read, at once
# Columns without an index in which PostgreSQL searches for every row that is deleted elsewhere.
UNINDEXED = (
    "feedback_key.decision_id", "import_line.decision_id", "last_decision.decision_id", "shadow_decision.decision_id",
    "decision.context_id", "decision.eligible_id", "candidate_list.catalogue_id", "decision_features.context_id",
    "assignment.session_id", "assignment.user_id",
)  # fmt: skip


class OwnedDecision(NamedTuple):
    """This record is a decision with the ids of the rows to which the decision refers. features_id: the id of the
    context that holds the features of its arms, or None."""

    policy_id: int
    id: int
    context_id: int
    eligible_id: int
    catalogue_id: int | None
    features_id: int | None


_OWNER = (
    "SELECT d.policy_id, d.id, d.context_id, d.eligible_id, c.catalogue_id, f.context_id FROM decision d"
    " LEFT JOIN candidate_list c ON c.decision_id = d.id LEFT JOIN decision_features f ON f.decision_id = d.id"
)


def lock_all(unit: Unit) -> list[int]:
    """Lock all policies, and return their ids. Until the transaction ends, no other transaction draws decisions or
    stores feedback."""
    settings.lock(unit)
    return [*policies.lock(unit, [policy.id for policy in policies.all_policies(unit)])]


def user_sessions(unit: Unit, user_id: int) -> list[int]:
    """Return, ascending, the ids of all sessions of a user."""
    return [row[0] for row in unit.ask("SELECT id FROM session WHERE user_id = ? ORDER BY id", user_id)]


def session_decisions(unit: Unit, session_ids: Collection[int]) -> list[OwnedDecision]:
    """Return all decisions of these sessions, in order of policy and id."""
    return unit.records(OwnedDecision, f"{_OWNER} WHERE d.session_id IN (?*) ORDER BY d.policy_id, d.id", session_ids)


def count_events(unit: Unit, decision_ids: Sequence[int]) -> int:
    """Return the total number of events of these decisions."""
    query = "SELECT count(*) FROM event WHERE decision_id IN (?*)"
    return sum(int(unit.ask_value(query, portion)) for portion in slices(decision_ids, PORTION))


def count_forgotten(unit: Unit) -> int:
    """Return how many times a user was forgotten."""
    return int(unit.ask_value("SELECT count(*) FROM run WHERE command = ?", FORGET))


def batches(unit: Unit, policy_id: int, decision_ids: Sequence[int]) -> Iterator[reader.Batch]:
    """Yield these decisions of one policy, including imported decisions, in batches with all events. Slots are in order
    of decision and position. decision_ids: ascending ids."""
    for portion in slices(decision_ids, PORTION):
        tests = [f"d.id IN ({numbers(portion)})"]
        events = tuple(reader.EVENTS)
        yield reader.read_range(unit, policy_id, portion[0], portion[-1], tests=tests, events=events)


def delete_decisions(unit: Unit, decision_ids: Sequence[int]) -> None:
    """Delete these decisions, and all rows that belong to them."""
    from rlrec.store.database import tables  # which rebuilds do without

    for portion in slices(decision_ids, PORTION):
        for table in reversed(tables.metadata.sorted_tables):  # those that refer to others first
            if "decision_id" in table.columns:
                unit.tell(f"DELETE FROM {table.name} WHERE decision_id IN (?*)", portion)
        unit.tell("DELETE FROM decision WHERE id IN (?*)", portion)


def delete_sessions(unit: Unit, user_id: int, session_ids: Sequence[int]) -> None:
    """Delete a user, all keys that lead to the user, and the sessions of the user. The sessions must have no decisions
    any more."""
    ids = [user_id, *(row[0] for row in unit.ask("SELECT user_id FROM merged_user WHERE person_id = ?", user_id))]
    for table in ("assignment", "exclusion_unit"):
        unit.tell(f"DELETE FROM {table} WHERE user_id IN (?*) OR session_id IN (?*)", ids, session_ids)
    unit.tell("DELETE FROM visit WHERE session_id IN (?*)", session_ids)
    unit.tell("DELETE FROM session WHERE id IN (?*)", session_ids)
    unit.tell("DELETE FROM merged_user WHERE person_id = ?", user_id)
    unit.tell("DELETE FROM users WHERE id IN (?*)", ids)


def delete_contents(unit: Unit, context_ids: Collection[int], set_ids: Collection[int]) -> None:
    """Delete these contexts and eligible sets, except those to which a row still refers."""
    for table, ids in (("context", context_ids), ("eligible_set", set_ids)):
        unit.tell(_DELETE_UNNAMED.format(table=table, condition="WHERE id IN (?*)", references=_REFERENCES[table]), ids)


# Set differences: both databases sort or hash them, whatever their size.
_DELETE_UNNAMED = "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} {condition} {references})"
_REFERENCES = {
    "session": "EXCEPT SELECT session_id FROM visit EXCEPT SELECT session_id FROM assignment"
    " EXCEPT SELECT session_id FROM exclusion_unit",
    "users": "EXCEPT SELECT user_id FROM session EXCEPT SELECT user_id FROM assignment"
    " EXCEPT SELECT user_id FROM exclusion_unit"
    " EXCEPT SELECT user_id FROM merged_user EXCEPT SELECT person_id FROM merged_user",
    "context": "EXCEPT SELECT context_id FROM decision EXCEPT SELECT context_id FROM decision_features",
    "eligible_set": "EXCEPT SELECT eligible_id FROM decision EXCEPT SELECT catalogue_id FROM candidate_list"
    " EXCEPT SELECT catalogue_id FROM settings EXCEPT SELECT superset_id FROM eligible_set",
}


class VisitKey(NamedTuple):
    """This record names a visit by its session and its number within the session."""

    session_id: int
    number: int


def old_visits(
    unit: Unit, *, ended_before: int, timeout_us: int, entered_to: Mapping[int, int], last_visit: VisitKey, limit: int
) -> list[VisitKey]:
    """Return at most `limit` visits that ended before a time and come after the visit `last_visit`, in order of session
    and number.

    ended_before: the time; entered_to: for each policy, the last decision that has entered every belief of the
    policy. Visits with a later decision are left out."""
    is_open = " OR ".join(
        f"(d.policy_id = {policy_id} AND d.id > {last_id} AND d.imported = 0)"
        for policy_id, last_id in entered_to.items()
    )
    in_visit = "d.session_id = visit.session_id AND d.visit = visit.number"
    is_settled = f"NOT EXISTS (SELECT 1 FROM decision d WHERE {in_visit} AND ({is_open}))" if is_open else "1 = 1"
    return unit.select(
        VisitKey,
        f"visit WHERE (session_id, number) > (?, ?) AND last_at < ? AND (ended_at IS NOT NULL OR last_at + ? < ?)"
        f" AND {is_settled} ORDER BY session_id, number LIMIT ?",
        *last_visit, ended_before, timeout_us, unit.now, limit,
    )  # fmt: skip


def visit_decisions(unit: Unit, visits: Collection[VisitKey]) -> list[OwnedDecision]:
    """Return all decisions of these visits, in order of policy and id."""
    test = f"d.session_id IN (?*) AND d.session_id * {MAX_VISITS} + d.visit IN (?*)"
    keys = {visit.session_id for visit in visits}, [visit.session_id * MAX_VISITS + visit.number for visit in visits]
    return unit.records(OwnedDecision, f"{_OWNER} WHERE {test} ORDER BY d.policy_id, d.id", *keys)


def delete_visits(unit: Unit, visits: Collection[VisitKey]) -> None:
    unit.tell_each("DELETE FROM visit WHERE session_id = ? AND number = ?", visits)


def delete_unused(unit: Unit) -> None:
    """Delete rows to which no other row refers any more: contexts, eligible sets, sessions without visits, and users
    without sessions. Sessions and users that an experiment or an exclusion names are kept."""
    for table, references in _REFERENCES.items():
        unit.tell(_DELETE_UNNAMED.format(table=table, condition="", references=references))


def oldest_belief(unit: Unit, policy_id: int) -> int:
    """Return the number of the last change that the belief included when the policy's oldest stored decision was drawn.
    If the policy has no decision, return the number of its newest change."""
    oldest_seq = "SELECT min(belief_seq) FROM decision WHERE policy_id = ? AND imported = 0"
    newest_seq = "SELECT seq FROM policy_head WHERE policy_id = ?"
    return int(unit.ask_value(f"SELECT coalesce(({oldest_seq}), ({newest_seq}), 0)", policy_id, policy_id))


def last_change(unit: Unit, version_id: int) -> int:
    """Return the number of the newest change of a belief, or 0 if the belief has no changes."""
    return int(unit.ask_value("SELECT coalesce(max(seq), 0) FROM belief_delta WHERE version_id = ?", version_id))


def newest_until(unit: Unit, policy_id: int, seq: int) -> int:
    """Return the id of the newest decision that was drawn from a policy and stored with change `seq` of the policy or
    earlier. Return 0 if there is no such decision."""
    condition = "policy_id = ? AND imported = 0 AND seq <= ? ORDER BY id DESC LIMIT 1"
    return int(unit.ask_value(f"SELECT id FROM decision WHERE {condition}", policy_id, seq) or 0)


def set_learned_from(unit: Unit, version_id: int, learned_from: Mapping[str, Any]) -> None:
    """Store the description of the log from which a version has learned."""
    unit.tell("UPDATE version SET learned_from = ? WHERE id = ?", to_text(learned_from), version_id)


# -- bytes --


_REMOVALS = f"run WHERE command IN ('{FORGET}', '{PRUNE}')"


def count_removals(unit: Unit) -> tuple[int, int]:
    """Return the number of removals, and the number of removals whose deleted rows may have left bytes in the file."""
    total, n_unfinished = unit.ask(f"SELECT count(*), count(*) - count(result) FROM {_REMOVALS}")[0]
    return total, n_unfinished


def pruned_until(unit: Unit) -> int:
    """Return the time before which old visits were deleted (the latest such time), or 0 if none were deleted."""
    runs = [json.loads(text) for (text,) in unit.ask("SELECT options FROM run WHERE command = ?", PRUNE)]
    return max((times.parse(options["before"]) for options in runs if options["decisions"]), default=0)


def erase_bytes(store: Store) -> None:
    """Rewrite the file of an SQLite store without the bytes of deleted rows, and empty its WAL. Raise StoreBusy if
    another process reads or writes the store; the command can then be repeated."""
    with store.read() as unit:  # a removal that another process begins later is finished by that process
        last_run_id = unit.ask_value(f"SELECT max(id) FROM {_REMOVALS}")
    try:
        _rewrite_file(store)
    except RlrecError as error:
        error.hint = "no row is left to delete; repeat the command to erase the bytes of deleted rows, too"
        raise
    update = f"UPDATE run SET result = '{{}}' WHERE id IN (SELECT id FROM {_REMOVALS} AND result IS NULL AND id <= ?)"
    store.write(lambda unit: unit.tell(update, last_run_id))


def _rewrite_file(store: Store) -> None:
    if store.engine.dialect.name == "sqlite":
        try:
            with closing(store.engine.raw_connection()) as connection:
                cursor = connection.cursor()
                cursor.execute("VACUUM")
                is_busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except store.engine.dialect.loaded_dbapi.Error as error:
            raise database_errors.translate(error, address=store.address) from error
        if is_busy:
            raise StoreBusy(f"the store {store.address} is being read", hint=database_errors.RETRY_HINT)


@contextmanager
def removal_indexes(store: Store) -> Iterator[None]:
    """Create indexes for the time of this context, on PostgreSQL only. They are on the columns that the database
    searches for every deleted row."""
    if store.engine.dialect.name != "postgresql":
        yield
        return
    columns = (name.split(".") for name in UNINDEXED)
    targets = {f"ix_removal_{table}_{column}": f"{table} ({column})" for table, column in columns}

    def create(unit: Unit) -> None:
        for name, target in targets.items():
            unit.tell(f"CREATE INDEX IF NOT EXISTS {name} ON {target}")

    store.write(create, repeatable=True)
    try:
        yield
    finally:
        store.write(lambda unit: unit.tell(f"DROP INDEX IF EXISTS {', '.join(targets)}"), repeatable=True)
