"""Exclusions, whose decisions no reader of the log sees, and the decisions that beliefs left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from rlrec.store.database.unit import Unit
from rlrec.store.log.selected import Selection

UnitIds = tuple[int | None, int | None]
"""The id of a user, or that of a session."""


class Exclusion(NamedTuple):
    """An exclusion: the decisions of a filter. by_unit: 1 where it covers only those of its listed users and
    sessions."""

    id: int
    name: str
    filter: str
    by_unit: int
    created_at: int


def all_exclusions(unit: Unit) -> list[Exclusion]:
    """The stored exclusions, by name."""
    return unit.select(Exclusion, "exclusion ORDER BY name")


def add(unit: Unit, name: str, text: str, units: Sequence[UnitIds] | None) -> Exclusion:
    """Store an exclusion of a filter. units: the users and sessions to which it is limited; None for no limit."""
    by_unit = int(units is not None)
    key = unit.add("exclusion", name=name, filter=text, by_unit=by_unit, created_at=unit.now)
    unit.insert("exclusion_unit", ("exclusion_id", "user_id", "session_id"), [(key, *ids) for ids in units or ()])
    return Exclusion(key, name, text, by_unit, unit.now)


def remove(unit: Unit, exclusion_id: int) -> None:
    """Delete an exclusion; what beliefs left out stays left out."""
    unit.tell("DELETE FROM exclusion_unit WHERE exclusion_id = ?", exclusion_id)
    unit.tell("DELETE FROM exclusion WHERE id = ?", exclusion_id)


def unit_ids(unit: Unit, exclusion_id: int) -> list[UnitIds]:
    """The id of the user, or of the session, of each unit of an exclusion."""
    rows = unit.ask("SELECT user_id, session_id FROM exclusion_unit WHERE exclusion_id = ?", exclusion_id)
    return [(user, session) for user, session in rows]


def sole_names(unit: Unit, user_ids: Collection[int]) -> list[str]:
    """The names of the exclusions that have exactly one of these users."""
    tables = "exclusion_unit x JOIN exclusion e ON e.id = x.exclusion_id"
    having = "GROUP BY e.name HAVING count(DISTINCT x.user_id) = 1 ORDER BY 1"
    return [row[0] for row in unit.ask(f"SELECT e.name FROM {tables} WHERE x.user_id IN (?*) {having}", user_ids)]


def unit_keys(unit: Unit, exclusion_id: int) -> tuple[list[str], list[str]]:
    """The keys of the users, and those of the sessions, that are units of an exclusion."""
    text = "SELECT k.key FROM exclusion_unit x JOIN {0} k ON k.id = x.{1}_id WHERE x.exclusion_id = ? ORDER BY 1"
    users = unit.ask(text.format("users", "user"), exclusion_id)
    sessions = unit.ask(text.format("session", "session"), exclusion_id)
    return [row[0] for row in users], [row[0] for row in sessions]


def session_ids(unit: Unit, exclusion_id: int, *, scope: str = "") -> list[int]:
    """The ids of the sessions of the units of an exclusion. scope: a test on decisions `d`, to find only sessions with
    such a decision; without it, sessions of a log in a folder are found, too."""
    if scope:
        text = (
            "SELECT DISTINCT v.id FROM decision d CROSS JOIN session v CROSS JOIN exclusion_unit x"
            f" WHERE {scope} AND v.id = d.session_id AND (x.session_id = v.id OR x.user_id = v.user_id)"
            " AND x.exclusion_id = ?"
        )
        return [row[0] for row in unit.ask(text, exclusion_id)]
    rows = unit_ids(unit, exclusion_id)
    users, sessions = {user for user, _ in rows} - {None}, [session for _, session in rows if session is not None]
    return sessions + [row[0] for row in unit.ask("SELECT id FROM session WHERE user_id IN (?*)", users)]


def omit(unit: Unit, version_id: int, selection: Selection) -> None:
    """Record that a belief leaves out the selected decisions that are excluded."""
    tests = [*replace(selection, without=()).conditions(), f"({' OR '.join(selection.without)})"]
    source = f"SELECT d.id, CAST(? AS BIGINT) FROM decision d WHERE {' AND '.join(tests)}"
    if unit.tell(f"INSERT INTO omission (decision_id, version_id) {source} ON CONFLICT DO NOTHING", version_id):
        unit.tell("UPDATE version SET has_omissions = 1 WHERE id = ?", version_id)


def omissions(unit: Unit, version_ids: Collection[int], decision_ids: Collection[int]) -> set[tuple[int, int]]:
    """The pairs (version, decision) of these versions and decisions where the version's belief left the decision
    out."""
    text = "SELECT version_id, decision_id FROM omission WHERE decision_id IN (?*) AND version_id IN (?*)"
    return {(version, decision) for version, decision in unit.ask(text, decision_ids, version_ids)}


def any_learned(unit: Unit, log: Selection, test: str, version_ids: Collection[int], *, omitted: bool) -> bool:
    """Whether a log has a decision that passes a test and that one of these versions omits (`omitted`), or none of
    them."""
    omission = "SELECT 1 FROM omission o WHERE o.decision_id = d.id AND o.version_id IN (?*)"
    tests = [*log.conditions(), test, f"{'' if omitted else 'NOT '}EXISTS ({omission})"]
    return unit.ask_row(f"SELECT 1 FROM decision d WHERE {' AND '.join(tests)} LIMIT 1", version_ids) is not None


def omitted_ids(unit: Unit, version_id: int, first: int, last: int) -> list[int]:
    """The decisions of a range of ids that a belief left out."""
    text = "SELECT decision_id FROM omission WHERE decision_id BETWEEN ? AND ? AND version_id = ?"
    return [row[0] for row in unit.ask(text, first, last, version_id)]
