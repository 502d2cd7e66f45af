"""Data of imported lines beside their slates, decision by decision."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from rlrec.store import contents, slot_sets
from rlrec.store.unit import Unit, damaged, parse


def find(unit: Unit, decision_ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """Data by decision, as far as there is some: keep_probability, estimated, features (by arm key), slot_sets (ids by
    slot) and support (probabilities in order of the ids of its eligible arms)."""
    data = defaultdict[int, dict[str, Any]](dict)
    marks = "SELECT id, keep_probability, estimated FROM decision WHERE id IN (?*) AND imported = 1"
    for number, keep_probability, estimated in unit.ask(marks, decision_ids):
        if keep_probability is not None:
            data[number]["keep_probability"] = keep_probability
        if estimated:
            data[number]["estimated"] = True
    features = unit.ask("SELECT decision_id, context_id FROM decision_features WHERE decision_id IN (?*)", decision_ids)
    bodies = contents.context_bodies(unit, {context for _, context in features})
    for number, context in features:
        data[number]["features"] = parse(bodies[context], f"features of decision {number}")
    for number, sets in slot_sets.find(unit, decision_ids).items():
        data[number]["slot_sets"] = sets
    for number, probabilities in supports(unit, decision_ids).items():
        data[number]["support"] = probabilities.tolist()
    return dict(data)


def any_support(unit: Unit) -> bool:
    """Whether some decision has the probabilities of all its arms."""
    return unit.ask_row("SELECT decision_id FROM logged_support LIMIT 1") is not None


def supports(unit: Unit, decision_ids: Collection[int]) -> dict[int, array[float]]:
    """Probabilities at position 1 of the eligible arms, in order of their ids, of these decisions that have them."""
    rows = unit.ask("SELECT decision_id, probabilities FROM logged_support WHERE decision_id IN (?*)", decision_ids)
    for number, packed in rows:
        if len(packed) % 8:
            raise damaged(f"the support of decision {number} is damaged")
    return {number: array("d", bytes(packed)) for number, packed in rows}
