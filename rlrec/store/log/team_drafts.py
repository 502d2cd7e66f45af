"""Teams of interleaved slates, one a decision; never changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rlrec.store.database.unit import Unit

TEAMS = "AB"  # letters of the two rankers


def add(unit: Unit, rows: Iterable[tuple[int, str]]) -> None:
    """Store the teams of decisions: a letter a position."""
    unit.insert("team_draft", ("decision_id", "teams"), rows)


def find(unit: Unit, decision_ids: Collection[int]) -> dict[int, str]:
    """The teams of these decisions; those without any are left out."""
    return dict(unit.ask("SELECT decision_id, teams FROM team_draft WHERE decision_id IN (?*)", decision_ids))
