"""Queries here handle users with several keys. When a user is merged into another user, the key of the merged user
leads to the other user (the person), to whom all rows of the merged user then belong."""

from __future__ import annotations

from collections.abc import Collection

from rlrec.store.database.unit import Unit

_LAST_DECISION = (
    "INSERT INTO last_decision (user_id, decision_id) SELECT ?, decision_id FROM last_decision WHERE user_id = ?"
    " ON CONFLICT (user_id) DO UPDATE SET decision_id = excluded.decision_id"
    " WHERE excluded.decision_id > last_decision.decision_id"
)


def main_keys(unit: Unit, keys: Collection[str]) -> dict[str, str]:
    """Return, by user key, the key of the person into whom the user was merged. Users who were not merged are left
    out."""
    tables = "users u JOIN merged_user m ON m.user_id = u.id JOIN users p ON p.id = m.person_id"
    return dict(unit.ask(f"SELECT u.key, p.key FROM {tables} WHERE u.key IN (?*)", keys)) if keys else {}


def all_keys(unit: Unit, keys: Collection[str]) -> dict[str, set[str]]:
    """Return all keys of the person to whom a key belongs, by each of the given keys. Persons with only one key are
    left out."""
    tables = (
        "users k LEFT JOIN merged_user m ON m.user_id = k.id"
        " JOIN merged_user n ON n.person_id = coalesce(m.person_id, k.id)"
        " JOIN users o ON o.id IN (n.user_id, n.person_id)"
    )
    keys_of_persons = unit.ask_groups(f"SELECT k.key, o.key FROM {tables} WHERE k.key IN (?*)", keys)
    return {key: set(keys_of_person) for key, keys_of_person in keys_of_persons.items()}


def merge(unit: Unit, user_id: int, person_id: int) -> int:
    """Merge a user into a person. All sessions of the user, and all keys that lead to the user, then belong to the
    person. Return how many sessions moved. The caller must have locked all policies."""
    unit.tell("UPDATE merged_user SET person_id = ? WHERE person_id = ?", person_id, user_id)
    unit.insert("merged_user", ("user_id", "person_id", "at"), [(user_id, person_id, unit.now)])
    _merge_assignments(unit, user_id, person_id)
    unit.tell(_LAST_DECISION, person_id, user_id)
    unit.tell("UPDATE exclusion_unit SET user_id = ? WHERE user_id = ?", person_id, user_id)
    return unit.tell("UPDATE session SET user_id = ? WHERE user_id = ?", person_id, user_id)


def _merge_assignments(unit: Unit, user_id: int, person_id: int) -> None:
    """Give the person the variant that was assigned first, to the user or to the person. The later variant stays with
    the merged user, so that an audit can explain the decisions of this variant."""
    person_experiments = "SELECT experiment_id FROM assignment WHERE user_id = ?"
    update = f"UPDATE assignment SET user_id = ? WHERE user_id = ? AND experiment_id NOT IN ({person_experiments})"
    unit.tell(update, person_id, user_id, person_id)
    pairs = unit.ask(
        "SELECT m.id, m.variant_id, m.at, p.id, p.variant_id, p.at FROM assignment m"
        " JOIN assignment p ON p.experiment_id = m.experiment_id WHERE m.user_id = ? AND p.user_id = ? AND m.at < p.at",
        user_id, person_id,
    )  # fmt: skip
    for first_id, first_variant, first_at, later_id, later_variant, later_at in pairs:
        swapped_rows = [(first_variant, first_at, later_id), (later_variant, later_at, first_id)]
        unit.tell_each("UPDATE assignment SET variant_id = ?, at = ? WHERE id = ?", swapped_rows)
