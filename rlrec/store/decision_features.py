"""Features of arms for one decision, in place of those of the catalogue."""

from __future__ import annotations

import json
from collections.abc import Collection

from rlrec.store import contents
from rlrec.store.unit import Unit, parse


def any_features(unit: Unit) -> bool:
    """Whether some decision has them."""
    return unit.ask_row("SELECT decision_id FROM decision_features LIMIT 1") is not None


def contexts(unit: Unit, decision_ids: Collection[int]) -> dict[int, int]:
    """By decision the context that holds its features."""
    query = "SELECT decision_id, context_id FROM decision_features WHERE decision_id IN (?*)"
    return dict(unit.ask(query, decision_ids))


def by_context(unit: Unit, context_ids: Collection[int]) -> dict[int, dict[str, str]]:
    """JSON of the features of each arm, by its key, in these contexts."""
    bodies = contents.context_bodies(unit, context_ids)
    listed = {number: parse(body, f"body of context {number}") for number, body in bodies.items()}
    return {
        number: {key: json.dumps(features, ensure_ascii=False) for key, features in by_arm.items()}
        for number, by_arm in listed.items()
    }
