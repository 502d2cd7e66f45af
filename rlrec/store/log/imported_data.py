"""This module reads what the lines of an imported log state about a decision in addition to its slate."""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Collection
from itertools import compress
from typing import Any

from rlrec.log_fields import STATED_FIELDS
from rlrec.store.database.unit import Unit, damage_error, parse
from rlrec.store.log import contents


def find(unit: Unit, decision_ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """Return what imported lines state in addition to the slate, by decision id.

    For each decision the result is a dictionary with the values of STATED_FIELDS, `features` (the features of each
    arm, by arm key), `slot_sets` (the arm ids that each slot could show) and `support` (the probability of each
    eligible arm, in order of arm id). Values that the line did not state are left out."""
    data = defaultdict[int, dict[str, Any]](dict)
    names = ", ".join(field.name for field in STATED_FIELDS)
    query = f"SELECT id, {names} FROM decision WHERE id IN (?*) AND imported = 1"
    for decision_id, *values in unit.ask(query, decision_ids):
        for field, value in zip(STATED_FIELDS, values, strict=True):
            if value is not None and field.kind(value) is not False:
                data[decision_id][field.key] = field.kind(value)
    context_ids = feature_contexts(unit, decision_ids)
    bodies = contents.context_bodies(unit, set(context_ids.values()))
    for decision_id, context_id in context_ids.items():
        data[decision_id]["features"] = parse(bodies[context_id], f"features of decision {decision_id}")
    for decision_id, slot_arms in slot_sets(unit, decision_ids).items():
        data[decision_id]["slot_sets"] = slot_arms
    for decision_id, probabilities in supports(unit, decision_ids).items():
        data[decision_id]["support"] = probabilities.tolist()
    return dict(data)


def used_tables(unit: Unit, tables: Collection[str]) -> frozenset[str]:
    """Return the names of those tables that have at least one row. tables: names of tables for data that only some
    decisions have."""
    (row,) = unit.ask(f"SELECT {', '.join(f'EXISTS (SELECT 1 FROM {table})' for table in tables)}")
    return frozenset(compress(tables, row))


def supports(unit: Unit, decision_ids: Collection[int]) -> dict[int, array[float]]:
    """Return the probability at position 1 of each eligible arm, in order of arm id, by decision id. Decisions without
    stored probabilities are left out."""
    rows = unit.ask("SELECT decision_id, probabilities FROM logged_support WHERE decision_id IN (?*)", decision_ids)
    return {decision_id: read_support(decision_id, blob) for decision_id, blob in rows}


def read_support(decision_id: int, blob: bytes) -> array[float]:
    """Return the probabilities that a row of the table `logged_support` holds. blob: the bytes of these numbers."""
    if len(blob) % 8:
        raise damage_error(f"the support of decision {decision_id} is damaged")
    return array("d", bytes(blob))


def slot_sets(unit: Unit, decision_ids: Collection[int]) -> dict[int, list[list[int]]]:
    """Return, by decision id, a list with the arm ids that each slot could show, from the top slot down. Decisions
    whose slots could all show the same arms are left out."""
    rows = unit.ask("SELECT decision_id, arms FROM slot_set WHERE decision_id IN (?*)", decision_ids)
    return {key: parse(arms, f"arms of the slots of decision {key}", list) for key, arms in rows}


def feature_contexts(unit: Unit, decision_ids: Collection[int]) -> dict[int, int]:
    """Return, by decision id, the id of the stored text with the features of the arms. Only decisions whose imported
    lines stated features of the arms, in place of the features in the catalogue, are in the result."""
    query = "SELECT decision_id, context_id FROM decision_features WHERE decision_id IN (?*)"
    return dict(unit.ask(query, decision_ids))


def features(unit: Unit, context_ids: Collection[int]) -> dict[int, dict[str, str]]:
    """Return the features of each arm as JSON, by context id and then by arm key. context_ids: ids from
    `feature_contexts`."""
    bodies = contents.context_bodies(unit, context_ids)
    features_by_context = {key: parse(body, f"body of context {key}") for key, body in bodies.items()}
    return {
        context_id: {key: json.dumps(features, ensure_ascii=False) for key, features in features_by_arm.items()}
        for context_id, features_by_arm in features_by_context.items()
    }
