"""The arms that each slot of a decision could show, where these differ from slot to slot."""

from __future__ import annotations

from collections.abc import Collection

from rlrec.store.unit import Unit, parse


def any_set(unit: Unit) -> bool:
    """Whether the store has one."""
    return unit.ask_row("SELECT decision_id FROM slot_set LIMIT 1") is not None


def find(unit: Unit, decision_ids: Collection[int]) -> dict[int, list[list[int]]]:
    """The ids of the arms of each slot, from the top, of those of these decisions that have some."""
    rows = unit.ask("SELECT decision_id, arms FROM slot_set WHERE decision_id IN (?*)", decision_ids)
    return {number: parse(arms, f"arms of the slots of decision {number}", list) for number, arms in rows}
